"""How every figure looks: column widths of journals, a colour-blind-safe cycle, fonts that can be embedded."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cycler import cycler
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTHS = {"column": 3.35, "page": 6.9}
"""Width of one column and of a whole page, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), yellow left out: it is too pale on white."""

TALLEST = 7.5
"""Inches: fits a page of LaTeX's article class, the shortest there is."""

POINTS: dict[str, Any] = {"ls": "", "marker": "o", "mfc": "white", "mew": 0.7}
"""Measured values: open circles, whatever their colour."""

BARS: dict[str, Any] = {**POINTS, "elinewidth": 0.7}
"""Measured values with bars."""

_SETTINGS: dict[str, Any] = {
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.labelsize": 8,
    "axes.linewidth": 0.6,
    "axes.prop_cycle": cycler(color=COLOURS),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlesize": 8,
    "figure.dpi": 100,
    "figure.constrained_layout.use": True,
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same figure on every machine
    "font.size": 8,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.4,
    "legend.fontsize": 7,
    "legend.frameon": False,
    "lines.linewidth": 1.0,
    "lines.markersize": 2.5,
    "mathtext.fontset": "dejavusans",
    "pdf.fonttype": 42,  # TrueType: text stays text, and journals refuse Type 3
    "pgf.rcfonts": False,  # in a paper, the paper's own fonts
    "pgf.texsystem": "pdflatex",
    "ps.fonttype": 42,
    "savefig.dpi": 200,
    "svg.fonttype": "none",
    "svg.hashsalt": "varprop",  # the same figure gives the same file
    "xtick.labelsize": 6,
    "ytick.labelsize": 7,
}


@contextmanager
def paper() -> Iterator[None]:
    """Draw and save figures in the house style, whatever the user's own settings."""
    with style.context(_SETTINGS, after_reset=True):
        yield


def panels(width: float, count: int, *, aspect: float = 0.8, across: int | None = None) -> tuple[Figure, list[Axes]]:
    """Return a figure of lettered panels: side by side over a page, below one another in a column.

    Parameters
    ----------
    width
        Of the figure, in inches.
    count
        Of panels.
    aspect
        Height of a panel over its width; less where the figure would be taller than a page.
    across
        Panels in a row over the width of a page; default all.
    """
    columns = (across or count) if width > 5 else 1
    lines = math.ceil(count / columns)
    wide = min(width / columns, 3.4)
    figure = Figure(figsize=(width, min(lines * wide * aspect, TALLEST)))
    grid = figure.subplots(lines, columns, squeeze=False).ravel()
    for place, axes in enumerate(grid):
        if place >= count:
            axes.remove()
        elif count > 1:
            axes.set_title("abcdefghijkl"[place], loc="left", fontweight="bold")
    return figure, list(grid[:count])
