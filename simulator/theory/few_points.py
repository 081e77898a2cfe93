"""Batch normalisation over so few points that what it leaves of a channel is no longer nearly Gaussian.

Of two values it leaves a sign: they are +-sqrt(v / (v + eps)). Of N, not all alike, it leaves a point of a sphere of at
most N - 1 dimensions, and on the way back its two projections take all but N - 2 directions of the gradient, and of the
second of these all but eps / (v + eps). Expansions in 1 / N say nothing of that; but so few dimensions can be
integrated over. A Gaussian channel of kernel C = R R' is

    z = r R e,    e uniform on the unit sphere of d dimensions, r^2 chi-squared of d degrees.

Nodes are points e of an additive recurrence (Roberts, "The unreasonable effectiveness of quasirandom sequences", 2018),
their negatives, and the trapezoidal rule in log r^2, which sees the rare channels of v near eps as well: with N = 2
these alone have a gradient, E[eps^2 / (v + eps)^3] of it. Activations and normalisations act on every node, and what
comes back has a covariance at each as long as it has not gone through weights.

In a single draw of the layers before, C is a random covariance. If that is C^(1/2) A A' C^(1/2) / n of an n-column
Gaussian matrix A, whose entries stray by 1 / n, the law of e stays and r^2 is multiplied by chi-squared over n of n
degrees, of variance 2 / n: a level that all points of a channel have in common.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln, ndtri

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.theory.duals import FAR, Duals
from varprop.simulator.theory.levels import nodes
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.sampling import assemble

Array = NDArray[np.float64]

_POINTS = 8  # of more, expansions in their number are as close as the nodes
_DIRECTIONS = 2048  # and as many opposite ones
_WHITENED = 3  # times
_STEP = 0.7  # of log r^2: of 1.0 the rule was .35% off, of 0.5 nothing
_LEAST = -60.0  # log r^2 from which on there is anything
_NEGLIGIBLE = 1e-5  # share of a moment that nodes are left out of
_ROUNDING = 1e-12  # share of the largest variance of a direction


@dataclass(frozen=True)
class Cubature:
    """Nodes of the law of a channel.

    Attributes
    ----------
    values
        At every point, shape (points, nodes).
    weights
        Shape (nodes,); they sum to one.
    source
        What `values` are made of by an activation or a normalisation; None of a Gaussian channel.
    slopes, inverse
        Of that activation, shape (points, nodes), or 1 / (v + eps) of that normalisation, shape (nodes,).
    """

    values: Array
    weights: Array
    source: Cubature | None = None
    slopes: Array | None = None
    inverse: Array | None = None

    def activated(self, function: ActivationFunction) -> Cubature:
        """Apply an activation to every value."""
        return Cubature(function.value(self.values), self.weights, self, slopes=function.derivative(self.values))

    def normalised(self, eps: float) -> Cubature:
        """Normalise over the points."""
        centred = self.values - self.values.mean(axis=0)
        inverse = 1.0 / (np.mean(centred**2, axis=0) + eps)
        return Cubature(centred * np.sqrt(inverse), self.weights, self, inverse=inverse)

    def kernel(self, like: PairKernel, values: Array) -> PairKernel:
        """Return the mean product of functions of the channel, shape (points, nodes), at all pairs of points."""
        return _on_layout((values * self.weights) @ values.T, like)


def gaussian(kernel: PairKernel, eps: float, strayed: float) -> Cubature | None:
    """Return the nodes of a Gaussian channel that goes on to a normalisation; None over many points.

    Parameters
    ----------
    kernel
        Of the channel.
    eps
        Of the normalisation.
    strayed
        Variance of the relative deviations of a single draw's kernel.
    """
    layout, positions = kernel.layout, kernel.values.shape[1]
    points = layout.batch * positions
    if not layout.complete or points > _POINTS or abs(kernel.log_scale) > FAR:
        return None
    values, vectors = np.linalg.eigh(assemble(kernel) * float(np.exp(kernel.log_scale)))
    alive = values > _ROUNDING * values[-1]
    dimensions = int(alive.sum())
    if not values[-1] > 0.0:
        return None
    along = (vectors[:, alive] * np.sqrt(values[alive])) @ _directions(dimensions)
    log = np.arange(_LEAST, np.log(dimensions) + 5.0, _STEP)
    levels, shares = nodes(2.0 * strayed)
    apart = log - np.log(levels)[:, None]
    mass = shares @ np.exp(0.5 * dimensions * apart - 0.5 * np.exp(apart) - gammaln(0.5 * dimensions))
    mass /= mass.sum()
    felt = mass / (np.exp(log) * float(values.sum()) / points + eps)
    some = np.any([part > _NEGLIGIBLE * part.sum() for part in (felt, mass)], axis=0)
    radii, mass = np.exp(log[some] / 2), mass[some] / mass[some].sum()
    found = (along[:, None, :] * radii[:, None]).reshape(points, -1)
    return Cubature(found, np.repeat(mass, along.shape[1]) / along.shape[1])


def activated_duals(duals: Duals, cubature: Cubature, like: PairKernel) -> Duals:
    """Give an activation's duals their averages over the nodes of the channels."""
    assert cubature.source is not None
    assert cubature.slopes is not None
    kernel = cubature.kernel(like, cubature.values)
    mean = (cubature.values @ cubature.weights).reshape(like.layout.profiles, -1) * kernel.unit(0.0)
    tilted = None if duals.tilted is None else cubature.kernel(like, cubature.source.values * cubature.slopes)
    return replace(duals, mean=mean, kernel=kernel, derivative=cubature.kernel(like, cubature.slopes), tilted=tilted)


