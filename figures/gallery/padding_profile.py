"""Zero padding lets the signal leak out at the edges: the slowest mode decays by a known factor a layer."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import COLOURS, POINTS, panels
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict

SETTINGS: dict[str, Any] = {
    "framework": "torch",
    "init": "he_normal",
    "activation": "relu",
    "kernel": 3,
    "sizes": [4, 8, 16, 32],
    "width": 32,
    "depth": 30,
    "batch": 4,
    "trials": 200,
}


def compute(seed: int) -> Rows:
    """Return the map's average second moment after every convolution, over the first's without edges."""
    rows: Rows = []
    for size in SETTINGS["sizes"]:
        net = NetworkBuilder("padded", SETTINGS["framework"], (SETTINGS["width"], size, size))
        for _ in range(SETTINGS["depth"]):
            net.activation(SETTINGS["activation"])
            net.conv2d(SETTINGS["width"], SETTINGS["kernel"], parse_initializer(SETTINGS["init"]))
        network = net.build()
        batch = load_batch("gaussian", network.nodes[0].shape, SETTINGS["batch"], seed)
        for report in (predict(network, batch), simulate(network, batch, trials=SETTINGS["trials"], seed=seed)):
            layers = [m for node, m in zip(network.nodes, report.layers, strict=True) if node.kind != "activation"]
            for layer, moments in enumerate(layers):
                for direction in ("forward", "backward"):
                    value = getattr(moments, direction).second_moment
                    point = {"size": size, "layer": layer, "engine": report.engine, "direction": direction}
                    rows.append({**point, "value": value})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw averages over the map, forward and backward, with the slope of the slowest mode."""
    figure, axes = panels(width, 2)
    for axis, direction in zip(axes, ("forward", "backward"), strict=True):
        for size, colour in zip(SETTINGS["sizes"], COLOURS, strict=False):
            chosen = select(rows, size=size, direction=direction)
            x, y = columns(select(chosen, engine="theory"), "layer", "value")
            axis.plot(x, y, color=colour, label=f"{size} x {size}")
            axis.plot(*columns(select(chosen, engine="monte-carlo"), "layer", "value"), color=colour, **POINTS)
            mode = ((1 + 2 * math.cos(math.pi / (size + 1))) / 3) ** 2
            # The mode has the line's slope; its height is read off where it has won, at the far end.
            steps = x - x[-1] if direction == "forward" else x[0] - x
            anchor = y[-1] if direction == "forward" else y[0]
            axis.plot(x, anchor * mode**steps, color="0.4", ls=":", zorder=4)
        axis.set_yscale("log")
        axis.set_ylim(bottom=1e-4)
        axis.set_xlabel("convolution")
    axes[1].plot([], [], color="0.4", ls=":", label="slowest mode")
    axes[0].set_ylabel("second moment $q$, average over the map")
    axes[1].set_ylabel("gradient's $g$, average over the map")
    axes[1].legend(loc="lower right")
    return figure
