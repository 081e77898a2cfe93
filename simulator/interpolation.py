"""Smooth functions tabulated at equal steps: scipy.interpolate takes longer to import than the tables to make."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Array = NDArray[np.float64]

_INSIDE = np.array([1.0, -8.0, 0.0, 8.0, -1.0]) / 12
_FIRST, _SECOND = np.array([-25.0, 48.0, -36.0, 16.0, -3.0]) / 12, np.array([-3.0, -10.0, 18.0, -6.0, 1.0]) / 12


def cubic_weights(t: Array) -> Array:
    """Return the weights of the values at -1, 0, 1 and 2 in their cubic (Lagrange's) at t, shape (*t.shape, 4)."""
    low, high, beyond = t + 1, t - 1, t - 2
    return np.stack(
        [-t * high * beyond / 6, low * high * beyond / 2, -low * t * beyond / 2, low * t * high / 6], axis=-1
    )


def cubic_rows(place: Array) -> tuple[list[int], NDArray[np.intp], Array]:
    """Return the whole numbers whose rows of a table cubics take that interpolate between them.

    Also which four of these every place takes, and their weights, shape (*place.shape, 4) each.
    """
    first = np.floor(place).astype(np.intp) - 1
    needed, which = np.unique(first[..., None] + np.arange(4), return_inverse=True)
    return needed.tolist(), which.reshape(*first.shape, 4), cubic_weights(place - first - 1.0)


class UniformTable:
    """A function between its values at equal steps: cubic pieces with slopes from five neighbours each.

    Parameters
    ----------
    start, step
        Of the points.
    values
        There, five at least.

    Notes
    -----
    The error falls as step^4; beyond the ends, the outermost piece goes on.

    Examples
    --------
    >>> table = UniformTable(0.0, 0.1, np.sin(np.arange(0, 1.05, 0.1)))
    >>> print(f"{float(table(0.55)) - np.sin(0.55):.0e} {float(table(0.55, slope=True)) - np.cos(0.55):.0e}")
    -1e-07 1e-06
    """

    def __init__(self, start: float, step: float, values: Array) -> None:
        self._start, self._step, self._values = start, step, values
        inside = np.convolve(values, _INSIDE[::-1], mode="valid")
        left = [_FIRST @ values[:5], _SECOND @ values[:5]]
        right = [-_SECOND @ values[:-6:-1], -_FIRST @ values[:-6:-1]]
        self._slopes = np.concatenate([left, inside, right])  # per step

    def __call__(self, x: ArrayLike, *, slope: bool = False) -> Array:
        """Return values, or slopes, at any points."""
        place = (np.asarray(x, dtype=np.float64) - self._start) / self._step
        index = np.clip(np.floor(place), 0, len(self._values) - 2).astype(np.intp)
        t = place - index
        low, high = self._values[index], self._values[index + 1]
        before, after = self._slopes[index], self._slopes[index + 1]
        # Hermite's cubic a + b t + c t^2 + d t^3.
        c, d = 3 * (high - low) - 2 * before - after, 2 * (low - high) + before + after
        if slope:
            return np.asarray((before + t * (2 * c + 3 * d * t)) / self._step)
        return np.asarray(low + t * (before + t * (c + d * t)))
