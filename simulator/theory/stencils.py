"""Depthwise kernels on sampled fields, which are arrays of shape (positions, samples, channels).

A tap shows a rectangle of the input map to a rectangle of the output map; what it does there is one operation on whole
arrays, whose last axes are in one piece.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Ints, Size, Window, size_of, stepped

Array = NDArray[np.float64]
Rows = tuple[int, int]  # first and one after the last
Slices = tuple[slice, slice]


@dataclass(frozen=True)
class Tap:
    """One position of a window: its number, its place in the window, and the outputs at which it meets the map."""

    number: int
    place: Size
    rows: Rows
    cols: Rows


def live_taps(window: Window, size: Size) -> list[Tap]:
    """Return the taps that meet a map of the given size anywhere."""
    (kernel_rows, kernel_cols), out = window.kernel, window.out_size(size)
    found = []
    for i in range(kernel_rows):
        for j in range(kernel_cols):
            rows = _met(i - window.before[0], window.stride[0], size[0], out[0])
            cols = _met(j - window.before[1], window.stride[1], size[1], out[1])
            if rows[0] < rows[1] and cols[0] < cols[1]:
                found.append(Tap(i * kernel_cols + j, (i, j), rows, cols))
    return found


def _met(shift: int, stride: int, size: int, out: int) -> Rows:
    """Return the outputs o with 0 <= stride * o + shift < size."""
    return max(-(shift // stride), 0), min((size - 1 - shift) // stride + 1, out)


@lru_cache(maxsize=64)
def _meetings(window: Window, size: Size) -> list[tuple[int, Slices, Slices]]:
    """Return the number of every live tap, the outputs at which it meets the map, and what it meets there."""
    return [(tap.number, _outputs(tap), _inputs(tap, window)) for tap in live_taps(window, size)]


class Stencils:
    """Kernels of sampled channels, shape (taps, channels), on a map."""

    def __init__(self, weights: Array, window: Window, size: Size) -> None:
        self._weights, self._window, self._size = weights, window, size
        self._out = window.out_size(size)

    def forward(self, field: Array) -> Array:
        """Convolve."""
        maps, window = _whole(field, self._window, self._size)
        total = np.zeros((*self._out, *field.shape[1:]))
        for tap, outputs, inputs in _meetings(window, size_of(maps)):
            total[outputs] += self._weights[tap] * maps[inputs]
        return total.reshape(-1, *field.shape[1:])

    def back(self, field: Array, power: int = 1) -> Array:
        """Apply the transpose, of the weights or of their squares."""
        maps = field.reshape(*self._out, *field.shape[1:])
        total = np.zeros((*self._size, *field.shape[1:]))
        weights = self._weights if power == 1 else self._weights**power
        for tap, outputs, inputs in _meetings(self._window, self._size):
            total[inputs] += weights[tap] * maps[outputs]
        return total.reshape(-1, *field.shape[1:])


@dataclass(frozen=True)
class Moments:
    """Means over samples, and over outputs, of what each channel has under the taps.

    Attributes
    ----------
    mean, products
        Over both, of one tap and of two: shapes (channels, taps) and (channels, taps, taps).
    shifted
        Over samples, of two positions by how far they are apart: at the first of them, shape (height, width, channels).
    """

    mean: Array
    products: Array
    shifted: dict[Size, Array]


def moments(field: Array, window: Window, size: Size) -> Moments:
    """Return what channels have under the taps of a window.

    A product of two taps is one of two positions: all taps as far apart share a field of products.
    """
    maps, window = _whole(field, window, size)
    height, width, samples, channels = maps.shape
    count, out = window.taps, window.out_size((height, width))
    mean, products = np.zeros((count, channels)), np.zeros((count, count, channels))
    shifted: dict[Size, Array] = {}
    averaged = maps.mean(axis=2)
    for tap, _, inputs in _meetings(window, (height, width)):
        mean[tap] = averaged[inputs].sum(axis=(0, 1))
    for (down, across), pairs in pairs_of_taps(window, (height, width)).items():
        here, there = zip(stepped(down, height), stepped(across, width), strict=True)
        product = shifted[down, across] = np.zeros((height, width, channels))
        product[here] = np.einsum("hwsc,hwsc->hwc", maps[here], maps[there]) / samples
        for one, other, where in pairs:
            products[one, other] = products[other, one] = product[where].sum(axis=(0, 1))
    points = out[0] * out[1]
    return Moments(mean.T / points, products.transpose(2, 0, 1) / points, shifted)


def moments_inside(field: Array, index: Ints) -> Moments:
    """Return the same of some windows inside a larger map, of which the `index` says what lies under them."""
    under = field[index].transpose(3, 0, 1, 2).reshape(field.shape[2], len(index), -1)
    return Moments(under.mean(axis=2), under @ under.transpose(0, 2, 1) / under.shape[2], {})


@lru_cache(maxsize=64)
def pairs_of_taps(window: Window, size: Size) -> dict[Size, list[tuple[int, int, Slices]]]:
    """Return, for each offset of two taps, the pairs of them, and where the first of a pair lies while both do."""
    taps = live_taps(window, size)
    apart = defaultdict(list)
    for index, one in enumerate(taps):
        for other in taps[index:]:
            both = replace(one, rows=_shared(one.rows, other.rows), cols=_shared(one.cols, other.cols))
            if both.rows[0] < both.rows[1] and both.cols[0] < both.cols[1]:
                shift = other.place[0] - one.place[0], other.place[1] - one.place[1]
                apart[shift].append((one.number, other.number, _inputs(both, window)))
    return dict(apart)


def _whole(field: Array, window: Window, size: Size) -> tuple[Array, Window]:
    """Field as maps, continued by their borders where they are a cut-out, and the window on them."""
    maps = field.reshape(*size, *field.shape[1:])
    if not window.inside:
        return maps, window
    rows, cols = ((before, k - 1 - before) for before, k in zip(window.before, window.kernel, strict=True))
    return np.pad(maps, (rows, cols, (0, 0), (0, 0)), mode="edge"), Window(window.kernel, window.stride)


def _shared(first: Rows, second: Rows) -> Rows:
    return max(first[0], second[0]), min(first[1], second[1])


def _outputs(tap: Tap) -> Slices:
    return slice(*tap.rows), slice(*tap.cols)


def _inputs(tap: Tap, window: Window) -> Slices:
    rows, cols = (
        slice(stride * along[0] + place - before, stride * (along[1] - 1) + place - before + 1, stride)
        for stride, along, place, before in zip(
            window.stride, (tap.rows, tap.cols), tap.place, window.before, strict=True
        )
    )
    return rows, cols
