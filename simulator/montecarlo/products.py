"""Products of stacks of matrices with few terms, or few columns, with the moments of what comes out.

BLAS is made for products whose factors it can afford to copy first, and takes up to twice the time for these.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from varprop.simulator.jit import kernel
from varprop.simulator.montecarlo.pointwise import ZEROS, added, write
from varprop.simulator.montecarlo.sums import Array, Statistics, row_sums, sums_moments
from varprop.simulator.montecarlo.tile import BYTES, ROWS, VECTORS, write_tile, write_tile_ahead

Steps = tuple[int, int, int]

WIDTH = VECTORS * BYTES
"""Bytes of a tile's row."""

PANEL = 2**16
"""Numbers of the right factor that are worked on together: an eighth of a core's own cache, in float32."""

PAGE = 4096
"""Bytes from row to row from which on the hardware does not fetch ahead what neighbours are read of many rows."""

MOST_TERMS, MOST_COLUMNS = 192, 256
"""Rows of the right factor beyond the one, which are further apart than the other, fall out of the caches."""

MOST_WEIGHTS = 2**18
"""Numbers of a left factor, of which a core's own cache holds the most."""


class Moments(NamedTuple):
    """Memory for moments as of `pointwise.moments`: (trials, channels), the same, and (trials, 3)."""

    mean: Statistics
    variance: Statistics
    summary: Statistics


NO_MOMENTS = Moments(*np.empty((3, 0, 0)))
"""Where none are asked for."""


def product(weight: Array, x: Array, out: Array, transposed: bool, moments: Moments = NO_MOMENTS) -> bool:
    """Write products of a stack of weights, transposed or not, with matrices; return whether moments are written.

    Parameters
    ----------
    weight
        Matrices without gaps, of shape (stack, m, k).
    x, out
        Shapes (stack, k, columns) and (stack, m, columns), or with m and k exchanged; rows have no gaps.
    transposed
        Whether the weights are taken as (stack, k, m).
    moments
        All rows of a trial's products are its channels.
    """
    rows, (terms, columns) = out.shape[1], x.shape[1:]
    inside = terms <= MOST_TERMS or columns <= MOST_COLUMNS
    tiled = rows >= ROWS and columns * x.itemsize >= WIDTH
    if not (inside and tiled and rows * terms <= MOST_WEIGHTS):
        np.matmul(weight.swapaxes(1, 2) if transposed else weight, x, out=out)
        return False
    across = (rows * terms, 1, rows) if transposed else (rows * terms, terms, 1)
    (right, right_steps), (target, out_steps) = _flat(x), _flat(out)
    multiply(weight.reshape(-1), across, right, right_steps, target, out_steps, rows, terms, columns, moments)
    return moments is not NO_MOMENTS


def _flat(matrices: Array) -> tuple[Array, Steps]:
    """View the memory from the first number to the last; return it with the steps of all axes."""
    item = matrices.itemsize
    stack, rows, _ = matrices.strides
    if matrices.flags.c_contiguous:
        return matrices.reshape(-1), (stack // item, rows // item, 1)
    end = sum((length - 1) * step for length, step in zip(matrices.shape, matrices.strides, strict=True))
    return as_strided(matrices, (end // item + 1,), (item,)), (stack // item, rows // item, 1)


@kernel
def multiply(
    left: Array,
    left_steps: Steps,
    right: Array,
    right_steps: Steps,
    out: Array,
    out_steps: Steps,
    rows: int,
    terms: int,
    columns: int,
    moments: Moments,
) -> None:
    """Write what `product` does, a panel of columns after the other; arrays are flat, steps those of all axes.

    There are at least as many rows and columns as in a tile: the last tiles lie over the ones before, and write the
    same numbers.
    """
    left_stack, row_step, term_step = left_steps
    (right_stack, apart, _), (out_stack, step, _) = right_steps, out_steps
    width = WIDTH // out.itemsize
    panel = max(1, PANEL // (terms * width)) * width
    far = apart * right.itemsize >= PAGE
    mean, variance, summary = moments
    totals, squares = mean.reshape(-1), variance.reshape(-1)
    for s in range(left.size // (rows * terms)):
        for begin in range(0, columns, panel):
            end = min(begin + panel, columns)
            for row in range(0, rows, ROWS):
                top = min(row, rows - ROWS)
                first, start = s * left_stack + top * row_step, s * out_stack + top * step
                for column in range(begin, end, width):
                    at = min(column, columns - width)
                    place, to = s * right_stack + at, start + at
                    if far and row == 0:
                        write_tile_ahead(left, first, row_step, term_step, terms, right, place, apart, out, to, step)
                    else:
                        write_tile(left, first, row_step, term_step, terms, right, place, apart, out, to, step)
                if not summary.size:
                    continue
                for i in range(row, min(row + ROWS, rows)):
                    line = np.uint64(s * out_stack + i * step)
                    more = row_sums(out, line + np.uint64(begin), line + np.uint64(end), out[line])
                    if begin == 0:
                        totals[s * rows + i] = squares[s * rows + i] = 0.0
                    totals[s * rows + i] += more[0]
                    squares[s * rows + i] += more[1]
    share = 1.0 / np.float64(columns)
    for t in range(len(summary)):
        sums = ZEROS
        for c in range(mean.shape[1]):
            s, i = divmod(t * mean.shape[1] + c, rows)
            line = np.uint64(s * out_stack + i * step)
            stop = line + np.uint64(columns)
            found = sums_moments(out, line, stop, out[line], mean[t, c], variance[t, c], share)
            mean[t, c], _, variance[t, c] = found
            sums = added(sums, found)
        write(summary, t, sums, mean.shape[1], False)
