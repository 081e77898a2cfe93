"""A map with a power of two in front and its statistics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.pointwise import leaves, moments
from varprop.simulator.montecarlo.pool import Pool

Array = NDArray[np.floating]
Statistics = NDArray[np.float64]
Exponents = NDArray[np.int64]

REACH = {np.dtype(np.float32): 32, np.dtype(np.float64): 100}
"""A map is rescaled when its root mean square leaves 2**-REACH .. 2**REACH: far enough from the ends of the floating
range that the next layer's sums, and (in float64) the fourth powers of a standard error, stay inside it."""

NONE = np.empty((0, 0))
"""Stands for statistics that nobody asked for, or that are not known yet."""

RELEASED = np.empty(0)
"""Stands for values that were given back."""


def _none() -> Statistics:
    return NONE


@dataclass(slots=True)
class Signal:
    """The map values * 2**exponent of several trials, and its moments over batch and positions at fixed weights.

    `values` has shape (trials, *node shape, batch), `exponent` (trials,). `summary`, of shape (trials, 3), holds mean,
    second moment and mean variance of a channel (or feature), and is empty before they are taken; `mean` and
    `variance`, of shape (trials, channels), are empty where nobody asked for them. All are those of `values`.

    Where there is an `origin`, the map is not stored: `values` are the origin's, and stand for (values - the origin's
    means) * `scale`, with scales of shape (trials, channels).
    """

    values: Array
    exponent: Exponents
    summary: Statistics = field(default_factory=_none)
    mean: Statistics = field(default_factory=_none)
    variance: Statistics = field(default_factory=_none)
    origin: Signal | None = None
    scale: Statistics = field(default_factory=_none)

    @property
    def center(self) -> Statistics:
        """What is to be subtracted before `scale` is applied."""
        return NONE if self.origin is None else self.origin.mean

    def release(self, pool: Pool) -> None:
        """Give the values back."""
        if self.origin is None and self.values is not RELEASED:
            pool.give(self.values)
        self.values = RELEASED

    def copy(self, pool: Pool) -> Signal:
        """Return a signal with values of its own."""
        values = pool.take(self.values.shape)
        values[...] = self.values
        return replace(self, values=values)


def runs(values: Array) -> tuple[Array, int, int]:
    """View maps as runs of one row a channel, with the numbers of trials and rows a trial; see `moments`.

    Channels of a single value are one row, all of a trial's together: that is enough for sums over channels.
    """
    trials, channels = values.shape[:2]
    return values.reshape(-1), trials, 1 if values.size == trials * channels else channels


def measured(signal: Signal, by_channel: bool = False) -> Signal:
    """Return a signal with its moments, rescaled in place where it nears the range's end."""
    if signal.summary.size:
        return signal
    mean, variance, summary = statistics(signal.values, by_channel)
    moments(*runs(signal.values), mean, variance, summary)
    return settled(Signal(signal.values, signal.exponent, summary, mean, variance))


def statistics(values: Array, by_channel: bool) -> tuple[Statistics, Statistics, Statistics]:
    """Return memory for a signal's mean and variance, empty unless asked for by channel, and summary."""
    shape = values.shape[:2] if by_channel else (0, 0)
    return np.empty(shape), np.empty(shape), np.empty((len(values), 3))


def settled(signal: Signal) -> Signal:
    """Return a signal whose moments were just taken, rescaled by a power of two (exact) where it nears the range's end.

    Values that are stored are rescaled in place, others by their scales.
    """
    values, summary = signal.values, signal.summary
    if values.size == values.shape[0] * values.shape[1]:
        summary[:, 2] = 0.0  # the row is one over all channels
    reach = REACH[values.dtype]
    if not leaves(summary, 4.0**-reach, 4.0**reach):
        return signal
    second_moment = summary[:, 1]
    inside = (second_moment > 0) & (second_moment < math.inf)
    shift = np.where(inside, np.frexp(second_moment)[1] // 2, 0)
    shift[np.abs(shift) <= reach] = 0
    column = shift[:, np.newaxis]
    if signal.origin is None:
        scale(values, -shift)
    return replace(
        signal,
        exponent=signal.exponent + shift,
        summary=np.ldexp(summary, -column * np.array([1, 2, 2])),
        mean=_shifted(signal.mean, -column),
        variance=_shifted(signal.variance, -2 * column),
        scale=_shifted(signal.scale, -column),
    )


def _shifted(statistics: Statistics, exponent: NDArray[np.int64]) -> Statistics:
    return np.ldexp(statistics, exponent) if statistics.size else statistics


def scale(values: Array, exponent: Exponents) -> None:
    """Multiply every trial's map by its own power of two, in place."""
    if exponent.any():
        np.ldexp(values, exponent.reshape(-1, *(1,) * (values.ndim - 1)), out=values)


def add_in_place(total: Signal, term: Array, exponent: Exponents) -> Signal:
    """Add term * 2**exponent to a map, in place; the sum has the larger exponents of the two.

    What the smaller one loses lies below the other's rounding. `term` is overwritten.
    """
    top = np.maximum(total.exponent, exponent)
    scale(total.values, total.exponent - top)
    scale(term, exponent - top)
    np.add(total.values, term, out=total.values)
    return Signal(total.values, top)


def added(first: Signal, second: Signal, out: Array, pool: Pool) -> Signal:
    """Write the sum of two maps, which stay as they are but where the first is `out` itself."""
    if np.array_equal(first.exponent, second.exponent):
        np.add(first.values, second.values, out=out)
        return Signal(out, first.exponent)
    if first.values is not out:
        out[...] = first.values
    copy = second.copy(pool)
    found = add_in_place(Signal(out, first.exponent), copy.values, copy.exponent)
    copy.release(pool)
    return found
