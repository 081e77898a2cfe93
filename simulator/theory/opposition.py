"""Gradients that oppose the signal: behind a normalisation, what comes back along the data's leading modes is smaller.

A channel's normalised output does not change with the length of its weights, and its gradient is small where these
weights made it large. Let S be the covariance of a layer's channels over the data and T the mean product of their
gradients, both (channels, channels). Over the weights of later layers T is a function of S, and theory keeps it in the
form T ~ (1 + w S)^-1, with w tr S = 2 o: an `opposition` o, of which T = 1 - 2 o S / tr S for small o.

One more normalised layer back, z = W h / sqrt(v), that form stays. Let lambda_i be the modes of the input's covariance
and M the matrix (modes, channels) of sqrt(lambda_i) w_i / sqrt(v), so that the output has S = M' M and, with F(S) =
(1 + w S)^-1, the input gets

    T = Lambda^-1/2 M F(M' M) M' Lambda^-1/2 = Lambda^-1/2 [1 - (1 + w M M')^-1] / w Lambda^-1/2.

The columns of M are independent, with covariance A = diag(alpha_i), alpha_i = E[lambda_i xi_i^2 / (v + eps)]. So the
bracket's expectation is that of a sample covariance's resolvent, whose deterministic equivalent is (1 + w d A)^-1 with
d = 1 - tr[1 - (1 + w d A)^-1] / channels = tr F / channels (Couillet & Debbah, "Random Matrix Methods for Wireless
Communications", 2011, theorem 6.1), and

    T_i = d damping_i / (1 + w d alpha_i),    damping_i = alpha_i / lambda_i.

An activation leaves of tr (1 - T) what is linear in each channel, in slopes and in covariances.

On maps the opposition has an entry for every offset of the two channels' gradients, which go against the channels'
covariance at that offset. Two outputs an offset apart reach one input through taps as far apart: of T taps, whose pairs
have the offset u in N_u of T^2 cases, a layer behind that meets sum_u N_u o(u) / T and hands on N * o / T^2, its own
included. Windows thus spread what one layer opposes, and a 3x3 one meets 361 / 729 of what another left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Ints, Size, Window, at_offsets, overlaps, summed_at_offsets
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.variance_law import Modes

Array = NDArray[np.float64]

_ROUNDS = 30  # of Newton's method, which needs about five
_AGREED = 1e-10
_MOST = 1.0 - 1e-6  # of what all modes can lose, which an opposition without bound takes


def returned(modes: Modes, opposition: float, channels: int, outside: Array | None = None) -> tuple[float, float]:
    """Return what is left of a gradient behind a layer's weights, and its opposition there.

    Parameters
    ----------
    modes
        Of the normalisation that the layer's outputs go through.
    opposition
        Of the gradient behind that normalisation.
    channels
        Number of outputs.
    outside
        Shares of modes that are none of the input's: see `unmoved`.

    Returns
    -------
    left
        E[|w^T g|^2] over that of weights that the gradient knows nothing of.
    opposition
        Of the gradient at the layer's input.
    """
    whole = _whole(modes, opposition, channels)
    kept = modes.passed / (1 + 2 * opposition * whole * modes.damped)
    lost, counts, shares = float(modes.counts @ (1 - kept)), modes.counts, modes.shares
    left = 1 - lost / modes.dimensions
    if outside is not None:
        order = np.argsort(shares)
        lost -= float(np.sum(1.0 - np.interp(outside, shares[order], kept[order])))
        counts = np.append(counts, np.full_like(outside, -1.0))
        shares = np.append(shares, outside) / (1.0 - float(outside.sum()))
    return left, _opposition(counts, shares, lost)


def unmoved(source: PairKernel, output: PairKernel, window: Window) -> Array | None:
    """Return the shares of a layer's modes that its inputs' mean makes, as zeros around a map let positions differ.

    Of weights w_k of a tap k that reads the map at some positions o alone, the mean m makes sum_k w_k m (1_k(o) - f_k)
    with f_k the share of these. So the modes are those of m^2 times the covariance of 1_k over positions: weights meet
    them, but the inputs do not vary along them.
    """
    whole = output.centred.second_moment
    if window.inside or not whole > 0.0:
        return None
    index = window.index(source.size)
    read = (index >= 0) * np.sqrt(window.shares)[:, None]
    apart = read - read.mean(axis=1, keepdims=True)
    under = np.append(source.diagonal.mean(axis=0), 0.0)[index].mean(axis=1)
    pattern = np.linalg.eigvalsh(apart @ apart.T / apart.shape[1])
    shares = pattern * (source.pair_mean * output.second_moment / whole / float(window.shares @ under))
    return np.asarray(shares * min(0.9 / max(float(shares.sum()), 1e-300), 1.0)) if shares[-1] > 0.0 else None


def kept_of_smooth(modes: Modes, gradient: PairKernel, window: Window) -> float:
    """Return what is left of a gradient behind a layer's weights over that of one that is another at every tap.

    What comes back to a position is sum_t w_t g(x - t), of which E|w_t|^2 E[g^2] is a sum over equal taps. Weights of a
    mode u are as alike under two taps as u is at two positions so far apart: with K the kernel of inputs, which shifts
    of the map leave as it is, they are sum_x h(x + t) u(x) and have u' K_(t - t') u in common. So smooth gradients, as
    poolings make them, meet the smooth modes of images at all taps at once: just those that make v large, and are lost.
    """
    pairs = overlaps(np.ones(window.kernel)) / window.taps
    steps = [_divided(np.arange(1 - taps, taps), step) for taps, step in zip(window.kernel, window.stride, strict=True)]
    alike = pairs * at_offsets(gradient.correlation(), *steps)
    met = np.sum(alike * [at_offsets(field, *steps) for field in modes.fields], axis=(1, 2))
    lost = modes.counts * (1 - modes.passed) / modes.dimensions
    # No direction of the weights keeps less than the one that is damped most.
    return max(1 - float(lost @ met), float(modes.passed.min())) / (1 - float(lost.sum()))


def _whole(modes: Modes, opposition: float, channels: float) -> float:
    """Return d = tr (1 + w S)^-1 / channels, by Newton's method."""
    whole, weights = 1.0, modes.counts * modes.damped
    for _ in range(_ROUNDS):
        taken, slope = _taken(weights, modes.damped, opposition * whole)
        step = (whole - 1 + taken / channels) / (1 + opposition * slope / channels)
        whole -= step
        if abs(step) < _AGREED:
            break
    return whole


