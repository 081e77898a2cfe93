"""Averages over all pairs of points of power series in their correlation, and the series of phi^2 and phi'^2."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, reduce

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.quadrature import gaussian_mean
from varprop.simulator.theory.duals import hermite, polynomial
from varprop.simulator.theory.pairs import PairKernel

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_ORDER = 40
_ROWS = 256  # of a kernel between different samples; of larger ones evenly spaced pairs of samples are looked at
_ENTRIES = 4096  # up to which a kernel is looked at whole; of larger ones evenly spaced rows
_ODD = 3  # odd powers of the correlation up to which all entries are looked at
_FAR = 200.0  # log of the second moment up to which an activation is evaluated as it is
_GRID = 32  # variances per unit of log q at which an activation is expanded


def log_second_moment(kernel: PairKernel) -> float:
    """Return the log of a kernel's second moment, -inf for zero."""
    q = kernel.second_moment
    return math.log(q) + kernel.log_scale if q > 0 else -math.inf


@dataclass(frozen=True)
class SquareSeries:
    """Hermite coefficients of phi^2 and phi'^2 at one deviation, relative to the constant one.

    Attributes
    ----------
    slope, gate_slope
        s and t: logarithmic derivatives by the variance.
    series, gates
        Squared coefficients but for k = 0 and 2, with the truncated tail at the end.
    gate_square
        That of phi'^2 at k = 2.
    third
        E x^3, E[x h_1], E[x h_2], E[x^2 h_1] and E[x^2 h_2] for x = phi(sigma u), centred and of variance one.
    """

    slope: float
    gate_slope: float
    series: Array
    gates: Array
    gate_square: float
    third: Array


def square_series(function: ActivationFunction, kernel: PairKernel) -> SquareSeries:
    """Expand phi^2 and phi'^2 at a kernel's second moment (to the nearest of a grid)."""
    if function.homogeneous:
        return _expanded(function, 0)
    return _expanded(function, round(_GRID * min(max(log_second_moment(kernel), -_FAR), _FAR)))


@lru_cache(maxsize=4096)
def _expanded(function: ActivationFunction, step: int) -> SquareSeries:
    q = np.full(_ORDER + 2, math.exp(step / _GRID))

    def moments(square: Array, u: Array) -> Array:
        return np.concatenate([hermite(_ORDER, u) * square, (square * square)[None, :]])

    def relative(values: Array) -> tuple[float, Array]:
        series = (values / values[0]) ** 2
        tail = max(float(values[-1] / values[0] ** 2 - series[:-1].sum()), 0.0)
        slope = float(values[2] / values[0]) / math.sqrt(2)
        series[-1], series[0], series[2] = tail, 0.0, 0.0
        return slope, series

    sigma = float(np.sqrt(q[0]))
    value = gaussian_mean(lambda z: moments(function.value(z[0]) ** 2, z[0] / sigma), q, function.kinks)
    gate = gaussian_mean(lambda z: moments(function.derivative(z[0]) ** 2, z[0] / sigma), q, function.kinks)
    slope, series = relative(value)
    gate_slope, gates = relative(gate)
    mean = float(function.mean(q[:1])[0])

    def thirds(x: Array, u: Array) -> Array:
        second = (u * u - 1) / math.sqrt(2)
        return np.stack([x * x, x**3, x * u, x * second, x * x * u, x * x * second])

    found = gaussian_mean(lambda z: thirds(function.value(z[0]) - mean, z[0] / sigma), q[:6], function.kinks)
    size = math.sqrt(float(found[0]))
    third = found[1:] / size ** np.array([3, 1, 1, 2, 2]) if size > 0 else np.zeros(5)
    return SquareSeries(slope, gate_slope, series, gates, 2 * gate_slope**2, third)


