"""Batch normalisation and activation in one pass each way, with the moments of what comes out.

A row, one trial's channel over batch and positions, goes through a single loop, which the compiler turns into vector
instructions, a piece at a time for the sake of its sums. What batch normalisation gives is never stored where only an
activation reads it: both ways make it again from its input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import inlined, kernel, reduction, step
from varprop.simulator.montecarlo.sums import (
    PIECE,
    Array,
    Number,
    Place,
    Statistics,
    measured_row,
    piece_sums,
    sums_moments,
)

Exponents = NDArray[np.int64]
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
            found = measured_row(x, first, first + n, share)
            sums = added(sums, found)
            if mean.size:
                mean[t, c], _, variance[t, c] = found
        write(summary, t, sums, rows, single)


@kernel
def deviations(
    variance: Statistics, exponent: Exponents, eps: float, scale: Statistics, after: Exponents, summary: Statistics
) -> None:
    """Write 1 / sqrt(variance + eps) of every trial's channels as a mantissa, and an exponent for every trial.

    With the source v * 2**e the square is (v + eps * 4**-e) * 4**e. A power of 4 that falls below float64 is nothing
    beside the other term; for e < 0 the first factor would leave the range upwards, so 4**e goes inside. `variance`
    is overwritten with that of the normalised map, which has mean 0, and `summary` gets its averages.
    """
    trials, channels = variance.shape
    for t in range(trials):
        inside, after[t] = (0, -exponent[t]) if eps == 0.0 else (min(exponent[t], 0), -max(exponent[t], 0))
        inner, added = np.ldexp(1.0, 2 * inside), np.ldexp(eps, 2 * after[t]) if eps else 0.0
        total = 0.0
        for c in range(channels):
            scale[t, c] = 1.0 / np.sqrt(variance[t, c] * inner + added)
            variance[t, c] *= scale[t, c] ** 2
            total += variance[t, c]
        summary[t, 0], summary[t, 1], summary[t, 2] = 0.0, total / channels, total / channels


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
def added(sums: Three, found: Three) -> Three:
    """Return sums with a row's moments added."""
    return sums[0] + found[0], sums[1] + found[1], sums[2] + found[2]


@step
def line(z: Array, first: Place, t: int, c: int, center: Statistics, scale: Statistics) -> tuple[Number, ...]:
    """Return the (pivot, shift, factor) with which `standardized` makes a row, those of z itself without scales."""
    number = z.dtype.type
    if scale.size:
        return z[first], number((center[t, c] - z[first]) * scale[t, c]), number(scale[t, c])
    return number(0.0), number(0.0), number(1.0)


@step
def standardized(z: Number, by: tuple[Number, ...]) -> Number:
    """Return (z - pivot) * factor - shift: first the difference of two numbers of a row, which loses nothing."""
    return (z - by[0]) * by[2] - by[1]


@step
def regression(z: Array, by: tuple[Number, ...], mean: float, slope: float) -> tuple[Number, ...]:
    """Return (shift, factor) for `regressed`: with what `standardized` makes, (x - mean - slope * y) * factor."""
    number, factor = z.dtype.type, np.float64(by[2])
    return number((slope * by[1] - mean) * factor), number(slope * factor * factor)


@step
def regressed(x: Number, z: Number, by: tuple[Number, ...], on: tuple[Number, ...]) -> Number:
    """Return a gradient x less its mean and its regression on what normalisation made of z, times its scale."""
    return x * by[2] + (on[0] - on[1] * (z - by[0]))


@step
def regress(
    z: Array,
    at: Place,
    count: Place,
    by: tuple[Number, ...],
    on: tuple[Number, ...],
    gradient: Array,
    place: Place,
    out: Array,
    to: Place,
) -> None:
    """Write what `regressed` makes of neighbours in a gradient."""
    for k in range(count):
        out[to + k] = regressed(gradient[place + k], z[at + k], by, on)


@step
def copy(x: Array, at: Place, count: Place, out: Array, to: Place) -> None:
    """Copy neighbours to another array."""
    for k in range(count):
        out[to + k] = x[at + k]


class Pieces(NamedTuple):
    """An activation on a piece of a row, for kernels to have it compiled into them."""

    value: Scalar
    derivative: Scalar
    activate: Callable[..., tuple[Number, Number]]
    differentiate: Callable[..., tuple[Number, ...]]


