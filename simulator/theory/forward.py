"""The signal: one rule an operation, from the kernels of its inputs to the kernel of its output."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, reduce, singledispatch

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
    MaxPool,
    Network,
    Node,
    Operation,
    Padding,
    Shape,
    ZeroPad,
)
from varprop.simulator.theory.depthwise import Relations, Taps, depthwise, depthwise_law, tap_covariance
from varprop.simulator.theory.duals import Duals, apply_activation
from varprop.simulator.theory.maps import Ints, Size, Window, window_sum
from varprop.simulator.theory.pairs import PairKernel, merged, plus, regridded, windows
from varprop.simulator.theory.sampling import Sample, activated, correct, draw, matched, normalised
from varprop.simulator.theory.variance_law import VarianceLaw, quadratic_form_law

CUT = 16  # rows and columns of a larger map that kernels are carried on
_MERGE = 16  # positions of a map from which on samples of a real batch count as draws of one law
_MODES = 8  # leading modes of the data that a channel's variance is resolved into
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Where a node's channels come from, as long as they are a function of Gaussian ones."""

    kernel: PairKernel
    key: int
    eps: float | None = None  # of the batch normalisation that came next, if any
    variance: float = 0.0  # of a channel over the data, as that normalisation saw it
    function: ActivationFunction | None = None

    def draw(self) -> Sample:
        """Draw channels of the node."""
        sample = draw(self.kernel, self.key)
        if self.eps is not None:
            sample = normalised(sample, self.eps, self.variance)
        return sample if self.function is None else activated(sample, self.function)


@dataclass(frozen=True)
class Weighted:
    """What batch normalisation and the backward pass need to know of a weighted layer."""

    law: WeightLaw
    fan_in: int
    input: PairKernel
    window: Window | None = None
    taps: Taps | None = None


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
    weighted
        Of a weighted layer's output, what normalisation and the backward pass need.
    origin, sample
        The channels' law: a function of Gaussian ones, or, where it is not, a sample, drawn when asked for.
    padding
        Zeros around the map since `origin` or `sample`.
    amplitude
        None while the kernel's map is the node's map. Of a larger map the kernel is a cut-out deep inside, and
        `amplitude`, shape (height, width), is the second moment at every position over that inside: edges.
    data
        Of an input that only convolutions read, the samples themselves, shape (profiles, channels, height, width): their
        kernel is worked out where it is needed, on the convolution's output.
    duals, law, selection, relations
        What an activation, a normalisation or a pooling found on the way, for the backward pass.
    """

    kernel: PairKernel
    mean: Array
    width: float
    spread: float = 0.0
    weighted: Weighted | None = None
    origin: Gaussian | None = None
    sample: Callable[[], Sample] | None = None
    padding: Padding = (0, 0, 0, 0)
    amplitude: Array | None = None
    data: Array | None = None
    duals: Duals | None = None
    law: VarianceLaw | None = None
    selection: float = 1.0
    behind: tuple[Taps, Size] | None = None
    relations: Relations = Relations()

    @property
    def edges(self) -> float:
        """Second moment over the whole map relative to the kernel's."""
        return 1.0 if self.amplitude is None else float(self.amplitude.mean())

    def draw(self) -> Sample:
        """Channels of the node (before any zero padding)."""
        if self.sample is not None:
            return self.sample()
        assert self.origin is not None
        return self.origin.draw()


