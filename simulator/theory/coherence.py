"""Gradients that go along the signal of a single point, as slopes know the weights that made them.

Theory takes a layer's weights w, of variance s, as independent of the slopes phi'(z) behind it. Given the signal x, by
Gaussian integration by parts, two of them have with the slopes at two outputs a, b of their channel the product

    E[w_i w_j phi'_a phi'_b] = s d_ij E[phi'_a phi'_b] + s^2 [E phi''_a phi''_b (d_i z_a d_j z_b + d_j z_a d_i z_b)
                               + E phi'''_a phi'_b d_i z_a d_j z_a + E phi'_a phi'''_b d_i z_b d_j z_b],

d_i being the derivative for w_i: a signal. So what comes back to channels c, c' of one point p has, beyond that of
weights that know nothing,

    E[g_c(p) g_c'(p + u)] = 2 R(u) / n * E[g^2] x_c(p) x_c'(p + u) / E x^2        (x without its mean over the batch),

a `coherence` R by offset u. Under a window w_i reads p from a through one tap and w_j reads p + u from b through
another: with gamma the gradients' correlation at a and b before the slopes and r the signal's where the other tap
looks, all at the offset from a to b,

    B = gamma [E phi''_a phi''_b (1 + r^2) + 2 r E phi'''_a phi'_b] / (2 E phi'^2),

which is d log E phi'^2 / d log q at a = b, and R gets the mean of B over all pairs of taps, over their number T: 1 / T
of it where gradients of neighbours are independent, and all of it where they are one, as before a global pooling.

A normalisation divides by the channel's own variance, so that what large weights do is lost. With c the correlation of
a and b that takes gamma r (E phi'''_a phi'_b + c E phi''_a phi''_b) / E phi'^2 from B, times the mean of x_c x_c' over
all points, and on the mean over points

    gamma E phi''_a phi''_b (1 + r^2 - 2 r c) / (2 E phi'^2)

lasts, nothing at a = b, against the channels' opposition.

Behind its slopes a gradient along x has with all weights of the layer before a mean, for f = phi' (phi - M)

    E[w_c f(z)] = s x_c E f'(z) = s x_c E[y f(y)] / E z^2          (y = z / sqrt(E z^2)),

channel by channel the same: coherence stays, times E[y phi' (phi - M)]^2 / (E phi'^2 Var phi), and is averaged
over pairs of taps as it is new.

A normalisation over N points, with y on a sphere of d dimensions, takes two projections out of the gradient G = gamma
phi'(y) at its output, also at the point itself. Of G^2 over E gamma^2 that leaves, to first order in 1 / N,

    F = phi'^2 (1 - 2 (1 + y^2) / N) + (E phi'^2 + y^2 E[y^2 phi'^2]) / N,    2 B = E[y^2 F] / E F - 1,

which is exact for a linear function: F = 1 - (1 + y^2) / N. Of coherence from behind the activation the
very point keeps f (1 - (1 + y^2) / N), squared, and all points together return one part in N. Likewise one part in N
of the covariance that opposed gradients go against is of the very point: it counts against R there, and is left of
slopes as coherence is.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.theory.maps import Size, apart_by, at_offsets
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.response import bends

Array = NDArray[np.float64]

_ONE = 1e-3  # of 1 - c^2: phi''_a phi''_b of half-lines is as large as one over its root


def known_by_slopes(
    function: ActivationFunction, gradient: PairKernel, before: PairKernel, squared: float, slope: float
) -> Array:
    """Return gamma E phi''_a phi''_b and gamma E phi'''_a phi'_b over E phi'^2, by offset: shape (2, *offsets).

    Parameters
    ----------
    gradient, before
        Kernels of the gradient at an activation's output and of the signal at its input.
    squared, slope
        E phi'^2 and d log E phi'^2 / d log q, the sum of the two at one point, which is given as the first.
    """
    together = gradient.correlation()
    if gradient.size == (1, 1) or not before.second_moment > 0.0 or not together.any():
        return np.array([slope, 0.0]).reshape(2, 1, 1)
    (found,) = bends(function, [before], None, 1)
    nearly = 1.0 - found.correlation[0, :-1] ** 2 < _ONE
    halves = [np.where(nearly, own, part[0, :-1] / squared) for part, own in ((found.bent, slope), (found.turned, 0.0))]
    for half, own in zip(halves, (slope, 0.0), strict=True):
        half[-1] = own
    fields = [np.append(half, half[-2::-1]).reshape(together.shape) for half in halves]
    return np.stack(fields) * together


def learnt(known: Array, source: PairKernel, output: PairKernel, stride: Size) -> tuple[Array, Array]:
    """Return B, and what lasts of it, by offset of two outputs of a layer of the given source.

    Parameters
    ----------
    known
        What `known_by_slopes` says of the activation behind the layer.
    """
    bent, turned = known
    size = (len(bent) + 1) // 2, (len(bent[0]) + 1) // 2
    if size == (1, 1) or not known.any():
        return bent, np.zeros_like(bent)
    read, seen = _correlation(source, size, stride), _correlation(output, size, (1, 1))
    return bent * (1 + read**2) / 2 + read * turned, bent * (1 + read**2 - 2 * read * seen) / 2


def _correlation(kernel: PairKernel, size: Size, stride: Size) -> Array:
    """Return the correlation of values without their mean at the offsets of a map of `size`, in steps of `stride`."""
    return at_offsets(kernel.centred.correlation(), *apart_by(size, stride))
