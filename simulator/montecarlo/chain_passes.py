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
    Scalar,
    Three,
    added,
    copy,
    pieces,
    regress,
    regression,
    standardized,
    write,
)
from varprop.simulator.montecarlo.sums import (
    PIECE,
    Array,
    Number,
    Place,
    Statistics,
    exact_sums,
    measured_row,
    sums_moments,
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


class LinkSteps(NamedTuple):
    """A link on one channel of one trial, for kernels to have it compiled into them."""

    forward: Callable[..., Three]
    backward: Callable[..., tuple[Three, Three, float]]


@cache
def link_steps(value: Scalar, derivative: Scalar) -> LinkSteps:
    """Return the steps of a link, given its activation as functions of (z, parameter).

    A row of `n` numbers of z lies at `first`, and is trial t's channel c. Forward writes phi(y) to `out` from `to` on,
    and returns its moments. Backward is given the gradient with respect to it in `given` from `place` on; it writes
    that to y to `behind`, and that to z to `out`, and returns the moments of the first two and the second moment of
    the last, whose mean is 0.
    """
    value, derivative, activate, differentiate = pieces(value, derivative)

    @step
    def forward(
        z: Array, first: Place, n: Place, share: float, link: Link, t: int, c: int, out: Array, to: Place
    ) -> Three:
        by = row_line(z, first, link.rows, t, c)
        pivot = z.dtype.type(value(standardized(z[first], by), link.parameter))
        total = squares = 0.0
        for k in range(np.uint64(0), n, PIECE):
            more = activate(z, first + k, min(PIECE, n - k), by, link.parameter, out, to + k, pivot)
            total += np.float64(more[0])
            squares += np.float64(more[1])
        return sums_moments(out, to, to + n, pivot, total, squares, share)

    @step
    def backward(
        z: Array,
        first: Place,
        n: Place,
        share: float,
        link: Link,
        t: int,
        c: int,
        given: Array,
        place: Place,
        behind: Array,
        out: Array,
        to: Place,
    ) -> tuple[Three, Three, float]:
        zero = np.uint64(0)
        by = row_line(z, first, link.rows, t, c)
        pivot = given[place] * z.dtype.type(derivative(standardized(z[first], by), link.parameter))
        total = squares = product = given_total = given_squares = 0.0
        for k in range(zero, n, PIECE):
            parts = differentiate(
                z,
                first + k,
                min(PIECE, n - k),
                by,
                link.parameter,
                given,
                place + k,
                behind,
                k,
                pivot,
                given[place],
            )
            total += np.float64(parts[0])
            squares += np.float64(parts[1])
            product += np.float64(parts[2])
            given_total += np.float64(parts[3])
            given_squares += np.float64(parts[4])
        outside = sums_moments(given, place, place + n, given[place], given_total, given_squares, share)
        normal = sums_moments(behind, zero, n, pivot, total, squares, share)
        product *= share
        on = regression(z, by, normal[0], product * link.units[POWER, t])
        regress(z, first, n, by, on, behind, zero, out, to)
        square = residual(normal[2], product, link.rows, link.units, t, c)
        if square < 0.0:
            square = exact_sums(out, to, to + n, z.dtype.type(0))[1] * share
        return outside, normal, square

    return LinkSteps(forward, backward)


@cache
def compiled_chain(functions: tuple[Scalar, ...], derivatives: tuple[Scalar, ...], windows: bool) -> ChainPasses:
    """Compile the passes through a chain, given its two activations as functions of (z, parameter).

    x, z and out are flat maps: what is read, what comes out of the windows, and what comes out of the chain. Every
    channel of x has `multiplier` kernels among `weights`; without windows z is x, and a link the tail. `scratch`
    has three rows of memory, each for a channel of x or of z. Backward is given the gradient with respect to what came
    out, and writes that to x, which may take its place where there are no windows. Where a link is missing, `edge` gets
    the moments of the gradient at that end of the windows.
    """
    head_forward, head_backward = link_steps(functions[0], derivatives[0])
    tail_forward, tail_backward = link_steps(functions[1], derivatives[1])

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
        zero, row = np.uint64(0), scratch[0]
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
                    copy(x, first, n, row, zero)
                if windows and head.there:
                    if not head.known:
                        head_read = added(head_read, read_row(x, first, n, n_share, head.rows, t, c))
                    head_variance += deviation(head.rows, head.units, t, c)
                    head_given = added(head_given, head_forward(x, first, n, n_share, head, t, c, row, zero))
                for j in range(multiplier):
                    column = c * multiplier + j
                    o = np.uint64(t * outputs + column)
                    start = o * m
                    if windows:
                        weigh_row(row, zero, weights, o * size, table, z, start, True)
                    if not tail.known:
                        tail_read = added(tail_read, read_row(z, start, m, m_share, tail.rows, t, column))
                    if not tail.there:
                        continue
                    tail_variance += deviation(tail.rows, tail.units, t, column)
                    tail_given = added(tail_given, tail_forward(z, start, m, m_share, tail, t, column, out, start))
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
        zero = np.uint64(0)
        row, behind, between = scratch[0], scratch[1], scratch[2]
        outputs = channels * multiplier
        n, m = np.uint64(x.size // (trials * channels)), np.uint64(z.size // (trials * outputs))
        size = np.uint64(weights.size // (trials * outputs))
        n_share, m_share = 1.0 / np.float64(n), 1.0 / np.float64(m)
        for t in range(trials):
            head_read = tail_read = 0.0
            head_normal = head_given = tail_normal = tail_given = at_edge = ZEROS
            for c in range(channels):
                first = np.uint64(t * channels + c) * n
                for j in range(multiplier):
                    column = c * multiplier + j
                    o = np.uint64(t * outputs + column)
                    start = o * m
                    if tail.there:
                        target, to = (between, zero) if windows else (out, start)
                        given, normal, square = tail_backward(
                            z, start, m, m_share, tail, t, column, gradient, start, behind, target, to
                        )
                        tail_given, tail_normal = added(tail_given, given), added(tail_normal, normal)
                        tail_read += square
                    else:
                        at_edge = added(at_edge, measured_row(gradient, start, start + m, m_share))
                        copy(gradient, start, m, between, zero)
                    if windows:
                        weigh_row(between, zero, weights, o * size, table, row, zero, j == 0)
                if windows and head.there:
                    given, normal, square = head_backward(
                        x, first, n, n_share, head, t, c, row, zero, behind, out, first
                    )
                    head_given, head_normal = added(head_given, given), added(head_normal, normal)
                    head_read += square
                elif windows:
                    at_edge = added(at_edge, measured_row(row, zero, n, n_share))
                    copy(row, zero, n, out, first)
            write(head.sums[READ], t, (0.0, head_read, head_read), channels, False)
            write(head.sums[NORMAL], t, head_normal, channels, False)
            write(head.sums[GIVEN], t, head_given, channels, False)
            write(tail.sums[READ], t, (0.0, tail_read, tail_read), outputs, False)
            write(tail.sums[NORMAL], t, tail_normal, outputs, False)
            write(tail.sums[GIVEN], t, tail_given, outputs, False)
            write(edge, t, at_edge, channels if tail.there else outputs, False)

    return ChainPasses(forward, backward)


@step
def read_row(x: Array, first: Place, n: Place, share: float, rows: Statistics, t: int, c: int) -> Three:
    """Write mean and variance of a channel; return its moments."""
    found = measured_row(x, first, first + n, share)
    rows[CENTER, t, c], _, rows[VARIANCE, t, c] = found
    return found


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
