"""How far a weighted layer's outputs are from Gaussian.

Given its inputs x, an output z = sum_i w_i x_i of i.i.d. centred weights with excess kurtosis k has

    E z^4 = 3 s^4 S^2 + k s^4 sum_i x_i^4,    S = sum_i x_i^2,    s^2 = Var w.

With C independent input channels, and of one channel R = E r^2 / (E r)^2 for r = the sum of x^2 under the window, F =
E[sum of x^4] / (E r)^2,

    E z^4 / (E z^2)^2 = 3 + 3 (R - 1) / C + k F / C.

At C = 1, a depthwise layer, that is 3 R + k F at any width. Of a Gaussian channel behind an activation R follows from
the Hermite series of phi^2 at the correlations of the taps; of others from sampled channels.
"""

from __future__ import annotations

from dataclasses import replace
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.network import Activation, Conv2d, Network, Padding, ZeroPad
from varprop.simulator.theory.maps import Ints, Window
from varprop.simulator.theory.pair_series import square_series
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.sample import position_squares
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

WIDE = 64
"""Input channels from which on outputs count as Gaussian: behind ReLU 3 (6 - 1) / 64 is left, if taps are alike."""

_SAMPLES = 4  # of a batch of images, over which windows are averaged


def output_kurtosis(network: Network, index: int, signals: list[Signal]) -> float | None:
    """Return E z^4 / (E z^2)^2 of a weighted layer's output at a point, averaged over points; None if not known.

    Not looked at are layers of at least `WIDE` input channels a group, and those that read the data, which are fixed.
    """
    node, weighted = network.nodes[index], signals[index].weighted
    if weighted is None:
        return None
    before, source = network.nodes[node.inputs[0]], signals[node.inputs[0]]
    window = Window((1, 1), (1, 1))
    channels = weighted.fan_in
    if isinstance(node.operation, Conv2d):
        padding = node.operation.padding
        while isinstance(before.operation, ZeroPad):
            padding = _sum(padding, before.operation.padding)
            before, source = network.nodes[before.inputs[0]], signals[before.inputs[0]]
        assert weighted.window is not None
        window = replace(weighted.window, padding=padding, inside=source.amplitude is not None)
        channels //= window.live
    if channels >= WIDE or np.isinf(source.width) or not source.kernel.second_moment:
        return None
    taps = window.index(source.kernel.size)[window.shares > 0]
    gaussian, function = source, activation("linear")
    if isinstance(before.operation, Activation):
        gaussian, function = signals[before.inputs[0]], activation(before.operation.function)
    if gaussian.gaussian is not None and gaussian.gaussian.function is None:
        spread, fourth = _of_gaussian(function, gaussian.kernel, source.kernel, taps)
    elif source.sample is not None:
        spread, fourth = _of_sample(source.draw().values, taps)
    else:
        return None
    return 3 + (3 * (spread - 1) + weighted.law.excess_kurtosis * fourth) / channels


def _of_gaussian(
    function: ActivationFunction, before: PairKernel, after: PairKernel, taps: Ints
) -> tuple[float, float]:
    """R and F of a channel phi(z), z Gaussian with the kernel `before` and phi(z) with the kernel `after`."""
    squares = square_series(function, before)
    own = min(_SAMPLES, before.layout.profiles)
    variance, level = (np.pad(kernel.diagonal[:own], ((0, 0), (0, 1))) for kernel in (before, after))
    covariance = np.pad(before.values[:own], ((0, 0), (0, 1), (0, 1)))[:, taps[:, None], taps[None, :]]
    scale = np.sqrt(np.maximum(variance[:, taps][:, :, None] * variance[:, taps][:, None, :], 0.0))
    c = np.clip(np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0), -1.0, 1.0)
    products = 1 + np.polynomial.polynomial.polyval(c, squares.series) + 2 * squares.slope**2 * c**2
    products *= level[:, taps][:, :, None] * level[:, taps][:, None, :]
    return _relative(products.sum(axis=(1, 2)), np.einsum("pkko->po", products), level[:, taps].sum(axis=1))


def _sum(first: Padding, second: Padding) -> Padding:
    return first[0] + second[0], first[1] + second[1], first[2] + second[2], first[3] + second[3]


def _of_sample(values: Array, taps: Ints) -> tuple[float, float]:
    """R and F of sampled channels, shape (positions, samples, channels)."""
    squares = np.pad(values**2, ((0, 1), (0, 0), (0, 0)))
    total = reduce(np.add, (squares[under] for under in taps))
    fourth = np.append(position_squares(squares[:-1]), 0.0)[taps].sum(axis=0)
    return _relative(position_squares(total), fourth, total.mean(axis=(1, 2)))


def _relative(spread: Array, fourth: Array, mean: Array) -> tuple[float, float]:
    """Averages over points of E r^2 / (E r)^2 and E[sum of x^4] / (E r)^2, where anything is under the window."""
    live = mean > 0
    if not live.any():
        return 1.0, 0.0
    return float(np.mean(spread[live] / mean[live] ** 2)), float(np.mean(fourth[live] / mean[live] ** 2))
