"""Linear layers and convolutions, and what is a convolution with fixed taps: forward, and the gradient back.

A convolution is one matrix product where it is 1x1, products with gathered windows elsewhere, and weighted sums where
every channel is for itself.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo import kernels
from varprop.simulator.montecarlo.call import Call, in_place_of
from varprop.simulator.montecarlo.draws import Parameters
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.products import NO_MOMENTS, Moments, product
from varprop.simulator.montecarlo.signal import NONE, Exponents, Signal, add_in_place, settled, statistics
from varprop.simulator.montecarlo.weightless import Unseen
from varprop.simulator.montecarlo.windows import Geometry, runs, weigh
from varprop.simulator.network import AveragePool, Conv2d, GlobalAveragePool, Linear, ZeroPad

Array = NDArray[np.floating]
Fixed = AveragePool | GlobalAveragePool | ZeroPad

COLUMNS_SIZE = 2**19
"""Windows are gathered in pieces of about this many numbers: 2 MB in float32, the order of a core's own cache."""


def linear(operation: Linear, call: Call, out: Array) -> Signal:
    """Write a linear layer's output."""
    drawn, x = call.parameters, call.source.values
    if isinstance(drawn, Unseen):
        drawn.product(x, out)
        return _add_bias(out, call.source.exponent, drawn.bias)
    return _mapped(drawn, drawn.weight, x, out, call)


