"""Batch normalisation and activation in one pass each way, with the moments of what comes out.

A row, one trial's channel over batch and positions, is worked on a piece at a time in loops of one kind each: the
compiler turns each into vector instructions, and the pieces between them stay in the first-level cache. What batch
normalisation gives is never stored where only an activation reads it: both ways make it again from its input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import inlined, kernel, step
from varprop.simulator.montecarlo.sums import (
    LARGE,
    PIECE,
    SMALL,
    Number,
    Place,
    exact_sums,
    piece_product,
    piece_sums,
    row_moments,
)

Array = NDArray[np.floating]
Statistics = NDArray[np.float64]
Scalar = Callable[[Number, Number], Number]
Three = tuple[float, float, float]

ZEROS = (0.0, 0.0, 0.0)


class Passes(NamedTuple):
    """Compiled passes for one activation."""

    forward: Callable[..., None]
    backward: Callable[..., None]


@kernel
def moments(x: Array, trials: int, channels: int, mean: Statistics, variance: Statistics, summary: Statistics) -> None:
    """Write every trial's mean, second moment and mean variance of a row.

    x holds the rows of all channels of all trials one after the other, summary is (trials, 3); mean and variance of
    every row are written too where the arrays of shape (trials, channels) are not empty.
    """
    single = x.size == trials * channels and not mean.size
    rows, n = layout(x.size, trials, channels, single)
    share = 1.0 / np.float64(n)
    for t in range(trials):
        sums = ZEROS
        for c in range(rows):
            first = np.uint64(t * rows + c) * n
            total = squares = 0.0
            for start in range(first, first + n, PIECE):
                more = piece_sums(x, start, min(start + PIECE, first + n), x[first])
                total += np.float64(more[0])
                squares += np.float64(more[1])
            if not SMALL < squares < LARGE:
                total, squares = exact_sums(x, first, first + n, x[first])
            found = row_moments(x[first], share, total, squares)
            sums = sums[0] + found[0], sums[1] + found[1], sums[2] + found[2]
            if mean.size:
                mean[t, c], _, variance[t, c] = found
        write(summary, t, sums, rows, single)


@kernel
def leaves(summary: Statistics, low: float, high: float) -> bool:
    """Return whether a trial's second moment, 0 and infinity apart, lies outside [low, high)."""
    outside = False
    for t in range(len(summary)):
        second_moment = summary[t, 1]
        outside |= 0.0 < second_moment < low or high <= second_moment < np.inf
    return outside