@dataclass(frozen=True)
class Given:
    """Covariance of a gradient, given the channel, at the nodes of a cubature: shape (points, points, nodes)."""

    covariance: Array
    at: Cubature

    def kernel(self, like: PairKernel) -> PairKernel:
        """Return the mean over all nodes."""
        whole = np.broadcast_to(self.covariance, (*self.covariance.shape[:2], len(self.at.weights)))
        return _on_layout(whole @ self.at.weights, like)

    def sized(self, kernel: PairKernel) -> Given:
        """Bring the mean to the size of a kernel, in its units."""
        size = self.kernel(kernel)
        own = size.second_moment * float(np.exp(size.log_scale))
        return replace(self, covariance=self.covariance * (kernel.second_moment / own if own > 0 else 0.0))

    def back(self) -> Given:
        """Take the gradient to the source of the channel's values.

        Behind an activation that multiplies by slopes. With y = (z - E z) / sqrt(v + eps), means being over the points,
        a normalisation leaves (v + eps)^(-1/2) (g - E g - y E[g y]).
        """
        covariance, at = self.covariance, self.at
        assert at.source is not None
        if at.slopes is not None:
            return Given(covariance * at.slopes[:, None] * at.slopes, at.source)
        for _ in range(2):  # of either side
            along = np.einsum("ik,ijk->jk", at.values, covariance) / len(at.values)
            covariance = (covariance - covariance.mean(axis=0) - at.values[:, None] * along).swapaxes(0, 1)
        assert at.inverse is not None
        return Given(covariance * at.inverse, at.source)


def _on_layout(matrix: Array, like: PairKernel) -> PairKernel:
    """Return the kernel that `assemble` makes a matrix of, on the layout of another."""
    layout, positions = like.layout, like.values.shape[1]
    full = matrix.reshape(layout.profiles, positions, layout.profiles, positions)
    return PairKernel(layout, like.size, np.ascontiguousarray(full[layout.left, :, layout.right])).scaled(1.0)


@cache
def _directions(dimensions: int) -> Array:
    """Return unit vectors and their negatives, shape (dimensions, 2 * _DIRECTIONS); of one dimension both there are."""
    if dimensions == 1:
        return np.array([[1.0, -1.0]])
    ratio = 2.0
    for _ in range(60):  # the real root of x^(d + 1) = x + 1
        ratio = (1.0 + ratio) ** (1.0 / (dimensions + 1))
    half = ndtri((0.5 + np.outer(ratio ** -np.arange(1.0, dimensions + 1), np.arange(1, _DIRECTIONS + 1))) % 1.0)
    half /= np.sqrt(np.sum(half**2, axis=0))
    for _ in range(_WHITENED):  # E[e e'] = 1 / d: nine tenths of the errors were of that
        values, vectors = np.linalg.eigh(half @ half.T)
        half = (vectors / np.sqrt(values)) @ (vectors.T @ half)
        half /= np.sqrt(np.sum(half**2, axis=0))
    return np.concatenate([half, -half], axis=1)
