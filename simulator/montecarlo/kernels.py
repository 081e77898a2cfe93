"""Compiled loops over maps whose last axis is the sample, so that neighbours in memory share channel and position.

A map of shape (channels, height, width, batch) comes here as (channels, height, width * batch): with stride 1 a whole
row of a window is one contiguous run, and with any other stride it is one run of `batch` values a column. Where all
channels are treated alike, the channels of several trials come as those of one map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import kernel, reduction, step
from varprop.simulator.montecarlo.sums import Number

Array = NDArray[np.floating]
Pair = tuple[int, int]
Three = tuple[Number, Number, Number]
Line = tuple[int, int, int, int]
"""Width of a row, columns of the output, stride and batch."""


@step
def columns_inside(size: int, columns: int, stride: int, offset: int) -> tuple[int, int]:
    """Return the output columns [first, last) whose input column, column * stride + offset, lies in [0, size)."""
    return max(0, -(offset // stride)), min(columns, (size - 1 - offset) // stride + 1)


@step
def clear(target: Array, to: int, count: int) -> None:
    """Write zeros over `count` neighbours; places in flat maps are made unsigned, see `sums`."""
    first = np.uint64(to)
    for k in range(np.uint64(count)):
        target[first + k] = 0.0


@reduction
def add_run(target: Array, to: int, source: Array, start: int, count: int, factor: Number) -> None:
    """Add factor * source to target over `count` neighbours."""
    first, begin = np.uint64(to), np.uint64(start)
    for k in range(np.uint64(count)):
        target[first + k] += factor * source[begin + k]


@reduction
def add_three(target: Array, to: int, source: Array, start: int, apart: int, count: int, three: Three) -> None:
    """Add to target, over `count` neighbours, three numbers' products with source, each `apart` from the one before."""
    first, a, b, c = np.uint64(to), np.uint64(start), np.uint64(start + apart), np.uint64(start + 2 * apart)
    left, middle, right = three
    for k in range(np.uint64(count)):
        target[first + k] += left * source[a + k] + middle * source[b + k] + right * source[c + k]


@step
def add_column(target: Array, to: int, source: Array, start: int, line: Line, offset: int, factor: Number) -> None:
    """Add the product of a row of source with one tap to a row of target, `offset` columns to the left."""
    width, columns, stride, batch = line
    first, last = columns_inside(width, columns, stride, offset)
    if stride == 1 and first < last:
        add_run(target, to + first * batch, source, start + (first + offset) * batch, (last - first) * batch, factor)
    else:
        for column in range(first, last):
            add_run(target, to + column * batch, source, start + (column * stride + offset) * batch, batch, factor)


@step
def add_columns(target: Array, to: int, source: Array, start: int, line: Line, offset: int, three: Three) -> None:
    """Add the products with three neighbouring taps, together where all of them lie in the map."""
    width, columns, stride, batch = line
    first, _ = columns_inside(width, columns, stride, offset)
    _, last = columns_inside(width, columns, stride, offset + 2)
    if last - first < 1:
        for k in range(3):
            add_column(target, to, source, start, line, offset + k, three[k])
        return
    if stride == 1:
        place = start + (first + offset) * batch
        add_three(target, to + first * batch, source, place, batch, (last - first) * batch, three)
    else:
        for column in range(first, last):
            place = start + (column * stride + offset) * batch
            add_three(target, to + column * batch, source, place, batch, batch, three)
    for k in range(3):
        low, high = columns_inside(width, columns, stride, offset + k)
        for column in range(low, first):
            place = start + (column * stride + offset + k) * batch
            add_run(target, to + column * batch, source, place, batch, three[k])
        for column in range(last, high):
            place = start + (column * stride + offset + k) * batch
            add_run(target, to + column * batch, source, place, batch, three[k])


