"""Normalisation, activation, windows, normalisation and activation in one pass each way: a channel after the other.

Everything here acts on a channel by itself, so one trial's channel goes through the whole chain while a core's cache
holds it. What the chain gives in between is never stored but for what its second half starts from, which is read on
the way back, where the rest is made again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import numpy as np

from varprop.simulator.jit import kernel, step
from varprop.simulator.montecarlo.pointwise import (
    ZEROS,
    Array,
    Scalar,
    Statistics,
    added,
    copy,
    pieces,
    regress,
    regression,
    standardized,
    write,
)
from varprop.simulator.montecarlo.sums import (
    LARGE,
    PIECE,
    SMALL,
    Number,
    Place,
    exact_sums,
    row_moments,
    row_sums,
)
from varprop.simulator.montecarlo.windows import Runs, weigh_row

CENTER, VARIANCE, SCALE = range(3)
INNER, ADDED, POWER = range(3)
READ, NORMAL, GIVEN = range(3)

LEAST_RESIDUAL = 0.05
"""Share of a variance that a regression must leave to be known by subtraction, to 20 times the variance's rounding."""


class Link(NamedTuple):
    """A batch normalisation and the activation behind it.

    `there` says whether there is one; `rows`, of shape (3, trials, channels), holds mean and variance of what it reads
    and the scale. `known` says whether mean and variance were taken before. `units` has a column for every trial:
    v * units[0] + units[1] is a variance v with eps added, in the units of what comes out; 4**e for what comes out,
    y * 2**e, is units[2]. `sums`, of shape (3, trials, 3), gets mean, second moment and mean variance of what is read,
    normalised and given; on the way back those of the gradients with respect to them.
    """

    there: bool
    known: bool
    parameter: Number
    units: Statistics
    rows: Statistics
    sums: Statistics


class ChainPasses(NamedTuple):
    """Compiled passes through a chain."""

    forward: Callable[..., None]
    backward: Callable[..., None]


