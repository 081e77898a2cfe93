"""The law, over weight draws, of a point's second moment where nothing normalises it, from one dense layer to the next.

Given a layer's input the outputs z of independent Gaussian weights are Gaussian, and all that is left of the input is
its mean square: the level q of the point. With C(q) = E phi(z)^2 the next level is, over n channels,

    q' = sigma_w^2 (C(q) + noise),    Var noise = (E phi^4 - C^2) / n,

a Markov chain on a line, whose law is carried on a grid of log q (the mean over channels is taken as gamma
distributed, as it is without an activation). So E C(q) is not C(E q), however small 1 / n: what C bends adds up over
layers.

Back from the output, with D = |dL/dz|^2 of a layer and A = z dL/dz: given z' the next weights are W = z' h^T / |h|^2 +
W~ (1 - h h^T / |h|^2) with h = phi(z) and W~ of the law of W, unconditioned, so that with D' and A' of the next layer

    D   = (sigma_w^2 / n) [sum phi'^2 D'           + sum phi'^2 h^2 (A'^2 / q' - D') / |h|^2],
    A^2 = (sigma_w^2 / n) [sum z^2 phi'^2 D'       + (sum z phi' h)^2 (A'^2 / q' - D') / |h|^2],

where the sums know something of q', too: they are taken as linear in it. Functions of q are carried back to functions
of the level before.

Under a window levels of neighbours are averaged: of their variance is left what two of its taps share.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass, replace
from functools import cache, cached_property
from math import log1p, sqrt
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.interpolation import cubic_rows, cubic_weights
from varprop.simulator.theory.duals import hermite_expansion
from varprop.simulator.theory.levels import log_normal

Array = NDArray[np.float64]

_DRAWN = 7  # points that stand for a mean over channels
_REACH = 5.0  # deviations on either side of the mean
_FINE = 0.4  # of a deviation between nodes, and
_COARSE = 0.25  # of log q: activations bend on the scale of one
_MOST = 120  # nodes
_FARTHEST = 40.0  # what is beyond happens once in e^20 draws
_DARKEST = 1e-6  # of the mean: points of lower levels count as such
_ROUND = 2.0  # dimensions of a sphere at least
_STEP = 0.1  # of log variance between tabulated laws of a mean over channels
_LEAST = 1e-12  # variance of log q that stands for none


@dataclass(frozen=True)
class Law:
    """Law of a point's level over its expectation.

    Attributes
    ----------
    logs
        Nodes, equally spaced, shape (nodes,).
    masses
        Weights of functions at these; of far nodes they may be slightly negative.
    """

    logs: Array
    masses: Array

    @cached_property
    def levels(self) -> Array:
        """Levels at the nodes."""
        return np.exp(self.logs)

    def spread(self, levels: Array, weights: Array) -> Array:
        """Return what the nodes weigh in a weighted mean, over other levels, of a function given there."""
        if len(self.logs) == 1:
            return np.ones(1)
        shares = weights.ravel() / weights.sum()
        place = (np.log(np.maximum(levels.ravel(), _DARKEST)) - self.logs[0]) / (self.logs[1] - self.logs[0])
        nodes, cubic = _interpolated(place, len(self.logs))
        return np.bincount(nodes.ravel(), (shares[:, None] * cubic).ravel(), len(self.logs)).astype(np.float64)

    def mean(self, values: Array) -> float:
        """Return the mean of a function given at the nodes."""
        return float(self.masses @ values)


STILL = Law(np.zeros(1), np.ones(1))


@dataclass(frozen=True)
class Passage:
    """What an activation makes of points at the nodes of a law; all of shape (nodes,).

    Attributes
    ----------
    mean, square, slope
        E phi, C = E phi^2 and E phi'^2.
    noise
        E phi^4 / C^2 - 1.
    tilted
        E z^2 phi'^2 / q.
    along
        E z phi' phi / C.
    coherent
        C / q.
    gate
        E phi'^2 phi^2 / (E phi'^2 C).
    on_slope, on_tilted, on_along
        Relative change of the channels' mean of phi'^2, z^2 phi'^2 and z phi' phi for one of that of phi^2.
    """

    mean: Array
    square: Array
    slope: Array
    noise: Array
    tilted: Array
    along: Array
    coherent: Array
    gate: Array
    on_slope: Array
    on_tilted: Array
    on_along: Array


def unchanged(law: Law) -> Passage:
    """Return what no activation at all makes of them."""
    one, none = np.ones_like(law.logs), np.zeros_like(law.logs)
    return Passage(none, law.levels, one, 2 * one, one, one, one, one, none, one, one)


def strayed(variance: float) -> Passage:
    """Return a single point whose channels, all of them together, stray by a relative variance."""
    return replace(unchanged(STILL), noise=np.array([variance]))


def passed(function: ActivationFunction, second_moment: float, levels: Array, fixed: float, channels: float) -> Passage:
    """Return what an activation makes of points whose second moments are `levels` times the given one.

    Points are Gaussian, but of so many channels' mean square, as orthogonal weights keep it, a part is `fixed`: they
    lie on a sphere, and a part of what phi^2 strays by goes with that mean square.
    """
    q = second_moment * levels
    dimensions = max(channels / fixed, _ROUND) if fixed > 0.0 else np.inf
    coefficients, moments = hermite_expansion(function, np.sqrt(q), dimensions)
    square, slope, tilted, _, fourth, _, gate, along, tilted_gate, along_gate, *_ = moments
    noise = np.maximum(fourth - 1.0 - 2 * fixed * along**2, 0.0)  # E (z^2 / q - 1) phi^2 is 2 E z phi phi'

    def response(ratio: Array, level: Array | float) -> Array:
        """Of a mean whose products with phi^2 and with z^2 are so many times those of unrelated numbers."""
        shared = ratio - 1.0 - fixed * along * (level - 1.0)
        return np.asarray(np.divide(shared, noise, out=np.zeros_like(noise), where=noise > _LEAST))

    bent = np.divide(tilted, q * slope, out=np.ones_like(q), where=slope > 0)
    turned = np.divide(along_gate, along, out=np.ones_like(along), where=along != 0)
    responses = response(gate, bent), response(tilted_gate, 1.0), response(turned, 1.0)
    return Passage(coefficients[0, :, 0], square, slope, noise, tilted / q, along, square / q, gate, *responses)


@dataclass(frozen=True)
class Step:
    """From the levels at one layer's output to those at the next one's: matrices (nodes before, nodes behind).

    Attributes
    ----------
    plain
        E[f(q') | q] of a function f of the next level.
    slope, tilted, coherent
        The same with the deviations of the channels' means that go with q'.
    weighted
        Share of q' that the bias does not make.
    """

    plain: Array
    slope: Array
    tilted: Array
    coherent: Array
    weighted: float


def stepped(
    law: Law, passage: Passage, noise: float, kept: float, weighted: float, mixed: bool = False
) -> tuple[Law, Step]:
    """Return the law behind a weighted layer, and the way back.

    Parameters
    ----------
    law, passage
        Before the activation, and what that made of it.
    noise
        Of a channel's variance, what that of the mean under a window is: one over the number of channels, or less.
    kept
        What a window leaves of the variance of levels.
    weighted
        Share of the second moment behind the layer that the bias does not make.
    mixed
        Whether channels had levels of their own. Of means of squares of Gaussian numbers, each times an exponential
        number, the skewness is 2.96 times the coefficient of variation: 3 times for log-normal ones that stray little,
        twice for gamma distributed ones.
    """
    mean = law.mean(passage.square)
    inherited, spread = np.zeros_like(law.logs), 0.0
    if len(law.logs) > 1 and mean > 0.0:
        relative = passage.square / mean
        spread = max(law.mean(relative**2) - 1.0, 0.0)
        logs = np.log(np.maximum(relative, 1e-300))
        inherited = logs * sqrt(log1p(kept * spread) / log1p(spread)) if spread > 0.0 else inherited
        inherited -= np.log(max(law.mean(np.exp(inherited)), 1e-300))
    drawn, odds = (log_normal if mixed else _gamma)(passage.noise * noise)
    fresh = drawn - 1.0
    logs = np.log(np.maximum(weighted * np.exp(inherited)[:, None] * drawn + (1.0 - weighted), 1e-300))
    nodes, matrix = spread_out(logs, law.masses[:, None] * odds)
    along = 1.0 + passage.on_along[:, None] * fresh
    factors = (
        np.ones_like(fresh),
        np.maximum(1.0 + passage.on_slope[:, None] * fresh, 0.0),
        np.maximum(1.0 + passage.on_tilted[:, None] * fresh, 0.0),
        along**2 / (1.0 + fresh),
    )
    plain, slope, tilted, coherent = (matrix(odds * factor) for factor in factors)
    step = Step(plain, slope, tilted, coherent, weighted)
    return of_mean_one(nodes, law.masses @ plain), step


def gathered(levels: Array) -> Law:
    """Return the law of as many equally likely levels, of mean one."""
    logs = np.log(np.maximum(levels.reshape(1, -1), _DARKEST))
    nodes, matrix = spread_out(logs, np.full(logs.shape, 1 / logs.size))
    return of_mean_one(nodes, matrix(np.full(logs.shape, 1 / logs.size))[0])


def of_mean_one(nodes: Array, masses: Array) -> Law:
    """Return the law with these masses at these nodes, shifted to a mean of one."""
    top = float(nodes[-1])
    return Law(nodes - top - np.log(float(masses @ np.exp(nodes - top))), masses)


def spread_out(logs: Array, shares: Array) -> tuple[Array, Callable[[Array], Array]]:
    """Return a grid for points with these shares, and what spreads weights of points, row by row, over its nodes."""
    rows = len(logs)
    middle = float(np.sum(shares * logs))
    deviation = sqrt(max(float(np.sum(shares * (logs - middle) ** 2)), 0.0))
    if deviation**2 <= _LEAST:
        return np.zeros(1), lambda weights: weights.sum(axis=1, keepdims=True)
    # The mean of a log-normal level comes from a deviation squared above the middle.
    low, high = middle - _REACH * deviation, middle + _REACH * deviation + min(2 * deviation**2, _FARTHEST)
    step = max(min(_FINE * deviation, _COARSE), (high - low) / _MOST)
    count = max(int(np.ceil((high - low) / step)), 3) + 1
    along, cubic = _interpolated((logs - low) / step, count)
    where = (np.arange(rows)[:, None, None] * count + along).ravel()

    def matrix(weights: Array) -> Array:
        found = np.bincount(where, (weights[..., None] * cubic).ravel(), rows * count)
        return np.asarray(found.reshape(rows, count), dtype=np.float64)

    return np.asarray(low + step * np.arange(count)), matrix


def _interpolated(place: Array, count: int) -> tuple[NDArray[np.intp], Array]:
    """Return the four nodes of a grid of `count` around each place, and their weights in a cubic."""
    place = np.clip(place, 0.0, count - 1.0)
    first = np.clip(np.floor(place).astype(np.intp), 1, count - 3)
    return first[..., None] + np.arange(-1, 3), cubic_weights(place - first)


def _gamma(variance: Array) -> tuple[Array, Array]:
    """Return points of gamma laws of mean one and their weights, shape (*variance.shape, points).

    The Gauss rule of a law of the shape k = 1 / variance (Golub & Welsch, Math. Comp. 23, 1969), whose orthogonal
    polynomials are Laguerre's.
    """
    # Rules on a grid of log variance that all layers share, and cubic interpolation between them.
    needed, which, weights = cubic_rows(np.log(np.maximum(variance, _LEAST)) / _STEP)
    rules = np.stack([_rule(step) for step in needed])
    found = np.einsum("...t,...tkp->k...p", weights, rules[which])
    return np.maximum(found[0], 1e-300), found[1]


@cache
def _rule(step: int) -> Array:
    shape, order = np.exp(-step * _STEP), np.arange(_DRAWN)
    matrix = np.diag(2.0 * order / shape + 1.0)
    matrix[order[1:], order[:-1]] = np.sqrt(order[1:] * (order[1:] - 1.0 + shape)) / shape
    points, vectors = np.linalg.eigh(matrix)
    return np.stack([points, vectors[0] ** 2])


@dataclass(frozen=True)
class Functions:
    """Functions of a level at the nodes of its law, each of shape (nodes,)."""


F = TypeVar("F", bound=Functions)


def mixed(parts: Sequence[tuple[float, F]]) -> F:
    """Return the mean of functions of one kind with these weights."""
    whole = sum(weight for weight, _ in parts)
    fields = zip(*(astuple(part) for _, part in parts), strict=True)
    shares = np.array([weight / whole for weight, _ in parts])
    return type(parts[0][1])(*(shares @ np.stack(field) for field in fields))


@dataclass(frozen=True)
class Returned(Functions):
    """A gradient as a function of the level at a weighted layer's output, shape (nodes,).

    Attributes
    ----------
    square
        E[D | q] over its mean.
    excess
        E[A^2 / q - D | q] over the same.
    """

    square: Array
    excess: Array


def arriving(law: Law) -> Returned:
    """Return a gradient that knows nothing of the layer: a cotangent, say."""
    return Returned(np.ones_like(law.logs), np.zeros_like(law.logs))


@dataclass(frozen=True)
class Behind(Functions):
    """A gradient behind an activation, as a function of the level before it, shape (nodes,): see `before`."""

    slope: Array
    square: Array
    tilted: Array
    coherent: Array


def untouched(law: Law) -> Behind:
    """Return a gradient behind an activation that knows nothing of what comes later."""
    one, none = np.ones_like(law.logs), np.zeros_like(law.logs)
    return Behind(one, none, one, none)


def back(step: Step, found: Returned, fan_in: int, isometric: bool) -> Behind:
    """Return the gradient at the input of a weighted layer; `isometric` is one that keeps its length."""
    more = step.plain @ found.excess * (step.weighted / fan_in)
    slope = step.slope @ found.square
    return Behind(
        # What an isometric layer adds along its output it takes from all other directions.
        slope - more if isometric else slope,
        more,
        step.tilted @ found.square,
        step.coherent @ found.excess * step.weighted,
    )


def through_taps(step: Step, found: Returned) -> Behind:
    """Return the gradient at the input of a depthwise layer, whose channels each hand on their own."""
    square, excess = step.plain @ found.square, step.plain @ found.excess
    return Behind(square, np.zeros_like(square), square, excess * step.weighted)


def before(law: Law, passage: Passage, found: Behind) -> tuple[Returned, float]:
    """Return the gradient before an activation, and its mean square over that behind the activation."""
    square = passage.slope * (found.slope + passage.gate * found.square)
    along = passage.tilted * found.tilted + passage.coherent * passage.along**2 * found.coherent
    mean = law.mean(square)
    if not mean > 0.0:
        return arriving(law), 0.0
    return Returned(square / mean, (along - square) / mean), mean
