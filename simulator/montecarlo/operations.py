"""Every operation on a map with its power of two: forward, and the gradient back to its input.

Both write into an array that the caller provides and return the exponent of what they wrote. The exponents make the
signal of a deep network without normalisation, and every gradient, immune to the floating range.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.generated import activations as scalar
from varprop.simulator.montecarlo import kernels
from varprop.simulator.montecarlo.draws import Parameters
from varprop.simulator.montecarlo.jit import elementwise
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
"""Windows are gathered in pieces of about this many numbers, which fit a core's cache."""


@singledispatch
def forward(operation: Operation, sources: list[Signal], drawn: Parameters | None, pool: Pool, out: Array) -> int:
    """Write the operation's output.

    Parameters
    ----------
    operation
        What to do.
    sources
        Its inputs; the statistics are always there, the values too.
    drawn
        The layer's weights, None where it has none.
    pool
        Memory for what is needed on the way.
    out
        Array of shape (*node shape, batch) to write to.

    Returns
    -------
    int
        The output is `out` * 2**(this).
    """
    raise NotImplementedError(type(operation).__name__)


@singledispatch
def backward(
    operation: Operation, gradient: Signal, source: Signal, output: Signal, drawn: Parameters | None, pool: Pool, out: Array
) -> int:
    """Write the gradient with respect to one input, given that with respect to the output.

    Parameters
    ----------
    operation
        What was done.
    gradient
        Gradient with respect to the output.
    source, output
        Input and output as they were. Their statistics are always there, their values only if `reads_source` or
        `reads_output` asks for them.
    drawn, pool, out
        As for `forward`; `out` has the input's shape.

    Returns
    -------
    int
        The gradient is `out` * 2**(this).
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
def _(operation: Linear, sources: list[Signal], drawn: Parameters, pool: Pool, out: Array) -> int:
    np.matmul(drawn.weight, sources[0].values, out=out)
    return _add_bias(out, sources[0].exponent, drawn.bias)


@backward.register
def _(
    operation: Linear, gradient: Signal, source: Signal, output: Signal, drawn: Parameters, pool: Pool, out: Array
) -> int:
    np.matmul(drawn.weight.T, gradient.values, out=out)
    return gradient.exponent


@forward.register
def _(operation: Conv2d, sources: list[Signal], drawn: Parameters, pool: Pool, out: Array) -> int:
    values = sources[0].values
    if operation.depthwise:
        _depthwise(values, (drawn.weight[:, 0], operation.stride, _corner(operation)), out)
    else:
        for weight, x, y in _groups(operation, drawn.weight, values, out):
            if _pointwise(operation):
                np.matmul(weight, rows(x), out=rows(y))
                continue
            for row, windows, piece in _pieces(weight, y, pool):
                kernels.gather_windows(x, operation.kernel, operation.stride, _corner(operation), row, windows)
                np.matmul(weight, rows(windows), out=piece)
                pool.give(windows)
    return _add_bias(out, sources[0].exponent, drawn.bias)


@backward.register
def _(
    operation: Conv2d, gradient: Signal, source: Signal, output: Signal, drawn: Parameters, pool: Pool, out: Array
) -> int:
    if operation.depthwise:
        _depthwise_backward(gradient.values, (drawn.weight[:, 0], operation.stride, _corner(operation)), out)
        return gradient.exponent
    for weight, x, y in _groups(operation, drawn.weight, out, gradient.values):
        if _pointwise(operation):
            np.matmul(weight.T, rows(y), out=rows(x))
            continue
        x.fill(0.0)
        for row, windows, piece in _pieces(weight, y, pool):
            np.matmul(weight.T, piece, out=rows(windows))
            kernels.scatter_windows(windows, operation.kernel, operation.stride, _corner(operation), row, x)
            pool.give(windows)
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
def _(
    operation: AveragePool | GlobalAveragePool | ZeroPad,
    sources: list[Signal],
    drawn: None,
    pool: Pool,
    out: Array,
) -> int:
    _depthwise(sources[0].values, _window(operation, sources[0]), out)
    return sources[0].exponent


@backward.register
def _(
    operation: AveragePool | GlobalAveragePool | ZeroPad,
    gradient: Signal,
    source: Signal,
    output: Signal,
    drawn: None,
    pool: Pool,
    out: Array,
) -> int:
    _depthwise_backward(gradient.values, _window(operation, source), out)
    return gradient.exponent


# Batch normalisation.


@forward.register
def _(operation: BatchNorm, sources: list[Signal], drawn: None, pool: Pool, out: Array) -> int:
    source = sources[0]
    scale, exponent = _inverse_deviation(operation, source)
    kernels.standardize(rows(source.values), source.mean, scale, rows(out))
    return source.exponent + exponent


@backward.register
def _(
    operation: BatchNorm, gradient: Signal, source: Signal, output: Signal, drawn: None, pool: Pool, out: Array
) -> int:
    scale, exponent = _inverse_deviation(operation, source)
    g, y = rows(gradient.values), rows(output.values)
    slope = np.empty(len(g))
    kernels.row_products(g, y, slope)
    # The output stands here twice, once as itself and once in the mean of its product with the gradient.
    slope = np.ldexp(slope, 2 * output.exponent)
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
def _(operation: Activation, sources: list[Signal], drawn: None, pool: Pool, out: Array) -> int:
    function, source = activation(operation.function), sources[0]
    if function.homogeneous or source.exponent == 0:
        _apply("value", function, source.values, out)
        return source.exponent
    # Through float64, whose range holds what the function cannot take with a power of two in front.
    z = np.ldexp(source.values.astype(np.float64), source.exponent)
    y = np.empty_like(z)
    _apply("value", function, z, y)
    exponent = int(np.frexp(np.abs(y).max())[1])
    np.ldexp(y, -exponent, out=out, casting="same_kind")
    return exponent


@backward.register
def _(
    operation: Activation, gradient: Signal, source: Signal, output: Signal, drawn: None, pool: Pool, out: Array
) -> int:
    function = activation(operation.function)
    if function.homogeneous or source.exponent == 0:
        _apply("derivative", function, source.values, out)
    else:
        z = np.ldexp(source.values.astype(np.float64), source.exponent)
        slope = np.empty_like(z)
        _apply("derivative", function, z, slope)
        out[...] = slope
    out *= gradient.values
    return gradient.exponent


def _apply(which: str, function: ActivationFunction, z: Array, out: Array) -> None:
    compiled = elementwise(getattr(scalar, f"{function.family}_{which}"), z.dtype.name)
    compiled(z, z.dtype.type(function.parameter), out=out)


# Sums, maxima and reshapes.


@forward.register
def _(operation: Add, sources: list[Signal], drawn: None, pool: Pool, out: Array) -> int:
    out[...] = sources[0].values
    exponent = sources[0].exponent
    term = pool.take(out.shape)
    for source in sources[1:]:
        term[...] = source.values
        exponent = add_in_place(out, exponent, term, source.exponent)
    pool.give(term)
    return exponent


@forward.register
def _(operation: MaxPool, sources: list[Signal], drawn: None, pool: Pool, out: Array) -> int:
    kernels.max_pool(sources[0].values, operation.kernel, operation.stride, out)
    return sources[0].exponent


@backward.register
def _(operation: MaxPool, gradient: Signal, source: Signal, output: Signal, drawn: None, pool: Pool, out: Array) -> int:
    kernels.max_pool_backward(gradient.values, source.values, operation.kernel, operation.stride, out)
    return gradient.exponent


@forward.register
def _(operation: Flatten, sources: list[Signal], drawn: None, pool: Pool, out: Array) -> int:
    out[...] = sources[0].values.reshape(out.shape)
    return sources[0].exponent


@backward.register
def _(
    operation: Add | Flatten, gradient: Signal, source: Signal, output: Signal, drawn: None, pool: Pool, out: Array
) -> int:
    out[...] = gradient.values.reshape(out.shape)
    return gradient.exponent
