"""The signal: one rule an operation, from the kernels of its inputs to the kernel of its output."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import reduce, singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.initializers import WeightLaw, bias_law, weight_law
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    Network,
    Node,
    Operation,
    Padding,
    ZeroPad,
)
from varprop.simulator.theory.depthwise import (
    DepthwiseChannels,
    Window,
    correct,
    depthwise,
    depthwise_law,
    normalise,
    sample_channels,
    tap_covariance,
)
from varprop.simulator.theory.duals import Duals, apply_activation
from varprop.simulator.theory.pairs import PairKernel, merged, plus, windows
from varprop.simulator.theory.variance_law import VarianceLaw, quadratic_form_law

_MERGE = 16  # positions of a map from which on samples of a real batch count as draws of one law
_MODES = 8  # leading modes of the data that a channel's variance is resolved into
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Pointwise:
    """A node that is a function of Gaussian pre-activations, one position at a time."""

    kernel: PairKernel
    eps: float | None  # of the batch normalisation between `kernel` and the function, if any
    function: ActivationFunction | None = None
    padding: Padding = (0, 0, 0, 0)


@dataclass(frozen=True)
class Weighted:
    """What batch normalisation and the backward pass need to know of a weighted layer."""

    law: WeightLaw
    fan_in: int
    input: PairKernel
    window: Window | None = None
    depthwise: DepthwiseChannels | None = None


@dataclass(frozen=True)
class Signal:
    """What theory knows of one node's output.

    Attributes
    ----------
    kernel
        E[z(x) z(x')] averaged over channels.
    mean
        E z(x), shape (profiles, positions).
    width
        Number of channels that `kernel` is the expected average of; infinite where it is known exactly.
    spread
        How far the kernel of one draw strays from `kernel` because layers before have a finite number of channels:
        mean over pairs of the variance of a centred entry, over the squared centred second moment.
    modes
        Of a weighted layer's output, what normalisation needs.
    """

    kernel: PairKernel
    mean: Array
    width: float
    spread: float = 0.0
    weighted: Weighted | None = None
    pointwise: Pointwise | None = None
    sampled: DepthwiseChannels | None = None
    duals: Duals | None = None
    law: VarianceLaw | None = None


@singledispatch
def propagate(operation: Operation, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    """Return the signal after a node."""
    raise NotImplementedError(f"no theory of {node.kind}")


@propagate.register
def _(operation: Conv2d, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    law = weight_law(node, network.framework)
    per_group = operation.in_channels // operation.groups
    window = operation.kernel, operation.stride, operation.padding
    taps = operation.kernel[0] * operation.kernel[1]
    kernel = windows(signal.kernel, np.eye(taps), *window).scaled(per_group * law.std**2)
    covariance = tap_covariance(signal.kernel, window)
    trace = float(np.trace(covariance))
    # A fluctuation of the kernel between channels is shared by the taps of a window as far as these are correlated.
    share = float(np.sum(covariance**2)) / trace**2 if trace > 0 else 1.0
    sampled = None
    if operation.depthwise:
        source = signal.pointwise or Pointwise(signal.kernel, None)
        padding = tuple(a + b for a, b in zip(operation.padding, source.padding, strict=True))
        channels = sample_channels(source.kernel, source.eps, source.function)
        sampled = depthwise(
            channels,
            (operation.kernel, operation.stride, padding),
            law,
            covariance * float(np.exp(signal.kernel.log_scale)),
        )
    own = 0.0 if operation.depthwise else 1 / signal.width
    spread = (signal.spread + own) * share
    source_kernel = signal.kernel
    if signal.kernel.values.shape[1] > _MERGE >= kernel.values.shape[1] and kernel.layout.profiles > 1:
        wide = kernel.centred()
        kernel = merged(kernel)
        narrow = kernel.centred()
        spread += max(wide.pair_square_mean() - narrow.pair_square_mean(), 0.0) / narrow.second_moment**2
        source_kernel = merged(source_kernel)
    return Signal(
        _with_bias(kernel, node, network),
        np.zeros_like(kernel.diagonal),
        operation.out_channels,
        spread=spread,
        weighted=Weighted(law, per_group * taps, source_kernel, window),
        sampled=sampled,
    )


@propagate.register
def _(operation: Linear, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    law = weight_law(node, network.framework)
    kernel = _with_bias(signal.kernel.scaled(operation.in_features * law.std**2), node, network)
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        operation.out_features,
        spread=signal.spread + 1 / signal.width,
        weighted=Weighted(law, operation.in_features, signal.kernel),
    )


def _with_bias(kernel: PairKernel, node: Node, network: Network) -> PairKernel:
    law = bias_law(node, network.framework)
    second_moment = 0.0 if law is None else law.std**2 + law.mean**2
    if not second_moment:
        return kernel
    return plus(kernel, replace(kernel, values=np.full_like(kernel.values, second_moment), log_scale=0.0))


@propagate.register
def _(operation: BatchNorm, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    centred = signal.kernel.centred()
    scale = float(np.exp(signal.kernel.log_scale))
    sampled = None
    if signal.sampled is not None:
        assert signal.weighted is not None and signal.weighted.window is not None
        law = depthwise_law(signal.sampled, operation.eps)
        sampled = normalise(signal.sampled, law, operation.eps)
        # Dividing by v damps the directions of w that make v large.
        assert law.taps is not None
        kernel = windows(signal.weighted.input, law.taps, *signal.weighted.window).centred()
    else:
        law, kernel = _normalised(signal, centred, scale, operation.eps)
    second_moment = kernel.second_moment
    ratio = law.ratio / second_moment if second_moment > 0 else 0.0
    return Signal(
        replace(kernel, values=kernel.values * ratio, log_scale=0.0),
        np.zeros_like(kernel.diagonal),
        signal.width,
        spread=signal.spread,
        sampled=sampled,
        pointwise=None if sampled else Pointwise(signal.kernel, operation.eps),
        law=law,
    )


def _normalised(signal: Signal, centred: PairKernel, scale: float, eps: float) -> tuple[VarianceLaw, PairKernel]:
    """Law of a channel's variance that sums many modes of the data, and the kernel after division, up to a factor."""
    q = centred.second_moment
    values, vectors = centred.modes(_MODES)
    values = values[values > 0]
    vectors = vectors[: len(values)]
    rest = max(q - float(values.sum()), 0.0)
    rest_square = max(centred.pair_square_mean() - float(np.sum(values**2)), 0.0)
    if centred.layout.profiles > 1 and len(values):
        # All modes were looked at: none of the rest is larger than the least of the leading ones.
        rest_square = min(rest_square, rest * float(values[-1]))
    fan_in = float("inf")
    if signal.weighted is not None:
        weights = signal.weighted.law
        fan_in = float(signal.weighted.fan_in)
        rest_square += q**2 * (signal.spread + weights.excess_kurtosis / (2 * fan_in))
    rest_square = max(rest_square, 1e-9 * q**2)
    law = quadratic_form_law(values * scale, rest * scale, rest_square * scale**2, fan_in, eps)
    assert law.damping is not None
    more = law.damping[:-1] / law.damping[-1] - 1.0
    layout = centred.layout
    damped = centred.values.copy()
    for factor, vector in zip(values * more, vectors, strict=True):
        damped += factor * vector[layout.left][:, :, None] * vector[layout.right][:, None, :]
    return law, replace(centred, values=damped)


@propagate.register
def _(operation: Activation, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    function = activation(operation.function)
    duals = apply_activation(function, signal.kernel)
    if signal.sampled is not None:
        duals = correct(duals, function, signal.sampled)
    out = duals.kernel
    before, after = signal.kernel.centred(), out.centred()
    slope = float(np.exp(signal.kernel.log_scale - out.log_scale + duals.derivative.log_scale))
    slope *= duals.derivative.pair_mean * before.second_moment / after.second_moment if after.second_moment > 0 else 0.0
    return Signal(
        out,
        duals.mean,
        signal.width,
        spread=slope**2 * signal.spread,
        pointwise=replace(signal.pointwise or Pointwise(signal.kernel, None), function=function),
        duals=duals,
    )


@propagate.register
def _(operation: Add, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    kernel = reduce(plus, (signal.kernel for signal in inputs))
    parts = [signal.kernel.centred() for signal in inputs]
    shares = [p.second_moment * float(np.exp(p.log_scale - kernel.log_scale)) for p in parts]
    total = sum(shares)
    return Signal(
        kernel,
        np.sum([signal.mean for signal in inputs], axis=0),
        inputs[0].width,
        spread=sum((w / total) ** 2 * signal.spread for w, signal in zip(shares, inputs, strict=True)) if total else 0.0,
    )


@propagate.register
def _(operation: AveragePool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return _pooled(inputs[0], operation.kernel, operation.stride)


@propagate.register
def _(operation: GlobalAveragePool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return _pooled(inputs[0], inputs[0].kernel.size, (1, 1))


def _pooled(signal: Signal, window: tuple[int, int], stride: tuple[int, int]) -> Signal:
    """Average over windows at both points independently."""
    kernel = signal.kernel
    (h, w), n = kernel.size, len(kernel.values)
    out_h, out_w = (h - window[0]) // stride[0] + 1, (w - window[1]) // stride[1] + 1
    average = np.zeros((out_h * out_w, h * w))
    for row in range(out_h):
        for col in range(out_w):
            mask = np.zeros((h, w))
            mask[row * stride[0] : row * stride[0] + window[0], col * stride[1] : col * stride[1] + window[1]] = 1.0
            average[row * out_w + col] = mask.ravel() / mask.sum()
    values = average @ kernel.values @ average.T
    return Signal(
        replace(kernel, size=(out_h, out_w), values=values), signal.mean @ average.T, signal.width, signal.spread
    )


@propagate.register
def _(operation: Flatten, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    kernel = signal.kernel
    values = np.einsum("bpp->b", kernel.values)[:, None, None] / kernel.values.shape[1]
    return Signal(
        replace(kernel, size=(1, 1), values=values),
        signal.mean.mean(axis=1, keepdims=True),
        signal.width * kernel.values.shape[1],
        signal.spread,
    )


@propagate.register
def _(operation: ZeroPad, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    kernel = signal.kernel
    top, bottom, left, right = operation.padding
    (h, w), n = kernel.size, len(kernel.values)
    size = h + top + bottom, w + left + right
    rows = ((top, bottom), (left, right))
    values = np.pad(kernel.mapped(), ((0, 0), *rows, *rows)).reshape(n, size[0] * size[1], size[0] * size[1])
    mean = np.pad(signal.mean.reshape(-1, h, w), ((0, 0), *rows)).reshape(len(signal.mean), -1)
    inner = signal.pointwise
    return Signal(
        replace(kernel, size=size, values=values),
        mean,
        signal.width,
        signal.spread,
        pointwise=None if inner is None else replace(inner, padding=operation.padding),
    )
