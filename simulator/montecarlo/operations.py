"""Every operation on a map with its power of two: forward, and the gradient back to its input.

Both write into an array that the caller provides and return the exponent of what they wrote. The exponents make the
signal of a deep network without normalisation, and every gradient, immune to the floating range.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import FORMULA, ActivationFunction, activation
from varprop.simulator.generated import activations as scalar
from varprop.simulator.jit import elementwise
from varprop.simulator.montecarlo import kernels
from varprop.simulator.montecarlo.draws import Parameters
from varprop.simulator.montecarlo.signal import Pool, Signal, add_in_place, rows
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
Window = tuple[Array, tuple[int, int], tuple[int, int]]

COLUMNS_SIZE = 2**19
"""Windows are gathered in pieces of about this many numbers: 2 MB in float32, the order of a core's own cache."""

FAR = 200
"""Beyond 2**+-FAR an activation is its half-lines to the last digit, and up to there float64 holds its values."""


@dataclass(slots=True)
class Call:
    """One use of an operation in a trial: what it reads forward, what it gave, and what both ways work with."""

    sources: list[Signal]
    drawn: Parameters | None
    """Weights and bias, None where the operation has none."""
    pool: Pool
    output: Signal = field(init=False)
    """Set after the forward pass."""

    @property
    def source(self) -> Signal:
        """The first input: the only one, but for sums."""
        return self.sources[0]

    @property
    def parameters(self) -> Parameters:
        """Weights and bias of an operation that has them."""
        assert self.drawn is not None
        return self.drawn


@singledispatch
def forward(operation: Operation, call: Call, out: Array) -> int:
    """Write the operation's output, of shape (*node shape, batch), to `out`; return the power of 2 in front of it."""
    raise NotImplementedError(type(operation).__name__)


@singledispatch
def backward(operation: Operation, call: Call, gradient: Signal, out: Array) -> int:
    """Write the gradient with respect to an input to `out`, given that with respect to the output; return its exponent.

    The statistics of inputs and output are as they were; their values are still there only where `reads_source` or
    `reads_output` asks for them. Of a sum, all inputs have the same gradient.
    """
    raise NotImplementedError(type(operation).__name__)


def reads_source(operation: Operation) -> bool:
    """Whether `backward` reads the input's values."""
    return isinstance(operation, Activation | MaxPool)


def reads_output(operation: Operation) -> bool:
    """Whether `backward` reads the output's values."""
    return isinstance(operation, BatchNorm)


# Linear layers and convolutions.


@forward.register
def _(operation: Linear, call: Call, out: Array) -> int:
    np.matmul(call.parameters.weight, call.source.values, out=out)
    return _add_bias(out, call.source.exponent, call.parameters.bias)


@backward.register
def _(operation: Linear, call: Call, gradient: Signal, out: Array) -> int:
    np.matmul(call.parameters.weight.T, gradient.values, out=out)
    return gradient.exponent


@forward.register
def _(operation: Conv2d, call: Call, out: Array) -> int:
    values = call.source.values
    if operation.depthwise:
        _depthwise(values, (call.parameters.weight[:, 0], operation.stride, _corner(operation)), out)
    else:
        for weight, x, y in _groups(operation, call.parameters.weight, values, out):
            if _pointwise(operation):
                np.matmul(weight, rows(x), out=rows(y))
                continue
            for row, windows, piece in _pieces(weight, y, call.pool):
                kernels.gather_windows(x, operation.kernel, operation.stride, _corner(operation), row, windows)
                np.matmul(weight, rows(windows), out=piece)
                call.pool.give(windows)
    return _add_bias(out, call.source.exponent, call.parameters.bias)


@backward.register
def _(operation: Conv2d, call: Call, gradient: Signal, out: Array) -> int:
    if operation.depthwise:
        _depthwise_backward(gradient.values, (call.parameters.weight[:, 0], operation.stride, _corner(operation)), out)
        return gradient.exponent
    for weight, x, y in _groups(operation, call.parameters.weight, out, gradient.values):
        if _pointwise(operation):
            np.matmul(weight.T, rows(y), out=rows(x))
            continue
        x.fill(0.0)
        for row, windows, piece in _pieces(weight, y, call.pool):
            np.matmul(weight.T, piece, out=rows(windows))
            kernels.scatter_windows(windows, operation.kernel, operation.stride, _corner(operation), row, x)
            call.pool.give(windows)
    return gradient.exponent


