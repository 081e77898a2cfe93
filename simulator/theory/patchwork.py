"""Larger maps of images, put together from the small pieces that a stride leaves of them.

Behind a stride the pieces of images that are carried have fewer positions, while a convolution looks as far as before.
Points of images differ in size, and so do pairs of them, which an average over images would forget: the root mean
square of a point, which a channel's mean goes with, is less than that of all points. So would it forget the directions
of the data that a channel's variance consists of. So an image is laid out with pieces of several images side by side.
Each pair of points of a piece is a pair that is known, and so is each pair of points of two maps, which are never of
one piece, as no two images share any.

Across the seams of one map points have in common what those of two images have, and more by their offset, as in the
pieces. Positions beyond their reach have more in common than any two points, too: `Far` says how much more. Of the data
it is known. Weights average it over pairs of the same offset, so that it stays; a normalisation and an activation leave
as much of it as within the pieces; a sum has the mean of its terms'. A pooling keeps it, as slopes under a window sum
to one, and takes from the variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import (
    Ints,
    Size,
    Window,
    apart_by,
    at_offsets,
    by_offset,
    clipped_offsets,
    offsets,
    one_root,
    pairs_apart,
    products_by_offset,
    size_of,
    under_taps,
    window_sum,
)
from varprop.simulator.theory.pairs import Layout, PairKernel, offset_means, regridded
from varprop.simulator.theory.sampling import assemble

Array = NDArray[np.float64]

_ENTRIES = 450_000  # of the kernel of all pairs of such images


@dataclass(frozen=True)
class Far:
    """What positions of one image have in common beyond the reach of the pieces that are carried.

    Attributes
    ----------
    apart
        Inside the map, over the variance, by offset: what is more than any two points have in common; nothing at
        offsets that are not in it.
    kept
        Share of that which a position has with the average one: shape (height, width). Padding takes a tap from one of
        two positions, and what they have in common under it goes with it.
    """

    apart: Array
    kept: Array

    @staticmethod
    def of(maps: Array) -> Far:
        """Return that of known images, shape (samples, channels, height, width), with zeros around them or not."""
        return Far(apart(maps), np.any(maps, axis=(0, 1)).astype(np.float64))

    def times(self, factor: float) -> Far:
        """Return what is left behind an operation that leaves a factor of it."""
        return replace(self, apart=factor * self.apart)

    def bent(self, factor: float, slopes: Array | None) -> Far:
        """Do the same behind an activation whose E phi'^2 over that inside is known by position."""
        if slopes is None:
            return self.times(factor)
        root = np.sqrt(slopes) * one_root(self.kept)
        return Far(factor * self.apart, root * root.mean())

    def weighed(self, window: Window) -> Far:
        """Return that behind weights of their own under each tap: two positions meet under the same one alone."""
        under = under_taps(one_root(self.kept), window)
        return self._behind(window, under.mean(axis=1) @ under)

    def pooled(self, window: Window) -> Far:
        """Return that behind means under a window, over what the inside had before."""
        mean = window_sum(one_root(self.kept), window) / window.taps
        return self._behind(window, mean * mean.mean())

    def padded(self, sides: tuple[Size, Size]) -> Far:
        """Return that with so many rows and columns of zeros before and behind the map."""
        root = np.pad(one_root(self.kept), sides)
        return Far(self.apart, root * root.mean())

    @staticmethod
    def together(terms: Sequence[Far], shares: Sequence[float]) -> Far:
        """Return that of a sum of terms with these variances."""
        fields = ((term.apart for term in terms), (term.kept for term in terms))
        return Far(*(np.average(list(field), axis=0, weights=shares) for field in fields))

    def _behind(self, window: Window, kept: Array) -> Far:
        return Far(thinned(self.apart, window.stride), kept.reshape(window.out_size(size_of(self.kept))))


def apart(maps: Array) -> Array:
    """Return `Far.apart` of known images, shape (samples, channels, height, width)."""
    samples, channels, height, width = maps.shape
    products = products_by_offset(maps) / (samples * channels * pairs_apart((height, width)))
    common = float(np.mean(maps.mean(axis=(0, 2, 3)) ** 2))
    variance = float(np.mean(maps**2)) - common
    return (products - common) / variance if variance > 0 else np.zeros_like(products)


