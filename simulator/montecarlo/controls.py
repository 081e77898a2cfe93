"""Control variates: what a trial drew that moves a layer's second moment, with its exact expectation.

Behind an activation means are often larger than deviations, so that a layer's second moment follows what its weights
make of a constant map. Behind it a normalisation divides by the lengths of the channels' kernels, which decide the
layer's gradient, above all where a channel has few weights. All gradients follow the length of the cotangent. Functions
of these have known expectations. What a ridge regression on them explains is taken off every trial's moments:
expectations stay, deviations fall, and the trials' own moments are untouched. The coefficients for a trial come from
other trials than its own, so that no bias comes in (A. Avramidis, J. Wilson, "A splitting scheme for control variates",
Operations Research Letters 14 (1993), 187-198).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special

from varprop.simulator.jit import kernel
from varprop.simulator.montecarlo.sums import LARGE, PIECE, SMALL, exact_sums, piece_sums
from varprop.simulator.network import Conv2d, Linear, Network, Shape
from varprop.simulator.weight_law import TRUNCATION_POINT, Distribution, weight_law

Array = NDArray[np.floating]
Statistics = NDArray[np.float64]

OFFSETS = np.array([1e-3, 1e-2, 1e-1])
"""Of the inverse squared lengths: eps bounds what normalisation makes of a short kernel, in units that the map sets."""

COUNT = 1 + len(OFFSETS)
"""Controls of a layer: one for its moments, the others for its gradient's."""

FOLDS = 8
"""Parts of the trials; the coefficients for one come from the others."""

LEAST_TRIALS = 16
"""Trials for every control; those that come last are left out where there are fewer."""

RIDGE = 0.01
"""Of the controls' own variance, added to it: where controls nearly agree, or one is far out in a few trials, least
squares alone would balance large coefficients that do not hold for other trials."""

LOG_TIMES = np.linspace(-45.0, 15.0, 6001)
"""Logs of the times of Laplace transforms; the integrands are smooth and vanish at both ends."""


@dataclass(frozen=True)
class LayerControls:
    """Controls of a layer of independent weights with mean 0: averages over its channels, less their expectations.

    In units of the weights' `variance`, the first is the squared sum of a channel's n weights over n, the others are
    1 / (s + offset) for s the mean of their squares, with expectations `inverses`. Only the weights of taps `met`
    count, those that ever meet the map and not padding alone.
    """

    met: NDArray[np.bool_]
    variance: float
    inverses: Statistics

    def of(self, weight: Array) -> Statistics:
        """Return shape (trials, COUNT), given weights of shape (trials, outputs, inputs, taps...)."""
        rows = weight if self.met.all() else np.ascontiguousarray(weight[..., self.met])
        found = np.empty((len(weight), COUNT))
        averages(rows.reshape(-1), weight.shape[1], self.variance, OFFSETS, self.inverses, found)
        return found


