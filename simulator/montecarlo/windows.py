"""Weighted sums over the windows of every channel by itself: depthwise convolutions and averages, and the way back.

Maps have the sample as their last axis. Which numbers of a channel a target reads, and by which tap each is weighed, is
the same for all channels: a table, worked out once, says it for runs of neighbours in memory that read alike. With
stride 1 that is all of a row but its edges, and at least the samples of one position. On the way back input and output
change places, and nothing else.
"""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import kernel, reduction, step
from varprop.simulator.montecarlo.sums import Array, Number, Place, Statistics, measured_row

Pair = tuple[int, int]
Places = NDArray[np.uint64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]


class Geometry(NamedTuple):
    """Sizes of input and output, of the kernel and its stride, and (top, left) zero padding."""

    inputs: Pair
    outputs: Pair
    kernel: Pair
    stride: Pair
    corner: Pair


class Runs(NamedTuple):
    """Runs of targets that read alike; places count from a channel's first number, those read are of its first target.

    Run r has `lengths[r]` targets from `targets[r]` on, and the terms from `starts[r]` to before `starts[r + 1]`.
    """

    targets: Places
    lengths: Places
    starts: Places
    places: Places
    taps: Places


@lru_cache(maxsize=128)
def runs(geometry: Geometry, batch: int, back: bool) -> Runs:
    """Return what each output reads of the input or, on the way back, each input of the gradient at the output."""
    sizes = (geometry.outputs, geometry.inputs)
    (rows, columns), (_, width) = sizes[::-1] if back else sizes
    (row_at, row_in), (column_at, column_in) = (_read(geometry, axis, back) for axis in range(2))
    follows = (column_in[1:] == column_in[:-1]) & ((column_at[1:] == column_at[:-1] + 1) | ~column_in[1:])
    heads = np.flatnonzero(np.concatenate([[True], ~follows.all(axis=1)]))
    row_taps, column_taps = row_in.sum(axis=1), column_in[heads].sum(axis=1)
    # The terms of a run are all pairs of a tap of its row and one of its column.
    terms = np.outer(row_taps, column_taps).reshape(-1)
    starts = np.concatenate([[0], np.cumsum(terms)])
    run = np.repeat(np.arange(terms.size), terms)
    upper, left = np.divmod(np.arange(starts[-1]) - starts[run], column_taps[run % len(heads)])
    (first_row, _), (first_column, _) = (np.nonzero(inside) for inside in (row_in, column_in[heads]))
    i = np.nonzero(row_in)[1][np.searchsorted(first_row, run // len(heads)) + upper]
    j = np.nonzero(column_in[heads])[1][np.searchsorted(first_column, run % len(heads)) + left]
    places = row_at[run // len(heads), i] * width + column_at[heads[run % len(heads)], j]
    found = (
        batch * np.add.outer(columns * np.arange(rows), heads).reshape(-1),
        batch * np.tile(np.diff(heads, append=columns), rows),
        starts,
        batch * places,
        geometry.kernel[1] * i + j,
    )
    return Runs(*(part.astype(np.uint64) for part in found))


def _read(geometry: Geometry, axis: int, back: bool) -> tuple[Integers, Flags]:
    """Return for every target and tap along an axis what is read, and whether that lies inside."""
    inputs, outputs, taps, stride, corner = (pair[axis] for pair in geometry)
    target, tap = np.arange(inputs if back else outputs)[:, np.newaxis], np.arange(taps)
    if back:
        at, between = np.divmod(target + corner - tap, stride)
        return at, (between == 0) & (at >= 0) & (at < outputs)
    at = target * stride + tap - corner
    return at, (at >= 0) & (at < inputs)


@step
def two_places(places: Places, k: Place, first: Place) -> tuple[Place, ...]:
    """Return two neighbouring places, counted from `first`."""
    return first + places[k], first + places[k + 1]


@step
def three_places(places: Places, k: Place, first: Place) -> tuple[Place, ...]:
    """Return three neighbouring places, counted from `first`."""
    return first + places[k], first + places[k + 1], first + places[k + 2]


@step
def two_factors(weights: Array, taps: Places, k: Place, first: Place) -> tuple[Number, ...]:
    """Return the weights of two neighbouring terms, where those of a channel begin at `first`."""
    return weights[first + taps[k]], weights[first + taps[k + 1]]


@step
def three_factors(weights: Array, taps: Places, k: Place, first: Place) -> tuple[Number, ...]:
    """Return the weights of three neighbouring terms, where those of a channel begin at `first`."""
    return weights[first + taps[k]], weights[first + taps[k + 1]], weights[first + taps[k + 2]]


@reduction
def write_sum(
    target: Array, to: Place, source: Array, places: tuple[Place, ...], factors: tuple[Number, ...], count: Place
) -> None:
    """Write, over `count` neighbours, the weighted sum of the numbers at several places and of their neighbours."""
    for k in range(count):
        total = factors[0] * source[places[0] + k]
        for term in range(1, len(places)):
            total += factors[term] * source[places[term] + k]
        target[to + k] = total


@reduction
def add_sum(
    target: Array, to: Place, source: Array, places: tuple[Place, ...], factors: tuple[Number, ...], count: Place
) -> None:
    """Add what `write_sum` writes."""
    for k in range(count):
        total = factors[0] * source[places[0] + k]
        for term in range(1, len(places)):
            total += factors[term] * source[places[term] + k]
        target[to + k] += total


@step
def weigh_row(
    x: Array, first: Place, factors: Array, w: Place, table: Runs, out: Array, start: Place, fresh: bool
) -> None:
    """Write, or add if not `fresh`, the weighted sums over a channel's windows.

    `first`, `w` and `start` are the places of the channel's first number, of its kernel's, and of the first target.
    """
    targets, lengths, starts, places, taps = table
    one, two, three, four, six = np.uint64(1), np.uint64(2), np.uint64(3), np.uint64(4), np.uint64(6)
    for run in range(targets.size):
        to, count = start + targets[run], lengths[run]
        k, end = starts[run], starts[run + 1]
        # As many terms together as the compiler can show to lie apart from the target.
        if fresh and end - k >= six:
            near, far = three_places(places, k, first), three_places(places, k + three, first)
            weigh_near, weigh_far = three_factors(factors, taps, k, w), three_factors(factors, taps, k + three, w)
            write_sum(out, to, x, near + far, weigh_near + weigh_far, count)
            k += six
        elif fresh and end - k >= four:
            near, far = two_places(places, k, first), two_places(places, k + two, first)
            weigh_near, weigh_far = two_factors(factors, taps, k, w), two_factors(factors, taps, k + two, w)
            write_sum(out, to, x, near + far, weigh_near + weigh_far, count)
            k += four
        elif fresh and end - k >= two:
            write_sum(out, to, x, two_places(places, k, first), two_factors(factors, taps, k, w), count)
            k += two
        elif fresh and end - k == one:
            write_sum(out, to, x, (first + places[k],), (factors[w + taps[k]],), count)
            k += one
        elif fresh:
            for neighbour in range(count):
                out[to + neighbour] = 0.0
        while end - k >= three:
            add_sum(out, to, x, three_places(places, k, first), three_factors(factors, taps, k, w), count)
            k += three
        while k < end:
            add_sum(out, to, x, (first + places[k],), (factors[w + taps[k]],), count)
            k += one


@kernel
def weigh(
    x: Array,
    weights: Array,
    table: Runs,
    shared: Pair,
    out: Array,
    mean: Statistics,
    variance: Statistics,
    summary: Statistics,
) -> None:
    """Write every target's weighted sum, and the moments of what comes out.

    x and out are flat maps, weights (outputs, kh * kw) with a row for every output channel. Of these, shared[0] after
    one another read the same channel of x, and the sums of shared[1] go to the same channel of out; one of both is 1.
    Mean and variance are (trials, channels of out), summary is (trials, 3), as of `pointwise.moments`: a channel's are
    taken while it is still cached.
    """
    factors, size = weights.reshape(-1), np.uint64(weights.shape[1])
    outputs = np.uint64(weights.shape[0])
    inward, outward = np.uint64(shared[0]), np.uint64(shared[1])
    n, m = np.uint64(x.size) * inward // outputs, np.uint64(out.size) * outward // outputs
    share, channels = 1.0 / np.float64(m), np.uint64(mean.shape[1])
    for row in range(len(summary)):
        summary[row, 0] = summary[row, 1] = summary[row, 2] = 0.0
    one = np.uint64(1)
    for o in range(outputs):
        first, start, w = o // inward * n, o // outward * m, o * size
        fresh = o % outward == 0
        weigh_row(x, first, factors, w, table, out, start, fresh)
        if o % outward < outward - one:
            continue
        t, c = o // outward // channels, o // outward % channels
        mean[t, c], second_moment, variance[t, c] = measured_row(out, start, start + m, share)
        summary[t, 0] += mean[t, c] / channels
        summary[t, 1] += second_moment / channels
        summary[t, 2] += variance[t, c] / channels