def linear_back(operation: Linear, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to a linear layer's input."""
    drawn, out = call.parameters, call.pool.take(call.source_shape)
    if isinstance(drawn, Unseen):
        drawn.transposed_product(gradient.values, out, call.output.exponent - call.source.exponent)
    else:
        product(drawn.weight, gradient.values, out, True)
    return in_place_of(gradient, out, call.pool)


def convolved(operation: Conv2d, call: Call, out: Array) -> Signal:
    """Write a convolution's output."""
    drawn, values = call.parameters, call.source.values
    if isinstance(drawn, Unseen):
        windows = call.pool.take(_windows_shape(operation, out), lasting=True)
        for x, columns in zip(values, windows, strict=True):
            kernels.gather_windows(x, operation.kernel, operation.stride, _corner(operation), 0, columns)
        drawn.product(_by_group(operation, windows), _by_group(operation, out))
    elif operation.depthwise:
        signal = _weighed(*window(operation, call, out.shape), call.source, out, False, call.by_channel)
        return signal if drawn.bias is None else _add_bias(out, signal.exponent, drawn.bias)
    elif pointwise(operation):
        return _mapped(drawn, _weights(operation, drawn), _by_group(operation, values), out, call)
    else:
        for weight, x, y in _groups(operation, drawn, values, out):
            for row, windows, piece in _pieces(weight, y, call.pool):
                kernels.gather_windows(x, operation.kernel, operation.stride, _corner(operation), row, windows)
                product(weight, _matrix(windows), piece, False)
                call.pool.give(windows)
    return _add_bias(out, call.source.exponent, drawn.bias)


def _mapped(drawn: Parameters, weights: Array, x: Array, out: Array, call: Call) -> Signal:
    """Write matrix products and the bias, with the moments where both allow them to be taken in passing."""
    mean, variance, summary = statistics(out, True)
    moments = Moments(mean, variance, summary) if drawn.bias is None else NO_MOMENTS
    if not product(weights, x, out.reshape(len(weights), -1, x.shape[2]), False, moments):
        return _add_bias(out, call.source.exponent, drawn.bias)
    if not call.by_channel:
        mean = variance = NONE
    return settled(Signal(out, call.source.exponent, summary, mean, variance))


def convolved_back(operation: Conv2d, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to a convolution's input."""
    drawn, values, out = call.parameters, gradient.values, call.pool.take(call.source_shape)
    if isinstance(drawn, Unseen):
        windows = call.pool.take(_windows_shape(operation, values))
        shift = call.output.exponent - call.source.exponent
        drawn.transposed_product(_by_group(operation, values), _by_group(operation, windows), shift)
        out.fill(0.0)
        for columns, x in zip(windows, out, strict=True):
            kernels.scatter_windows(columns, operation.kernel, operation.stride, _corner(operation), 0, x)
        call.pool.give(windows)
        call.pool.give(drawn.inputs)
    elif operation.depthwise:
        back = _weighed(*window(operation, call, values.shape), gradient, out, True)
        gradient.release(call.pool)
        return back
    elif pointwise(operation):
        product(_weights(operation, drawn), _by_group(operation, values), _by_group(operation, out), True)
    else:
        for weight, x, y in _groups(operation, drawn, out, values):
            x.fill(0.0)
            for row, windows, piece in _pieces(weight, y, call.pool):
                product(weight, piece, _matrix(windows), True)
                kernels.scatter_windows(windows, operation.kernel, operation.stride, _corner(operation), row, x)
                call.pool.give(windows)
    return in_place_of(gradient, out, call.pool)


def _corner(operation: Conv2d) -> tuple[int, int]:
    return operation.padding[0], operation.padding[2]


def pointwise(operation: Conv2d) -> bool:
    """Whether the convolution is one matrix product of the map itself."""
    return operation.kernel == (1, 1) and operation.stride == (1, 1) and not any(operation.padding)


def _weights(operation: Conv2d, drawn: Parameters) -> Array:
    """View weights as a matrix a trial and group."""
    return drawn.weight.reshape(-1, operation.out_channels // operation.groups, _lines(operation))


def _lines(operation: Conv2d) -> int:
    return operation.in_channels // operation.groups * math.prod(operation.kernel)


def _groups(operation: Conv2d, drawn: Parameters, x: Array, y: Array) -> Iterator[tuple[Array, Array, Array]]:
    """Yield for every trial and group its weights as a stack of one matrix, its input channels and its outputs."""
    inputs, outputs = (array.reshape(-1, array.shape[1] // operation.groups, *array.shape[2:]) for array in (x, y))
    return zip(_weights(operation, drawn)[:, np.newaxis], inputs, outputs, strict=True)


def _by_group(operation: Conv2d, array: Array) -> Array:
    """View maps, or their windows, as a matrix a trial and group."""
    *_, rows, columns, batch = array.shape
    return array.reshape(len(array) * operation.groups, -1, rows * columns * batch)


def _windows_shape(operation: Conv2d, out: Array) -> tuple[int, ...]:
    return len(out), operation.groups * _lines(operation), *out.shape[2:]


def piece_rows(lines: int, width: int, batch: int) -> int:
    """Return how many output rows are worked on together, where each position's window has `lines` numbers."""
    return max(1, COLUMNS_SIZE // (lines * width * batch))


def _pieces(weight: Array, y: Array, pool: Pool) -> Iterator[tuple[int, Array, Array]]:
    """Cut an output map by rows; yield each piece's first row, memory for its windows, and its view as a matrix."""
    _, height, width, batch = y.shape
    lines = weight.shape[2]
    step = piece_rows(lines, width, batch)
    for row in range(0, height, step):
        count = min(step, height - row)
        piece = _matrix(y)[:, :, row * width * batch : (row + count) * width * batch]
        yield row, pool.take((lines, count, width, batch)), piece


def _matrix(array: Array) -> Array:
    """View a map as a stack of one matrix, of one row a channel."""
    return array.reshape(1, len(array), -1)


def _add_bias(out: Array, exponent: Exponents, bias: Array | None) -> Signal:
    if bias is None:
        return Signal(out, exponent)
    column = bias.reshape(*bias.shape, *(1,) * (out.ndim - 2))
    return add_in_place(Signal(out, exponent), np.broadcast_to(column, out.shape).copy(), np.zeros_like(exponent))


# Weighted sums over every channel's own windows.


def window(operation: Conv2d | Fixed, call: Call, shape: tuple[int, ...]) -> tuple[Array, Geometry]:
    """Return a kernel for every output of all trials, and where its taps lie, where every channel is for itself.

    Features are maps of one position.
    """
    trials, channels, height, width, _ = call.source_shape
    outputs = (shape[2], shape[3]) if len(shape) == 5 else (1, 1)
    match operation:
        case Conv2d(kernel=size, stride=stride, padding=(top, _, left, _)):
            assert isinstance(call.drawn, Parameters)
            taps = call.drawn.weight.reshape(-1, *size)
            return taps, Geometry((height, width), outputs, size, stride, (top, left))
        case AveragePool(kernel=size, stride=stride):
            corner = (0, 0)
        case GlobalAveragePool():
            size, stride, corner = (height, width), (1, 1), (0, 0)
        case ZeroPad(padding=(top, _, left, _)):
            size, stride, corner = (1, 1), (1, 1), (top, left)
    taps = np.full((trials * channels, *size), 1 / (size[0] * size[1]), call.pool.dtype)
    return taps, Geometry((height, width), outputs, size, stride, corner)


def fixed(operation: Fixed, call: Call, out: Array) -> Signal:
    """Write the output of a convolution with fixed taps."""
    return _weighed(*window(operation, call, out.shape), call.source, out, False, call.by_channel)


def fixed_back(operation: Fixed, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to the input of a convolution with fixed taps."""
    out = call.pool.take(call.source_shape)
    back = _weighed(*window(operation, call, gradient.values.shape), gradient, out, True)
    gradient.release(call.pool)
    return back


def _weighed(
    taps: Array, geometry: Geometry, source: Signal, out: Array, back: bool, by_channel: bool = False
) -> Signal:
    """Write the sums over a source's windows, or send a gradient back; with a kernel for every output of all trials."""
    shared = len(taps) // math.prod(source.values.shape[:2]), len(taps) // math.prod(out.shape[:2])
    mean, variance, summary = statistics(out, True)
    table, flat = runs(geometry, out.shape[-1], back), out.reshape(-1)
    weigh(source.values.reshape(-1), taps.reshape(len(taps), -1), table, shared, flat, mean, variance, summary)
    if not by_channel:
        mean = variance = NONE
    return settled(Signal(out, source.exponent, summary, mean, variance))
