"""Second moments at every position of a network's maps, forward above backward."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from matplotlib.colors import TwoSlopeNorm
from matplotlib.figure import Figure

from varprop.figures.save import save
from varprop.figures.style import WIDTHS
from varprop.simulator.errors import UserError
from varprop.simulator.export import settings_data, table_csv
from varprop.simulator.network import Network
from varprop.simulator.propagate import Run
from varprop.simulator.report import Report

MOST_MAPS = 10
"""Layers that fit side by side over the width of a page."""

DIRECTIONS = ("forward", "backward")


def require_maps(network: Network) -> None:
    """Refuse a network none of whose weighted layers has a map.

    Raises
    ------
    UserError
        So it is.
    """
    if not any(node.fan_in is not None and len(node.shape) == 3 for node in network.nodes):
        raise UserError("--profile", network.name, "a network with maps, whose positions differ")


def profile_maps(report: Report) -> Figure:
    """Draw log10 of the second moment at each position over its map's average.

    Parameters
    ----------
    report
        Of theory, with profiles. Of its weighted layers with maps, evenly spaced ones are drawn if there are too many.

    Returns
    -------
    Figure

    Raises
    ------
    UserError
        As `require_maps`.
    """
    require_maps(report.network)
    layers = [
        index
        for index, (node, layer) in enumerate(zip(report.network.nodes, report.layers, strict=True))
        if node.fan_in is not None and layer.forward.profile is not None
    ]
    if not layers:
        raise UserError("--profile", report.network.name, "maps that are not zero everywhere")
    if len(layers) > MOST_MAPS:
        layers = [layers[round(place)] for place in np.linspace(0, len(layers) - 1, MOST_MAPS)]
    width = WIDTHS["page"]
    figure = Figure(figsize=(width, 0.9 + 2.2 * width / max(len(layers), 5)))
    axes = figure.subplots(2, len(layers), squeeze=False)
    for row, direction in zip(axes, DIRECTIONS, strict=True):
        profiles = [getattr(report.layers[index], direction).profile for index in layers]
        with np.errstate(divide="ignore"):
            logs = [None if profile is None else np.log10(np.array(profile)) for profile in profiles]
        finite = np.concatenate([[0.0], *(log[np.isfinite(log)] for log in logs if log is not None)])
        norm = TwoSlopeNorm(0.0, min(finite.min(), -0.01), max(finite.max(), 0.01))
        image = None
        for cell, index, log in zip(row, layers, logs, strict=True):
            cell.set_xticks([])
            cell.set_yticks([])
            cell.grid(visible=False)
            if log is not None:
                image = cell.imshow(log, norm=norm, cmap="RdBu_r", interpolation="nearest")
            if direction == DIRECTIONS[0]:
                cell.set_title(report.network.nodes[index].name, rotation=45, ha="left", fontsize=7)
        symbol = "q" if direction == DIRECTIONS[0] else "g"
        row[0].set_ylabel(f"{direction}, {symbol}")
        if image is not None:
            figure.colorbar(image, ax=list(row), shrink=0.8, label=f"log$_{{10}}$ {symbol}/mean")
    return figure


def save_profile(path: Path, run: Run, command: Sequence[str]) -> None:
    """Write the figure of one run, with its table (a row a position) and provenance beside it."""
    assert run.theory is not None
    rows = [
        {"layer": node.name, "direction": direction, "row": i, "column": j, "relative_second_moment": value}
        for node, layer in zip(run.network.nodes, run.theory.layers, strict=True)
        for direction in DIRECTIONS
        for i, line in enumerate(getattr(layer, direction).profile or ())
        for j, value in enumerate(line)
    ]
    save(path, partial(profile_maps, run.theory), table_csv(rows), command, [settings_data(run)])