@kernel
def depthwise(x: Array, taps: Array, stride: Pair, corner: Pair, batch: int, out: Array) -> None:
    """Cross-correlate every channel with taps of its own; `corner` is the (top, left) zero padding.

    x is (channels, height, width * batch), taps (outputs, kh, kw), out (outputs, rows, columns * batch); output o
    reads channel o // (outputs / channels).
    """
    outputs, kh, kw = taps.shape
    channels, height, width = x.shape[0], x.shape[1], x.shape[2] // batch
    rows, columns = out.shape[1], out.shape[2] // batch
    source, target, line = x.reshape(-1), out.reshape(-1), (width, columns, stride[1], batch)
    for o in range(outputs):
        for row in range(rows):
            to = (o * rows + row) * columns * batch
            clear(target, to, columns * batch)
            for i in range(kh):
                y = row * stride[0] + i - corner[0]
                if y < 0 or y >= height:
                    continue
                start = (o // (outputs // channels) * height + y) * width * batch
                for j in range(0, kw - 2, 3):
                    three = taps[o, i, j], taps[o, i, j + 1], taps[o, i, j + 2]
                    add_columns(target, to, source, start, line, j - corner[1], three)
                for j in range(kw - kw % 3, kw):
                    add_column(target, to, source, start, line, j - corner[1], taps[o, i, j])


@kernel
def depthwise_backward(gradient: Array, taps: Array, stride: Pair, corner: Pair, batch: int, out: Array) -> None:
    """Send the gradient of `depthwise` back to its input: the transposed map, shapes as there."""
    outputs, kh, kw = taps.shape
    channels, height, width = out.shape[0], out.shape[1], out.shape[2] // batch
    rows, columns = gradient.shape[1], gradient.shape[2] // batch
    source, target = gradient.reshape(-1), out.reshape(-1)
    for o in range(outputs):
        channel = o // (outputs // channels)
        if o % (outputs // channels) == 0:
            clear(target, channel * height * width * batch, height * width * batch)
        for row in range(rows):
            start = (o * rows + row) * columns * batch
            for i in range(kh):
                y = row * stride[0] + i - corner[0]
                if y < 0 or y >= height:
                    continue
                to = (channel * height + y) * width * batch
                for j in range(kw):
                    offset = j - corner[1]
                    first, last = columns_inside(width, columns, stride[1], offset)
                    for column in range(first, last):
                        place = to + (column * stride[1] + offset) * batch
                        add_run(target, place, source, start + column * batch, batch, taps[o, i, j])


@kernel
def gather_windows(x: Array, kernel_size: Pair, stride: Pair, corner: Pair, row: int, out: Array) -> None:
    """Copy the windows of output rows row, row + 1, ... into columns, zeros where they leave the map.

    x is (channels, height, width, batch), out (channels * kh * kw, rows, columns, batch): the matrix whose product
    with (outputs, channels * kh * kw) weights is the convolution.
    """
    channels, height, width, batch = x.shape
    kh, kw = kernel_size
    rows, columns = out.shape[1], out.shape[2]
    for line in range(channels * kh * kw):
        channel, i, j = line // (kh * kw), line // kw % kh, line % kw
        offset = j - corner[1]
        first, last = columns_inside(width, columns, stride[1], offset)
        for r in range(rows):
            y = (row + r) * stride[0] + i - corner[0]
            target = out[line, r]
            if y < 0 or y >= height or first >= last:
                target[:] = 0.0
                continue
            source = x[channel, y]
            target[:first] = 0.0
            for column in range(first, last):
                for b in range(batch):
                    target[column, b] = source[column * stride[1] + offset, b]
            target[last:] = 0.0


@kernel
def scatter_windows(gradient: Array, kernel_size: Pair, stride: Pair, corner: Pair, row: int, out: Array) -> None:
    """Add columns back to the map that `gather_windows` took them from; shapes as there."""
    channels, height, width, batch = out.shape
    kh, kw = kernel_size
    rows, columns = gradient.shape[1], gradient.shape[2]
    for line in range(channels * kh * kw):
        channel, i, j = line // (kh * kw), line // kw % kh, line % kw
        offset = j - corner[1]
        first, last = columns_inside(width, columns, stride[1], offset)
        for r in range(rows):
            y = (row + r) * stride[0] + i - corner[0]
            if y < 0 or y >= height:
                continue
            source = gradient[line, r]
            target = out[channel, y]
            for column in range(first, last):
                for b in range(batch):
                    target[column * stride[1] + offset, b] += source[column, b]


@kernel
def max_pool(x: Array, kernel_size: Pair, stride: Pair, out: Array) -> None:
    """Write the maximum of every window; both are (channels, height, width, batch)."""
    channels, rows, columns, batch = out.shape
    for c in range(channels):
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride[0], column * stride[1]
                for b in range(batch):
                    out[c, row, column, b] = x[c, top, left, b]
                for i in range(kernel_size[0]):
                    for j in range(kernel_size[1]):
                        for b in range(batch):
                            out[c, row, column, b] = max(out[c, row, column, b], x[c, top + i, left + j, b])


@kernel
def max_pool_backward(gradient: Array, x: Array, kernel_size: Pair, stride: Pair, out: Array) -> None:
    """Add every window's gradient to the place of its maximum, the first in row-major order."""
    channels, rows, columns, batch = gradient.shape
    out[:] = 0.0
    for c in range(channels):
        for row in range(rows):
            for column in range(columns):
                top, left = row * stride[0], column * stride[1]
                for b in range(batch):
                    y, z = top, left
                    for i in range(kernel_size[0]):
                        for j in range(kernel_size[1]):
                            if x[c, top + i, left + j, b] > x[c, y, z, b]:
                                y, z = top + i, left + j
                    out[c, y, z, b] += gradient[c, row, column, b]