@cache
def compiled_chain(functions: tuple[Scalar, ...], derivatives: tuple[Scalar, ...], windows: bool) -> ChainPasses:
    """Compile the passes through a chain, given its two activations as functions of (z, parameter).

    x, z and out are flat maps: what is read, what comes out of the windows, and what comes out of the chain. Every
    channel of x has `multiplier` kernels among `weights`; without windows z is x, and a link the tail. `scratch`
    has three rows of memory, each for a channel of x or of z. Backward is given the gradient with respect to what came
    out, and writes that to x, which may take its place where there are no windows. Where a link is missing, `edge` gets
    the moments of the gradient at that end of the windows.
    """
    head_value, head_derivative, head_activate, head_differentiate = pieces(functions[0], derivatives[0])
    tail_value, tail_derivative, tail_activate, tail_differentiate = pieces(functions[1], derivatives[1])

    @kernel
    def forward(
        trials: int,
        channels: int,
        x: Array,
        head: Link,
        weights: Array,
        table: Runs,
        multiplier: int,
        z: Array,
        tail: Link,
        out: Array,
        scratch: Array,
    ) -> None:
        number, zero, row = x.dtype.type, np.uint64(0), scratch[0]
        outputs = channels * multiplier
        n, m = np.uint64(x.size // (trials * channels)), np.uint64(z.size // (trials * outputs))
        size = np.uint64(weights.size // (trials * outputs))
        n_share, m_share = 1.0 / np.float64(n), 1.0 / np.float64(m)
        for t in range(trials):
            head_read = head_given = tail_read = tail_given = ZEROS
            head_variance = tail_variance = 0.0
            for c in range(channels):
                first = np.uint64(t * channels + c) * n
                if windows and not head.there:
                    copy(x, first, n, row)
                if windows and head.there:
                    if not head.known:
                        total, squares = row_sums(x, first, first + n, x[first])
                        if not SMALL < squares < LARGE:
                            total, squares = exact_sums(x, first, first + n, x[first])
                        found = row_moments(x[first], n_share, total, squares)
                        head.rows[CENTER, t, c], head.rows[VARIANCE, t, c] = found[0], found[2]
                        head_read = added(head_read, found)
                    head_variance += deviation(head.rows, head.units, t, c)
                    by = row_line(x, first, head.rows, t, c)
                    pivot = number(head_value(standardized(x[first], by), head.parameter))
                    total = squares = 0.0
                    for k in range(zero, n, PIECE):
                        more = head_activate(x, first + k, min(PIECE, n - k), by, head.parameter, row, k, pivot)
                        total += np.float64(more[0])
                        squares += np.float64(more[1])
                    if not SMALL < squares < LARGE:
                        total, squares = exact_sums(row, zero, n, pivot)
                    head_given = added(head_given, row_moments(pivot, n_share, total, squares))
                for j in range(multiplier):
                    o = np.uint64(t * outputs + c * multiplier + j)
                    start = o * m
                    if windows:
                        weigh_row(row, zero, weights, o * size, table, z, start, True)
                    column = c * multiplier + j
                    if not tail.known:
                        total, squares = row_sums(z, start, start + m, z[start])
                        if not SMALL < squares < LARGE:
                            total, squares = exact_sums(z, start, start + m, z[start])
                        found = row_moments(z[start], m_share, total, squares)
                        tail.rows[CENTER, t, column], tail.rows[VARIANCE, t, column] = found[0], found[2]
                        tail_read = added(tail_read, found)
                    if not tail.there:
                        continue
                    tail_variance += deviation(tail.rows, tail.units, t, column)
                    by = row_line(z, start, tail.rows, t, column)
                    pivot = number(tail_value(standardized(z[start], by), tail.parameter))
                    total = squares = 0.0
                    for k in range(zero, m, PIECE):
                        count = min(PIECE, m - k)
                        more = tail_activate(z, start + k, count, by, tail.parameter, out, start + k, pivot)
                        total += np.float64(more[0])
                        squares += np.float64(more[1])
                    if not SMALL < squares < LARGE:
                        total, squares = exact_sums(out, start, start + m, pivot)
                    tail_given = added(tail_given, row_moments(pivot, m_share, total, squares))
            write(head.sums[READ], t, head_read, channels, False)
            write(head.sums[NORMAL], t, (0.0, head_variance, head_variance), channels, False)
            write(head.sums[GIVEN], t, head_given, channels, False)
            write(tail.sums[READ], t, tail_read, outputs, False)
            write(tail.sums[NORMAL], t, (0.0, tail_variance, tail_variance), outputs, False)
            write(tail.sums[GIVEN], t, tail_given, outputs, False)

    @kernel
    def backward(
        trials: int,
        channels: int,
        x: Array,
        head: Link,
        weights: Array,
        table: Runs,
        multiplier: int,
        z: Array,
        tail: Link,
        gradient: Array,
        scratch: Array,
        out: Array,
        edge: Statistics,
    ) -> None:
        number, zero = x.dtype.type, np.uint64(0)
        row, behind, between = scratch[0], scratch[1], scratch[2]
        outputs = channels * multiplier
        n, m = np.uint64(x.size // (trials * channels)), np.uint64(z.size // (trials * outputs))
        size = np.uint64(weights.size // (trials * outputs))
        n_share, m_share = 1.0 / np.float64(n), 1.0 / np.float64(m)
        for t in range(trials):
            head_read = head_normal = head_given = tail_read = tail_normal = tail_given = at_edge = ZEROS
            for c in range(channels):
                first = np.uint64(t * channels + c) * n
                for j in range(multiplier):
                    o = np.uint64(t * outputs + c * multiplier + j)
                    start, column = o * m, c * multiplier + j
                    if tail.there:
                        by = row_line(z, start, tail.rows, t, column)
                        first_given = gradient[start]
                        pivot = first_given * number(tail_derivative(standardized(z[start], by), tail.parameter))
                        total = squares = product = given_total = given_squares = 0.0
                        for k in range(zero, m, PIECE):
                            count, place = min(PIECE, m - k), start + k
                            parts = tail_differentiate(
                                z, place, count, by, tail.parameter, gradient, place, behind, k, pivot, first_given
                            )
                            total += np.float64(parts[0])
                            squares += np.float64(parts[1])
                            product += np.float64(parts[2])
                            given_total += np.float64(parts[3])
                            given_squares += np.float64(parts[4])
                        if not SMALL < given_squares < LARGE:
                            given_total, given_squares = exact_sums(gradient, start, start + m, first_given)
                        tail_given = added(tail_given, row_moments(first_given, m_share, given_total, given_squares))
                        if not SMALL < squares < LARGE:
                            total, squares = exact_sums(behind, zero, m, pivot)
                        found = row_moments(pivot, m_share, total, squares)
                        tail_normal = added(tail_normal, found)
                        product *= m_share
                        on = regression(z, by, found[0], product * tail.units[POWER, t])
                        if windows:
                            regress(z, start, m, by, on, behind, zero, between, zero)
                        else:
                            regress(z, start, m, by, on, behind, zero, out, start)
                        square = residual(found[2], product, tail.rows, tail.units, t, column)
                        if square < 0.0 and windows:
                            square = exact_square(between, zero, m) * m_share
                        elif square < 0.0:
                            square = exact_square(out, start, start + m) * m_share
                        tail_read = added(tail_read, (0.0, square, square))
                    else:
                        total, squares = row_sums(gradient, start, start + m, gradient[start])
                        if not SMALL < squares < LARGE:
                            total, squares = exact_sums(gradient, start, start + m, gradient[start])
                        at_edge = added(at_edge, row_moments(gradient[start], m_share, total, squares))
                        copy(gradient, start, m, between)
                    if windows:
                        weigh_row(between, zero, weights, o * size, table, row, zero, j == 0)
                if not windows:
                    continue
                if not head.there:
                    total, squares = row_sums(row, zero, n, row[0])
                    if not SMALL < squares < LARGE:
                        total, squares = exact_sums(row, zero, n, row[0])
                    at_edge = added(at_edge, row_moments(row[0], n_share, total, squares))
                    for k in range(n):
                        out[first + k] = row[k]
                    continue
                by = row_line(x, first, head.rows, t, c)
                first_given = row[0]
                pivot = first_given * number(head_derivative(standardized(x[first], by), head.parameter))
                total = squares = product = given_total = given_squares = 0.0
                for k in range(zero, n, PIECE):
                    count = min(PIECE, n - k)
                    parts = head_differentiate(
                        x, first + k, count, by, head.parameter, row, k, behind, k, pivot, first_given
                    )
                    total += np.float64(parts[0])
                    squares += np.float64(parts[1])
                    product += np.float64(parts[2])
                    given_total += np.float64(parts[3])
                    given_squares += np.float64(parts[4])
                if not SMALL < given_squares < LARGE:
                    given_total, given_squares = exact_sums(row, zero, n, first_given)
                head_given = added(head_given, row_moments(first_given, n_share, given_total, given_squares))
                if not SMALL < squares < LARGE:
                    total, squares = exact_sums(behind, zero, n, pivot)
                found = row_moments(pivot, n_share, total, squares)
                head_normal = added(head_normal, found)
                product *= n_share
                on = regression(x, by, found[0], product * head.units[POWER, t])
                regress(x, first, n, by, on, behind, zero, out, first)
                square = residual(found[2], product, head.rows, head.units, t, c)
                if square < 0.0:
                    square = exact_square(out, first, first + n) * n_share
                head_read = added(head_read, (0.0, square, square))
            write(head.sums[READ], t, head_read, channels, False)
            write(head.sums[NORMAL], t, head_normal, channels, False)
            write(head.sums[GIVEN], t, head_given, channels, False)
            write(tail.sums[READ], t, tail_read, outputs, False)
            write(tail.sums[NORMAL], t, tail_normal, outputs, False)
            write(tail.sums[GIVEN], t, tail_given, outputs, False)
            write(edge, t, at_edge, channels if tail.there else outputs, False)

    return ChainPasses(forward, backward)


@step
def deviation(rows: Statistics, units: Statistics, t: int, c: int) -> float:
    """Write a channel's scale; return the variance of what is normalised."""
    scale = 1.0 / np.sqrt(rows[VARIANCE, t, c] * units[INNER, t] + units[ADDED, t])
    rows[SCALE, t, c] = scale
    return np.float64(rows[VARIANCE, t, c] * scale * scale)


@step
def row_line(z: Array, first: Place, rows: Statistics, t: int, c: int) -> tuple[Number, ...]:
    """Return what `standardized` makes a channel with; see `pointwise.line`."""
    number = z.dtype.type
    scale = rows[SCALE, t, c]
    return z[first], number((rows[CENTER, t, c] - z[first]) * scale), number(scale)


@step
def residual(variance: float, product: float, rows: Statistics, units: Statistics, t: int, c: int) -> float:
    """Return the second moment of what `pointwise.regressed` makes of a gradient with this variance.

    With s = `product`, the mean of gradient times y, and the slope b = s * 4**e that is
    scale^2 (variance - 2 b s + b^2 E y^2), where E y^2 is the source's variance by scale^2. The mean is 0. Negative
    where too little is left of the variance to be known by subtraction.
    """
    square = rows[SCALE, t, c] ** 2
    slope = product * units[POWER, t]
    left = variance - slope * (2.0 * product - slope * rows[VARIANCE, t, c] * square)
    return square * left if left > LEAST_RESIDUAL * variance else -1.0


@kernel
def exact_square(x: Array, start: Place, stop: Place) -> float:
    """Return the sum of squares in float64."""
    return exact_sums(x, start, stop, x.dtype.type(0))[1]