@singledispatch
def propagate(operation: Operation, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    """Return the signal after a node."""
    raise NotImplementedError(f"no theory of {node.kind}")


@propagate.register
def _(operation: Conv2d, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    law = weight_law(node, network.framework)
    per_group = operation.in_channels // operation.groups
    window = Window(operation.kernel, operation.stride, operation.padding, signal.amplitude is not None)
    if signal.data is not None:
        return _first_convolution(operation, node, network, signal, law)
    kernel = windows(signal.kernel, np.eye(window.taps), window).scaled(per_group * law.std**2)
    covariance = tap_covariance(signal.kernel, window)
    trace = float(np.trace(covariance))
    # A fluctuation of the kernel between channels is shared by the taps of a window as far as these are correlated.
    share = float(np.sum(covariance**2)) / trace**2 if trace > 0 else 1.0
    own = 0.0 if operation.depthwise else 1 / signal.width
    spread = (signal.spread + own) * share
    source, sample, taps, amplitude = signal.kernel, None, None, None
    if operation.depthwise:
        expected = covariance * float(np.exp(signal.kernel.log_scale))
        sample, taps = _depthwise(signal, window, law, expected)
        measured = float(np.mean(sample.values**2))
        if measured > 0:
            sample = Sample(sample.values * np.sqrt(kernel.second_moment * np.exp(kernel.log_scale) / measured))
    behind = None if taps is None else (taps, _unpadded(signal))
    shrinks = kernel.values.shape[1] < signal.kernel.values.shape[1]
    if kernel.layout.profiles > 1 and shrinks and (signal.amplitude is not None or kernel.values.shape[1] <= _MERGE):
        kernel, more = _pooled_over_samples(kernel)
        spread += more
        source = merged(source)
    if signal.amplitude is not None:
        full = Window(operation.kernel, operation.stride, operation.padding)
        amplitude = window_sum(signal.amplitude, full) / window.taps
        if shrinks:
            kernel = regridded(kernel, cut_out(node.shape))
            sample = None if sample is None else _regrown(sample, window.out_size(signal.kernel.size), kernel.size)
        if kernel.size == amplitude.shape:
            kernel, amplitude = _with_edges(kernel, amplitude), None
    kernel = _with_bias(kernel, node, network)
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        operation.out_channels,
        spread=spread,
        weighted=Weighted(law, per_group * window.taps, source, window, taps),
        origin=Gaussian(kernel, _key(node)),
        sample=_fixed(sample),
        behind=behind,
        amplitude=amplitude,
    )


def _unpadded(signal: Signal) -> Size:
    """Size of the map before any zero padding."""
    if signal.amplitude is not None:
        return signal.kernel.size
    top, bottom, left, right = signal.padding
    return signal.kernel.size[0] - top - bottom, signal.kernel.size[1] - left - right


def _first_convolution(operation: Conv2d, node: Node, network: Network, signal: Signal, law: WeightLaw) -> Signal:
    """Kernel of a convolution of the data themselves: products of patches, position by position."""
    data = signal.data
    assert data is not None
    layout = signal.kernel.layout
    size = node.shape[1], node.shape[2]
    window = Window(operation.kernel, operation.stride, operation.padding)
    index = window.index((data.shape[2], data.shape[3]))
    small = cut_out(node.shape)
    amplitude = None
    if small != size:
        square = np.mean(data**2, axis=(0, 1))
        amplitude = window_sum(square, window)
        index = np.stack([_crops(index.reshape(-1, *size)[:, :, :], small, k) for k in range(layout.profiles)])
    else:
        index = np.broadcast_to(index, (layout.profiles, *index.shape))
    flat = np.pad(data.reshape(*data.shape[:2], -1), ((0, 0), (0, 0), (0, 1)))
    patches = np.stack([sample[:, where] for sample, where in zip(flat, index, strict=True)])
    patches = patches.reshape(len(patches), -1, index.shape[-1])
    gram = patches.transpose(0, 2, 1)[layout.left] @ patches[layout.right]
    per_group = operation.in_channels // operation.groups
    kernel = PairKernel(layout, small, gram / operation.in_channels).scaled(per_group * law.std**2)
    if amplitude is not None:
        inside = float(np.mean(patches**2)) * window.taps
        amplitude = amplitude / inside
    kernel = _with_bias(kernel, node, network)
    taps = sample = None
    if operation.depthwise:
        raise NotImplementedError("a depthwise convolution of the data")
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        operation.out_channels,
        weighted=Weighted(law, per_group * window.taps, signal.kernel, window, taps),
        origin=Gaussian(kernel, _key(node)),
        sample=sample,
        amplitude=amplitude,
    )


def _crops(index: Ints, size: Size, which: int) -> Ints:
    """Cut a piece of the given size out of (taps, height, width), a different one for every sample."""
    rng = np.random.default_rng(which)
    row = int(rng.integers(0, index.shape[1] - size[0] + 1))
    col = int(rng.integers(0, index.shape[2] - size[1] + 1))
    return index[:, row : row + size[0], col : col + size[1]].reshape(len(index), -1)


