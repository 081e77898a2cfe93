"""Compiled loops over maps whose last axis is the sample, so that neighbours in memory share channel and position.

Where all channels are treated alike, the channels of several trials come as those of one map.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import kernel, step

Array = NDArray[np.floating]
Pair = tuple[int, int]


@step
def columns_inside(size: int, columns: int, stride: int, offset: int) -> tuple[int, int]:
    """Return the output columns [first, last) whose input column, column * stride + offset, lies in [0, size)."""
    return max(0, -(offset // stride)), min(columns, (size - 1 - offset) // stride + 1)


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
