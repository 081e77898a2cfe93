"""What one draw of the weights does is log-normal: its spread grows with depth over width, its median falls."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import BARS, COLOURS, panels
from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo.engine import simulate_trials
from varprop.simulator.theory import predict

SETTINGS: dict[str, Any] = {
    "network": "mlp",
    "activation": "relu",
    "init": "he_normal",
    "framework": "torch",
    "depth": 32,
    "widths": [16, 32, 64, 128, 256],
    "histograms": [16, 64, 256],
    "batch": 1,
    "trials": 1000,
    "bins": 40,
}


def compute(seed: int) -> Rows:
    """Return histograms of the logits' log second moment over draws, and its mean and variance by width."""
    return [row for width in SETTINGS["widths"] for row in _width(width, seed)]


def draw(rows: Rows, width: float) -> Figure:
    """Draw the laws at some widths, and their variance and mean against width, and the line 5 L / n."""
    figure, (histogram, scaling) = panels(width, 2)
    of = SETTINGS["widths"]
    for neurons, colour in zip(SETTINGS["histograms"], COLOURS, strict=False):
        bars = select(rows, panel="histogram", width=neurons)
        histogram.stairs(
            [row["density"] for row in bars], [bars[0]["low"], *(row["high"] for row in bars)], color=colour, alpha=0.5
        )
        middle, spread = _law(rows, "forward", neurons)
        x = middle + math.sqrt(spread) * np.linspace(-3.5, 3.5, 200)
        density = np.exp(-((x - middle) ** 2) / (2 * spread)) / math.sqrt(2 * math.pi * spread)
        histogram.plot(x, density, color=colour, label=f"width {neurons}")
    histogram.set_xlabel("log of logits' $q$ / its mean over draws")
    histogram.set_ylabel("density over weight draws")
    histogram.legend(loc="upper left")
    for (direction, marker), colour in zip({"forward": "o", "backward": "s"}.items(), COLOURS, strict=False):
        laws = np.array([_law(rows, direction, neurons) for neurons in of])
        scaling.plot(of, laws[:, 1], color=colour, label=f"variance, {direction}")
        scaling.plot(of, -laws[:, 0], color=colour, ls="--", label=f"minus mean, {direction}")
        drawn = select(rows, panel="law", engine="monte-carlo", direction=direction)
        mean, mean_error, variance, variance_error = columns(drawn, "mean", "mean_error", "variance", "variance_error")
        scaling.errorbar(of, variance, yerr=variance_error, color=colour, **{**BARS, "marker": marker})
        scaling.errorbar(of, -mean, yerr=mean_error, color=colour, **{**BARS, "marker": marker})
    limit = np.array([5 * SETTINGS["depth"] / neurons for neurons in of])
    scaling.plot(of, limit, color="0.4", ls=":", label=r"$5 L / n$")
    scaling.set_xscale("log", base=2)
    scaling.set_yscale("log")
    scaling.set_xticks(of, [str(neurons) for neurons in of])
    scaling.set_xlabel("width $n$")
    scaling.set_ylabel("of log second moment")
    scaling.legend(loc="upper right")
    return figure


def _width(width: int, seed: int) -> Rows:
    network = build(
        SETTINGS["network"],
        framework=SETTINGS["framework"],
        depth=SETTINGS["depth"],
        width=width,
        activation=SETTINGS["activation"],
        init=parse_initializer(SETTINGS["init"]),
    )
    batch = load_batch("gaussian", network.nodes[0].shape, SETTINGS["batch"], seed)
    theory = predict(network, batch).layers
    drawn = simulate_trials(network, batch, trials=SETTINGS["trials"], seed=seed)
    ends = {"forward": (theory[-1].forward, drawn[0], -1), "backward": (theory[0].backward, drawn[1], 0)}
    rows: Rows = []
    for direction, (moments, trials, node) in ends.items():
        # Logs of what a draw has, over its mean over draws.
        mean, sd = moments.log_second_moment_mean, moments.log_second_moment_sd
        assert mean is not None
        assert sd is not None
        row = {"panel": "law", "direction": direction, "width": width}
        rows.append({**row, "engine": "theory", "mean": mean - moments.log_second_moment, "variance": sd**2})
        found = trials.log_second_moment[:, node] - moments.log_second_moment
        found = found[np.isfinite(found)]  # of narrow nets, some draws have a layer without an active unit
        variance = float(np.var(found, ddof=1))
        rows.append(
            {
                **row,
                "engine": "monte-carlo",
                "mean": float(np.mean(found)),
                "variance": variance,
                "mean_error": math.sqrt(variance / len(found)),
                "variance_error": variance * math.sqrt(2 / len(found)),
            }
        )
        if width in SETTINGS["histograms"] and direction == "forward":
            density, edges = np.histogram(found, SETTINGS["bins"], density=True)
            for low, high, height in zip(edges[:-1], edges[1:], density, strict=True):
                bar = {"low": float(low), "high": float(high), "density": float(height)}
                rows.append({"panel": "histogram", "direction": direction, "width": width, **bar})
    return rows


def _law(rows: Rows, direction: str, width: int) -> tuple[float, float]:
    (row,) = select(rows, panel="law", engine="theory", direction=direction, width=width)
    return row["mean"], row["variance"]