def within(opposition: float, channels: float, alike: float) -> float:
    """Return w of E[g_c^2] ~ 1 / (1 + w v_c), v_c being a channel's variance over that of all, over the opposition.

    An entry of the diagonal of (1 + 2 o S / tr S)^-1 with S = sum_c s_c s_c' is, by Schur's complement, 1 / (1 + 2 o
    s_c' T s_c / tr S) with the T that the other channels alone would have. Of s_c that leaves 1 / (1 + 2 o alike),
    `alike` being the mean squared covariance of two different channels, if their modes are equal ones.
    """
    return 2.0 / (channels * (1.0 + 2.0 * opposition * alike))


def projected(modes: Modes, opposition: float, along: float, channels: float) -> float:
    """Return the share of an opposition that is left once what goes along each channel's own output is taken out.

    Gradients of two channels lose two projections and get back their product: of a share `along` of the one,
    1 - 2 along + along E[c^4] / E[c^2] of the product is left over 1 - along of the squares, c being the channels'
    correlation over the data.
    """
    alike = float(modes.counts @ modes.damped**2)
    return reduced(modes, opposition, (1 - 2 * along + 3 * along * alike / (1 + 2 * alike)) / (1 - along), channels)


def reduced(modes: Modes, opposition: float, left: float, channels: float) -> float:
    """Return the share of an opposition that is left once only so much is left of tr (1 - T)."""
    if opposition <= 0.0:
        return min(max(left, 0.0), 1.0)
    taken = min(max(left, 0.0), 1.0) * channels * (1 - _whole(modes, opposition, channels))
    return _opposition(modes.counts, modes.damped, taken) / (1 - taken / channels) / opposition


