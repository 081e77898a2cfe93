"""End to end, at every depth: what a draw of the weights typically does, and how far draws differ."""

from __future__ import annotations

import math
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from varprop.figures.gallery import Rows, columns, select
from varprop.figures.style import BARS, COLOURS, panels
from varprop.simulator.propagate import Settings, prepare, propagate
from varprop.simulator.report import Moments, Report

SETTINGS: dict[str, Any] = {
    "network": "mlp",
    "activation": "relu",
    "width": 64,
    "depths": [2, 4, 8, 16, 24, 32, 48, 64],
    "initializers": ["he_normal", "glorot_normal", "default"],
    "framework": "torch",
    "batch": 8,
    "trials": 200,
}
_TENTH = 1.2815515655446004  # the 90% quantile of N(0, 1): a draw's log second moment is close to normal
_LABELS = {"default": "torch default"}


def compute(seed: int) -> Rows:
    """Return a row per depth, initializer, engine and direction; values are decimal logs."""
    shared = {key: SETTINGS[key] for key in ("framework", "width", "activation", "batch", "trials")}
    rows: Rows = []
    for init in SETTINGS["initializers"]:
        for depth in SETTINGS["depths"]:
            run = propagate(prepare(Settings("mlp", depth=depth, init=init, seed=seed, **shared)))
            rows += [
                {"initializer": init, "depth": depth, "engine": report.engine, **_row(report, direction)}
                for report in run.reports
                for direction in ("forward", "backward")
            ]
    return rows


def draw(rows: Rows, width: float) -> Figure:
    """Draw theory's typical value, its 10-90% band and its mean; of the Monte Carlo the same as points and bars."""
    figure, axes = panels(width, 2)
    subjects = {"forward": "logits' $q$ / input's $q$", "backward": "input's $g$ / logits' $g$"}
    for axis, (direction, subject) in zip(axes, subjects.items(), strict=True):
        for colour, init in zip(COLOURS, SETTINGS["initializers"], strict=False):
            chosen = select(rows, initializer=init, direction=direction)
            keys = ("depth", "typical", "mean", "p10", "p90")
            depth, typical, mean, low, high = columns(select(chosen, engine="theory"), *keys)
            axis.fill_between(depth, low, high, color=colour, alpha=0.2, lw=0)
            axis.plot(depth, typical, color=colour, label=_LABELS.get(init, init))
            axis.plot(depth, mean, color=colour, ls=":")
            depth, typical, mean, low, high = columns(select(chosen, engine="monte-carlo"), *keys)
            axis.errorbar(depth, typical, yerr=[typical - low, high - typical], color=colour, **BARS)
        axis.set_xlabel("depth (layers)")
        axis.set_ylabel(rf"$\log_{{10}}$ of {subject}")
    axes[0].legend(loc="lower left")
    lines = [
        Line2D([], [], color="0.4", label="typical; band 10-90%"),
        Line2D([], [], color="0.4", ls=":", label="mean over draws"),
        Line2D([], [], color="0.4", ls="", marker="o", mfc="white", label="Monte Carlo, 10-90%"),
    ]
    axes[1].legend(handles=lines, loc="lower left")
    return figure


def _row(report: Report, direction: str) -> dict[str, object]:
    first, last = report.layers[0], report.layers[-1]
    end: Moments = last.forward if direction == "forward" else first.backward
    start = first.forward.log_second_moment if direction == "forward" else 0.0
    assert end.log_second_moment_mean is not None
    assert end.log_second_moment_sd is not None
    typical, sd = end.log_second_moment_mean - start, end.log_second_moment_sd
    logs = {
        "mean": end.log_second_moment - start,
        "typical": typical,
        "p10": typical - _TENTH * sd,
        "p90": typical + _TENTH * sd,
    }
    return {"direction": direction, **{key: value / math.log(10) for key, value in logs.items()}}