@cache
def pieces(value: Scalar, derivative: Scalar) -> Pieces:
    """Return how an activation, given as functions of (z, parameter), goes over pieces of rows.

    Of maps that lie at different places, each from its own on: `activate` writes phi(y) for what `standardized` makes
    of z, `differentiate` a gradient times phi'(y); both return the sums of what they write, less a pivot, and of its
    squares, and the second also the sum of its products with y and those sums of the gradient that it was given.
    """
    value, derivative = inlined(value), inlined(derivative)

    @reduction
    def activate(
        z: Array,
        at: Place,
        count: Place,
        by: tuple[Number, ...],
        parameter: Number,
        out: Array,
        to: Place,
        pivot: Number,
    ) -> tuple[Number, Number]:
        number = z.dtype.type
        total = squares = number(0)
        for k in range(count):
            found = number(value(standardized(z[at + k], by), parameter))
            out[to + k] = found
            deviation = found - pivot
            total += deviation
            squares += deviation * deviation
        return total, squares

    @reduction
    def differentiate(
        z: Array,
        at: Place,
        count: Place,
        by: tuple[Number, ...],
        parameter: Number,
        gradient: Array,
        place: Place,
        out: Array,
        to: Place,
        pivot: Number,
        given_pivot: Number,
    ) -> tuple[Number, ...]:
        number = z.dtype.type
        total = squares = product = given_total = given_squares = number(0)
        for k in range(count):
            y = standardized(z[at + k], by)
            given = gradient[place + k]
            deviation = given - given_pivot
            given_total += deviation
            given_squares += deviation * deviation
            found = given * number(derivative(y, parameter))
            out[to + k] = found
            deviation = found - pivot
            total += deviation
            squares += deviation * deviation
            product += found * y
        return total, squares, product, given_total, given_squares

    return Pieces(value, derivative, activate, differentiate)


@cache
def compiled_passes(value: Scalar, derivative: Scalar) -> Passes:
    """Compile the passes of an activation, given as functions of (z, parameter).

    All maps are flat, as for `moments`. Forward writes phi(y) to `out`, where y is z, or (z - center) * scale if they
    are not empty, and its moments. Backward is given the gradient with respect to phi(y) in `out`, and overwrites it
    with that to z. `inner` gets the moments of the gradient with respect to y; `summary` those of the one to z, where
    they differ. y * 2**e is what batch normalisation gave, and `power` 4**e.
    """
    value, derivative, activate, differentiate = pieces(value, derivative)

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
        for t in range(trials):
            sums = ZEROS
            for c in range(rows):
                first = np.uint64(t * rows + c) * n
                stop = first + n
                by = line(z, first, t, c, center, scale)
                pivot = number(value(standardized(z[first], by), parameter))
                total = squares = 0.0
                for start in range(first, stop, PIECE):
                    more = activate(z, start, min(PIECE, stop - start), by, parameter, out, start, pivot)
                    total += np.float64(more[0])
                    squares += np.float64(more[1])
                found = sums_moments(out, first, stop, pivot, total, squares, share)
                sums = added(sums, found)
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
        # Loops that read and write one array at places of their own are not turned into vector instructions.
        gradient = np.empty(PIECE, z.dtype)
        single = z.size == trials * channels and not scale.size
        rows, n = layout(z.size, trials, channels, single)
        share = 1.0 / np.float64(n)
        number = z.dtype.type
        for t in range(trials):
            inner_sums = sums = ZEROS
            for c in range(rows):
                first = np.uint64(t * rows + c) * n
                stop = first + n
                by = line(z, first, t, c, center, scale)
                y = standardized(z[first], by)
                pivot = out[first] * number(derivative(y, parameter))
                total = squares = product = 0.0
                for start in range(first, stop, PIECE):
                    count = min(PIECE, stop - start)
                    copy(out, start, count, gradient, 0)
                    parts = differentiate(z, start, count, by, parameter, gradient, 0, out, start, pivot, pivot)
                    total += np.float64(parts[0])
                    squares += np.float64(parts[1])
                    product += np.float64(parts[2])
                found = sums_moments(out, first, stop, pivot, total, squares, share)
                inner_sums = added(inner_sums, found)
                if not scale.size:
                    continue
                on = regression(z, by, found[0], product * share * power[t])
                pivot = regressed(pivot, z[first], by, on)
                total = squares = 0.0
                for start in range(first, stop, PIECE):
                    count = min(PIECE, stop - start)
                    copy(out, start, count, gradient, 0)
                    regress(z, start, count, by, on, gradient, 0, out, start)
                    more = piece_sums(out, start, start + count, pivot)
                    total += np.float64(more[0])
                    squares += np.float64(more[1])
                sums = added(sums, sums_moments(out, first, stop, pivot, total, squares, share))
            write(inner, t, inner_sums, rows, single)
            write(summary, t, sums, rows, single)

    return Passes(forward, backward)
