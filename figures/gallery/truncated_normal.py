"""Keras's he_normal restores the deviation that truncation takes; TensorFlow's truncated_normal does not."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from numpy.typing import NDArray

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import BARS, COLOURS, panels
from varprop.simulator.initializers import draw as draw_weights
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Initializer, Network, NetworkBuilder
from varprop.simulator.theory import predict

SETTINGS: dict[str, Any] = {
    "framework": "keras",
    "histogram": {"fan_in": 2, "weights": 100_000, "bin": 0.2},
    "decay": {"depth": 24, "width": 32, "size": 16, "batch": 4, "trials": 400},
    "saturation": {"fan_in": [1, 2, 3, 4, 6, 9, 16, 32, 64], "units": 200_000, "beyond": 2.0},
}
Column = NDArray[np.float64]
_HE, _CUT = "he_normal", "truncated_normal"
_COLOURS = {_HE: COLOURS[0], _CUT: COLOURS[1], "normal": COLOURS[6], "uniform": COLOURS[2]}
_LABELS = {_HE: "he_normal", _CUT: r"truncated_normal($\sqrt{2/n}$)"}


def compute(seed: int) -> Rows:
    """Return densities of weights, second moments layer by layer, and shares of saturated units."""
    rng = np.random.default_rng(seed)
    return [*_histogram(rng), *_decay(seed), *_saturation(rng)]


def _histogram(rng: np.random.Generator) -> Rows:
    of = SETTINGS["histogram"]
    edges = np.arange(-3.0, 3.0 + of["bin"] / 2, of["bin"])
    rows: Rows = []
    for name in (_HE, _CUT):
        counts = np.histogram(_weights(name, of["fan_in"], of["weights"], rng), edges)[0]
        for low, count in zip(edges[:-1], counts, strict=True):
            density = count / of["weights"] / of["bin"]
            rows.append({"panel": "histogram", "series": name, "x": low + of["bin"] / 2, "y": density})
    return rows


def _decay(seed: int) -> Rows:
    of = SETTINGS["decay"]
    rows: Rows = []
    for name in (_HE, _CUT):
        network = _chain(name)
        batch = load_batch("gaussian", network.nodes[0].shape, of["batch"], seed)
        reports = [predict(network, batch), simulate(network, batch, trials=of["trials"], seed=seed)]
        for report in reports:
            layers = [m for node, m in zip(network.nodes, report.layers, strict=True) if node.fan_in is not None]
            for layer, moments in enumerate(layers, 1):
                found = moments.forward
                rows.append(
                    {
                        "panel": "decay",
                        "series": name,
                        "engine": report.engine,
                        "x": layer,
                        "y": found.second_moment,
                        "error": found.standard_error,
                    }
                )
    return rows


def _saturation(rng: np.random.Generator) -> Rows:
    of = SETTINGS["saturation"]
    rows: Rows = []
    for fan_in in of["fan_in"]:
        for name in ("normal", _CUT, "uniform"):
            # Inputs of +-1, as saturated units before would give them; weights of variance 1 / n, after the cut.
            rule = {"normal": "random_normal(std={})", _CUT: "truncated_normal(std={}, after=true)"}.get(name)
            std = math.sqrt(1 / fan_in)
            text = rule.format(std) if rule else f"random_uniform(bound={math.sqrt(3) * std})"
            z = _weights(text, fan_in, of["units"] * fan_in, rng).sum(axis=1)
            share = float(np.mean(np.abs(z) > of["beyond"]))
            error = math.sqrt(share * (1 - share) / of["units"])
            rows.append({"panel": "saturation", "series": name, "x": fan_in, "y": share, "error": error})
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw weights, the signal over depth, and what truncation does to saturation at equal variance."""
    figure, (histogram, decay, saturation) = panels(width, 3, aspect=1.0)
    for name in (_HE, _CUT):
        x, y = columns(select(rows, panel="histogram", series=name), "x", "y")
        edges = np.append(x, x[-1] + SETTINGS["histogram"]["bin"]) - SETTINGS["histogram"]["bin"] / 2
        histogram.stairs(y, edges, color=_COLOURS[name], label=_LABELS[name])
        chosen = select(rows, panel="decay", series=name)
        x, y = columns(select(chosen, engine="theory"), "x", "y")
        decay.plot(x, y, color=_COLOURS[name], label=_LABELS[name])
        x, y, error = columns(select(chosen, engine="monte-carlo"), "x", "y", "error")
        decay.errorbar(x, y, yerr=error, color=_COLOURS[name], **BARS)
    histogram.set_ylim(top=1.45 * max(row["y"] for row in rows if row["panel"] == "histogram"))
    histogram.set_xlabel(f"weight, $n$ = fan_in = {SETTINGS['histogram']['fan_in']}")
    histogram.set_ylabel("density")
    histogram.legend(loc="upper center")
    decay.set_yscale("log")
    decay.set_xlabel("convolution")
    decay.set_ylabel("second moment $q$")
    decay.legend(loc="lower left")
    for name in ("normal", _CUT, "uniform"):
        x, y, error = columns(select(rows, panel="saturation", series=name), "x", "y", "error")
        saturation.errorbar(x, y, yerr=error, fmt="o-", color=_COLOURS[name], label=name, elinewidth=0.7)
    saturation.set_xscale("log")
    saturation.set_xlabel("fan_in (variance 1 / fan_in)")
    saturation.set_ylabel("units with $|z| > 2$ at inputs $\\pm 1$")
    saturation.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    saturation.legend(loc="lower right")
    return figure


def _weights(text: str, fan_in: int, count: int, rng: np.random.Generator) -> Column:
    """Draw rows of fan_in weights; bare truncated_normal means deviation sqrt(2 / fan_in) before the cut."""
    net = NetworkBuilder("unit", SETTINGS["framework"], (fan_in,))
    net.linear(count // fan_in, _initializer(text, fan_in))
    network = net.build()
    return draw_weights(weight_law(network.nodes[1], network.framework), network.nodes[1], rng)


def _chain(text: str) -> Network:
    of = SETTINGS["decay"]
    net = NetworkBuilder("chain", SETTINGS["framework"], (3, of["size"], of["size"]))
    for _ in range(of["depth"]):
        net.conv2d(of["width"], 3, _initializer(text, 9 * net.shape()[0]))
        net.activation("relu")
    return net.build()


def _initializer(text: str, fan_in: int) -> Initializer:
    return parse_initializer(f"{_CUT}(std={math.sqrt(2 / fan_in)})" if text == _CUT else text)
