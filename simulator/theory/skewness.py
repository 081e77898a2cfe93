"""How lopsided a weighted layer's channels are over the points of a batch.

Given the inputs x_i(p), a channel z(p) = sum w_i x_i(p) has over the points p the third central moment

    m = sum_ijk w_i w_j w_k E_p[x_i x_j x_k],

whose mean over weights is zero. Gaussian weights of variance one have, by Wick's theorem,

    E m^2 = 6 sum_ijk E_p[x_i x_j x_k]^2 + 9 sum_i (sum_j E_p[x_i x_j^2])^2.

Of n channels x = phi(u), centred and of variance one, where two u correlate as rho over the points and v = E rho^2, and
with g = E x^3, b_k = E[x h_k(u)] and s_k = E[x^2 h_k(u)], these are to leading order, per channel,

    6 (g^2 + 3 n v (b_1 s_1)^2 + 6 (n v b_1^2 b_2)^2) + 9 ((g + n v b_2 s_2)^2 + n v (b_1 s_1)^2):

of one channel, of two, for which E_p[x_i x_j^2] = b_1 s_1 rho + b_2 s_2 rho^2, and of three. Under T taps of which two
go together as r_kl >= 0, a mean product of three taps is that of one times about sqrt(r_kl r_lm r_mk) (exact where all
are alike, and where none are): tr r^3 stands at the 6 and sum_k (sum_l r_kl)^2 at the 9. Of other weights E w^6 is not
15, and E w^4 = 3 + k for what has a weight four times: 9 E[x_i^2 x_j]^2 and 6 E[x_i^3] E[x_i x_j^2].

The squared skewness divides by the cube of the channel's variance, which goes with the weights: that has the relative
variance L = (2 tr C^2 / (tr C)^2 + k / n T), C being the covariance of all inputs, and the ratio is about (1 + L) (1 +
2 L) times smaller than that of the means. Of one tap and one channel it is 15 g^2 / ((n + 2) (n + 4)).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import at_offsets
from varprop.simulator.theory.signal import Weighted
from varprop.simulator.weight_law import WeightLaw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Skewness:
    """Third moments of channels over the points, in units of their variance.

    Attributes
    ----------
    alone
        g, of one channel.
    paired, turned
        v (b_1 s_1)^2 and v b_2 s_2, mean square and mean of those of two channels.
    triple
        (v b_1^2 b_2)^2, a sixth of the mean square of those of three.
    alike
        v b_1^4, the mean squared correlation of two channels.
    """

    alone: float = 0.0
    paired: float = 0.0
    turned: float = 0.0
    triple: float = 0.0
    alike: float = 0.0

    @staticmethod
    def activated(third: Array, alike: float) -> Skewness:
        """Return that of channels behind an activation: `third` of its `SquareSeries`, and v before it."""
        g, b1, b2, s1, s2 = map(float, third)
        return Skewness(g, alike * (b1 * s1) ** 2, alike * b2 * s2, (alike * b1**2 * b2) ** 2, alike * b1**4)


EVEN = Skewness()


def output_skewness(weighted: Weighted, skewness: Skewness) -> float:
    """Return the mean squared skewness of a weighted layer's channels, given that of its input's."""
    source = weighted.input
    if skewness == EVEN or source.variance <= 0.0:
        return 0.0
    window, fan_in = weighted.window, float(weighted.fan_in)
    alike, taps = np.ones((1, 1)), 1
    if window is not None and window.live > 1:
        down, across = (np.subtract.outer(np.arange(side), np.arange(side)) for side in window.kernel)
        taps = window.live
        field = np.maximum(source.correlation(source.pair_mean), 0.0)
        alike = at_offsets(field, down, across).transpose(0, 2, 1, 3).reshape(taps, taps)
    channels = fan_in / taps
    own, turned = skewness.alone, channels * skewness.turned
    paired, triple = channels * skewness.paired, channels**2 * skewness.triple
    whole, squares = float(alike.sum()), float(np.sum(alike**2))
    found = 6 * float(np.sum((alike @ alike) * alike)) * (own**2 + 3 * paired + 6 * triple)
    found += 9 * float(np.sum(alike.sum(axis=1) ** 2)) * ((own + turned) ** 2 + paired)
    excess = 0.0 if weighted.law.matrix is not None else weighted.law.excess_kurtosis
    found += excess * (own**2 * (9 * (squares - taps) + 6 * (whole - taps)) + taps * (9 * paired + 6 * own * turned))
    found -= (15 - _sixth(weighted.law)) * taps * own**2
    length = (2 * squares / taps * (1 + channels * skewness.alike) + excess) / fan_in
    return max(found, 0.0) / (taps * fan_in**2 * (1 + length) * (1 + 2 * length))


def _sixth(law: WeightLaw) -> float:
    """Return E w^6 of a weight of variance one, as of a coordinate of a sphere that has its kurtosis.

    That is exact of a uniform law, in three dimensions, and of a normal one.
    """
    if law.matrix is not None or law.excess_kurtosis >= 0.0:
        return 15.0
    d = -6.0 / law.excess_kurtosis - 2.0
    return 15.0 * d * d / ((d + 2.0) * (d + 4.0)) if math.isfinite(d) else 15.0