def average(fields: Sequence[Array], weights: Sequence[float]) -> Array:
    """Return the weighted mean of fields by offset, of maps that need not be equally large."""
    rows, cols = (max(field.shape[axis] for field in fields) for axis in (0, 1))
    down, across = _shifts(rows), _shifts(cols)
    return np.average([at_offsets(field, down, across) for field in fields], axis=0, weights=weights)


def added(one: Array, other: Array) -> Array:
    """Return the sum of fields by offset, of maps that need not be equally large."""
    return one + other if one.shape == other.shape else 2.0 * average([one, other], [1.0, 1.0])


def in_common(field: Array, correlation: Array) -> float:
    """Return the sum of a field by offset, of what correlates by offset as given."""
    rows, cols = field.shape
    down, across = np.arange(rows) - rows // 2, np.arange(cols) - cols // 2
    return float(np.vdot(field, at_offsets(correlation, down, across)))


def together(field: Array, loads: Array, stride: Size) -> float:
    """Return the opposition that a window's weights meet, given it by offset of two outputs.

    Pairs of taps of two channels reach one input from outputs that are apart by the offset of the taps.

    Parameters
    ----------
    field
        Opposition by offset: shape (2 rows - 1, 2 columns - 1), no offset in the middle.
    loads
        Share of each tap in the signal under the window.
    stride
        Of the window.
    """
    most = float(overlaps(loads).max())
    return handed_here(field, loads, stride) / most if most > 0 else 0.0


def handed_here(field: Array, loads: Array, stride: Size) -> float:
    """Return what `handed_on` does where there is no offset."""
    down, across = (step * _shifts(size) for step, size in zip(stride, field.shape, strict=True))
    return float(np.sum(field * at_offsets(overlaps(loads), down, across)))


def handed_on(field: Array, loads: Array, stride: Size, size: Size) -> Array:
    """Return the opposition by offset of two inputs of a window, up to that of a map's corners.

    Gradients of two outputs c, c' an offset apart go against these outputs' covariance, in which for every two weights
    w_ct, w_c't' there is the covariance of the inputs under the taps t and t': an offset from tap to tap further.
    """
    return spread(field, overlaps(loads), stride, size)


def spread(field: Array, weights: Array, stride: Size, size: Size) -> Array:
    """Return the sum, up to the offset of a map's corners, of a field by offset shifted by weighted offsets."""
    shape = [
        min(step * (known - 1) + taps, 2 * most - 1)
        for step, known, taps, most in zip(stride, field.shape, weights.shape, size, strict=True)
    ]
    down, across = (
        _divided(_shifts(out)[:, None] - _shifts(taps), step)
        for out, taps, step in zip(shape, weights.shape, stride, strict=True)
    )
    return summed_at_offsets(field, down, across, weights)


def _shifts(size: int) -> Ints:
    return np.arange(size) - size // 2


def _divided(shift: Ints, step: int) -> Ints:
    """Return shifts of a map with a stride; far beyond it where there are none."""
    return np.where(shift % step == 0, shift // step, np.iinfo(np.int32).max)


def _taken(weights: Array, shares: Array, opposition: float) -> tuple[float, float]:
    """Return tr[1 - (1 + w S)^-1] for w tr S = 2 opposition, and its derivative; `weights` are counts by shares."""
    left = 1 / (1 + 2 * opposition * shares)
    return 2 * opposition * float(weights @ left), 2 * float(weights @ (left * left))


def _opposition(counts: Array, shares: Array, taken: float) -> float:
    """Return the opposition that takes so much, by Newton's method from below on a concave function."""
    found, weights = 0.0, counts * shares
    taken = min(taken, _MOST * float(counts @ (shares > 0.0)))
    for _ in range(_ROUNDS):
        now, slope = _taken(weights, shares, found)
        if taken - now <= _AGREED * taken:
            break
        found += (taken - now) / slope
    return found
