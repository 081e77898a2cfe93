"""Every operation on the maps of several trials with their powers of two: forward, and the gradient back to its input.

The exponents make the signal of a deep network without normalisation, and every gradient, immune to the floating range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import FORMULA, ActivationFunction, activation
from varprop.simulator.generated import activations as scalar
from varprop.simulator.jit import elementwise
from varprop.simulator.montecarlo import kernels
from varprop.simulator.montecarlo.draws import Parameters
from varprop.simulator.montecarlo.pointwise import Passes, compiled_passes, deviations
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.signal import (
    NONE,
    RELEASED,
    Exponents,
    Signal,
    add_copy,
    add_in_place,
    runs,
    settled,
    statistics,
)
from varprop.simulator.montecarlo.weightless import Unseen
from varprop.simulator.montecarlo.windows import Geometry, weigh
from varprop.simulator.montecarlo.windows import runs as window_runs
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
    Operation,
    ZeroPad,
)

Array = NDArray[np.floating]
Pool2d = AveragePool | GlobalAveragePool | ZeroPad

COLUMNS_SIZE = 2**19
"""Windows are gathered in pieces of about this many numbers: 2 MB in float32, the order of a core's own cache."""

FAR = 200
"""Beyond 2**+-FAR an activation is its half-lines to the last digit, and up to there float64 holds its values."""


@dataclass(slots=True)
class Call:
    """One use of an operation in a trial: what it reads forward, what it gave, and what both ways work with."""

    sources: list[Signal]
    drawn: Parameters | Unseen | None
    """Weights (or, unseen, what stands for them) and bias, None where the operation has none."""
    source_shape: tuple[int, ...]
    """Shape of the values of the first input."""
    by_channel: bool
    """Whether the output's moments are asked for by channel."""
    pool: Pool
    output: Signal = field(init=False)
    """Set after the forward pass."""
    passed: Signal | None = None
    """Gradient with respect to a source that is not stored, known by its moments alone."""

    @property
    def source(self) -> Signal:
        """The first input: the only one, but for sums."""
        return self.sources[0]

    @property
    def parameters(self) -> Parameters | Unseen:
        """Weights and bias of an operation that has them."""
        assert self.drawn is not None
        return self.drawn


@singledispatch
def forward(operation: Operation, call: Call, out: Array) -> Signal:
    """Write the output, of shape (trials, *node shape, batch), to `out`; return it, with its moments if known."""
    raise NotImplementedError(type(operation).__name__)


