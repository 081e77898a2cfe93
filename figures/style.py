"""How every figure looks: column widths of journals, a colour-blind-safe cycle, fonts that can be embedded."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cycler import cycler
from matplotlib import style

WIDTHS = {"column": 3.35, "page": 6.9}
"""Width of one column and of a whole page, in inches."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
"""Okabe and Ito's palette (jfly.uni-koeln.de/color), yellow left out: it is too pale on white."""

_SETTINGS: dict[str, Any] = {
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