def cut_out(shape: Shape) -> Size:
    """Size of the part of a map that kernels are carried on."""
    return min(shape[1], CUT), min(shape[2], CUT)


def _depthwise(signal: Signal, window: Window, law: WeightLaw, expected: Array) -> tuple[Sample, Taps]:
    """Sampled channels of a depthwise layer; they are those of the node before any zero padding."""
    inputs = signal.draw()
    if window.inside:
        return depthwise(inputs, signal.kernel.size, window, law, expected)
    padding = tuple(a + b for a, b in zip(window.padding, signal.padding, strict=True))
    size = _unpadded(signal)
    return depthwise(inputs, size, Window(window.kernel, window.stride, padding), law, expected)


def _pooled_over_samples(kernel: PairKernel) -> tuple[PairKernel, float]:
    """Treat the samples as draws of one law; how much their kernels differ becomes part of the spread."""
    together = merged(kernel)
    before, after = kernel.centred(), together.centred()
    lost = before.pair_square_mean() - after.pair_square_mean()
    return together, max(lost, 0.0) / after.second_moment**2 if after.second_moment > 0 else 0.0


def _with_edges(kernel: PairKernel, amplitude: Array) -> PairKernel:
    """Kernel on a whole map from that of its inside and the second moments at its positions."""
    root = np.sqrt(amplitude.ravel())
    return replace(kernel, values=kernel.values * root[:, None] * root[None, :])


def _regrown(sample: Sample, size: Size, wanted: Size) -> Sample:
    """Sampled channels on a larger piece of the map, mirrored to fill it."""
    rows = np.pad(np.arange(size[0]), (0, wanted[0] - size[0]), mode="symmetric")
    cols = np.pad(np.arange(size[1]), (0, wanted[1] - size[1]), mode="symmetric")
    where = (rows[:, None] * size[1] + cols[None, :]).ravel()
    slopes = None if sample.slopes is None else sample.slopes[:, :, where]
    return Sample(sample.values[:, :, where], sample.inverse, slopes)


def _fixed(sample: Sample | None) -> Callable[[], Sample] | None:
    return None if sample is None else lambda: sample


def _cropped(values: Array, size: Size, wanted: Size) -> Array:
    """Undo `_regrown` on an array whose last axis is the map."""
    if size == wanted:
        return values
    return values.reshape(*values.shape[:-1], *size)[..., : wanted[0], : wanted[1]].reshape(*values.shape[:-1], -1)


def _key(node: Node) -> int:
    """A number of the node's own for its draws."""
    return zlib.crc32(node.name.encode())


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
        origin=Gaussian(kernel, _key(node)),
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
    sample, origin = None, signal.origin
    taps = signal.weighted.taps if signal.weighted is not None else None
    if taps is not None:
        assert signal.weighted is not None and signal.weighted.window is not None
        law = depthwise_law(taps, operation.eps)
        # Dividing by v damps the directions of w that make v large.
        assert law.taps is not None
        kernel = windows(signal.weighted.input, law.taps, signal.weighted.window).centred()
        if kernel.size != signal.kernel.size:
            kernel = regridded(kernel, signal.kernel.size)
    else:
        law, kernel = _normalised(signal, centred, scale, operation.eps)
    if signal.sample is not None:
        sample = normalised(signal.sample(), operation.eps, law.mean)
    elif origin is not None:
        origin = replace(origin, eps=operation.eps, variance=law.mean)
    second_moment = kernel.second_moment * signal.edges
    ratio = law.ratio / second_moment if second_moment > 0 else 0.0
    return Signal(
        replace(kernel, values=kernel.values * ratio, log_scale=0.0),
        np.zeros_like(kernel.diagonal),
        signal.width,
        spread=signal.spread,
        origin=origin if sample is None else None,
        sample=_fixed(sample),
        amplitude=signal.amplitude,
        law=law,
        behind=signal.behind,
    )


