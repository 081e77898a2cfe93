"""A map with a power of two in front and its statistics; and the memory that maps live in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from varprop.simulator.montecarlo.kernels import moments
from varprop.simulator.network import Shape

Array = NDArray[np.floating]
Statistics = NDArray[np.float64]
Exponents = NDArray[np.int64]

REACH = {np.dtype(np.float32): 32, np.dtype(np.float64): 100}
"""A map is rescaled when its root mean square leaves 2**-REACH .. 2**REACH: far enough from the ends of the floating
range that the next layer's sums, and (in float64) the fourth powers of a standard error, stay inside it."""


HUGE = 2**26
"""Bytes above which an array is not kept for reuse: maps of different sizes would pile up, and fresh pages, in large
units, cost little beside the passes over so large a map."""


class Pool:
    """Arrays kept for reuse by size and type: a block of trials asks for the same sizes as the one before it.

    Not for several threads at once. Measured: fresh arrays cost a MobileNetV2 trial at 32x32 about a tenth more time.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._free: dict[tuple[int, np.dtype[Any]], list[Array]] = {}

    def take(self, shape: Shape, dtype: DTypeLike | None = None) -> Array:
        """Return an array with undefined values, of the pool's own type unless another is asked for."""
        wanted = self.dtype if dtype is None else np.dtype(dtype)
        size = math.prod(shape)
        free = self._free.get((size, wanted))
        flat: Array = free.pop() if free else np.empty(size, wanted)
        return flat.reshape(shape)

    def give(self, array: Array) -> None:
        """Take back an array that nobody reads any more; a huge one goes back to the system."""
        if array.nbytes <= HUGE:
            self._free.setdefault((array.size, array.dtype), []).append(array.reshape(-1))


@dataclass(slots=True)
class Signal:
    """The map values * 2**exponent of several trials, and its moments over batch and positions at fixed weights.

    `values` has shape (trials, *node shape, batch), `exponent` (trials,). `summary`, of shape (trials, 3), holds mean,
    second moment and mean variance of a channel (or feature); `mean` and `variance`, of shape (trials, channels), are
    empty where nobody asked for them. All are those of `values`.
    """

    values: Array
    exponent: Exponents
    summary: Statistics
    mean: Statistics
    variance: Statistics

    def release(self, pool: Pool) -> None:
        """Give the values back; their shape stays."""
        pool.give(self.values)
        self.values = np.broadcast_to(self.values.dtype.type(0), self.values.shape)


def rows(array: Array) -> Array:
    """View maps as one row a channel."""
    return array.reshape(array.shape[0] * array.shape[1], -1)


def measure(values: Array, exponent: Exponents, by_channel: bool = False) -> Signal:
    """Return maps with their moments, rescaled in place by a power of two (exact) where one nears the range's end."""
    trials, channels = values.shape[:2]
    shape = (trials, channels) if by_channel else (0, 0)
    mean, variance, summary = np.empty(shape), np.empty(shape), np.empty((trials, 3))
    reach = REACH[values.dtype]
    if not moments(values.reshape(trials, channels, -1), mean, variance, summary, 4.0**-reach, 4.0**reach):
        return Signal(values, exponent, summary, mean, variance)
    second_moment = summary[:, 1]
    inside = (second_moment > 0) & (second_moment < math.inf)
    shift = np.where(inside, np.frexp(second_moment)[1] // 2, 0)
    shift[np.abs(shift) <= reach] = 0
    scale(values, -shift)
    summary = np.ldexp(summary, -shift[:, np.newaxis] * np.array([1, 2, 2]))
    if by_channel:
        mean, variance = np.ldexp(mean, -shift[:, np.newaxis]), np.ldexp(variance, -2 * shift[:, np.newaxis])
    return Signal(values, exponent + shift, summary, mean, variance)


def scale(values: Array, exponent: Exponents) -> None:
    """Multiply every trial's map by its own power of two, in place."""
    if exponent.any():
        np.ldexp(values, exponent.reshape(-1, *(1,) * (values.ndim - 1)), out=values)


def add_in_place(total: Array, exponent: Exponents, term: Array, term_exponent: Exponents) -> Exponents:
    """Add term * 2**term_exponent to total * 2**exponent; return the exponents of the sum, the larger ones of the two.

    What the smaller one loses lies below the other's rounding. `term` is overwritten.
    """
    top = np.maximum(exponent, term_exponent)
    scale(total, exponent - top)
    scale(term, term_exponent - top)
    total += term
    return top
