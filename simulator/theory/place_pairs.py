"""What the entries of a kernel stray by, on maps of few positions.

An entry belongs to two samples at two positions (p, p'). What a window makes of it,

    K'(o, o') = sum_k K(s o + k, s o' + k),

averages entries whose positions lie equally far apart, and a small map has few of these: two samples at the very same
position stay together, while others drop out in the zeros around the map. So of the entries of every offset p' - p the
covariance C is kept, as a root F of it, C = F F', which a window multiplies by its matrix, and of which a sum of
branches is the sum. Products of Gaussian channels of covariance r stray by C(p, p'; q, q') = r(p, q) r(p', q') over
their number.

Roots have the shape (offsets, positions, columns), as the two samples may change places for half of the offsets. An
offset has as many rows as it has pairs of positions, and the others are zeros. Their squares sum to the mean variance
over all pairs of positions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Ints, Padding, Size, Window, at_offsets, bordered, offsets, stepped

Array = NDArray[np.float64]

FEW = 16  # positions up to which entries are told apart

_ROUNDING = 1e-12  # share of the largest variance that is added to all, so that a covariance has a root


@dataclass(frozen=True)
class _Pairs:
    """The pairs of positions of every offset, shape (offsets, positions), -1 where there are no more of them.

    `weight` is the share of an offset's pairs in all pairs; that of its opposite is counted with it.
    """

    offsets: dict[Size, int]
    first: Ints
    second: Ints
    weight: Array


@lru_cache(maxsize=16)
def _pairs(size: Size) -> _Pairs:
    height, width = size
    points = height * width
    grid = np.arange(points).reshape(size)
    shifts = [(i, j) for i in range(height) for j in range(1 - width if i else 0, width)]
    first, second = np.full((2, len(shifts), points), -1)
    for number, (i, j) in enumerate(shifts):
        here, there = (grid[part].ravel() for part in zip(stepped(i, height), stepped(j, width), strict=True))
        first[number, : len(here)] = here
        second[number, : len(here)] = there
    weight = np.where(np.arange(len(shifts)) > 0, 2.0, 1.0) / points**2
    return _Pairs({shift: k for k, shift in enumerate(shifts)}, first, second, weight)


def products(covariance: Array, size: Size) -> Array:
    """Return r(p, q) r(p', q') by offset, shape (offsets, positions, positions), weighted as roots are."""
    pairs, padded = _pairs(size), bordered(covariance)
    first, second = (padded[which[:, :, None], which[:, None, :]] for which in (pairs.first, pairs.second))
    return np.asarray(first * second * pairs.weight[:, None, None])


def alike(correlation: Array, level: Array, size: Size) -> Array:
    """Return the same of entries that stray alike by how far one pair is shifted against the other.

    Parameters
    ----------
    correlation
        By shift, no shift in the middle.
    level
        Second moment at every position.
    """
    down, across = (np.arange(1 - n, n) for n in size)
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    known = at_offsets(correlation, down, across)
    shifted = known[np.subtract.outer(rows, rows) + size[0] - 1, np.subtract.outer(cols, cols) + size[1] - 1]
    root = np.sqrt(np.maximum(level, 0.0))
    first = bordered(shifted)[_pairs(size).first[:, :, None], _pairs(size).first[:, None, :]]
    return np.asarray(first * products(np.outer(root, root), size))


def root(covariances: Array) -> Array:
    """Return a root of covariances by offset, with approximation errors of the wrong sign cut off."""
    variances = np.einsum("dpp->dp", covariances)
    rounding = _ROUNDING * max(float(variances.max()), 1e-300) * np.eye(len(variances[0]))
    try:
        return np.asarray(np.linalg.cholesky(covariances + rounding))
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariances)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0))[:, None, :])


def unit_root(covariances: Array) -> Array:
    """Return a root of covariances by offset over their size, so that the mean variance is one."""
    found = root(covariances)
    return np.asarray(found / np.sqrt(np.vdot(found, found)))


def total(roots: Iterable[Array]) -> Array:
    """Return the covariances by offset of what independent roots come to."""
    return np.asarray(sum(field @ field.transpose(0, 2, 1) for field in roots))


def shape(size: Size) -> tuple[int, int]:
    """Return the number of offsets on a map, half of which are told apart, and of positions."""
    return len(_pairs(size).first), size[0] * size[1]


def windowed(field: Array, window: Window, size: Size) -> Array:
    """Return a root behind the sums under a window."""
    source, matrices = _windows(window, size)
    return matrices @ field[source]


def scaled(field: Array, factors: Array, size: Size) -> Array:
    """Return a root of entries that are multiplied by factors of their two positions, shape (positions, positions)."""
    pairs = _pairs(size)
    return np.asarray(field * bordered(factors)[pairs.first, pairs.second][:, :, None])


def padded(field: Array, padding: Padding, size: Size) -> Array:
    """Return a root on a map with zeros around it."""
    source, matrices = _paddings(padding, size)
    return matrices @ field[source]


def by_shift(covariances: Array, size: Size) -> Array:
    """Return the mean covariance of two entries of one offset by how far the one is shifted against the other."""
    which, weight = _pairs(size).first, _pairs(size).weight
    live = (which >= 0)[:, :, None] & (which >= 0)[:, None, :]
    shift = offsets(size)[which[:, :, None], which[:, None, :]][live]
    shape = 2 * size[0] - 1, 2 * size[1] - 1
    whole = np.bincount(shift, covariances[live], shape[0] * shape[1]).reshape(shape)
    pairs = np.bincount(shift, np.broadcast_to(weight[:, None, None], live.shape)[live], shape[0] * shape[1])
    return np.asarray(whole / pairs.reshape(shape))


def averaged(covariances: Array, matrix: Array, size: Size) -> float:
    """Return what covariances by offset add to the mean variance of entries behind averages of a channel's positions.

    `matrix`, shape (after, before), averages either position alone.
    """
    both = matrix.T @ matrix / len(matrix)
    return float(np.sum(covariances * products(both, size) / _pairs(size).weight[:, None, None])) * len(both) ** 2


@lru_cache(maxsize=64)
def _windows(window: Window, size: Size) -> tuple[Ints, Array]:
    return _moved(window.index(size), window.shares, window.stride, size, window.out_size(size))


@lru_cache(maxsize=16)
def _paddings(padding: Padding, size: Size) -> tuple[Ints, Array]:
    top, bottom, left, right = padding
    grid = np.pad(np.arange(size[0] * size[1]).reshape(size), ((top, bottom), (left, right)), constant_values=-1)
    return _moved(grid.reshape(1, -1), np.ones(1), (1, 1), size, (grid.shape[0], grid.shape[1]))


def _moved(index: Ints, shares: Array, stride: Size, size: Size, out: Size) -> tuple[Ints, Array]:
    """Return which offset every offset behind a linear map comes from, and its matrix, (offsets, after, before).

    `index`, shape (taps, outputs), is the input position under every tap.
    """
    before, after = _pairs(size), _pairs(out)
    places = {pair: place for place, pair in _places(before)}
    source = np.zeros(len(after.offsets), np.intp)
    matrices = np.zeros((len(after.offsets), after.first.shape[1], before.first.shape[1]))
    gain = np.sqrt(after.weight[0] / before.weight[0])
    for (number, row), (first, second) in _places(after):
        for tap, share in zip(index, shares, strict=True):
            found = places.get((int(tap[first]), int(tap[second])))
            if found is not None:
                source[number], matrices[number, row, found[1]] = found[0], share * gain
    return source, matrices


def _places(pairs: _Pairs) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where every pair of positions is found, and the pair."""
    rows = np.argwhere(pairs.first >= 0)
    return [((int(d), int(k)), (int(pairs.first[d, k]), int(pairs.second[d, k]))) for d, k in rows]