@kernel
def averages(
    rows: Array, outputs: int, variance: float, offsets: Statistics, inverses: Statistics, found: Statistics
) -> None:
    """Write every trial's controls, given the weights of all channels of all trials one after the other."""
    trials = len(found)
    n = np.uint64(rows.size // (trials * outputs))
    unit, share, zero = 1.0 / (np.float64(n) * variance), 1.0 / outputs, rows.dtype.type(0)
    for t in range(trials):
        for k in range(COUNT):
            found[t, k] = 0.0
        for c in range(outputs):
            first = np.uint64(t * outputs + c) * n
            total = squares = 0.0
            for start in range(first, first + n, PIECE):
                more = piece_sums(rows, start, min(start + PIECE, first + n), zero)
                total += np.float64(more[0])
                squares += np.float64(more[1])
            if not SMALL < squares < LARGE:
                total, squares = exact_sums(rows, first, first + n, zero)
            found[t, 0] += total * total * unit
            for k in range(COUNT - 1):
                found[t, k + 1] += 1.0 / (squares * unit + offsets[k])
        found[t, 0] = found[t, 0] * share - 1.0
        for k in range(COUNT - 1):
            found[t, k + 1] = found[t, k + 1] * share - inverses[k]


def layer_controls(network: Network, unseen: Set[int]) -> Mapping[int, LayerControls]:
    """Return the controls of every layer that has them; `unseen` are those whose weights are not drawn."""
    found: dict[int, LayerControls] = {}
    for index, node in enumerate(network.nodes):
        operation = node.operation
        if index in unseen or not isinstance(operation, Conv2d | Linear):
            continue
        law = weight_law(node, network.framework)
        if law.distribution not in TRANSFORMS:
            continue
        met = np.ones((), np.bool_)
        if isinstance(operation, Conv2d):
            met = _taps_met(operation, network.nodes[node.inputs[0]].shape, node.shape)
        count = (node.fan_in or 0) * int(met.sum()) // met.size
        inverses = [mean_inverse(law.distribution, count, offset) for offset in OFFSETS]
        found[index] = LayerControls(met, law.variance, np.array(inverses))
    return found


def _taps_met(operation: Conv2d, source: Shape, output: Shape) -> NDArray[np.bool_]:
    """Return which taps of a kernel meet the map, and not padding alone."""

    def along(taps: int, size: int, outputs: int, stride: int, corner: int) -> NDArray[np.bool_]:
        places = np.arange(taps)[:, np.newaxis] + stride * np.arange(outputs) - corner
        inside: NDArray[np.bool_] = np.any((places >= 0) & (places < size), axis=1)
        return inside

    sides = zip(operation.kernel, source[1:], output[1:], operation.stride, operation.padding[::2], strict=True)
    rows, columns = (along(*side) for side in sides)
    met: NDArray[np.bool_] = np.outer(rows, columns)
    return met


@lru_cache(maxsize=1024)
def mean_inverse(distribution: Distribution, count: int, offset: float) -> float:
    """Return E[1 / (s + offset)] for s the average of `count` independent w^2, in units of E w^2.

    It is the integral of exp(-offset t) E[exp(-t w^2 / count)]^count over t from 0 on, taken over log t.
    """
    times = np.exp(LOG_TIMES)
    integrand = times * np.exp(-offset * times) * TRANSFORMS[distribution](times / count) ** count
    return float(np.trapezoid(integrand, LOG_TIMES))


def _normal(t: Statistics) -> Statistics:
    return 1 / np.sqrt(1 + 2 * t)


def _truncated(t: Statistics) -> Statistics:
    """Of a normal cut at two deviations b of the parent: the integral of a normal of b / sqrt(1 + 2 b^2 t), as cut."""
    root, end = math.sqrt(2), TRUNCATION_POINT
    inside = math.erf(end / root)
    variance = 1 - 2 * end * math.exp(-(end**2) / 2) / math.sqrt(2 * math.pi) / inside
    narrowing = np.sqrt(1 + 2 * t / variance)
    found: Statistics = special.erf(end * narrowing / root) / (inside * narrowing)
    return found


def _uniform(t: Statistics) -> Statistics:
    a = np.sqrt(3 * t)
    found: Statistics = math.sqrt(math.pi) * special.erf(a) / (2 * a)
    return found


TRANSFORMS = {"normal": _normal, "truncated_normal": _truncated, "uniform": _uniform}
"""E[exp(-t w^2)] of a weight with mean 0 and variance 1."""


def controlled(values: Statistics, controls: Statistics) -> Statistics:
    """Return values, one a trial, less what controls explain.

    Parameters
    ----------
    values
        Shape (trials, quantities).
    controls
        Shape (trials, controls), each with expectation 0.

    Returns
    -------
    ndarray
        Shape of `values`, with the same expectations; `values` where trials are too few.
    """
    controls = controls[:, : len(values) // LEAST_TRIALS]
    count = controls.shape[1]
    if count == 0:
        return values
    fold, out = np.arange(len(values)) % FOLDS, values.copy()
    for part in range(FOLDS):
        others = fold != part
        x, y = controls[others], values[others]
        x = x - x.mean(axis=0)
        products = x.T @ x
        out[~others] -= controls[~others] @ np.linalg.solve(products * (1 + RIDGE * np.eye(count)), x.T @ y)
    return out
