"""Kernels over pairs of points, where a point is a sample and a position of its map.

Theory follows, for every node, K(x, x') = E[z(x) z(x')], averaged over channels, and on the way back the same of
the gradient. All pairs of all points are too many to carry, so a layout names the pairs of samples that are: each is a
block of shape (positions, positions). Convolutions, pooling and activations act on one block at a time; only batch
normalisation looks across blocks, through weighted means that stand for all pairs of the batch.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import Shape
from varprop.simulator.theory.maps import Ints, Size, Window, by_offset, clipped_offsets, offsets

Array = NDArray[np.float64]

_SPARE, _ITERATIONS = 12, 4  # directions more than are asked for, and squarings of the matrix, of subspace iteration
ROUNDING = 1e-12  # share of a second moment
_NEGLIGIBLE = 1e-3  # share of the largest below which the moment of two different taps is left out

CUT = 16  # rows and columns of a larger map that kernels are carried on, unless many samples are


@dataclass(frozen=True)
class Layout:
    """Which pairs of samples are carried, and what share of all pairs of the batch each stands for.

    Attributes
    ----------
    left, right
        Profile (representative sample) of either side of each block; the first `profiles` blocks are the
        same-sample ones, in order. A block of two different samples may name one profile twice: samples that
        are draws of one law share one profile.
    batch
        Number of samples in the batch that the layout stands for.
    paired
        Of all pairs of this many samples one in `paired` is of a sample with itself: the batch's number, or that of the
        profiles where these have the batch's own mean and covariance.
    whole, cut
        Rows and columns up to which maps are carried whole, and those carried of a larger one.
    pieces
        Whether these are pieces of images.
    tile
        Rows and columns of the pieces that maps are laid out of side by side, where they are.
    normalised
        Whether channels are, somewhere: where they are not, the sizes of those that are drawn differ more.
    """

    left: Ints
    right: Ints
    profiles: int
    batch: int
    paired: int
    whole: int = CUT
    cut: int = CUT
    pieces: bool = False
    tile: Size | None = None
    normalised: bool = True

    @cached_property
    def alone(self) -> Layout:
        """The same, where no two samples of the batch have anything in common."""
        return replace(self, paired=self.batch)

    @cached_property
    def weight(self) -> Array:
        """Share of all sample pairs of the batch that each block stands for; sums to one."""
        cross = len(self.left) - self.profiles
        same = np.full(self.profiles, 1 / self.profiles)
        if not cross:
            return same
        share = 1 / self.paired
        return np.concatenate([share * same, np.full(cross, (1 - share) / cross)])

    @cached_property
    def partners(self) -> Array:
        """Matrix that averages, for each profile, over the blocks that it is the left and then the right side of."""
        left, right = self.left[self.profiles :], self.right[self.profiles :]
        own = np.arange(self.profiles)[:, None]
        found = np.concatenate([own == left, own == right], axis=1).astype(np.float64)
        return np.asarray(found / found.sum(axis=1, keepdims=True), dtype=np.float64)

    @property
    def stands_for_more(self) -> bool:
        """Whether its images, told apart, are fewer than the batch's or pieces of them."""
        return self.profiles > 1 and (self.pieces or self.profiles < self.batch)

    @property
    def complete(self) -> bool:
        """Whether every sample of the batch is carried, and not a piece of it."""
        return self.profiles == self.batch and not self.pieces

    def carried(self, shape: Shape) -> Size:
        """Size of the part of a map that kernels are carried on."""
        rows, cols = (side if side <= self.whole else self.cut for side in shape[1:])
        return rows, cols

    def torn(self, size: Size) -> NDArray[np.bool_]:
        """Tell which pairs of positions of a map of a size lie in different pieces."""
        tiles = self.tile_of(size)
        return np.asarray(tiles[:, None] != tiles)

    def tile_of(self, size: Size) -> Ints:
        """Return a number of the piece that each position of a map of a size lies in."""
        height, width = self.tile or size
        rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
        return np.asarray(rows // height * size[1] + cols // width)

    def strided(self, stride: Size) -> Layout:
        """Return the layout behind a stride, which takes from the pieces, too."""
        if self.tile is None or stride == (1, 1):
            return self
        return replace(self, tile=(-(-self.tile[0] // stride[0]), -(-self.tile[1] // stride[1])))

    @staticmethod
    def exchangeable(batch: int) -> Layout:
        """One profile; a same-sample block and, for more than one sample, a block for all other pairs."""
        blocks = 1 if batch == 1 else 2
        return Layout(np.zeros(blocks, np.intp), np.zeros(blocks, np.intp), 1, batch, batch)

    @staticmethod
    def all_pairs(samples: int, batch: int) -> Layout:
        """Every pair of `samples` samples that stand for a batch of `batch`."""
        left, right = np.triu_indices(samples, 1)
        own = np.arange(samples)
        return Layout(np.concatenate([own, left]), np.concatenate([own, right]), samples, batch, batch)


@dataclass(frozen=True)
class PairKernel:
    """Kernel values on a layout's blocks, shape (blocks, positions, positions), on a map (height, width).

    True values are ``exp(log_scale) * values``, so that depth neither overflows nor underflows.
    """

    layout: Layout
    size: Size
    values: Array
    log_scale: float = 0.0

    @cached_property
    def diagonal(self) -> Array:
        """Second moment at each point, shape (profiles, positions)."""
        return np.array(self.values[: self.layout.profiles].diagonal(axis1=1, axis2=2))

    @property
    def share(self) -> float:
        """One point's share of all points, samples and positions, that the kernel stands for."""
        return 1.0 / (self.layout.batch * int(self.values.shape[1]))

    @cached_property
    def second_moment(self) -> float:
        """Mean of the diagonal."""
        return float(self.diagonal.sum()) / self.diagonal.size

    @cached_property
    def pair_mean(self) -> float:
        """Mean over all pairs of points of the batch."""
        flat = self.values.reshape(len(self.values), -1)
        return float(self.layout.weight @ flat.sum(axis=1)) / flat.shape[1]

    @property
    def variance(self) -> float:
        """Second moment of `centred`."""
        return self.second_moment - self.pair_mean

    def row_mean(self) -> Array:
        """Mean over all partners of each point, shape (profiles, positions)."""
        layout = self.layout
        count, paired = layout.profiles, layout.paired
        points = self.values.shape[1]
        own = self.values[:count].sum(axis=2)
        if len(layout.left) == count:
            return np.asarray(own / points, dtype=np.float64)
        either = np.concatenate([self.values[count:].sum(axis=2), self.values[count:].sum(axis=1)])
        return np.asarray((own / paired + (1 - 1 / paired) * (layout.partners @ either)) / points, dtype=np.float64)

    def correlation(self, common: float = 0.0) -> Array:
        """Correlation of a channel's values at two positions of a sample, by their offset; less a `common` product."""
        same = by_offset(np.mean(self.values[: self.layout.profiles], axis=0) - common, self.size)
        own = float(same[self.size[0] - 1, self.size[1] - 1])
        return np.clip(same / own, -1.0, 1.0) if own > ROUNDING * abs(self.second_moment) else np.zeros_like(same)

    @cached_property
    def product_correlation(self) -> Array:
        """Correlation of what products of Gaussian channels stray by, at two pairs of positions an offset apart."""
        return np.asarray(self.correlation(self.pair_mean) ** 2)

    def alike(self) -> float:
        """Mean correlation of different positions of a sample, zero where it is negative."""
        positions = self.values.shape[1]
        if positions == 1 or not self.second_moment:
            return 0.0
        own = float(self.values[: self.layout.profiles].sum(axis=(1, 2)).mean()) / positions
        return float(np.clip((own / self.second_moment - 1.0) / (positions - 1), 0.0, 1.0))

    @cached_property
    def pair_square_mean(self) -> float:
        """Mean of the squared kernel over all pairs of points."""
        return self.pair_product_mean(self)

    def pair_product_mean(self, other: PairKernel) -> float:
        """Mean over all pairs of points of the product of two kernels (in units of both scales)."""
        flat, also = (k.values.reshape(len(k.values), -1) for k in (self, other))
        products = flat[:, None, :] @ also[:, :, None]
        return float(self.layout.weight @ products[:, 0, 0]) / flat.shape[1]

    @cached_property
    def centred(self) -> PairKernel:
        """Kernel of the same variable less its mean over the batch and all positions (channel by channel)."""
        rows = self.row_mean()
        left, right = rows[self.layout.left], rows[self.layout.right]
        values = self.values - (left - self.pair_mean)[:, :, None]
        values -= right[:, None, :]
        return PairKernel(self.layout, self.size, values, self.log_scale)

    def modes(self, count: int) -> tuple[Array, Array]:
        """Leading eigenvalues and eigenvectors of the kernel as an operator on the batch's points.

        Eigenvalues sum to `second_moment`; vectors, shape (count, profiles, positions), have mean square one. Of an
        exchangeable batch only the modes that all samples share are told apart.
        """
        layout = self.layout
        profiles, positions = layout.profiles, self.values.shape[1]
        size = profiles * positions
        full = np.zeros((profiles, positions, profiles, positions))
        for a, b, block, weight in zip(layout.left, layout.right, self.values, layout.weight, strict=True):
            full[a, :, b, :] += weight / 2 * block
            full[b, :, a, :] += weight / 2 * block.T
        matrix = full.reshape(size, size) * profiles
        count = min(count, size)
        if not self.diagonal.any():
            return np.zeros(count), np.zeros((count, profiles, positions))
        values, vectors = _leading(matrix, count)
        order = np.argsort(values)[::-1][:count]
        found = np.maximum(values[order], 0.0) / positions
        return found, (vectors[:, order].T * np.sqrt(size)).reshape(count, profiles, positions)

    def scaled(self, factor: float, log_factor: float = 0.0) -> PairKernel:
        """Kernel times ``factor * exp(log_factor)``, renormalised where the values drift away from one."""
        log_scale = self.log_scale + log_factor
        if factor == 1.0 and 1e-6 < self._largest < 1e6:
            return self if log_factor == 0.0 else PairKernel(self.layout, self.size, self.values, log_scale)
        largest = abs(factor) * self._largest
        if largest > 0 and not 1e-6 < largest < 1e6:
            factor, log_scale = factor / largest, log_scale + float(np.log(largest))
        return PairKernel(self.layout, self.size, self.values * factor, log_scale)

    @cached_property
    def _largest(self) -> float:
        """Largest entry: a kernel is nowhere larger than on its diagonal."""
        return float(self.diagonal.max(initial=0.0))

    def unit(self, log_scale: float) -> float:
        """Return the size of ``exp(log_scale / 2)`` in this kernel's own units of a value."""
        return float(np.exp((log_scale - self.log_scale) / 2))

    def mapped(self) -> Array:
        """View of the values as (blocks, height, width, height, width)."""
        (h, w), n = self.size, len(self.values)
        return self.values.reshape(n, h, w, h, w)


def _leading(matrix: Array, count: int) -> tuple[Array, Array]:
    """Leading eigenvalues and eigenvectors, and some more, of a matrix that is positive semidefinite but for rounding.

    Of a large one by subspace iteration: what it misses of an eigenvalue that hardly stands out, the rest keeps.
    """
    more = count + _SPARE
    if len(matrix) <= 5 * more:
        values, vectors = np.linalg.eigh(matrix)
        return values, vectors
    basis = np.random.default_rng(0).standard_normal((len(matrix), more))
    basis[:, 0] = 1.0  # what all points share is often the largest
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(matrix @ (matrix @ basis))[0]
    values, vectors = np.linalg.eigh(basis.T @ matrix @ basis)
    return values, basis @ vectors


def merged(kernel: PairKernel) -> PairKernel:
    """Return the same kernel averaged over samples, as of an exchangeable batch."""
    layout = kernel.layout
    count = layout.profiles
    alike = Layout.exchangeable(layout.batch)
    layout_out = replace(alike, whole=layout.whole, cut=layout.cut, pieces=layout.pieces, normalised=layout.normalised)
    blocks = [kernel.values[:count].mean(axis=0)]
    if layout.batch > 1:
        cross = kernel.values[count:].mean(axis=0)
        # Of the batch's pairs of different samples some were represented by a profile with itself.
        own = (1 / layout.paired - 1 / layout.batch) / (1 - 1 / layout.batch)
        cross = own * blocks[0] + (1 - own) * cross
        blocks.append((cross + cross.T) / 2)
    return replace(kernel, layout=layout_out, values=np.stack(blocks))


def unmerged(kernel: PairKernel, layout: Layout) -> PairKernel:
    """Give every pair of samples of `layout` the block that stands for it in an exchangeable kernel."""
    if kernel.layout is layout or len(kernel.layout.left) == len(layout.left):
        return kernel
    own = np.arange(len(layout.left)) < layout.profiles
    return replace(kernel, layout=layout.alone, values=kernel.values[np.where(own, 0, 1)])


def on_pairs_of(kernel: PairKernel, layout: Layout) -> PairKernel:
    """Return a kernel on another layout's pairs; where other samples are told apart all count as draws of one law."""
    if kernel.layout.profiles == layout.profiles:
        return kernel
    return replace(unmerged(merged(kernel), layout), layout=layout)


def plus(first: PairKernel, second: PairKernel) -> PairKernel:
    """Kernel of the sum of two uncorrelated variables."""
    if first.log_scale < second.log_scale:
        first, second = second, first
    values = first.values + second.values * np.exp(second.log_scale - first.log_scale)
    return replace(first, values=values).scaled(1.0)


def windows(kernel: PairKernel, taps: Array, window: Window) -> PairKernel:
    """Carry a kernel through a convolution: K'(p, p') = sum_kl taps[k, l] K(s p + k, s p' + l).

    `taps` are the moments E[w_k w_l], shape (taps, taps); a multiple of the identity for i.i.d. zero-mean weights.
    """
    if window.taps == 1 and window.stride == (1, 1) and not any(window.padding):
        return replace(kernel, values=kernel.values * taps[0, 0])
    if window.inside and kernel.layout.profiles == 1:
        return _windows_by_offset(kernel, taps, window)
    if window.inside:
        kernel, window = grown(kernel, window), Window(window.kernel, window.stride)
    out, layout = window.out_size(kernel.size), kernel.layout.strided(window.stride)
    even = _even(taps)
    if even is not None:
        rows, cols = (_under(window, kernel.size, axis) for axis in (0, 1))
        values = even * _added(kernel.mapped(), out, rows, cols)
    else:
        padded = _padded(kernel, window)
        values = np.zeros((len(padded), *out, *out))
        under = _slices(out, window)
        taps, mirrored = _folded(taps, kernel)
        for k, m in _notable(taps):
            values += taps[k, m] * padded[:, *under[k], *under[m]]
        if mirrored:
            values += values.transpose(0, 3, 4, 1, 2)
    return replace(kernel, layout=layout, size=out, values=values.reshape(len(values), out[0] * out[1], -1))


def _windows_by_offset(kernel: PairKernel, taps: Array, window: Window) -> PairKernel:
    """Do the same deep inside a large map, K a function of the offset: K'(d) = sum_kl taps[k, l] K(s d + k - l)."""
    (h, w), (kh, kw), (sh, sw) = kernel.size, window.kernel, window.stride
    out = (h - 1) // sh + 1, (w - 1) // sw + 1
    shares = np.bincount(offsets(window.kernel).ravel(), taps.ravel()).reshape(2 * kh - 1, 2 * kw - 1)
    profile, down, across = offset_means(kernel), np.arange(1 - out[0], out[0]) * sh, np.arange(1 - out[1], out[1]) * sw
    values = np.zeros((len(profile), len(down), len(across)))
    for i, j in zip(*np.nonzero(shares), strict=True):
        where = clipped_offsets(down + i + 1 - kh, across + j + 1 - kw, kernel.size)
        values += shares[i, j] * np.take(profile, where, axis=1)
    return replace(kernel, size=out, values=np.take(values.reshape(len(values), -1), offsets(out), axis=1))


def windows_transposed(kernel: PairKernel, taps: Array, window: Window, size: Size) -> PairKernel:
    """Carry a gradient's kernel back through a convolution: K'(p, p') = sum_kl taps[k, l] K((p - k) / s, (p' - l) / s).

    `taps` are the moments E[w_k w_l] that the gradient sees; `size` is the convolution's input map.
    """
    if window.taps == 1 and window.stride == (1, 1) and not any(window.padding):
        return replace(kernel, values=kernel.values * taps[0, 0])
    if window.inside:
        return _transposed_inside(kernel, taps, window, size)
    points, even = size[0] * size[1], _even(taps)
    if even is not None:
        rows, cols = ([(to, source) for source, to in _under(window, size, axis)] for axis in (0, 1))
        values = even * _added(kernel.mapped(), size, rows, cols)
        return replace(kernel, size=size, values=values.reshape(len(values), points, points))
    top, bottom, left, right = window.padding
    h, w = size[0] + top + bottom, size[1] + left + right
    values = kernel.mapped()
    padded = np.zeros((len(values), h, w, h, w))
    under = _slices(kernel.size, window)
    taps, mirrored = _folded(taps, kernel)
    for k, m in _notable(taps):
        padded[:, *under[k], *under[m]] += taps[k, m] * values
    if mirrored:
        padded += padded.transpose(0, 3, 4, 1, 2)
    inner = padded[:, top : h - bottom, left : w - right, top : h - bottom, left : w - right]
    return replace(kernel, size=size, values=inner.reshape(len(values), points, points))


def _transposed_inside(kernel: PairKernel, taps: Array, window: Window, size: Size) -> PairKernel:
    """Do the same deep inside a large map, where every position is reached by its share of the taps."""
    stride = window.stride
    if stride == (1, 1):
        return windows(kernel, taps[::-1, ::-1], window)
    # Positions of different phase under the stride are reached by different, independent weights.
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    coarse = (rows // stride[0]) * kernel.size[1] + cols // stride[1]
    phase = (rows % stride[0]) * stride[1] + cols % stride[1]
    share = float(np.trace(taps)) / (stride[0] * stride[1])
    values = kernel.values[:, coarse[:, None], coarse[None, :]] * (share * (phase[:, None] == phase[None, :]))
    return replace(kernel, size=size, values=values)


def regridded(kernel: PairKernel, size: Size) -> PairKernel:
    """Kernel on another cut-out of the same large map: a function of the offset, constant beyond the largest one known.

    The kernel must be that of an exchangeable batch.
    """
    if kernel.size == size:
        return kernel
    wanted = clipped_offsets(np.arange(1 - size[0], size[0]), np.arange(1 - size[1], size[1]), kernel.size)
    return replace(kernel, size=size, values=np.take(offset_means(kernel), wanted.ravel()[offsets(size)], axis=1))


def offset_means(kernel: PairKernel) -> Array:
    """Average each block over pairs of positions with the same offset, in the order of `offsets`."""
    return np.stack([by_offset(block, kernel.size).ravel() for block in kernel.values])


def whole_map_mean(kernel: PairKernel, size: Size) -> Array:
    """Mean of each block over all pairs of positions of a map of `size`, of which the kernel's is a cut-out.

    As in `regridded`, a pair further apart than any in the cut-out counts as the furthest that there is.
    """
    profile = offset_means(kernel)
    down, across = np.arange(1 - size[0], size[0]), np.arange(1 - size[1], size[1])
    pairs = np.outer(size[0] - np.abs(down), size[1] - np.abs(across)) / (size[0] * size[1]) ** 2
    where = clipped_offsets(down, across, kernel.size)
    return np.asarray(profile @ np.bincount(where.ravel(), pairs.ravel(), minlength=profile.shape[1]))


def grown(kernel: PairKernel, window: Window) -> PairKernel:
    """Continue the inside of a large map as far as a window reaches beyond it.

    Of an exchangeable batch by the offset, so that what lies beyond is no copy of the border; of images by the border.
    """
    size = kernel.size[0] + window.kernel[0] - 1, kernel.size[1] + window.kernel[1] - 1
    if kernel.layout.profiles == 1:
        return regridded(kernel, size)
    before = (window.kernel[0] - 1) // 2, (window.kernel[1] - 1) // 2
    rows = (before[0], window.kernel[0] - 1 - before[0])
    cols = (before[1], window.kernel[1] - 1 - before[1])
    values = np.pad(kernel.mapped(), ((0, 0), rows, cols, rows, cols), mode="edge")
    return replace(kernel, size=size, values=values.reshape(len(values), size[0] * size[1], size[0] * size[1]))


def _even(taps: Array) -> float | None:
    """Return the variance of every weight, if all have one, and have nothing in common."""
    first = float(taps[0, 0])
    return first if np.array_equal(taps, np.diag(np.full(len(taps), first))) else None


def _under(window: Window, size: Size, axis: int) -> list[tuple[slice, slice]]:
    """Of rows or columns, those of the output and of the input that are under each of a window's taps on a map."""
    stride, before = window.stride[axis], window.padding[2 * axis]
    found = []
    for tap in range(window.kernel[axis]):
        first = max(0, -((tap - before) // stride))
        last = min(window.out_size(size)[axis] - 1, (size[axis] - 1 + before - tap) // stride)
        if first <= last:
            start = first * stride + tap - before
            found.append((slice(first, last + 1), slice(start, start + (last - first) * stride + 1, stride)))
    return found


def _added(values: Array, size: Size, rows: list[tuple[slice, slice]], cols: list[tuple[slice, slice]]) -> Array:
    """Add up mapped values where both points move together, first along rows: `rows` and `cols` say to and from where.

    Shape (blocks, height, width, height, width); the outcome is on a map of `size`.
    """
    count, _, width, *_ = values.shape
    half = np.zeros((count, size[0], width, size[0], width))
    for to, source in rows:
        half[:, to, :, to] += values[:, source, :, source]
    added = np.zeros((count, *size, *size))
    for to, source in cols:
        added[:, :, to, :, to] += half[:, :, source, :, source]
    return added


def _padded(kernel: PairKernel, window: Window) -> Array:
    top, bottom, left, right = window.padding
    values = kernel.mapped()
    if not any(window.padding):
        return values
    (h, w), count = kernel.size, len(values)
    padded = np.zeros((count, h + top + bottom, w + left + right, h + top + bottom, w + left + right))
    padded[:, top : top + h, left : left + w, top : top + h, left : left + w] = values
    return padded


def _slices(out: Size, window: Window) -> list[tuple[slice, slice]]:
    """Rows and columns of a padded map under each tap."""
    (kh, kw), (sh, sw) = window.kernel, window.stride
    return [
        (slice(i, i + sh * (out[0] - 1) + 1, sh), slice(j, j + sw * (out[1] - 1) + 1, sw))
        for i in range(kh)
        for j in range(kw)
    ]


def _folded(taps: Array, kernel: PairKernel) -> tuple[Array, bool]:
    """Halve the moments of different taps where a kernel's blocks are symmetric: the other half is the mirror image."""
    if kernel.layout.profiles > 1 or np.count_nonzero(taps) <= len(taps):
        return taps, False
    return np.triu(taps) - np.diag(np.diag(taps)) / 2, True


def _notable(taps: Array) -> Iterator[tuple[int, int]]:
    """Pairs of taps whose moment counts."""
    return zip(*np.nonzero(np.abs(taps) > _NEGLIGIBLE * np.abs(taps).max()), strict=True)
