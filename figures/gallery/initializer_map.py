"""Initializer against activation: what one layer does to the signal, and what depth then does to the gradient."""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, select
from varprop.figures.style import panels
from varprop.simulator.gain_table import gain_rows

SETTINGS: dict[str, Any] = {
    "activations": ["linear", "relu", "relu6", "elu", "selu", "gelu", "silu", "tanh", "sigmoid"],
    "initializers": [
        "default",
        "he_normal",
        "glorot_normal",
        "lecun_normal",
        "random_normal",
        "random_normal(std=1.0)",
    ],
    "framework": "torch",
    "layer": "dense",
    "width": 256,
}
_LABELS = {"default": "torch default", "random_normal": "normal(0.05)", "random_normal(std=1.0)": "normal(1)"}


def compute(seed: int) -> Rows:
    """Return a row per activation and initializer, from mean field theory; nothing is drawn at random."""
    of = SETTINGS
    rows = gain_rows(of["activations"], of["initializers"], [of["framework"]], of["width"])
    return [asdict(row) for row in rows if row.layer == of["layer"]]


def draw(rows: Rows, width: float) -> Figure:
    """Draw log2 factors a layer: of the signal at q = 1, of the gradient there and where depth leads."""
    figure, axes = panels(width, 3, aspect=1.15)
    names, rules = SETTINGS["activations"], SETTINGS["initializers"]
    titles = {
        "forward": "signal, from $q$ = 1",
        "backward": "gradient, from $q$ = 1",
        "chi": r"gradient at depth, $\chi$",
    }
    norm = TwoSlopeNorm(0.0, -6.0, 6.0)
    for number, (axis, (key, title)) in enumerate(zip(axes, titles.items(), strict=True)):
        values = np.array([[_log2(rows, name, rule, key) for rule in rules] for name in names])
        image = axis.imshow(values, norm=norm, cmap="RdBu_r", aspect="auto")
        for (row, column), value in np.ndenumerate(values):
            pale = abs(value) < 3.5
            axis.text(column, row, f"{value:.1f}", ha="center", va="center", fontsize=6, color="k" if pale else "w")
        # One list of activations serves all panels side by side, one of initializers all that are below one another.
        first, last = (True, number == 2) if width < 5 else (number == 0, True)
        axis.set_xticks(range(len(rules)), [_LABELS.get(rule, rule) * last for rule in rules], rotation=90)
        axis.set_yticks(range(len(names)), [name * first for name in names])
        axis.set_title(title, fontsize=7)
        axis.grid(visible=False)
        axis.spines[:].set_visible(False)
    figure.colorbar(image, ax=axes, label=r"$\log_2$ of factor a layer", extend="both", shrink=0.6)
    return figure


def _log2(rows: Rows, name: str, rule: str, key: str) -> float:
    (row,) = select(rows, activation=name, initializer=rule)
    return math.log2(row[key])
