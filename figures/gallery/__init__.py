"""Figures for papers: each a file of its own, from settings to a tidy table and from the table to a picture.

A module of this folder has ``SETTINGS`` (what the figure depends on, but for the seed), ``compute(seed)`` (the tidy
table, a list of rows) and ``draw(rows, width)`` (the picture of such a table, `width` in inches).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.errors import did_you_mean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = list[dict[str, Any]]
"""A tidy table: one observation a row, the same keys in each."""

NAMES: dict[str, str] = {
    "depth-sweep": "log second moments end to end against depth, with finite-width bands",
    "initializer-map": "factors a layer of signal and gradient, activation by initializer",
    "mobilenet-v2": "MobileNetV2 under torch's and Keras's rules: what batch norm hides, what eps reveals",
    "correlation-maps": "correlation after a layer against before, and its approach to one in a deep ReLU net",
    "phase-diagram": "ordered and chaotic phases of tanh nets, depth scales and trainable depth",
    "padding-profile": "the signal that zero padding loses, by map size and depth",
    "truncated-normal": "he_normal is not truncated_normal: histogram, decay over 24 layers, saturation",
    "saturation": "sigmoid and tanh under too small, right and too large weights",
    "finite-width": "the law of log second moments over weight draws, theory against Monte Carlo",
    "batch-norm-gradients": "gradient explosion under batch norm against depth and batch",
    "residual-growth": "second moments along residual nets: plain, normalised, scaled branches",
    "trainability": "accuracy of trained nets over depth and weight variance, against six depth scales",
    "weight-norms": "norms and angles of weights before batch norm, with and without weight decay",
    "zero-and-constant-init": "a published experiment: zero, constant and drawn starts, trained",
    "mobilenet-initializers": "a published experiment: gradients and effective learning rates of four initializers",
    "torch-linear-default": "a published experiment: a = sqrt(5) and a = 5, layer by layer",
    "batchnorm-and-l2": "a published experiment: the signal's death, and ten weights that only decay",
}
"""Every figure and one line on it."""


@dataclass(frozen=True)
class Recipe:
    """One figure: see the module's docstring."""

    name: str
    settings: Mapping[str, object]
    compute: Callable[[int], Rows]
    draw: Callable[[Rows, float], Figure]


def recipe(name: str) -> Recipe:
    """Return the figure of a name.

    Raises
    ------
    UserError
        No figure has that name.
    """
    if name not in NAMES:
        raise did_you_mean("figure", name, list(NAMES))
    module = import_module(f"varprop.figures.gallery.{name.replace('-', '_')}")
    return Recipe(name, module.SETTINGS, module.compute, module.draw)


def select(rows: Rows, **values: object) -> Rows:
    """Return the rows that hold the given values."""
    return [row for row in rows if all(row.get(key) == value for key, value in values.items())]


def columns(rows: Rows, *keys: str) -> list[NDArray[np.float64]]:
    """Return columns of numbers; a missing one is nan."""
    # Of an array of floats, None is nan.
    return [np.array([row.get(key) for row in rows], dtype=np.float64) for key in keys]
