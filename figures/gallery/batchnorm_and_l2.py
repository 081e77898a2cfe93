"""Without batch norm the signal dies and decay rules alone; ten printed weights follow from nine epochs of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, panels
from varprop.simulator.experiments.batchnorm_and_l2 import DECAY, SGD, STEPS
from varprop.simulator.propagate import Settings, prepare, propagate
from varprop.simulator.weight_decay import pure_decay

SETTINGS: dict[str, Any] = {
    "network": "mobilenet_v2",
    "framework": "keras",
    "init": "default",
    "norms": {"no batch norm": "none", "batch norm": "batch"},
    "size": 64,
    "batch": 32,
    "input": "gaussian",
}


def compute(seed: int) -> Rows:
    """Return theory's signal by layer with and without batch norm, and the printed and predicted weights."""
    shared = {key: SETTINGS[key] for key in ("framework", "init", "size", "batch", "input")}
    rows: Rows = []
    for series, norm in SETTINGS["norms"].items():
        run = propagate(prepare(Settings("mobilenet_v2", norm=norm, seed=seed, engines=("theory",), **shared)))
        assert run.theory is not None
        layers = [m for node, m in zip(run.network.nodes, run.theory.layers, strict=True) if node.fan_in is not None]
        for number, layer in enumerate(layers, 1):
            rows.append({"panel": "signal", "series": series, "x": number, "y": layer.forward.second_moment})
    factor = pure_decay(SGD, STEPS)
    for first, last in zip(DECAY.first, DECAY.last, strict=True):
        rows.append({"panel": "weights", "x": first, "y": last, "predicted": factor * first})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw the signal by layer, and the weights of epoch 10 against those of epoch 1 with the line of pure decay."""
    figure, (signal, weights) = panels(width, 2)
    for series, colour in zip(SETTINGS["norms"], COLOURS, strict=False):
        signal.plot(*columns(select(rows, panel="signal", series=series), "x", "y"), color=colour, label=series)
    signal.set_yscale("log")
    signal.set_xlabel("layer with weights")
    signal.set_ylabel("second moment $q$ of its output")
    signal.legend(loc="lower left")
    x, printed, predicted = columns(select(rows, panel="weights"), "x", "y", "predicted")
    order = np.argsort(x)
    label = rf"$(1 - \eta\lambda)^{{{STEPS}}}$ = {pure_decay(SGD, STEPS):.7f}"
    weights.plot(x[order], predicted[order], color=COLOURS[0], label=label)
    weights.plot(x, printed, color=COLOURS[1], label="printed, L2 without batch norm", **POINTS)
    worst = float(np.max(np.abs(printed - predicted)))
    weights.set_xlabel(f"weight at epoch 1 (largest difference {worst:.0e})")
    weights.set_ylabel("weight at epoch 10")
    weights.legend(loc="upper left")
    return figure