def _corner(operation: Conv2d) -> tuple[int, int]:
    return operation.padding[0], operation.padding[2]


def _pointwise(operation: Conv2d) -> bool:
    return operation.kernel == (1, 1) and operation.stride == (1, 1) and not any(operation.padding)


def _groups(operation: Conv2d, weight: Array, x: Array, y: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Yield for every group its weights as a matrix, its input channels and its output channels."""
    n_in, n_out = len(x) // operation.groups, len(y) // operation.groups
    for group in range(operation.groups):
        outputs = slice(group * n_out, (group + 1) * n_out)
        yield rows(weight[outputs]), x[group * n_in : (group + 1) * n_in], y[outputs]


def _pieces(weight: Array, y: Array, pool: Pool) -> Iterator[tuple[int, Array, Array]]:
    """Cut an output map by rows; yield each piece's first row, memory for its windows, and its view as a matrix."""
    _, height, width, batch = y.shape
    lines = weight.shape[1]
    step = max(1, COLUMNS_SIZE // (lines * width * batch))
    for row in range(0, height, step):
        count = min(step, height - row)
        piece = rows(y)[:, row * width * batch : (row + count) * width * batch]
        yield row, pool.take((lines, count, width, batch)), piece


def _add_bias(out: Array, exponent: int, bias: Array | None) -> int:
    if bias is None:
        return exponent
    column = bias.reshape(-1, *(1,) * (out.ndim - 1))
    return add_in_place(out, exponent, np.broadcast_to(column, out.shape).copy(), 0)


# Depthwise convolution, and what is one with fixed taps.


def _depthwise(x: Array, window: Window, out: Array) -> None:
    taps, stride, corner = window
    kernels.depthwise(_lines(x), taps, stride, corner, x.shape[-1], _lines(out))


def _depthwise_backward(gradient: Array, window: Window, out: Array) -> None:
    taps, stride, corner = window
    kernels.depthwise_backward(_lines(gradient), taps, stride, corner, out.shape[-1], _lines(out))


def _lines(array: Array) -> Array:
    """View a map as (channels, height, width * batch); features are maps of one position."""
    return array.reshape(array.shape[0], array.shape[1] if array.ndim == 4 else 1, -1)


def _window(operation: AveragePool | GlobalAveragePool | ZeroPad, source: Signal) -> Window:
    channels, height, width, _ = source.values.shape
    match operation:
        case AveragePool(kernel=size, stride=stride):
            corner = (0, 0)
        case GlobalAveragePool():
            size, stride, corner = (height, width), (1, 1), (0, 0)
        case ZeroPad(padding=(top, _, left, _)):
            size, stride, corner = (1, 1), (1, 1), (top, left)
    return np.full((channels, *size), 1 / (size[0] * size[1]), source.values.dtype), stride, corner


@forward.register
def _(operation: AveragePool | GlobalAveragePool | ZeroPad, call: Call, out: Array) -> int:
    _depthwise(call.source.values, _window(operation, call.source), out)
    return call.source.exponent


@backward.register
def _(operation: AveragePool | GlobalAveragePool | ZeroPad, call: Call, gradient: Signal, out: Array) -> int:
    _depthwise_backward(gradient.values, _window(operation, call.source), out)
    return gradient.exponent


# Batch normalisation.


@forward.register
def _(operation: BatchNorm, call: Call, out: Array) -> int:
    scale, exponent = _inverse_deviation(operation, call.source)
    kernels.standardize(rows(call.source.values), call.source.mean, scale, rows(out))
    return call.source.exponent + exponent


@backward.register
def _(operation: BatchNorm, call: Call, gradient: Signal, out: Array) -> int:
    scale, exponent = _inverse_deviation(operation, call.source)
    g, y = rows(gradient.values), rows(call.output.values)
    slope = np.empty(len(g))
    kernels.row_products(g, y, slope)
    # The output stands here twice, once as itself and once in the mean of its product with the gradient.
    slope = np.ldexp(slope, 2 * call.output.exponent)
    kernels.standardize_backward(g, y, gradient.mean, slope, scale, rows(out))
    return gradient.exponent + exponent


def _inverse_deviation(operation: BatchNorm, source: Signal) -> tuple[NDArray[np.float64], int]:
    """Return 1 / sqrt(variance + eps) of every channel as a mantissa and a common exponent.

    With the source v * 2**e the square is (v + eps * 4**-e) * 4**e. A power of 4 that falls below float64 is nothing
    beside the other term; for e < 0 the first factor would leave the range upwards, so 4**e goes inside.
    """
    e = source.exponent
    if e < 0 < operation.eps:
        return 1 / np.sqrt(np.ldexp(source.variance, 2 * e) + operation.eps), 0
    return 1 / np.sqrt(source.variance + np.ldexp(operation.eps, -2 * e)), -e


# Activations.


@forward.register
def _(operation: Activation, call: Call, out: Array) -> int:
    function, source = activation(operation.function), call.source
    if function.homogeneous or source.exponent == 0:
        _apply("value", function, source.values, out)
        return source.exponent
    slopes = _slopes_at_scale(function, source)
    if slopes is not None:
        np.multiply(source.values, slopes, out=out)
        return source.exponent
    z = _in_float64(source)
    y = np.empty_like(z)
    _apply("value", function, z, y)
    exponent = int(np.frexp(np.abs(y).max())[1])
    np.ldexp(y, -exponent, out=out, casting="same_kind")
    return exponent


@backward.register
def _(operation: Activation, call: Call, gradient: Signal, out: Array) -> int:
    function, source = activation(operation.function), call.source
    if function.homogeneous or source.exponent == 0:
        _apply("derivative", function, source.values, out)
    else:
        slopes = _slopes_at_scale(function, source)
        if slopes is None:
            z = _in_float64(source)
            slopes = np.empty_like(z)
            _apply("derivative", function, z, slopes)
        out[...] = slopes
    out *= gradient.values
    return gradient.exponent


def _slopes_at_scale(function: ActivationFunction, signal: Signal) -> Array | None:
    """Return phi(z) / z where z is so small or so large that phi is two half-lines through 0; None elsewhere.

    None too where that leaves nothing: phi(0) is not 0, or phi is bounded.
    """
    if abs(signal.exponent) <= FAR:
        return None
    if signal.exponent < 0:
        at_zero, left, right = function.germ_zero
        lines = at_zero == 0
    else:
        (left, _), (right, _) = function.germ_infinity
        lines = (left != 0 or right != 0) and math.isfinite(left) and math.isfinite(right)
    number = signal.values.dtype.type
    return np.where(signal.values > 0, number(right), number(left)) if lines else None


def _in_float64(signal: Signal) -> NDArray[np.float64]:
    """Return the map without its power of two, for a function that cannot take it; infinite beyond float64."""
    with np.errstate(over="ignore"):
        return np.ldexp(signal.values.astype(np.float64), signal.exponent)


def _apply(which: str, function: ActivationFunction, z: Array, out: Array) -> None:
    if function.family == FORMULA:
        out[...] = function.value(z) if which == "value" else function.derivative(z)
        return
    compiled = elementwise(getattr(scalar, f"{function.family}_{which}"), z.dtype.name)
    compiled(z, z.dtype.type(function.parameter), out=out)


# Sums, maxima and reshapes.


@forward.register
def _(operation: Add, call: Call, out: Array) -> int:
    out[...] = call.source.values
    exponent = call.source.exponent
    term = call.pool.take(out.shape)
    for source in call.sources[1:]:
        term[...] = source.values
        exponent = add_in_place(out, exponent, term, source.exponent)
    call.pool.give(term)
    return exponent


@forward.register
def _(operation: MaxPool, call: Call, out: Array) -> int:
    kernels.max_pool(call.source.values, operation.kernel, operation.stride, out)
    return call.source.exponent


@backward.register
def _(operation: MaxPool, call: Call, gradient: Signal, out: Array) -> int:
    kernels.max_pool_backward(gradient.values, call.source.values, operation.kernel, operation.stride, out)
    return gradient.exponent


@forward.register
def _(operation: Flatten, call: Call, out: Array) -> int:
    out[...] = call.source.values.reshape(out.shape)
    return call.source.exponent


@backward.register
def _(operation: Add | Flatten, call: Call, gradient: Signal, out: Array) -> int:
    out[...] = gradient.values.reshape(out.shape)
    return gradient.exponent