def shared_with_inside(far: Far | None, amplitude: Array | None) -> float:
    """Return the part of what varies over a larger map that its inside, of which pieces are, has in its own directions.

    `amplitude` is the second moment at every position over that inside.
    """
    if far is None or amplitude is None:
        return 1.0
    return min(float(np.mean(one_root(far.kept) ** 2)) / (float(amplitude.mean()) or 1.0), 1.0)


def beside(shared: float) -> float:
    """Return the mean squared correlation of two points of a map over that inside, of which it has a part in common.

    What edges have beside is as many directions again.
    """
    return shared**2 + (1.0 - shared) ** 2


def thinned(far: Array, stride: Size) -> Array:
    """Return a field by offset of every so many rows and columns."""
    rows, cols = (slice(side // 2 % step, None, step) for side, step in zip(far.shape, stride, strict=True))
    return far[rows, cols]


def passed(before: PairKernel, after: PairKernel) -> float:
    """Return what an operation on every point leaves of `Far.apart`: as much as of the furthest pairs of a piece.

    A division takes more from some directions of the data than from others. An activation leaves small correlations
    its mean slope's square, but some images have more in common with themselves than others, which its even terms tell
    from none, and points of one image have levels in common.

    That is the ratio of their correlations, by least squares. Of averages over the pairs of an offset, as far ones are:
    single pairs say most where images are large, and there a division takes most.
    """
    (count, first), (_, second) = map(_furthest, (before, after))
    squares, products = float(count @ first**2), float(count @ (first * second))
    return products / squares if squares > 0 else 1.0


def torn_alike(before: PairKernel, after: PairKernel) -> PairKernel:
    """Leave behind such an operation as much of what points of different pieces have in common as of those of one.

    Dividing by v + eps takes E[xi^2 / (v + eps)] less along each leading direction u of the data than along the others:
    of a kernel K(p, q) what goes with u(p) u(q), which for positions of one image is positive, as u is smooth. Pieces
    of one map are of different images, of which u(p) u(q) has the mean zero: what is laid out across their seams is in
    no direction, and nothing would be taken of it. Nor do sampled channels know of it.
    """
    layout = before.layout
    if layout.tile is None:
        return after
    count, torn, values = layout.profiles, layout.torn(before.size), after.values.copy()
    left = passed(before, after) * after.variance / (before.variance or 1.0)
    # What any two points have in common are those of two maps.
    values[:count, torn] = after.values[count:].mean() + left * (
        before.values[:count, torn] - before.values[count:].mean()
    )
    return replace(after, values=values)


def _furthest(kernel: PairKernel) -> tuple[Array, Array]:
    """Return numbers of pairs at each offset that is more than half of a piece, and their mean correlation."""
    height, width = kernel.layout.tile or kernel.size
    rows, cols = np.divmod(np.arange(kernel.values.shape[1]), kernel.size[1])
    beyond = 2 * np.abs(np.subtract.outer(rows, rows)) >= height
    beyond |= 2 * np.abs(np.subtract.outer(cols, cols)) >= width
    beyond &= ~kernel.layout.torn(kernel.size)
    where = offsets(kernel.size)[beyond]
    common = kernel.values[: kernel.layout.profiles, beyond].mean(axis=0) - kernel.pair_mean
    count = np.bincount(where)
    total = np.bincount(where, common) / (kernel.variance or 1.0)
    return count[count > 0].astype(np.float64), total[count > 0] / count[count > 0]


def continued(kernel: PairKernel, far: Far | None, size: Size) -> PairKernel:
    """Return the kernel of maps of `size` from that of pieces of images that count as draws of one law, by offset.

    Where nothing is known of far positions they have in common what the furthest do.
    """
    if far is None:
        return regridded(kernel, size)
    profile = offset_means(kernel)
    down, across = apart_by(size)
    known = np.outer(np.abs(down) < kernel.size[0], np.abs(across) < kernel.size[1])
    found = np.full((len(profile), *known.shape), kernel.pair_mean)
    found[0] += kernel.variance * at_offsets(far.apart, down, across)
    near = np.take(profile, clipped_offsets(down, across, kernel.size), axis=1)
    values = np.where(known, near, found).reshape(len(profile), -1)
    return replace(kernel, size=size, values=np.take(values, offsets(size), axis=1))


def enlarged(kernel: PairKernel, far: Far | None, size: Size) -> PairKernel:
    """Return the kernel of maps of `size` from that of pieces, of images that are told apart or draws of one law."""
    if far is not None and kernel.layout.profiles > 1:
        return laid_out(kernel, far, size)
    return continued(kernel, far, size)


def laid_out(kernel: PairKernel, far: Far, size: Size) -> PairKernel:
    """Return the kernel of maps of `size` from that of pieces of images, at its second moment."""
    layout, before = kernel.layout, kernel.layout.profiles
    count = before
    while count > 2 and count * (count + 1) // 2 * (size[0] * size[1]) ** 2 > _ENTRIES:
        count -= 1
    pieces, places = arranged(before, count, kernel.size, size)
    points = len(kernel.values[0])
    full, laid = assemble(kernel), Layout.all_pairs(count, layout.batch)
    laid = replace(laid, paired=layout.paired, whole=layout.whole, cut=layout.cut, pieces=layout.pieces)
    laid = replace(laid, tile=layout.tile or kernel.size)
    left, right = pieces[laid.left][:, :, None], pieces[laid.right][:, None, :]
    torn = replace(laid, tile=kernel.size).torn(size)
    twice = left == right
    twice[:count] &= torn
    values = full[left * points + places[:, None], np.where(twice, (right + 1) % before, right) * points + places]
    root = np.sqrt(np.maximum(kernel.diagonal, 0.0)).ravel()
    sizes = root[pieces * points + places]
    # Two pieces of a map have in common what two images have, and more by their offset.
    common = float(kernel.values[before:].mean()) / (float(root.mean()) ** 2 or 1.0)
    apart = sizes[:, :, None] * sizes[:, None, :] * (_by_size(kernel, far, root, size) - common)
    values[:count] += np.where(torn, apart, 0.0)
    found = PairKernel(laid, size, values, kernel.log_scale)
    return found.scaled(kernel.second_moment / found.second_moment) if found.second_moment else found


def arranged(count: int, maps: int, piece: Size, size: Size) -> tuple[Ints, Ints]:
    """Lay `count` pieces side by side on maps of `size`, all as often and in places that differ.

    Returns
    -------
    pieces
        Number of the piece that each position is of, shape (maps, positions).
    places
        The position there, shape (positions,).
    """
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    (down, row), (across, col) = np.divmod(rows, piece[0]), np.divmod(cols, piece[1])
    tile = down * -(-size[1] // piece[1]) + across
    turn = np.arange(maps)[:, None] * (int(tile.max()) + 1) + tile
    return (turn + turn // count) % count, row * piece[1] + col


def image_mean(kernel: PairKernel, far: Far) -> Array:
    """Mean of each block over all pairs of positions of images of which the kernel's are pieces.

    What the positions of an image have in common the data say best, of which `far` is what the operations have left;
    images differ in it as their pieces do. What all points have in common is that inside, and what varies as much of it
    as positions keep.
    """
    size, count = size_of(far.kept), kernel.layout.profiles
    down, across = apart_by(size)
    pairs = pairs_apart(size) / (size[0] * size[1]) ** 2
    pairs *= np.outer(np.abs(down) < kernel.size[0], np.abs(across) < kernel.size[1])
    where = clipped_offsets(down, across, kernel.size)
    near = offset_means(kernel) - kernel.pair_mean
    found = near @ np.bincount(where.ravel(), pairs.ravel(), minlength=near.shape[1])
    whole = kernel.variance * float(np.sum(pairs_apart(size) * at_offsets(far.apart, down, across)))
    found[:count] += whole / (size[0] * size[1]) ** 2 - found[:count].mean()
    return np.asarray(kernel.pair_mean + found * float(far.kept.mean()))


def _by_size(kernel: PairKernel, far: Far, root: Array, size: Size) -> Array:
    """Return the mean product of two positions of an image by their offset, over that of points of different images.

    `root` is every point's root mean square. Points of one image are of about one size, those of pieces side by side
    are not: with the correlation alone their products would be smaller on average.
    """
    count, (height, width) = kernel.layout.profiles, kernel.size
    products = by_offset(kernel.values[:count].mean(axis=0), kernel.size)
    down, across = apart_by(size)
    found = kernel.pair_mean + kernel.variance * at_offsets(far.apart, down, across)
    near = np.ix_(np.abs(down) < height, np.abs(across) < width)
    rows, cols = (
        slice(max(old - new, 0), min(old + new, 2 * old) - 1) for old, new in zip(kernel.size, size, strict=True)
    )
    found[near] = products[rows, cols]
    return np.take(found / (float(root.mean()) ** 2 or 1.0), offsets(size))
