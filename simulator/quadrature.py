"""Gaussian expectations of functions with kinks, by fixed composite Gauss-Legendre rules.

Gauss-Hermite rules converge slowly at a kink (the second moment of ReLU6 or SELU) and cannot see a function whose
own length is far from the deviation of z. Here the line is cut at the kinks and, around the origin, into panels that
shrink geometrically from the Gaussian's length (sqrt(q)) down to the function's own (1).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]
Function = Callable[[Array], Array]


@dataclass(frozen=True)
class _Rule:
    """How far a rule goes, in deviations, its panels on each side of the origin, and the points of a panel."""

    reach: float
    ladder: int
    points: int

    @cached_property
    def panel(self) -> tuple[Array, Array]:
        return np.polynomial.legendre.leggauss(self.points)


_STANDARD = _Rule(10.0, 20, 24)  # the Gaussian's mass beyond is 1.5e-23
_FINE = _Rule(14.0, 23, 28)
_AGREEMENT = 1e-8
_PART = 64  # variances at a time, so that their points stay in the processor's cache

_PLANE_REACH = 9.0
_PLANE_LADDER = 8
_PLANE_NODES, _PLANE_WEIGHTS = np.polynomial.legendre.leggauss(12)
_PLANE_CHUNK = 2_000_000  # function values held at once


def gaussian_mean(function: Function, q: ArrayLike, kinks: tuple[float, ...] = ()) -> Array:
    """Return E[function(z)] for z ~ N(0, q), with the shape of `q`.

    Parameters
    ----------
    function
        Vectorised, smooth between `kinks`, of at most polynomial growth. Its own length must be of order 1.
    q
        Variances, at least 0.
    kinks
        Where the function or a derivative of it jumps.

    Notes
    -----
    Relative error below 1e-12 for the moments of the registered activations at q from 1e-8 to 1e8.
    """
    variances = np.asarray(q, dtype=np.float64)
    z, weights = _points(variances, kinks, _STANDARD)
    return np.asarray(np.sum(weights * function(z), axis=1).reshape(variances.shape))


def verified_mean(function: Function, q: ArrayLike, kinks: tuple[float, ...] = ()) -> Array:
    """Return `gaussian_mean` where two rules, one finer and further, agree to 1e-8 of E|function|, and NaN elsewhere.

    For functions of unknown growth and length: where one grows so fast that the tails matter, oscillates, or has
    infinite values, the two differ.
    """
    variances = np.asarray(q, dtype=np.float64)
    parts = np.split(variances.ravel(), range(_PART, variances.size, _PART))
    return np.concatenate([_verified(function, part, kinks) for part in parts]).reshape(variances.shape)


def _verified(function: Function, variances: Array, kinks: tuple[float, ...]) -> Array:
    z, weights = _points(variances, kinks, _FINE)
    with np.errstate(over="ignore", invalid="ignore"):
        coarse = gaussian_mean(function, variances, kinks)
        terms = weights * function(z)
        fine, size = np.sum(terms, axis=1), np.sum(np.abs(terms), axis=1)
        return np.where(np.abs(coarse - fine) <= _AGREEMENT * size, fine, np.nan)


def _points(variances: Array, kinks: tuple[float, ...], rule: _Rule) -> tuple[Array, Array]:
    """Return points z and their weights under N(0, q), a row for each variance."""
    deviation = np.sqrt(variances.reshape(-1, 1))
    # From the reach down to a tenth of the function's length, by halves or, for very large q, by more.
    reach = rule.reach
    ratio = np.minimum(0.5, (0.1 / np.maximum(reach * deviation, 1e-300)) ** (1 / rule.ladder))
    rungs = reach * ratio ** np.arange(rule.ladder + 1)
    cuts = _over(np.array(kinks).reshape(1, -1), deviation)
    edges = np.concatenate([-rungs, np.zeros_like(deviation), rungs, np.clip(cuts, -reach, reach)], axis=1)
    x, weights = _panels(edges, *rule.panel)
    return deviation * x, weights


def gaussian_dual(function: Function, q1: ArrayLike, q2: ArrayLike, c: ArrayLike, kinks: tuple[float, ...]) -> Array:
    """Return E[function(z1) function(z2)] for centred Gaussian z1, z2 of variances `q1`, `q2` and correlation `c`.

    The plane is cut along the kinks of both factors: z1 = s1 x and z2 = s2 (c x + sqrt(1 - c^2) y) with x, y
    independent N(0, 1); y is integrated first. Shapes broadcast. Relative error about 1e-9 for variances up to 1e2.
    """
    v1, v2, correlation = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in (q1, q2, c)))
    points = np.stack([v1.ravel(), v2.ravel(), correlation.ravel()], axis=1)
    centres = tuple(sorted({0.0, *kinks}))
    outer = (2 * len(centres) * (2 * _PLANE_LADDER + 1) + 5) * len(_PLANE_NODES)
    inner = (len(centres) * (2 * _PLANE_LADDER + 1) + 5) * len(_PLANE_NODES)
    step = max(1, _PLANE_CHUNK // (outer * inner))
    parts = [_dual(function, points[i : i + step], centres) for i in range(0, len(points), step)]
    return np.concatenate([*parts, np.empty(0)]).reshape(correlation.shape)


def _dual(function: Function, points: Array, centres: tuple[float, ...]) -> Array:
    s1, s2 = np.sqrt(points[:, :1]), np.sqrt(points[:, 1:2])
    c = points[:, 2:]
    s = np.sqrt(np.maximum((1 - c) * (1 + c), 1e-24))  # exactly 0 would leave y without a scale
    kinks = np.array(centres).reshape(1, -1)
    # Along x the inner integral turns within s of a kink of the second factor, and both within 1 / deviation.
    fine = np.minimum(s, 1 / np.maximum(1.0, np.maximum(s1, s2)))
    x, weights_x = _panels(_edges(np.concatenate([_over(kinks, s1), _over(kinks, c * s2)], axis=1), fine),
                           _PLANE_NODES, _PLANE_WEIGHTS)  # fmt: skip
    mean = (c * x)[:, :, None]
    turn = (_over(kinks, s2)[:, None, :] - mean) / s[:, :, None]
    fine_y = np.broadcast_to((1 / np.maximum(1.0, s * s2))[:, :, None], (*x.shape, 1))
    y, weights_y = _panels(_edges(turn, fine_y), _PLANE_NODES, _PLANE_WEIGHTS)
    inner = np.sum(weights_y * function(s2[:, :, None] * (mean + s[:, :, None] * y)), axis=2)
    return np.asarray(np.sum(weights_x * function(s1 * x) * inner, axis=1))


def _edges(centres: Array, fine: Array) -> Array:
    """Return panel edges in [-reach, reach] that crowd towards each centre (last axis), down to `fine`."""
    ratio = np.minimum(0.5, (0.5 * fine / _PLANE_REACH) ** (1 / _PLANE_LADDER))
    rungs = _PLANE_REACH * ratio ** np.arange(1, _PLANE_LADDER + 1)
    offsets = np.concatenate([-rungs, np.zeros_like(fine), rungs], axis=-1)
    crowd = (centres[..., :, None] + offsets[..., None, :]).reshape(*centres.shape[:-1], -1)
    fixed = np.broadcast_to(_PLANE_REACH * np.array([-1, -0.5, -0.2, 0.2, 0.5, 1]), (*centres.shape[:-1], 6))
    return np.concatenate([fixed, np.clip(crowd, -_PLANE_REACH, _PLANE_REACH)], axis=-1)


def _panels(edges: Array, nodes: Array, weights: Array) -> tuple[Array, Array]:
    """Return points and standard-normal weights of a Gauss-Legendre rule on every panel between sorted edges."""
    edges = np.sort(edges, axis=-1)
    half = (edges[..., 1:] - edges[..., :-1])[..., None] / 2
    middle = (edges[..., 1:] + edges[..., :-1])[..., None] / 2
    x = (middle + half * nodes).reshape(*edges.shape[:-1], -1)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi)
    return x, (half * weights).reshape(x.shape) * density


def _over(kinks: Array, scale: Array) -> Array:
    """Return kinks / scale, far away where the scale vanishes, and 0 for a kink at 0."""
    safe = np.where(np.abs(scale) < 1e-300, 1e-300, scale)
    return np.clip(np.where(kinks == 0, 0.0, np.clip(kinks, -1e5, 1e5) / safe), -1e9, 1e9)
