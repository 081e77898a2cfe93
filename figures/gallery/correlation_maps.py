"""How alike two inputs are after a layer, and how a deep ReLU net makes all inputs alike."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, panels
from varprop.simulator.activations import activation

SETTINGS: dict[str, Any] = {
    "activations": ["linear", "relu", "tanh", "selu", "gelu", "relu6"],
    "q": 1.0,
    "points": 101,
    "layers": 1000,
    "starts": [-0.5, 0.0, 0.9],
}


def compute(seed: int) -> Rows:
    """Return the maps at second moment one, and 1 - c layer by layer under ReLU; nothing is drawn at random."""
    c = np.linspace(-1.0, 1.0, SETTINGS["points"])
    q = np.full_like(c, SETTINGS["q"])
    rows: Rows = []
    for name in SETTINGS["activations"]:
        phi = activation(name)
        after = phi.dual(q, q, c) / phi.second_moment(SETTINGS["q"])
        rows += [{"panel": "map", "series": name, "x": float(x), "y": float(y)} for x, y in zip(c, after, strict=True)]
    relu = activation("relu")
    for start in SETTINGS["starts"]:
        value = start
        for layer in range(SETTINGS["layers"] + 1):
            # Every layer at first, then evenly on the log axis.
            if layer < 20 or layer % max(1, 10 ** (len(str(layer)) - 2)) == 0:
                rows.append({"panel": "depth", "series": start, "x": layer, "y": 1.0 - value})
            value = float(2 * relu.dual(1.0, 1.0, value))
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw the maps with the identity, and the decay with its asymptote 9 pi^2 / (2 l^2)."""
    figure, (maps, decay) = panels(width, 2)
    maps.plot([-1, 1], [-1, 1], color="0.6", lw=0.6, ls="--")
    styles = ["-", "-", "-", "-", "-", (0, (4, 1.5))]
    for name, colour, line in zip(SETTINGS["activations"], COLOURS, styles, strict=False):
        maps.plot(*columns(select(rows, panel="map", series=name), "x", "y"), color=colour, ls=line, label=name)
    maps.set_xlabel("correlation before the layer, $c$")
    maps.set_ylabel("correlation after it, $f(c)$")
    maps.set_xticks([-1, -0.5, 0, 0.5, 1])
    maps.legend(loc="upper left")
    for start, colour in zip(SETTINGS["starts"], COLOURS, strict=False):
        x, y = columns(select(rows, panel="depth", series=start), "x", "y")
        decay.plot(x[1:], y[1:], color=colour, label=f"ReLU, $c_0$ = {start:g}")
    layers = np.logspace(0.7, 3, 50)
    decay.plot(layers, 4.5 * np.pi**2 / layers**2, color="0.4", ls=":", label=r"$9\pi^2 / (2\,\ell^2)$")
    decay.set_xscale("log")
    decay.set_yscale("log")
    decay.set_xlabel(r"layer $\ell$")
    decay.set_ylabel(r"$1 - c_\ell$")
    decay.legend(loc="lower left")
    return figure