def _normalised(signal: Signal, centred: PairKernel, scale: float, eps: float) -> tuple[VarianceLaw, PairKernel]:
    """Law of a channel's variance that sums many modes of the data, and the kernel after division, up to a factor."""
    q = centred.second_moment
    scale *= signal.edges
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
    origin = sample = None
    relations = Relations()
    if signal.sample is not None or (signal.origin and signal.origin.function):
        before = signal.draw()
        sample = activated(before, function)
        duals = correct(duals, sample)
        if signal.behind is not None and sample.slopes is not None:
            taps, size = signal.behind
            relations = taps.relations(size, _cropped(sample.slopes, signal.kernel.size, taps.window.out_size(size)), before.inverse)
    elif signal.origin is not None:
        origin = replace(signal.origin, function=function)
    out = duals.kernel
    spread = 0.0
    if signal.spread > 0.0 and network.has_batch_norm:
        spread = _carried(signal, out, duals) ** 2 * signal.spread
    return Signal(
        out,
        duals.mean,
        signal.width,
        spread=spread,
        origin=origin,
        sample=_fixed(sample),
        amplitude=None if signal.amplitude is None else _edges_after(function, signal, out),
        relations=relations,
        duals=duals,
    )


def _carried(signal: Signal, out: PairKernel, duals: Duals) -> float:
    """Relative change of a kernel's entry after an activation for one before it."""
    before, after = signal.kernel.centred().second_moment, out.centred().second_moment
    if after <= 0.0:
        return 0.0
    scale = float(np.exp(signal.kernel.log_scale - out.log_scale + duals.derivative.log_scale))
    return scale * duals.derivative.pair_mean * before / after


def _edges_after(function: ActivationFunction, signal: Signal, out: PairKernel) -> Array:
    """Second moments over a large map after an activation, relative to its inside."""
    assert signal.amplitude is not None
    if function.homogeneous:
        return signal.amplitude
    inside = signal.kernel.second_moment * float(np.exp(signal.kernel.log_scale))
    levels, where = np.unique(np.round(signal.amplitude, 6), return_inverse=True)
    moments = function.second_moment(levels * inside) / float(function.second_moment(inside))
    return np.asarray(moments[where].reshape(signal.amplitude.shape), dtype=np.float64)