@singledispatch
def backward(operation: Operation, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to an input, given that with respect to the output, whose memory is used up.

    The statistics of inputs and output are as they were; values are still there only where `reads_source` asks for
    them. Of a sum, all inputs have the same gradient. Where the source is not stored, the gradient is that with
    respect to its origin.
    """
    raise NotImplementedError(type(operation).__name__)


def reads_source(operation: Operation) -> bool:
    """Whether `backward` reads the input's values."""
    return isinstance(operation, Activation | BatchNorm | MaxPool)


def overwrites(operation: Operation) -> bool:
    """Whether `backward` writes over the gradient that it is given, or passes it on."""
    return takes_unstored(operation) or isinstance(operation, Add | BatchNorm | Flatten)


def takes_unstored(operation: Operation) -> bool:
    """Whether the operation can read a map that is not stored."""
    return isinstance(operation, Activation) and activation(operation.function).family != FORMULA


# Linear layers and convolutions.


@forward.register
def _(operation: Linear, call: Call, out: Array) -> Signal:
    drawn, x = call.parameters, call.source.values
    if isinstance(drawn, Unseen):
        drawn.product(x, out)
    else:
        np.matmul(drawn.weight, x, out=out)
    return _add_bias(out, call.source.exponent, drawn.bias)


@backward.register
def _(operation: Linear, call: Call, gradient: Signal) -> Signal:
    drawn, out = call.parameters, call.pool.take(call.source_shape)
    if isinstance(drawn, Unseen):
        drawn.transposed_product(gradient.values, out)
    else:
        np.matmul(drawn.weight.swapaxes(1, 2), gradient.values, out=out)
    return _in_place_of(gradient, out, call.pool)


@forward.register
def _(operation: Conv2d, call: Call, out: Array) -> Signal:
    drawn, values = call.parameters, call.source.values
    if isinstance(drawn, Unseen):
        windows = call.pool.take(_windows_shape(operation, out), lasting=True)
        for x, columns in zip(values, windows, strict=True):
            kernels.gather_windows(x, operation.kernel, operation.stride, _corner(operation), 0, columns)
        drawn.product(_by_group(operation, windows), _by_group(operation, out))
    elif operation.depthwise:
        _depthwise(values, _taps(drawn.weight), _geometry(operation, values, out), out)
    else:
        for weight, x, y in _groups(operation, drawn.weight, values, out):
            if pointwise(operation):
                np.matmul(weight, _matrix(x), out=_matrix(y))
                continue
            for row, windows, piece in _pieces(weight, y, call.pool):
                kernels.gather_windows(x, operation.kernel, operation.stride, _corner(operation), row, windows)
                np.matmul(weight, _matrix(windows), out=piece)
                call.pool.give(windows)
    return _add_bias(out, call.source.exponent, drawn.bias)


@backward.register
def _(operation: Conv2d, call: Call, gradient: Signal) -> Signal:
    drawn, values, out = call.parameters, gradient.values, call.pool.take(call.source_shape)
    if isinstance(drawn, Unseen):
        windows = call.pool.take(_windows_shape(operation, values))
        drawn.transposed_product(_by_group(operation, values), _by_group(operation, windows))
        out.fill(0.0)
        for columns, x in zip(windows, out, strict=True):
            kernels.scatter_windows(columns, operation.kernel, operation.stride, _corner(operation), 0, x)
        call.pool.give(windows)
        call.pool.give(drawn.inputs)
    elif operation.depthwise:
        _depthwise_backward(values, _taps(drawn.weight), _geometry(operation, out, values), out)
    else:
        for weight, x, y in _groups(operation, drawn.weight, out, values):
            if pointwise(operation):
                np.matmul(weight.T, _matrix(y), out=_matrix(x))
                continue
            x.fill(0.0)
            for row, windows, piece in _pieces(weight, y, call.pool):
                np.matmul(weight.T, piece, out=_matrix(windows))
                kernels.scatter_windows(windows, operation.kernel, operation.stride, _corner(operation), row, x)
                call.pool.give(windows)
    return _in_place_of(gradient, out, call.pool)


def _in_place_of(gradient: Signal, values: Array, pool: Pool) -> Signal:
    """Return the gradient that took the place of another."""
    gradient.release(pool)
    return Signal(values, gradient.exponent)


def _corner(operation: Conv2d) -> tuple[int, int]:
    return operation.padding[0], operation.padding[2]


def pointwise(operation: Conv2d) -> bool:
    """Whether the convolution is one matrix product of the map itself."""
    return operation.kernel == (1, 1) and operation.stride == (1, 1) and not any(operation.padding)


def _matrix(array: Array) -> Array:
    """View one trial's map as a matrix of one row a channel."""
    return array.reshape(array.shape[0], -1)


def _taps(weight: Array) -> Array:
    """View the weights of a depthwise convolution as a kernel an output, the trials' one after the other."""
    return weight.reshape(-1, *weight.shape[3:])


def _groups(operation: Conv2d, weight: Array, x: Array, y: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Yield for every trial and group its weights as a matrix, its input channels and its output channels."""
    n_in, n_out = operation.in_channels // operation.groups, operation.out_channels // operation.groups
    for trial in range(len(weight)):
        for group in range(operation.groups):
            outputs = slice(group * n_out, (group + 1) * n_out)
            inputs = slice(group * n_in, (group + 1) * n_in)
            yield _matrix(weight[trial, outputs]), x[trial, inputs], y[trial, outputs]


def _by_group(operation: Conv2d, array: Array) -> Array:
    """View maps, or their windows, as a matrix a trial and group."""
    *_, rows, columns, batch = array.shape
    return array.reshape(len(array) * operation.groups, -1, rows * columns * batch)


def _windows_shape(operation: Conv2d, out: Array) -> tuple[int, ...]:
    return len(out), operation.in_channels * math.prod(operation.kernel), *out.shape[2:]


def piece_rows(lines: int, width: int, batch: int) -> int:
    """Return how many output rows are worked on together, where each position's window has `lines` numbers."""
    return max(1, COLUMNS_SIZE // (lines * width * batch))


def _pieces(weight: Array, y: Array, pool: Pool) -> Iterator[tuple[int, Array, Array]]:
    """Cut an output map by rows; yield each piece's first row, memory for its windows, and its view as a matrix."""
    _, height, width, batch = y.shape
    lines = weight.shape[1]
    step = piece_rows(lines, width, batch)
    for row in range(0, height, step):
        count = min(step, height - row)
        piece = _matrix(y)[:, row * width * batch : (row + count) * width * batch]
        yield row, pool.take((lines, count, width, batch)), piece


def _add_bias(out: Array, exponent: Exponents, bias: Array | None) -> Signal:
    if bias is None:
        return Signal(out, exponent)
    column = bias.reshape(*bias.shape, *(1,) * (out.ndim - 2))
    return add_in_place(Signal(out, exponent), np.broadcast_to(column, out.shape).copy(), np.zeros_like(exponent))


# Depthwise convolution, and what is one with fixed taps.


def _depthwise(x: Array, taps: Array, geometry: Geometry, out: Array) -> None:
    channels, outputs = x.shape[0] * x.shape[1], len(taps)
    table = window_runs(geometry, x.shape[-1], False)
    weigh(x.reshape(-1), taps.reshape(outputs, -1), table, (outputs // channels, 1), out.reshape(-1))


def _depthwise_backward(gradient: Array, taps: Array, geometry: Geometry, out: Array) -> None:
    channels, outputs = out.shape[0] * out.shape[1], len(taps)
    table = window_runs(geometry, out.shape[-1], True)
    weigh(gradient.reshape(-1), taps.reshape(outputs, -1), table, (1, outputs // channels), out.reshape(-1))


def _geometry(operation: Conv2d, source: Array, out: Array) -> Geometry:
    sizes = (source.shape[2], source.shape[3]), (out.shape[2], out.shape[3])
    return Geometry(*sizes, operation.kernel, operation.stride, _corner(operation))


def _window(operation: Pool2d, call: Call, shape: tuple[int, ...]) -> tuple[Array, Geometry]:
    """Return the taps, those of a depthwise convolution, and where they lie; features are maps of one position."""
    trials, channels, height, width, _ = call.source_shape
    outputs = (shape[2], shape[3]) if len(shape) == 5 else (1, 1)
    match operation:
        case AveragePool(kernel=size, stride=stride):
            corner = (0, 0)
        case GlobalAveragePool():
            size, stride, corner = (height, width), (1, 1), (0, 0)
        case ZeroPad(padding=(top, _, left, _)):
            size, stride, corner = (1, 1), (1, 1), (top, left)
    taps = np.full((trials * channels, *size), 1 / (size[0] * size[1]), call.pool.dtype)
    return taps, Geometry((height, width), outputs, size, stride, corner)


@forward.register
def _(operation: AveragePool | GlobalAveragePool | ZeroPad, call: Call, out: Array) -> Signal:
    _depthwise(call.source.values, *_window(operation, call, out.shape), out)
    return Signal(out, call.source.exponent)


@backward.register
def _(operation: AveragePool | GlobalAveragePool | ZeroPad, call: Call, gradient: Signal) -> Signal:
    out = call.pool.take(call.source_shape)
    _depthwise_backward(gradient.values, *_window(operation, call, gradient.values.shape), out)
    return _in_place_of(gradient, out, call.pool)


# Batch normalisation and activations.


@forward.register
def _(operation: BatchNorm, call: Call, out: Array) -> Signal:
    return _stored(standardized(operation, call), out)


@backward.register
def _(operation: BatchNorm, call: Call, gradient: Signal) -> Signal:
    back, _ = _through(activation("linear"), standardized(operation, call), gradient)
    return back


def standardized(operation: BatchNorm, call: Call) -> Signal:
    """Return the output without storing it, with its moments: of every row mean 0, and the variance by scale^2."""
    source = call.source
    variance, scale = source.variance.copy(), np.empty_like(source.variance)
    exponent, summary = np.empty_like(source.exponent), np.empty((len(variance), 3))
    deviations(variance, source.exponent, operation.eps, scale, exponent, summary)
    mean, variance = (np.zeros_like(variance), variance) if call.by_channel else (NONE, NONE)
    return settled(Signal(source.values, source.exponent + exponent, summary, mean, variance, source, scale))


def _stored(signal: Signal, out: Array) -> Signal:
    """Write a map that is not stored."""
    moments = statistics(out, False)
    run_forward, _ = _passes(activation("linear"))
    run_forward(*runs(signal.values), signal.center, signal.scale, out.dtype.type(0), out.reshape(-1), *moments)
    return replace(signal, values=out, origin=None, scale=NONE)


@forward.register
def _(operation: Activation, call: Call, out: Array) -> Signal:
    function, source = activation(operation.function), call.source
    if _in_one_pass(function, source):
        mean, variance, summary = statistics(out, call.by_channel)
        run_forward, _ = _passes(function)
        parameter = out.dtype.type(function.parameter)
        flat = out.reshape(-1)
        run_forward(*runs(source.values), source.center, source.scale, parameter, flat, mean, variance, summary)
        return settled(Signal(out, source.exponent, summary, mean, variance))
    if source.origin is not None:
        source = call.sources[0] = _stored(source, call.pool.take(out.shape))
    if function.homogeneous or not source.exponent.any():
        _apply("value", function, source.values, out)
        return Signal(out, source.exponent)
    trials = zip(source.values, source.exponent.tolist(), out, strict=True)
    return Signal(out, np.array([_value_at_scale(function, z, exponent, y) for z, exponent, y in trials]))


@backward.register
def _(operation: Activation, call: Call, gradient: Signal) -> Signal:
    function, source = activation(operation.function), call.source
    if _in_one_pass(function, source):
        back, call.passed = _through(function, source, gradient)
        return back
    slopes = call.pool.take(call.source_shape)
    if function.homogeneous or not source.exponent.any():
        _apply("derivative", function, source.values, slopes)
    else:
        for z, exponent, out in zip(source.values, source.exponent.tolist(), slopes, strict=True):
            _derivative_at_scale(function, z, exponent, out)
    slopes *= gradient.values
    return _in_place_of(gradient, slopes, call.pool)


def _in_one_pass(function: ActivationFunction, source: Signal) -> bool:
    return function.family != FORMULA and (function.homogeneous or not source.exponent.any())


def _through(function: ActivationFunction, source: Signal, gradient: Signal) -> tuple[Signal, Signal | None]:
    """Send a gradient back through an activation, overwriting it, and on to the origin of a source that is not stored.

    Returns
    -------
    back
        The gradient with respect to the source, or else to its origin.
    passed
        That with respect to a source that is not stored, known by its moments alone.
    """
    values, exponent = gradient.values, gradient.exponent
    inner, summary = np.empty((len(values), 3)), np.empty((len(values), 3))
    _, run_backward = _passes(function)
    power = np.ldexp(1.0, 2 * source.exponent * (source.origin is not None))
    parameter = values.dtype.type(function.parameter)
    z, out = runs(source.values), values.reshape(-1)
    run_backward(*z, source.center, source.scale, power, parameter, out, inner, summary)
    if source.origin is None:
        return settled(Signal(values, exponent, inner)), None
    change = source.exponent - source.origin.exponent
    return settled(Signal(values, exponent + change, summary)), Signal(RELEASED, exponent, inner)


def _passes(function: ActivationFunction) -> Passes:
    return compiled_passes(*(getattr(scalar, f"{function.family}_{which}") for which in ("value", "derivative")))


def _value_at_scale(function: ActivationFunction, z: Array, exponent: int, out: Array) -> int:
    """Write phi(z * 2**exponent) for one trial; return the power of two in front of it."""
    if exponent == 0:
        _apply("value", function, z, out)
        return 0
    slopes = _slopes_at_scale(function, z, exponent)
    if slopes is not None:
        np.multiply(z, slopes, out=out)
        return exponent
    plain = _in_float64(z, exponent)
    y = np.empty_like(plain)
    _apply("value", function, plain, y)
    found = int(np.frexp(np.abs(y).max())[1])
    np.ldexp(y, -found, out=out, casting="same_kind")
    return found


def _derivative_at_scale(function: ActivationFunction, z: Array, exponent: int, out: Array) -> None:
    """Write phi'(z * 2**exponent) for one trial."""
    slopes = _slopes_at_scale(function, z, exponent)
    if slopes is None:
        plain = _in_float64(z, exponent)
        slopes = np.empty_like(plain)
        _apply("derivative", function, plain, slopes)
    out[...] = slopes


def _slopes_at_scale(function: ActivationFunction, z: Array, exponent: int) -> Array | None:
    """Return phi(z) / z where z is so small or so large that phi is two half-lines through 0; None elsewhere.

    None too where that leaves nothing: phi(0) is not 0, or phi is bounded.
    """
    if abs(exponent) <= FAR:
        return None
    if exponent < 0:
        at_zero, left, right = function.germ_zero
        lines = at_zero == 0
    else:
        (left, _), (right, _) = function.germ_infinity
        lines = (left != 0 or right != 0) and math.isfinite(left) and math.isfinite(right)
    number = z.dtype.type
    return np.where(z > 0, number(right), number(left)) if lines else None


def _in_float64(z: Array, exponent: int) -> NDArray[np.float64]:
    """Return the map without its power of two, for a function that cannot take it; infinite beyond float64."""
    with np.errstate(over="ignore"):
        return np.ldexp(z.astype(np.float64), exponent)


def _apply(which: str, function: ActivationFunction, z: Array, out: Array) -> None:
    if function.family == FORMULA:
        out[...] = function.value(z) if which == "value" else function.derivative(z)
        return
    compiled = elementwise(getattr(scalar, f"{function.family}_{which}"), z.dtype)
    compiled(z, function.parameter, out)


# Sums, maxima and reshapes.


@forward.register
def _(operation: Add, call: Call, out: Array) -> Signal:
    first, *others = call.sources
    out[...] = first.values
    total = Signal(out, first.exponent)
    for source in others:
        total = add_copy(total, source, call.pool)
    return total


@forward.register
def _(operation: MaxPool, call: Call, out: Array) -> Signal:
    kernels.max_pool(_channels(call.source.values), operation.kernel, operation.stride, _channels(out))
    return Signal(out, call.source.exponent)


@backward.register
def _(operation: MaxPool, call: Call, gradient: Signal) -> Signal:
    out = call.pool.take(call.source_shape)
    g, x = _channels(gradient.values), _channels(call.source.values)
    kernels.max_pool_backward(g, x, operation.kernel, operation.stride, _channels(out))
    return _in_place_of(gradient, out, call.pool)


def _channels(array: Array) -> Array:
    """View the channels of all trials as those of one map."""
    return array.reshape(-1, *array.shape[2:])


@forward.register
def _(operation: Flatten, call: Call, out: Array) -> Signal:
    out[...] = call.source.values.reshape(out.shape)
    return Signal(out, call.source.exponent)


@backward.register
def _(operation: Add, call: Call, gradient: Signal) -> Signal:
    return gradient


@backward.register
def _(operation: Flatten, call: Call, gradient: Signal) -> Signal:
    return Signal(gradient.values.reshape(call.source_shape), gradient.exponent)
