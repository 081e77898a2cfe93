"""Second moments layer by layer: theory as a line, Monte Carlo with error bars, forward above backward."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
from numpy.typing import NDArray

from varprop.figures.save import save
from varprop.figures.style import COLOURS, WIDTHS
from varprop.simulator.bands import BAND, log_quantile
from varprop.simulator.compare import merged_layers
from varprop.simulator.export import settings_data, to_csv
from varprop.simulator.propagate import Run
from varprop.simulator.report import Moments, Report

MOST_LABELS = 60
"""Layer names that fit side by side over the width of a page, upright."""

_SEEN = 0.02  # of the line's range: a band that is thinner at most layers cannot be told from the line
_EXP = 700.0  # natural log of about the largest float
_FLOAT_RANGE = 650.0  # natural logs of what a float64 axis can show, with room for its margins


def propagation(reports: Sequence[Report], labels: Sequence[str] | None = None) -> Figure:
    """Draw forward and backward second moments over layers.

    Parameters
    ----------
    reports
        Any number of engines and networks; engine ``theory`` is drawn as a line over the band that
        most draws lie in, others as points with bars of one standard error. Exact zeros have no place on a log scale
        and are left out.
    labels
        One a report: those of equal label share a colour. Default: the engine alone is named.

    Returns
    -------
    Figure
    """
    names = list(labels or [""] * len(reports))
    places = {name: place for place, name in enumerate(merged_layers([report.network for report in reports]))}
    colours = {label: COLOURS[number % len(COLOURS)] for number, label in enumerate(dict.fromkeys(names))}
    figure = Figure(figsize=(WIDTHS["page"], 4.6))
    upper, lower = figure.subplots(2, 1, sharex=True)
    for axes, direction, symbol in ((upper, "forward", "output, $q$"), (lower, "backward", "gradient, $g$")):
        rows = [[getattr(layer, direction) for layer in report.layers] for report in reports]
        logs = np.array([moments.log_second_moment for row in rows for moments in row])
        in_range = bool(np.all(np.abs(logs[np.isfinite(logs)]) < _FLOAT_RANGE))
        for report, label, row in zip(reports, names, rows, strict=True):
            colour = colours[label] if len(colours) > 1 or report.engine == "theory" else COLOURS[1]
            layers = np.array([places[node.name] for node in report.network.nodes])
            _draw(axes, layers, report, f"{label} {_engine(report)}".strip(), colour, row, in_range)
        axes.set_ylabel(f"second moment of\n{symbol}" if in_range else f"$\\log_{{10}}$ second moment\nof {symbol}")
        if in_range:
            _log_scale(axes)
    weighted = {node.name for report in reports for node in report.network.nodes if node.fan_in is not None}
    _name_layers(lower, list(places), weighted)
    handles = upper.get_legend_handles_labels()
    columns = min(len(handles[0]), 2 if any(names) else 4)
    figure.legend(*handles, loc="outside upper right", ncols=columns)
    return figure


def save_propagation(path: Path, runs: Sequence[Run], command: Sequence[str]) -> None:
    """Write the figure of one or several runs, with its table and provenance beside it."""
    settings = [{key: str(value) for key, value in asdict(run.settings).items()} for run in runs]
    varied = [key for key in settings[0] if len({row[key] for row in settings}) > 1]
    labels = [", ".join(row[key] for key in varied) for row in settings]
    pairs = [(report, label) for run, label in zip(runs, labels, strict=True) for report in run.reports]
    draw = partial(propagation, [report for report, _ in pairs], [label for _, label in pairs])
    save(path, draw, to_csv(runs), command, [settings_data(run) for run in runs])


def _draw(
    axes: Axes,
    layers: NDArray[np.intp],
    report: Report,
    label: str,
    colour: str,
    row: Sequence[Moments],
    in_range: bool,
) -> None:
    logs = np.array([moments.log_second_moment for moments in row])
    logs[~np.isfinite(logs)] = np.nan
    values = np.exp(logs) if in_range else logs / math.log(10)
    if report.engine == "theory":
        axes.plot(layers, values, color=colour, label=label, zorder=3)
        _band(axes, layers, label, colour, row, in_range)
        return
    axes.errorbar(
        layers,
        values,
        yerr=_bars(row) if in_range else None,
        fmt="o",
        markersize=2.5 if len(row) <= 80 else 1.6,
        markerfacecolor="white",
        markeredgewidth=0.7,
        elinewidth=0.7,
        color=colour,
        label=label,
        zorder=2,
    )


def _band(
    axes: Axes, layers: NDArray[np.intp], label: str, colour: str, row: Sequence[Moments], in_range: bool
) -> None:
    """Shade what most draws of the weights lie in, where that is known."""
    found = [[log_quantile(moments, probability) for moments in row] for probability in BAND]
    low, high = np.array(found, dtype=np.float64)  # None becomes nan
    if np.isnan(low).all():
        return
    name = f"{label}, {BAND[0]:.0%} to {BAND[1]:.0%} of draws"
    finite = [moments.log_second_moment for moments in row if math.isfinite(moments.log_second_moment)]
    if np.nanmedian(high - low) < _SEEN * (max(finite) - min(finite)):
        name = "_nolegend_"
    edges = [np.exp(np.clip(side, -_EXP, _EXP)) if in_range else side / math.log(10) for side in (low, high)]
    axes.fill_between(layers, *edges, color=colour, alpha=0.18, linewidth=0, label=name, zorder=1)


def _bars(row: Sequence[Moments]) -> NDArray[np.float64]:
    """Return lengths below and above; below, a bar stays above zero, or a log axis would lose it."""
    errors = np.array([moments.standard_error or 0.0 for moments in row])
    values = np.array([moments.second_moment for moments in row])
    return np.stack([np.minimum(errors, 0.999 * values), errors])


def _log_scale(axes: Axes) -> None:
    """Use a log axis of at least one decade, so that a flat line looks flat; short ones get plain numbers."""
    axes.set_yscale("log")
    low, high = axes.get_ylim()
    if high / low < 10:
        middle = math.sqrt(high * low)
        low, high = middle / math.sqrt(11), middle * math.sqrt(11)
        axes.set_ylim(low, high)
    if high / low < 100:
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())


def _name_layers(axes: Axes, names: Sequence[str], weighted: Collection[str]) -> None:
    """Name every layer if they fit, else the weighted ones, else as many of those as fit, evenly."""
    chosen = list(range(len(names)))
    if len(chosen) > MOST_LABELS:
        chosen = [place for place in chosen if names[place] in weighted] or chosen
    chosen = chosen[:: -(-len(chosen) // MOST_LABELS)]
    axes.set_xticks(chosen, [names[place] for place in chosen], rotation=90)
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_xlabel("layer")


def _engine(report: Report) -> str:
    names = {"theory": "theory", "monte-carlo": "Monte Carlo ± 1 s.e.", "torch": "torch ± 1 s.e."}
    return names.get(report.engine, report.engine)
