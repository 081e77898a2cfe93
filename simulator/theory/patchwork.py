"""Larger maps of images, put together from the small pieces that a stride leaves of them.

Behind a stride the pieces of images that are carried have fewer positions, while a convolution looks as far as before.
Points of images differ in size, and so do pairs of them, which an average over images would forget: the root mean
square of a point, which a channel's mean goes with, is less than that of all points. So would it forget the directions
of the data that a channel's variance consists of. So an image is laid out with pieces of several images side by side.
Each pair of points of a piece is a pair that is known, and so is each pair of points of two maps, which are never of
one piece, as no two images share any.

Across the seams of one map the correlation depends on the offset, as in the pieces. Positions beyond their reach have
more in common than any two points, too: `far` is how much more, by offset, over the variance. Of the data it is known.
Weights average it over pairs of the same offset, so that it stays; a normalisation leaves as much of it as within the
pieces; a sum has the mean of its terms'; an activation multiplies the kernel's small entries by the squared mean slope
and the variance by less. A pooling keeps it, as slopes under a window sum to one, and takes from the variance.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import (
    Ints,
    Size,
    apart_by,
    at_offsets,
    by_offset,
    clipped_offsets,
    offsets,
    pairs_apart,
    products_by_offset,
)
from varprop.simulator.theory.pairs import Layout, PairKernel, offset_means, regridded
from varprop.simulator.theory.sampling import assemble

Array = NDArray[np.float64]

_ENTRIES = 450_000  # of the kernel of all pairs of such images


def apart(maps: Array) -> Array:
    """Return `far` of known images, shape (samples, channels, height, width), at all offsets."""
    samples, channels, height, width = maps.shape
    products = products_by_offset(maps) / (samples * channels * pairs_apart((height, width)))
    common = float(np.mean(maps.mean(axis=(0, 2, 3)) ** 2))
    variance = float(np.mean(maps**2)) - common
    return (products - common) / variance if variance > 0 else np.zeros_like(products)


def thinned(far: Array, stride: Size) -> Array:
    """Return `far` of every so many rows and columns."""
    rows, cols = (slice(side // 2 % step, None, step) for side, step in zip(far.shape, stride, strict=True))
    return far[rows, cols]


def passed(before: PairKernel, after: PairKernel) -> float:
    """Return what is left of `far` behind a division that takes more from some directions of the data than from others.

    As much as of the pairs of a piece that are more than half of it apart.
    """
    varied = after.second_moment
    return _left(before, after) * before.second_moment / varied if varied > 0 else 1.0


def divided_alike(before: PairKernel, after: PairKernel) -> PairKernel:
    """Leave behind such a division as much of what points of different pieces have in common as of those of one.

    Dividing by v + eps takes E[xi^2 / (v + eps)] less along each leading direction u of the data than along the others:
    of a kernel K(p, q) what goes with u(p) u(q), which for positions of one image is positive, as u is smooth. Pieces
    of one map are of different images, of which u(p) u(q) has the mean zero: what is laid out across their seams is in
    no direction, and nothing would be taken of it.
    """
    layout = before.layout
    if layout.tile is None:
        return after
    torn, values = layout.torn(before.size), after.values.copy()
    values[: layout.profiles, torn] = _left(before, after) * before.values[: layout.profiles, torn]
    return replace(after, values=values)


def _left(before: PairKernel, after: PairKernel) -> float:
    """Return the ratio of two kernels at pairs of a piece that are more than half of it apart, by least squares."""
    layout, (height, width) = before.layout, before.layout.tile or before.size
    rows, cols = np.divmod(np.arange(before.values.shape[1]), before.size[1])
    beyond = 2 * np.abs(np.subtract.outer(rows, rows)) >= height
    beyond |= 2 * np.abs(np.subtract.outer(cols, cols)) >= width
    beyond &= ~layout.torn(before.size)
    first, second = (kernel.values[: layout.profiles, beyond] for kernel in (before, after))
    squares, products = float(np.vdot(first, first)), float(np.vdot(first, second))
    if squares > 0:
        return products / squares
    return after.second_moment / before.second_moment if before.second_moment else 1.0


def continued(kernel: PairKernel, far: Array | None, size: Size) -> PairKernel:
    """Return the kernel of maps of `size` from that of pieces of images that count as draws of one law, by offset.

    Where nothing is known of far positions they have in common what the furthest do.
    """
    if far is None:
        return regridded(kernel, size)
    profile = offset_means(kernel)
    down, across = apart_by(size)
    known = np.outer(np.abs(down) < kernel.size[0], np.abs(across) < kernel.size[1])
    found = np.full((len(profile), *known.shape), kernel.pair_mean)
    found[0] += kernel.variance * at_offsets(far, down, across)
    near = np.take(profile, clipped_offsets(down, across, kernel.size), axis=1)
    values = np.where(known, near, found).reshape(len(profile), -1)
    return replace(kernel, size=size, values=np.take(values, offsets(size), axis=1))


def laid_out(kernel: PairKernel, far: Array, size: Size) -> PairKernel:
    """Return the kernel of maps of `size` from that of pieces of images, at its second moment."""
    layout, before = kernel.layout, kernel.layout.profiles
    count = before
    while count > 2 and count * (count + 1) // 2 * (size[0] * size[1]) ** 2 > _ENTRIES:
        count -= 1
    pieces, places = arranged(before, kernel.size, size)
    pieces, points = pieces[:count], len(kernel.values[0])
    full, laid = assemble(kernel), Layout.all_pairs(count, layout.batch)
    laid = replace(laid, paired=layout.paired, whole=layout.whole, cut=layout.cut, pieces=layout.pieces)
    laid = replace(laid, tile=layout.tile or kernel.size)
    left, right = pieces[laid.left][:, :, None], pieces[laid.right][:, None, :]
    twice = left == right
    twice[:count] = False
    values = full[left * points + places[:, None], np.where(twice, (right + 1) % before, right) * points + places]
    root = np.sqrt(np.maximum(kernel.diagonal, 0.0)).ravel()
    sizes = root[pieces * points + places]
    apart = sizes[:, :, None] * sizes[:, None, :] * _correlations(kernel, far, root, size)
    values[:count] = np.where(left[:count] == right[:count], values[:count], apart)
    found = PairKernel(laid, size, values, kernel.log_scale)
    return found.scaled(kernel.second_moment / found.second_moment) if found.second_moment else found


def arranged(count: int, piece: Size, size: Size) -> tuple[Ints, Ints]:
    """Lay pieces side by side on as many maps of `size`, all as often and in places that differ.

    Returns
    -------
    pieces
        Number of the piece that each position is of, shape (count, positions).
    places
        The position there, shape (positions,).
    """
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    (down, row), (across, col) = np.divmod(rows, piece[0]), np.divmod(cols, piece[1])
    tile = down * -(-size[1] // piece[1]) + across
    turn = np.arange(count)[:, None] * (int(tile.max()) + 1) + tile
    return (turn + turn // count) % count, row * piece[1] + col


def image_mean(kernel: PairKernel, far: Array, size: Size) -> Array:
    """Mean of each block over all pairs of positions of images of `size`, of which the kernel's are pieces."""
    profile = offset_means(kernel)
    down, across = apart_by(size)
    pairs = pairs_apart(size) / (size[0] * size[1]) ** 2
    known = np.outer(np.abs(down) < kernel.size[0], np.abs(across) < kernel.size[1])
    where = clipped_offsets(down, across, kernel.size)
    near = profile @ np.bincount(where.ravel(), (pairs * known).ravel(), minlength=profile.shape[1])
    beyond = pairs * ~known
    found = near + kernel.pair_mean * float(beyond.sum())
    found[: kernel.layout.profiles] += kernel.variance * float(np.sum(beyond * at_offsets(far, down, across)))
    return np.asarray(found)


def _correlations(kernel: PairKernel, far: Array, root: Array, size: Size) -> Array:
    """Return the correlation of two positions of an image by their offset; `root` is every point's root mean square."""
    own, (height, width) = root.reshape(kernel.layout.profiles, -1), kernel.size
    products = by_offset(kernel.values[: len(own)].sum(axis=0), kernel.size)
    unit = by_offset(own.T @ own, kernel.size)
    down, across = apart_by(size)
    square = float(root.mean()) ** 2
    found = (kernel.pair_mean + kernel.variance * at_offsets(far, down, across)) / (square if square > 0 else 1.0)
    near = np.ix_(np.abs(down) < height, np.abs(across) < width)
    rows, cols = (
        slice(max(old - new, 0), min(old + new, 2 * old) - 1) for old, new in zip(kernel.size, size, strict=True)
    )
    found[near] = np.divide(products, unit, out=np.zeros_like(unit), where=unit > 0)[rows, cols]
    return np.take(found, offsets(size))