@step
def layout(size: int, trials: int, channels: int, single: bool) -> tuple[int, Place]:
    """Return a trial's number of rows and their length: rows of a single number are worked on as one long row."""
    return (1, np.uint64(channels)) if single else (channels, np.uint64(size // (trials * channels)))


@step
def write(summary: Statistics, t: int, sums: Three, rows: int, single: bool) -> None:
    """Write a trial's averages over its rows, a single number having no variance; sums are kept out of memory."""
    summary[t, 0], summary[t, 1], summary[t, 2] = sums[0] / rows, sums[1] / rows, 0.0 if single else sums[2] / rows


@step
def standardize(z: Array, start: Place, stop: Place, pivot: Number, shift: Number, factor: Number, out: Array) -> None:
    """Write (z - pivot - shift) * factor: first the difference of two numbers of a row, which loses nothing."""
    for k in range(stop - start):
        out[k] = (z[start + k] - pivot - shift) * factor


@step
def regress(x: Array, start: Place, stop: Place, y: Array, mean: Number, slope: Number, factor: Number) -> None:
    """Overwrite a piece of x with (x - mean - slope * y) * factor."""
    for k in range(stop - start):
        x[start + k] = (x[start + k] - mean - slope * y[k]) * factor


@cache
def compiled_passes(value: Scalar, derivative: Scalar) -> Passes:
    """Compile the passes of an activation, given as functions of (z, parameter).

    All maps are flat, as for `moments`. Forward writes phi(y) to `out`, where y is z, or (z - center) * scale if they
    are not empty, and its moments. Backward is given the gradient with respect to phi(y) in `out`, and overwrites it
    with that to z. `inner` gets the moments of the gradient with respect to y; `summary` those of the one to z, where
    they differ. y * 2**e is what batch normalisation gave, and `power` 4**e.
    """
    value, derivative = inlined(value), inlined(derivative)

    @kernel
    def forward(
        z: Array,
        trials: int,
        channels: int,
        center: Statistics,
        scale: Statistics,
        parameter: Number,
        out: Array,
        mean: Statistics,
        variance: Statistics,
        summary: Statistics,
    ) -> None:
        single = z.size == trials * channels and not mean.size and not scale.size
        rows, n = layout(z.size, trials, channels, single)
        share = 1.0 / np.float64(n)
        number = z.dtype.type
        y = np.empty(PIECE, z.dtype)
        for t in range(trials):
            sums = ZEROS
            for c in range(rows):
                first = np.uint64(t * rows + c) * n
                total = squares = 0.0
                for start in range(first, first + n, PIECE):
                    stop = min(start + PIECE, first + n)
                    if scale.size:
                        shift, factor = number(center[t, c] - z[first]), number(scale[t, c])
                        standardize(z, start, stop, z[first], shift, factor, y)
                        for k in range(stop - start):
                            out[start + k] = value(y[k], parameter)
                    else:
                        for k in range(start, stop):
                            out[k] = value(z[k], parameter)
                    more = piece_sums(out, start, stop, out[first])
                    total += np.float64(more[0])
                    squares += np.float64(more[1])
                if not SMALL < squares < LARGE:
                    total, squares = exact_sums(out, first, first + n, out[first])
                found = row_moments(out[first], share, total, squares)
                sums = sums[0] + found[0], sums[1] + found[1], sums[2] + found[2]
                if mean.size:
                    mean[t, c], _, variance[t, c] = found
            write(summary, t, sums, rows, single)

    @kernel
    def backward(
        z: Array,
        trials: int,
        channels: int,
        center: Statistics,
        scale: Statistics,
        power: Statistics,
        parameter: Number,
        out: Array,
        inner: Statistics,
        summary: Statistics,
    ) -> None:
        single = z.size == trials * channels and not scale.size
        rows, n = layout(z.size, trials, channels, single)
        share = 1.0 / np.float64(n)
        number = z.dtype.type
        y = np.empty(PIECE, z.dtype)
        for t in range(trials):
            inner_sums = sums = ZEROS
            for c in range(rows):
                first = np.uint64(t * rows + c) * n
                total = squares = product = 0.0
                for start in range(first, first + n, PIECE):
                    stop = min(start + PIECE, first + n)
                    if scale.size:
                        shift, factor = number(center[t, c] - z[first]), number(scale[t, c])
                        standardize(z, start, stop, z[first], shift, factor, y)
                        for k in range(stop - start):
                            out[start + k] *= number(derivative(y[k], parameter))
                        product += np.float64(piece_product(out, start, stop, y, np.uint64(0)))
                    else:
                        for k in range(start, stop):
                            out[k] *= number(derivative(z[k], parameter))
                    more = piece_sums(out, start, stop, out[first])
                    total += np.float64(more[0])
                    squares += np.float64(more[1])
                if not SMALL < squares < LARGE:
                    total, squares = exact_sums(out, first, first + n, out[first])
                found = row_moments(out[first], share, total, squares)
                inner_sums = inner_sums[0] + found[0], inner_sums[1] + found[1], inner_sums[2] + found[2]
                if not scale.size:
                    continue
                middle, slope = number(found[0]), number(product * share * power[t])
                total = squares = 0.0
                for start in range(first, first + n, PIECE):
                    stop = min(start + PIECE, first + n)
                    shift, factor = number(center[t, c] - z[first]), number(scale[t, c])
                    standardize(z, start, stop, z[first], shift, factor, y)
                    regress(out, start, stop, y, middle, slope, factor)
                    more = piece_sums(out, start, stop, out[first])
                    total += np.float64(more[0])
                    squares += np.float64(more[1])
                if not SMALL < squares < LARGE:
                    total, squares = exact_sums(out, first, first + n, out[first])
                found = row_moments(out[first], share, total, squares)
                sums = sums[0] + found[0], sums[1] + found[1], sums[2] + found[2]
            write(inner, t, inner_sums, rows, single)
            write(summary, t, sums, rows, single)

    return Passes(forward, backward)