@propagate.register
def _(operation: Add, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    kernel = reduce(plus, (signal.kernel for signal in inputs))
    parts = [signal.kernel.centred() for signal in inputs]
    shares = [p.second_moment * float(np.exp(p.log_scale - kernel.log_scale)) for p in parts]
    total = sum(shares)
    sample = None
    if any(signal.sample is not None or (signal.origin and signal.origin.function) for signal in inputs):
        drawn = [signal.draw().values for signal in inputs]
        channels = min(map(len, drawn))
        sample = Sample(np.sum([values[:channels] for values in drawn], axis=0))
    return Signal(
        kernel,
        np.sum([signal.mean for signal in inputs], axis=0),
        inputs[0].width,
        spread=sum((w / total) ** 2 * signal.spread for w, signal in zip(shares, inputs, strict=True)) if total else 0.0,
        origin=Gaussian(kernel, _key(node)) if sample is None else None,
        sample=_fixed(sample),
        amplitude=_edges_of_sum(inputs, kernel),
    )


def _edges_of_sum(inputs: list[Signal], kernel: PairKernel) -> Array | None:
    fields = [
        signal.amplitude * signal.kernel.second_moment * float(np.exp(signal.kernel.log_scale - kernel.log_scale))
        for signal in inputs
        if signal.amplitude is not None
    ]
    return np.sum(fields, axis=0) / kernel.second_moment if fields else None


@propagate.register
def _(operation: AveragePool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    window = Window(operation.kernel, operation.stride, inside=False)
    pooled = _linear_map(signal, window.averaging(signal.kernel.size), window.out_size(signal.kernel.size))
    return _after_pooling(pooled, signal, window, node)


def _after_pooling(pooled: Signal, signal: Signal, window: Window, node: Node) -> Signal:
    """Bring what a pooling made of a cut-out of a large map back to its size."""
    if signal.amplitude is None:
        return pooled
    amplitude: Array | None = window_sum(signal.amplitude, window) / window.taps
    kernel = regridded(merged(pooled.kernel), cut_out(node.shape))
    assert amplitude is not None
    if kernel.size == amplitude.shape:
        kernel, amplitude = _with_edges(kernel, amplitude), None
    sample, size = pooled.draw(), pooled.kernel.size
    return replace(
        pooled,
        kernel=kernel,
        mean=np.full((1, kernel.values.shape[1]), float(pooled.mean.mean())),
        origin=None,
        sample=lambda: _regrown(sample, size, kernel.size),
        amplitude=amplitude,
    )


@propagate.register
def _(operation: GlobalAveragePool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    if signal.amplitude is None:
        window = Window(signal.kernel.size, (1, 1))
        return _linear_map(signal, window.averaging(signal.kernel.size), (1, 1))
    # The inside of a map says what two positions share; each position counts with its amplitude.
    root = np.sqrt(signal.amplitude)
    weight = np.full((1, signal.kernel.values.shape[1]), float(root.mean()) / signal.kernel.values.shape[1])
    return replace(_linear_map(signal, weight, (1, 1)), amplitude=None)


def _linear_map(signal: Signal, matrix: Array, size: Size) -> Signal:
    """Signal after a fixed linear map of the positions, the same for every channel; `matrix` is (outputs, inputs)."""
    kernel = replace(signal.kernel, size=size, values=matrix @ signal.kernel.values @ matrix.T).scaled(1.0)
    origin = signal.origin
    gaussian = origin is not None and origin.eps is None and origin.function is None and signal.sample is None
    return Signal(
        kernel,
        signal.mean @ matrix.T,
        signal.width,
        signal.spread,
        origin=Gaussian(kernel, origin.key + 1) if gaussian and origin is not None else None,
        sample=None if gaussian else cache(lambda: Sample(signal.draw().values @ matrix.T)),
    )


@propagate.register
def _(operation: MaxPool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    size = signal.kernel.size
    window = Window(operation.kernel, operation.stride)
    index = window.index(size)
    drawn = signal.draw()
    under = drawn.values[:, :, index]
    winner = under.argmax(axis=2)[:, :, None, :]
    sample = Sample(np.take_along_axis(under, winner, axis=2)[:, :, 0, :])
    selection = 1.0
    if drawn.slopes is not None and drawn.slopes.any():
        chosen = np.take_along_axis(drawn.slopes[:, :, index], winner, axis=2)
        selection = float(chosen.mean()) / float(drawn.slopes.mean())
    average = window.averaging(size)
    kernel = replace(
        signal.kernel, size=window.out_size(size), values=average @ signal.kernel.values @ average.T
    )
    mean = np.full((signal.mean.shape[0], average.shape[0]), float(sample.values.mean()))
    pooled = Signal(
        matched(kernel, sample), mean, signal.width, signal.spread, sample=_fixed(sample), selection=selection
    )
    return _after_pooling(pooled, signal, window, node)


@propagate.register
def _(operation: Flatten, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    kernel = signal.kernel
    positions = kernel.values.shape[1]
    values = np.einsum("bpp->b", kernel.values)[:, None, None] * (signal.edges / positions)

    def features() -> Sample:
        drawn = signal.draw().values
        place = np.arange(len(drawn)) % positions
        return Sample(drawn[np.arange(len(drawn)), :, place][:, :, None])

    return Signal(
        replace(kernel, size=(1, 1), values=values),
        signal.mean.mean(axis=1, keepdims=True),
        float(np.prod(node.shape)),
        signal.spread,
        sample=cache(features),
    )


@propagate.register
def _(operation: ZeroPad, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    top, bottom, left, right = operation.padding
    rows = ((top, bottom), (left, right))
    if signal.data is not None:
        return replace(signal, data=np.pad(signal.data, ((0, 0), (0, 0), *rows)))
    if signal.amplitude is not None:
        return replace(signal, amplitude=np.pad(signal.amplitude, rows), duals=None, law=None, weighted=None)
    kernel = signal.kernel
    (h, w), n = kernel.size, len(kernel.values)
    size = h + top + bottom, w + left + right
    values = np.pad(kernel.mapped(), ((0, 0), *rows, *rows)).reshape(n, size[0] * size[1], size[0] * size[1])
    mean = np.pad(signal.mean.reshape(-1, h, w), ((0, 0), *rows)).reshape(len(signal.mean), -1)
    return Signal(
        replace(kernel, size=size, values=values),
        mean,
        signal.width,
        signal.spread,
        origin=signal.origin,
        sample=signal.sample,
        padding=operation.padding,
    )