def pair_mean(
    kernel: PairKernel,
    series: Array,
    *,
    level: Array | None = None,
    inside: float = 1.0,
    gradient: PairKernel | None = None,
    spread: float = 0.0,
    square: float = 0.0,
) -> float:
    """Return the mean over all pairs of points of f(c) = sum_k series[k] c^k, c their correlation.

    With a gradient, whose correlation is gamma: of f(c) + 2 gamma^2 (f(c) + square c^2).

    Parameters
    ----------
    level
        Weight of each point, with mean one; default: its second moment. Shape (profiles, positions).
    inside
        Share of the map that the kernel covers; all else is as far away as its corners are from each other.
    spread
        Variance of gamma.
    """
    layout = kernel.layout
    if not kernel.second_moment:
        return float(np.sum(series))  # nothing varies: every pair counts as one point with itself
    if level is None:
        level = kernel.diagonal / kernel.second_moment
    blocks, points = len(kernel.values), kernel.values.shape[1]
    every = rows = 1
    if kernel.values.size > _ENTRIES:
        every = max((blocks - layout.profiles) * points // _ROWS, 1)
        looked = layout.profiles + len(range(layout.profiles, blocks, every))
        rows = -(-points // min(max(_ENTRIES // (looked * points), 2), points))
        while rows > 1 and math.gcd(rows, kernel.size[1]) > 1:
            rows += 1  # points of all columns of a map
    inverse = _inverse_root(kernel.diagonal)
    arguments = (kernel.values, layout.left, layout.right, layout.profiles, layout.weight, inverse, level, inside)
    other = (kernel.values, inverse, False)
    if gradient is not None:
        other = (gradient.values, _inverse_root(gradient.diagonal), True)
    found = _pair_sum(*arguments, series, *other, spread, square, rows, every)
    if rows > 1 or every > 1:
        # Positive and negative correlations may cancel (they do after normalisation): in the sum over all pairs only.
        for power in range(1, min(_ODD + 1, len(series)), 2):
            if series[power]:
                found += series[power] * (_power(*arguments, power, 1, 1) - _power(*arguments, power, rows, every))
    return float(found)


def mean_square_correlation(kernel: PairKernel, inside: float = 1.0) -> float:
    """Return `pair_mean` of c^2, for which nothing has to be divided: c^2 times both levels is the kernel's square."""
    q = kernel.second_moment
    if not q:
        return 1.0
    found = kernel.pair_square_mean / q**2
    if inside < 1.0:
        profiles, points = kernel.layout.profiles, kernel.values.shape[1]
        own, root = kernel.values[:profiles], _inverse_root(kernel.diagonal)
        rows = np.arange(points)
        corners = np.where(rows < points // 2, points - 1, 0)
        apart = own[:, rows, corners] * root * root[:, corners]
        share = float(kernel.layout.weight[:profiles].sum())
        found += share * (1.0 - inside) * (float(np.mean(apart**2)) - float(np.mean(own**2)) / q**2)
    return found


def _inverse_root(diagonal: Array) -> Array:
    return np.divide(1.0, np.sqrt(np.maximum(diagonal, 0.0)), out=np.zeros_like(diagonal), where=diagonal > 0)


def _power(
    values: Array, left: Ints, right: Ints, profiles: int, weight: Array, inverse: Array,
    level: Array, inside: float, power: int, row_step: int, block_step: int,
) -> float:  # fmt: skip
    """Sum of a power of the correlation, as in `_pair_sum`; `inverse` is that of every point's deviation."""
    blocks, points = len(values), values.shape[1]
    scaled, looked = inverse**power * level, slice(row_step // 2, None, row_step)
    rows = np.arange(points)[looked]
    own, crossing = slice(0, profiles), slice(profiles, blocks, block_step)
    near, others = (
        _means(
            reduce(np.multiply, [values[chosen, looked]] * power), scaled[left[chosen], looked], scaled[right[chosen]]
        )
        for chosen in (own, crossing)
    )
    opposite = np.where(rows < points // 2, points - 1, 0)
    far = ((values[own][:, rows, opposite] * inverse[:, rows] * inverse[:, opposite]) ** power).mean(axis=1)
    total = float(weight[own] @ (inside * near + (1 - inside) * far))
    return total + float(weight[crossing] @ others) * (blocks - profiles) / max(len(others), 1)


def _pair_sum(
    values: Array, left: Ints, right: Ints, profiles: int, weight: Array, inverse: Array,
    level: Array, inside: float, series: Array, gradient: Array, gradient_inverse: Array, gated: bool, spread: float,
    square: float, row_step: int, block_step: int,
) -> float:  # fmt: skip
    """Sum `pair_mean` over every `row_step`-th point, and every `block_step`-th pair of different samples."""
    points, blocks, looked = values.shape[1], len(values), slice(row_step // 2, None, row_step)
    rows = np.arange(points)[looked]
    total = 0.0
    for chosen, crossing in ((slice(0, profiles), False), (slice(profiles, blocks, block_step), True)):
        a, b = left[chosen], right[chosen]
        if not len(a):
            continue
        c = values[chosen, looked] * inverse[a, looked, None] * inverse[b][:, None, :]
        np.clip(c, -1.0, 1.0, out=c)
        term = polynomial(c, series)
        if gated:
            gamma = gradient[chosen, looked] * gradient_inverse[a, looked, None] * gradient_inverse[b][:, None, :]
            more = np.minimum(gamma * gamma, 1.0)
            apart = True if crossing else rows[:, None] != np.arange(points)[None, :]
            more = np.where(apart, np.minimum(more + spread, 1.0), more)
            term += 2 * more * (term + square * c * c)
        near = _means(term, level[a, looked], level[b])
        if crossing:
            total += float(weight[chosen] @ near) * (blocks - profiles) / len(a)
        else:
            opposite = np.where(rows < points // 2, points - 1, 0)
            far = term[:, np.arange(len(rows)), opposite].mean(axis=1)
            total += float(weight[chosen] @ (inside * near + (1 - inside) * far))
    return total


def _means(values: Array, left: Array, right: Array) -> Array:
    """Return each block's mean over pairs of points, values of shape (blocks, rows, points), weighted on both sides."""
    return np.asarray(np.vecdot((values @ right[:, :, None])[:, :, 0], left) / (values.shape[1] * values.shape[2]))
