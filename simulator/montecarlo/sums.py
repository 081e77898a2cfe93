"""Sums over runs of neighbours in memory: in the numbers' own type over pieces, in float64 from piece to piece.

A piece of float32 is summed in a few dozen vector lanes, so that a sum of squares is within 1e-7 of itself; turning
every number to float64 would take three times as long. A row whose squares come near the ends of float32's range is
summed again in float64.

Rows are given by the places of their first number and of the one after their last, as unsigned integers: the compiler
then needs no check for negative ones, nor reference counts for slices, which cost more than a short row's sums.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.jit import kernel, reduction, step

Array = NDArray[np.floating]
Statistics = NDArray[np.float64]
Number = np.floating | float
Place = np.unsignedinteger | int

PIECE = np.uint64(512)
"""Numbers that are worked on together: a few pieces stay in the first-level cache."""

SMALL, LARGE = 2.0**-80, 2.0**80
"""Sums of squares in between lost nothing that matters to underflow or overflow."""


@reduction
def piece_sums(x: Array, start: Place, stop: Place, pivot: Number) -> tuple[Number, Number]:
    """Return the sums of x - pivot and of its square, in the type of x."""
    total = squares = x.dtype.type(0)
    for k in range(start, stop):
        deviation = x[k] - pivot
        total += deviation
        squares += deviation * deviation
    return total, squares


@reduction
def piece_product(x: Array, start: Place, stop: Place, y: Array, place: Place) -> Number:
    """Return the sum of the products of a piece of x with the numbers of y from `place` on, in their type."""
    total = x.dtype.type(0)
    for k in range(stop - start):
        total += x[start + k] * y[place + k]
    return total


@step
def row_sums(x: Array, start: Place, stop: Place, pivot: Number) -> tuple[float, float]:
    """Return the sums of x - pivot and of its square over a row: in its type over pieces, in float64 over these."""
    total = squares = 0.0
    for first in range(start, stop, PIECE):
        more = piece_sums(x, first, min(first + PIECE, stop), pivot)
        total += np.float64(more[0])
        squares += np.float64(more[1])
    return total, squares


@kernel
def exact_sums(x: Array, start: Place, stop: Place, pivot: Number) -> tuple[float, float]:
    """Return the sums of x - pivot and of its square, in float64."""
    total = squares = 0.0
    for k in range(start, stop):
        deviation = np.float64(x[k]) - np.float64(pivot)
        total += deviation
        squares += deviation * deviation
    return total, squares


@step
def row_moments(pivot: Number, share: float, total: float, squares: float) -> tuple[float, float, float]:
    """Return mean, second moment and variance of a row, given the sums of distances to its first number and of squares.

    With a number of the row as pivot, a constant row's variance is exactly 0, and one pass is accurate where the mean
    is far from 0 (Chan, Golub and LeVeque, The American Statistician 37 (1983), 242-247, eq. 1.7). `share` is one
    over the row's length: divisions would cost a short row more than its sums.
    """
    shift = total * share
    mean, variance = np.float64(pivot) + shift, max(squares * share - shift * shift, 0.0)
    return mean, variance + mean * mean, variance


@step
def sums_moments(
    x: Array, start: Place, stop: Place, pivot: Number, total: float, squares: float, share: float
) -> tuple[float, float, float]:
    """Return a row's moments, given its sums; those near the ends of the range are taken again."""
    if not SMALL < squares < LARGE:
        total, squares = exact_sums(x, start, stop, pivot)
    return row_moments(pivot, share, total, squares)


@step
def measured_row(x: Array, start: Place, stop: Place, share: float) -> tuple[float, float, float]:
    """Return mean, second moment and variance of a row."""
    total, squares = row_sums(x, start, stop, x[start])
    return sums_moments(x, start, stop, x[start], total, squares, share)


@step
def row_product(x: Array, y: Array, start: Place, stop: Place) -> Number:
    """Return the sum of the products of the numbers of two arrays from `start` to `stop`."""
    total = 0.0
    for first in range(start, stop, PIECE):
        total += np.float64(piece_product(x, first, min(first + PIECE, stop), y, first))
    return total


@step
def row_square(x: Array, start: Place, stop: Place) -> Number:
    """Return the sum of the squares of the numbers from `start` to `stop`."""
    squares = row_sums(x, start, stop, x.dtype.type(0))[1]
    return squares if SMALL < squares < LARGE else exact_sums(x, start, stop, x.dtype.type(0))[1]
