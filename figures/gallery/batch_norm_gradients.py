"""Batch norm keeps the signal and multiplies the gradient at every layer, the more the smaller the batch."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, panels
from varprop.simulator.activations import activation
from varprop.simulator.propagate import Settings, prepare, propagate

SETTINGS: dict[str, Any] = {
    "network": "mlp",
    "norm": "batch",
    "framework": "torch",
    "init": "he_normal",
    "width": 256,
    "activations": ["linear", "relu", "tanh", "selu"],
    "depth": 40,
    "batch": 64,
    "batches": [4, 6, 8, 12, 16, 32, 64, 128],
    "batches_depth": 12,
    "trials": 20,
}


def compute(seed: int) -> Rows:
    """Return the gradient layer by layer in a deep net, and its mean factor a layer against the batch size."""
    rows: Rows = []
    for name in SETTINGS["activations"]:
        for point in _gradients(name, SETTINGS["depth"], SETTINGS["batch"], seed):
            rows.append({"panel": "depth", "series": name, **point})
        for batch in SETTINGS["batches"]:
            points = _gradients(name, SETTINGS["batches_depth"], batch, seed)
            for engine in ("theory", "monte-carlo"):
                logs = [point["log10_g"] for point in points if point["engine"] == engine]
                # The last layer before the logits sees another cotangent, the first layer another input.
                rate = 10 ** ((logs[1] - logs[-2]) / (len(logs) - 3))
                rows.append({"panel": "batch", "series": name, "engine": engine, "batch": batch, "factor": rate})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw log gradients against layers, and factors a layer against the batch with their limits for large ones."""
    figure, (depth, batches) = panels(width, 2)
    for name, colour in zip(SETTINGS["activations"], COLOURS, strict=False):
        for axis, panel, x, y in ((depth, "depth", "layer", "log10_g"), (batches, "batch", "batch", "factor")):
            chosen = select(rows, panel=panel, series=name)
            axis.plot(*columns(select(chosen, engine="theory"), x, y), color=colour, label=name)
            axis.plot(*columns(select(chosen, engine="monte-carlo"), x, y), color=colour, **POINTS)
        phi = activation(name)
        variance = float(phi.second_moment(1.0) - phi.mean(1.0) ** 2)
        limit = float(phi.derivative_second_moment(1.0)) / variance
        batches.axhline(limit, color=colour, ls=":", lw=0.8)
    depth.set_xlabel("layer")
    depth.set_ylabel(r"$\log_{10}$ of gradient's second moment $g$")
    depth.legend(loc="upper right", title=f"batch {SETTINGS['batch']}")
    batches.set_xscale("log", base=2)
    batches.set_yscale("log")
    batches.set_xticks(SETTINGS["batches"], [str(batch) for batch in SETTINGS["batches"]])
    batches.set_yticks([1, 1.2, 1.5, 2, 3], ["1", "1.2", "1.5", "2", "3"])
    batches.minorticks_off()
    batches.set_xlabel("batch size $B$")
    batches.set_ylabel("factor of $g$ a layer")
    return figure


def _gradients(name: str, depth: int, batch: int, seed: int) -> list[dict[str, Any]]:
    shared = {key: SETTINGS[key] for key in ("framework", "norm", "init", "width", "trials")}
    run = propagate(prepare(Settings("mlp", depth=depth, activation=name, batch=batch, seed=seed, **shared)))
    linear = [index for index, node in enumerate(run.network.nodes) if node.kind == "linear"]
    return [
        {"engine": report.engine, "layer": number, "log10_g": log / math.log(10)}
        for report in run.reports
        for number, log in enumerate((report.layers[index].backward.log_second_moment for index in linear), 1)
    ]
