"""Geometry of maps: which input positions lie under a window, with zero padding or deep inside a large map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
Size = tuple[int, int]
Padding = tuple[int, int, int, int]

_NEAR = 4  # rows and columns up to which every offset has a number of its own


@dataclass(frozen=True)
class Window:
    """A sliding window: kernel size, stride, zeros around the map.

    `inside` says that the map at hand is a cut-out of a larger one: its border is no edge, and what lies
    beyond is taken to be like the border. `central` says that only the weight at the centre is not zero.
    """

    kernel: Size
    stride: Size
    padding: Padding = (0, 0, 0, 0)
    inside: bool = False
    central: bool = False

    @property
    def taps(self) -> int:
        """Number of positions under the window."""
        return self.kernel[0] * self.kernel[1]

    @property
    def before(self) -> Size:
        """Rows and columns by which the first window begins before the map."""
        if self.inside:
            return (self.kernel[0] - 1) // 2, (self.kernel[1] - 1) // 2
        return self.padding[0], self.padding[2]

    @property
    def live(self) -> int:
        """Number of weights that are not zero."""
        return 1 if self.central else self.taps

    @property
    def shares(self) -> Array:
        """Variance of the weight at each position, relative to their mean."""
        shares = np.ones(self.taps)
        if self.central:
            shares[:] = 0.0
            shares[self.taps // 2] = self.taps
        return shares

    def out_size(self, size: Size) -> Size:
        """Size of the output map."""
        if self.inside:
            return -(-size[0] // self.stride[0]), -(-size[1] // self.stride[1])
        top, bottom, left, right = self.padding
        return (
            (size[0] + top + bottom - self.kernel[0]) // self.stride[0] + 1,
            (size[1] + left + right - self.kernel[1]) // self.stride[1] + 1,
        )

    def index(self, size: Size) -> Ints:
        """Flat input position under each tap of each output, shape (taps, outputs); -1 in the zero padding."""
        return _index(self, size)

    def averaging(self, size: Size) -> Array:
        """Matrix that averages a map over the windows by `shares`, shape (outputs, inputs)."""
        index = self.index(size)
        matrix = np.zeros((index.shape[1], size[0] * size[1] + 1))
        np.add.at(matrix, (np.arange(index.shape[1])[None, :], index), self.shares[:, None] / self.taps)
        return matrix[:, :-1]

    def loads(self, level: Array, size: Size) -> Array:
        """Share of every tap in a field under the window, shape `kernel`; none on zero padding, and zeros for nothing.

        `level` is the field, shape (positions,) of a map of `size`.
        """
        loads = self.shares * np.append(level, 0.0)[self.index(size)].sum(axis=1)
        total = float(loads.sum())
        return np.asarray(loads.reshape(self.kernel) / (total if total > 0 else 1.0))


@lru_cache(maxsize=32)
def _index(window: Window, size: Size) -> Ints:
    h, w = size
    out_h, out_w = window.out_size(size)
    top, left = window.before
    i, j = np.divmod(np.arange(window.taps), window.kernel[1])
    rows = np.arange(out_h)[None, :] * window.stride[0] + i[:, None] - top
    cols = np.arange(out_w)[None, :] * window.stride[1] + j[:, None] - left
    if window.inside:
        rows, cols = np.clip(rows, 0, h - 1), np.clip(cols, 0, w - 1)
    valid = ((rows >= 0) & (rows < h))[:, :, None] & ((cols >= 0) & (cols < w))[:, None, :]
    flat = np.where(valid, rows[:, :, None] * w + cols[:, None, :], -1)
    found = np.asarray(flat.reshape(window.taps, -1), dtype=np.intp)
    found.flags.writeable = False  # it is shared
    return found


def overlaps(loads: Array) -> Array:
    """Share of every offset in pairs of two taps, shape (2 rows - 1, 2 columns - 1), no offset in the middle."""
    rows, cols = loads.shape
    pairs = np.outer(loads, loads).ravel()
    found = np.bincount(offsets((rows, cols)).ravel(), pairs)
    return np.asarray(found.reshape(2 * rows - 1, 2 * cols - 1), dtype=np.float64)


def window_sum(field: Array, window: Window) -> Array:
    """Sum of a map under each window by `shares`, shape (h, w) to (out_h, out_w); zeros beyond the edges."""
    padded, size = np.append(field.ravel(), 0.0), size_of(field)
    return np.asarray(window.shares @ padded[window.index(size)]).reshape(window.out_size(size))


def one_root(field: Array) -> Array:
    """Return the root of what two positions keep, of rank one, given what each keeps with the mean one."""
    whole = float(field.mean())
    return np.asarray(field / np.sqrt(whole)) if whole > 0 else np.zeros_like(field)


def under_taps(root: Array, window: Window) -> Array:
    """Return such a root under every tap, shape (taps, outputs): two windows meet under the same taps alone."""
    under = np.append(root.ravel(), 0.0)[window.index(size_of(root))]
    return np.asarray(under * np.sqrt(window.shares / window.taps)[:, None])


def window_scatter(field: Array, window: Window, size: Size, shares: Array | None = None) -> Array:
    """Adjoint of `window_sum`: every output adds its value to each input under its window.

    Times the tap's share there, by default that of its weight.
    """
    index, shares = window.index(size), window.shares if shares is None else shares
    total = np.bincount(
        np.where(index < 0, size[0] * size[1], index).ravel(),
        np.outer(shares, field.ravel()).ravel(),
        minlength=size[0] * size[1] + 1,
    )
    return np.asarray(total[:-1].reshape(size), dtype=np.float64)


def size_of(field: Array) -> Size:
    """Size of a map, whose first axes are rows and columns."""
    return field.shape[0], field.shape[1]


def size_apart(field: Array) -> Size:
    """Size of the map that a field by offset belongs to."""
    return (field.shape[0] + 1) // 2, (field.shape[1] + 1) // 2


def bordered(matrix: Array) -> Array:
    """Return a matrix with a last row and column of zeros, which -1 of `Window.index` finds."""
    found = np.zeros((matrix.shape[0] + 1, matrix.shape[1] + 1))
    found[:-1, :-1] = matrix
    return found


@lru_cache(maxsize=64)
def offsets(size: Size) -> Ints:
    """Return a number for each offset between two positions of a map, shape (positions, positions)."""
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    down = rows[:, None] - rows[None, :] + size[0] - 1
    across = cols[:, None] - cols[None, :] + size[1] - 1
    return np.asarray(down * (2 * size[1] - 1) + across)


@lru_cache(maxsize=64)
def near_offsets(size: Size) -> Ints:
    """Return what `offsets` does, with one number for all offsets beyond half of the map and beyond `_NEAR`.

    Few pairs of positions are as far apart: what is drawn at those of a single offset is mostly noise.
    """
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    down, across = (np.abs(np.subtract.outer(along, along)) for along in (rows, cols))
    far = (down > max(size[0] // 2, _NEAR)) | (across > max(size[1] // 2, _NEAR))
    numbers = offsets(size)
    return np.where(far, int(numbers.max()) + 1, numbers)


def apart_by(size: Size, stride: Size = (1, 1)) -> tuple[Ints, Ints]:
    """Return all offsets of a map, in steps of a stride."""
    down, across = (step * np.arange(1 - side, side) for side, step in zip(size, stride, strict=True))
    return down, across


def by_offset(values: Array, size: Size) -> Array:
    """Mean of a matrix over positions by offset, shape (2 height - 1, 2 width - 1)."""
    count = pairs_apart(size)
    return np.asarray(np.bincount(offsets(size).ravel(), values.ravel()).reshape(count.shape) / count)


def here(field: Array) -> float:
    """Return a field by offset where there is none."""
    return float(field[len(field) // 2, len(field[0]) // 2])


@lru_cache(maxsize=64)
def pairs_apart(size: Size) -> Array:
    """Return the number of pairs of positions of a map at each offset, shape (2 height - 1, 2 width - 1)."""
    rows, cols = (side - np.abs(offset) for side, offset in zip(size, apart_by(size), strict=True))
    return np.outer(rows, cols).astype(np.float64)


def products_by_offset(maps: Array) -> Array:
    """Sum over maps, shape (..., height, width), and over pairs of positions at each offset of the product of two."""
    full = 2 * maps.shape[-2] - 1, 2 * maps.shape[-1] - 1  # no smaller, or the discrete transform's copies would meet
    power = np.sum(np.abs(np.fft.rfft2(maps, full)) ** 2, axis=tuple(range(maps.ndim - 2)))
    return np.asarray(np.fft.fftshift(np.fft.irfft2(power, full)), dtype=np.float64)


def stepped(step: int, size: int) -> tuple[slice, slice]:
    """Return the places of a line of some size from which a step leads to another place of it, and these."""
    return slice(max(-step, 0), size - max(step, 0)), slice(max(step, 0), size - max(-step, 0))


def at_offsets(field: Array, down: Ints, across: Ints) -> Array:
    """Values of a field by offset, shape (*down.shape, *across.shape); zero beyond the map."""
    padded, rows, cols = _places(field, down, across)
    return np.asarray(padded[rows.reshape(-1, 1), cols.ravel()].reshape(*down.shape, *across.shape))


def summed_at_offsets(field: Array, down: Ints, across: Ints, weights: Array) -> Array:
    """Sum of a field by offset with the weights of taps, of which each looks at offsets of its own.

    `down` has the shape (outputs, rows of taps), `across` the same of columns; the sum's is that of the outputs.
    """
    padded, rows, cols = _places(field, down, across)
    by_column = weights.T @ padded[rows]
    return np.asarray(by_column[:, np.arange(cols.shape[1]), cols].sum(axis=2))


def _places(field: Array, down: Ints, across: Ints) -> tuple[Array, Ints, Ints]:
    """Return a field with zeros around it, and the rows and columns of that which are so far from the middle."""
    padded = np.zeros((field.shape[0] + 2, field.shape[1] + 2))
    padded[1:-1, 1:-1] = field
    rows, cols = (
        np.minimum(np.maximum(offset + (size // 2 + 1), 0), size + 1)
        for offset, size in zip((down, across), field.shape, strict=True)
    )
    return padded, rows, cols


def under_window(field: Array, window: Window, size: Size, loads: Array) -> Array:
    """Return by offset what means under a window have of a field by offset, as if the map had no edges.

    Parameters
    ----------
    field
        Of products of two positions before, by their offset.
    window, size
        The window, and the map that it makes.
    loads
        Share of each tap in a mean, shape `window.kernel`.
    """
    down, across = (
        stride * np.arange(1 - out, out)[:, None] + np.arange(1 - taps, taps)
        for stride, out, taps in zip(window.stride, size, window.kernel, strict=True)
    )
    return summed_at_offsets(field, down, across, overlaps(loads))


def seen_by_offset(fields: Array, window: Window, size: Size) -> Array:
    """Return by offset what means under a window have of single positions before, as if the map had no edges.

    Parameters
    ----------
    fields
        Of a position with another before, by how far that lies from it, shape (fields, 2 height - 1, 2 width - 1).
    window, size
        The window, and the map that it makes: behind a stride positions are those that windows have in their middle.
    """
    before = size_apart(fields[0])
    rows, cols = (
        _sight(*side, window.central) for side in zip(window.kernel, window.stride, before, size, strict=True)
    )
    return np.asarray(rows @ fields @ cols.T)


@lru_cache(maxsize=64)
def _sight(taps: int, stride: int, before: int, after: int, central: bool) -> Array:
    """Return the share of taps that look along a line at each offset before, in a column, by the offset behind."""
    at = np.zeros(1) if central else (taps - 1) // 2 - np.arange(taps)
    seen = stride * np.arange(1 - after, after)[:, None, None] + at[:, None]
    return np.asarray(np.mean(seen == np.arange(1 - before, before), axis=1))


def walked_by_offset(field: Array, window: Window, size: Size) -> Array:
    """Return a field by offset of pairs of a window's outputs, when both walk to a position under theirs.

    Each goes to any of its taps on the map alike, so that pairs stay on the map and the field keeps its sum.

    Parameters
    ----------
    field
        Over all pairs of outputs that are an offset apart, by that offset, over their number in all.
    window, size
        The window, and the map that it reads.
    """
    out = window.out_size(size)
    known = at_offsets(field, *apart_by(out))
    top, bottom, left, right = window.padding
    (kernel, across), (step, step_across) = window.kernel, window.stride
    rows = _walk(Window((kernel, 1), (step, 1), (top, bottom, 0, 0), window.inside, window.central), size[0])
    cols = _walk(Window((across, 1), (step_across, 1), (left, right, 0, 0), window.inside, window.central), size[1])
    return np.asarray(rows @ known @ cols.T)


@lru_cache(maxsize=64)
def _walk(window: Window, size: int) -> Array:
    """Return the share of the pairs of outputs at each offset that comes to each offset of the inputs, in a column."""
    under = window.averaging((size, 1))
    whole = under.sum(axis=1, keepdims=True)
    under = np.divide(under, whole, out=np.zeros_like(under), where=whole > 0)
    outputs, apart = len(under), (np.arange(size)[None, :] - np.arange(size)[:, None] + size - 1).ravel()
    walk = np.empty((2 * size - 1, 2 * outputs - 1))
    for column, shift in enumerate(range(1 - outputs, outputs)):
        one, other = stepped(shift, outputs)
        both = under[one].T @ under[other]
        walk[:, column] = np.bincount(apart, both.ravel(), 2 * size - 1) / (outputs - abs(shift))
    return walk


@lru_cache(maxsize=16)
def pair_of_offset(size: Size) -> Ints:
    """Return a pair of positions for each offset, as its place in the raveled `offsets`."""
    numbers = offsets(size).ravel()
    place = np.empty(int(numbers.max()) + 1, dtype=np.intp)
    place[numbers] = np.arange(len(numbers))
    return place


def clipped_offsets(down: Ints, across: Ints, size: Size) -> Ints:
    """Return the number, in `offsets` of a map of `size`, of the offset nearest to each (down, across)."""
    h, w = size
    rows, cols = (
        np.minimum(np.maximum(down, 1 - h), h - 1) + (h - 1),
        np.minimum(np.maximum(across, 1 - w), w - 1) + (w - 1),
    )
    return np.asarray(rows[:, None] * (2 * w - 1) + cols[None, :])
