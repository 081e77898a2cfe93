"""How often a sum of few weights is large: what truncating them does to saturation at equal variance."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.weight_law import TRUNCATION_FACTOR, TRUNCATION_POINT

DISTRIBUTIONS = ("normal", "truncated_normal", "uniform")
FANS = (9, 27, 256)


def tail(distribution: str, fan: int, deviations: float = 2.0) -> float:
    """Return P(|z| > deviations sd z) of a sum z of `fan` inputs of equal size with i.i.d. weights.

    By inversion of the characteristic function (J. Gil-Pelaez, Biometrika 38, 1951, eq. 3):

        1 - (2 / pi) int_0^inf sin(a t) / t E[cos(t w / sqrt(fan))]^fan dt.

    Parameters
    ----------
    distribution
        ``normal``, ``truncated_normal`` or ``uniform``, at equal variance.

    Examples
    --------
    >>> round(tail("normal", 9), 6), round(tail("truncated_normal", 9), 4)
    (0.0455, 0.0448)
    """
    t = 0.002 * (
        np.arange(20_000, dtype=np.float64) + 0.5
    )  # of a sum of unit variance; the midpoint rule is exact to 1e-9 here
    if distribution == "normal":
        return 1 - _inverted(t, deviations, np.exp(-t * t / 2))
    nodes, weights = np.polynomial.legendre.leggauss(64)
    reach = TRUNCATION_POINT / TRUNCATION_FACTOR if distribution == "truncated_normal" else math.sqrt(3)
    density = (
        np.exp(-((TRUNCATION_POINT * nodes) ** 2) / 2) if distribution == "truncated_normal" else np.ones_like(nodes)
    )
    single = np.cos(np.outer(t / math.sqrt(fan), reach * nodes)) @ (weights * density / float(weights @ density))
    return 1 - _inverted(t, deviations, single**fan)


def _inverted(t: NDArray[np.floating], bound: float, characteristic: NDArray[np.floating]) -> float:
    """P(|z| < bound) of a symmetric law."""
    return 2 / math.pi * float(np.sum(np.sin(bound * t) / t * characteristic)) * float(t[1] - t[0])


def tail_rows() -> list[dict[str, float]]:
    """Return P(|z| > 2 sd z) for each of `FANS`, a number a law of the weights."""
    return [{"fan": fan, **{name: tail(name, fan) for name in DISTRIBUTIONS}} for fan in FANS]
