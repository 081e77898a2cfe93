"""A map with a power of two in front and its statistics; and the memory that maps live in."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import DTypeLike, NDArray

from varprop.simulator.montecarlo.kernels import row_moments
from varprop.simulator.network import Shape

Array = NDArray[np.floating]

REACH = {np.dtype(np.float32): 32, np.dtype(np.float64): 100}
"""A map is rescaled when its root mean square leaves 2**-REACH .. 2**REACH: far enough from the ends of the floating
range that the next layer's sums, and (in float64) the fourth powers of a standard error, stay inside it."""


class Pool:
    """Arrays of one type, kept for reuse by size: a trial asks for the same sizes as the one before it.

    Not for several threads at once. Measured: fresh arrays cost a MobileNetV2 trial at 32x32 about a tenth more time.
    """

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        self._free: dict[int, list[Array]] = {}

    def take(self, shape: Shape) -> Array:
        """Return an array with undefined values."""
        size = math.prod(shape)
        free = self._free.get(size)
        flat: Array = free.pop() if free else np.empty(size, self.dtype)
        return flat.reshape(shape)

    def give(self, array: Array) -> None:
        """Take back an array that nobody reads any more."""
        self._free.setdefault(array.size, []).append(array.reshape(-1))


@dataclass(frozen=True, slots=True)
class Signal:
    """The map values * 2**exponent and its moments over batch and positions at fixed weights.

    `values` has shape (*node shape, batch). `mean` and `variance`, one a channel (or feature), and `second_moment`,
    over everything, are those of `values`.
    """

    values: Array
    exponent: int
    mean: NDArray[np.float64]
    variance: NDArray[np.float64]
    second_moment: float


def rows(array: Array) -> Array:
    """View a map as one row a channel."""
    return array.reshape(array.shape[0], -1)


def measure(values: Array, exponent: int) -> Signal:
    """Return the map with its moments, rescaled in place by a power of two (exact) where it nears the range's end."""
    channels = values.shape[0]
    mean, variance = np.empty(channels), np.empty(channels)
    row_moments(rows(values), mean, variance)
    second_moment = float((variance.sum() + (mean * mean).sum()) / channels)
    shift = math.frexp(second_moment)[1] // 2 if 0 < second_moment < math.inf else 0
    if abs(shift) <= REACH[values.dtype]:
        return Signal(values, exponent, mean, variance, second_moment)
    np.ldexp(values, -shift, out=values)
    mean, variance = np.ldexp(mean, -shift), np.ldexp(variance, -2 * shift)
    return Signal(values, exponent + shift, mean, variance, math.ldexp(second_moment, -2 * shift))


def add_in_place(total: Array, exponent: int, term: Array, term_exponent: int) -> int:
    """Add term * 2**term_exponent to total * 2**exponent; return the exponent of the sum, the larger of the two.

    What the smaller one loses lies below the other's rounding. `term` is overwritten.
    """
    top = max(exponent, term_exponent)
    if exponent < top:
        np.ldexp(total, exponent - top, out=total)
    if term_exponent < top:
        np.ldexp(term, term_exponent - top, out=term)
    total += term
    return top
