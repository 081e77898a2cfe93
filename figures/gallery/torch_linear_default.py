"""torch's default for linear layers, a = sqrt(5), and the misreading a = 5: what depth makes of a factor 13/3."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import BARS, COLOURS, panels
from varprop.simulator.propagate import Settings, prepare, propagate

SETTINGS: dict[str, Any] = {
    "network": "mlp",
    "framework": "torch",
    "activation": "relu",
    "width": 256,
    "depth": 10,
    "slopes": {"a = sqrt(5), torch's default": math.sqrt(5), "a = 5": 5.0},
    "batch": 16,
    "trials": 60,
}


def compute(seed: int) -> Rows:
    """Return second moments layer by layer, forward and backward, theory and Monte Carlo."""
    shared = {key: SETTINGS[key] for key in ("framework", "activation", "width", "depth", "batch", "trials")}
    rows: Rows = []
    for series, slope in SETTINGS["slopes"].items():
        run = propagate(prepare(Settings("mlp", init=f"he_uniform(a={slope!r})", seed=seed, **shared)))
        for report in run.reports:
            layers = [m for node, m in zip(run.network.nodes, report.layers, strict=True) if node.kind == "linear"]
            for number, layer in enumerate(layers, 1):
                for direction in ("forward", "backward"):
                    found = getattr(layer, direction)
                    point = {"series": series, "engine": report.engine, "direction": direction, "layer": number}
                    rows.append({**point, "value": found.second_moment, "error": found.standard_error})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw both directions, with the factors 1/6 and 1/26 a layer."""
    figure, axes = panels(width, 2)
    factors = (6, 26)
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        for (series, colour), factor in zip(zip(SETTINGS["slopes"], COLOURS, strict=False), factors, strict=True):
            chosen = select(rows, series=series, direction=direction)
            x, y = columns(select(chosen, engine="theory"), "layer", "value")
            axis.plot(x, y, color=colour, label=f"{series}: 1/{factor} a layer")
            far = y[-1] if direction == "backward" else y[0]
            steps = x - x[0] if direction == "forward" else x[-1] - x
            axis.plot(x, far * float(factor) ** -steps, color="0.3", ls=":", lw=0.8, zorder=4)
            x, y, error = columns(select(chosen, engine="monte-carlo"), "layer", "value", "error")
            axis.errorbar(x, y, yerr=np.minimum(error, 0.999 * y), color=colour, **BARS)
        axis.set_yscale("log")
        axis.set_xlabel("layer")
    axes[0].set_ylabel("second moment $q$")
    axes[1].set_ylabel("gradient's $g$")
    axes[0].legend(loc="lower left")
    return figure
