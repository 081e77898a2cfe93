"""How the kernel of a map responds to one input: R_p(a, b), the derivative of K(a, b) for x_p at the point a alone.

A window reads x_p at the place a through one of its taps, and x_(p + b - a) at the place b through the same one. Deep
inside a map that gives all kernels behind it the form

    R_p(a, b) = w(a - p) [r_0(d) x_(p + d) + r_1(d) x_p + r_2(d) mean(x)],    d = b - a,

where w counts the ways from p to a. Weights multiply R by their variance and spread w. An activation makes of it, by
Price's theorem, E[phi'_a phi'_b] R(a, b) + E[phi''_a phi_b] R(a, a). Of products of responses, summed over inputs, only
the data's mean products at every offset are left. All is even in d: one half of the offsets is kept, the last without
any.

As the mean of phi responds at a, the kernel does so with any b whatever: E phi_b E phi''_a R(a, a). Behind a window
with zeros around the map that is no longer the same for all b: of the taps through which it reads a only a share h(d)
is on the map at b, too. A normalisation takes the mean over all b, which has but the share h of any two places: so
h(d) - h of the mean's response is left, most at b = a. With 3x3 taps on 4x4 maps that is 28% of it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.network import Activation, Add, BatchNorm, Conv2d, Linear, Operation, Shape, ZeroPad
from varprop.simulator.theory.duals import hermite_expansion
from varprop.simulator.theory.maps import (
    Ints,
    Size,
    Window,
    by_offset,
    clipped_offsets,
    pairs_apart,
    products_by_offset,
)
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

_IMAGES = 8  # of a batch that are looked at, at least
_VALUES = 400  # that they have under a window, at least
_ROUNDING = 1e-12  # of 1 - c^2, at offsets where points are one
_AT_ONCE = 2**15  # entries whose powers are formed at a time


@dataclass(frozen=True)
class Data:
    """Mean products of the data at every offset of maps of `size`, and mean square of channels' means.

    Products have the shape (profiles, offsets); offsets beyond the largest count as that one.
    """

    size: Size
    products: Array
    means: float

    @staticmethod
    def of(source: Signal, profiles: int) -> Data:
        """Take them from a node's values if the batch alone decides them, else from its kernel, in units of that."""
        values = source.known
        if values is None:
            same = by_profile(source.kernel, source.kernel.layout, profiles)
            return Data(source.kernel.size, same, source.kernel.pair_mean)
        maps = values if values.ndim == 4 else values[:, :, None, None]
        means = float(np.mean(maps.mean(axis=(0, 2, 3)) ** 2))
        if source.data is None:
            return Data(
                source.kernel.size,
                by_profile(source.kernel, source.kernel.layout, profiles) * math.exp(source.kernel.log_scale),
                means,
            )
        _, channels, height, width = source.data.shape
        pairs = channels * pairs_apart((height, width))
        products = np.stack([(products_by_offset(one) / pairs).ravel() for one in source.data[:profiles]])
        return Data((height, width), products[:, : products.shape[1] // 2 + 1], means)

    def at(self, size: Size, jump: Size) -> Array:
        """Return the products at the offsets of a map whose places are `jump` apart in the data."""
        return np.take(self.products, numbers(size, jump, self.size), axis=1)


@dataclass(frozen=True)
class Response:
    """The response of a node's kernel.

    Attributes
    ----------
    size
        Of the piece of the map whose offsets are told apart: that of the kernel.
    jump
        Rows and columns of the data from one place to the next.
    ways
        Of rows and of columns, share of the ways from each of the data's (second axis) that lead to each of the map's.
    parts
        r_0, r_1 and r_2 of each profile at each offset, without any, where r_1 has r_0, too, and between samples; in
        units of the kernel's over those of `Data`, shape (3, profiles, offsets + 1).
    share
        Of all channels those that respond at all: those of the input's group.
    """

    size: Size
    jump: Size
    ways: tuple[Array, Array]
    parts: Array
    share: float = 1.0

    @property
    def own(self) -> Array:
        """R(a, a), shape (3, profiles, 1)."""
        return self.parts[:, :, -2:-1]

    def pairs(self, size: Size) -> Array:
        """Return the ways from one input to two places by their offset on a piece of `size`, averaged over inputs."""
        rows, cols = self.ways
        down = _pairs(rows, size[0])
        found = np.outer(down, down if cols is rows and size[0] == size[1] else _pairs(cols, size[1])).ravel()
        found = found[: len(found) // 2 + 1]
        found[:-1] *= 2
        return found


def follows(operation: Operation) -> bool:
    """Tell whether responses are followed through an operation."""
    dense = isinstance(operation, Conv2d) and not operation.depthwise
    return dense or isinstance(operation, Linear | BatchNorm | ZeroPad | Activation)


def first(operation: Operation, shape: Shape, source: Signal, output: Signal) -> Response:
    """Return the response behind weights that read a node of the given shape."""
    assert output.weighted is not None
    window = output.weighted.window
    size = (1, 1) if window is None else (shape[1], shape[2])
    # Samples differ in size, and the less the more values they have.
    profiles = min(source.kernel.layout.profiles, max(_IMAGES, _VALUES // output.weighted.fan_in))
    parts = np.zeros((3, profiles, _half(size) + 1))
    # The kernel is a mean over channels.
    unit = 1.0 if source.known is None else math.exp(-source.kernel.log_scale)
    parts[0] = unit / output.weighted.fan_in * (1 if window is None else window.live)
    parts[:2, :, -2] = parts[1::-1, :, -2]
    rows = np.eye(size[0])
    ways = rows, rows if size[0] == size[1] else np.eye(size[1])
    share = 1.0 / operation.groups if isinstance(operation, Conv2d) else 1.0
    return followed(operation, Response(size, (1, 1), ways, parts, share), source, output)


def followed(operation: Operation, response: Response, before: Signal, after: Signal) -> Response:
    """Return the response behind a linear operation or a normalisation."""
    scale = math.exp(before.kernel.log_scale - after.kernel.log_scale)
    match operation:
        case Linear(in_features=fan):
            assert after.weighted is not None
            unit = fan * after.weighted.law.second_moment * scale * response.share
            return replace(response, parts=response.parts * unit, share=1.0)
        case Conv2d():
            assert after.weighted is not None
            window = after.weighted.window
            assert window is not None
            gain = after.weighted.law.second_moment * operation.in_channels / operation.groups * window.taps
            stride, size = operation.stride, after.kernel.size
            parts = _regridded(response, size, stride)
            rows, cols = response.ways
            down, across = ways_under(window, stride, (len(rows), len(cols)))
            whole = down @ rows
            ways = whole, whole if across is down and cols is rows else across @ cols
            jump = response.jump[0] * stride[0], response.jump[1] * stride[1]
            parts[1:] *= _both_read(window, stride, (len(rows), len(cols)), size)
            # All outputs of a group respond that has part of the channels that do.
            share = max(response.share, 1.0 / operation.groups)
            return Response(size, jump, ways, parts * (gain * scale * response.share / share), share)
        case BatchNorm():
            # Nearly all of what the mean is taken over is of other samples.
            parts = response.parts.copy()
            varied = before.kernel.variance
            parts[1:] -= np.stack([parts[1, :, -1:], parts[0, :, -1:] + parts[2, :, -1:]])
            return replace(response, parts=parts * (after.kernel.second_moment / varied if varied > 0 else 0.0))
        case ZeroPad(padding=(top, bottom, left, right)):
            rows, cols = response.ways
            ways = np.pad(rows, ((top, bottom), (0, 0))), np.pad(cols, ((left, right), (0, 0)))
            size = after.kernel.size
            around = Window((1, 1), (1, 1), (top, bottom, left, right))
            parts = _regridded(response, size, (1, 1))
            parts[1:] *= _both_read(around, (1, 1), (len(rows), len(cols)), size)
            return Response(size, response.jump, ways, parts * scale, response.share)
        case Add():
            return replace(response, parts=response.parts * scale)
    raise NotImplementedError(type(operation).__name__)


@dataclass(frozen=True)
class Bends:
    """Means over two points a, b of an activation's input, with its slopes' slopes.

    All have the shape (profiles, offsets + 1), the last of different samples, but those of one point: (profiles, 1).

    Attributes
    ----------
    q
        E z^2, in units of the kernel's.
    correlation
        Of the points.
    slopes, lifted
        E phi'_a phi'_b and E phi''_a phi_b.
    bent, turned
        q E phi''_a phi''_b and q E phi'''_a phi'_b.
    growth, widened
        E z phi phi' / q and q E (phi'^2)'', of one point.
    """

    q: Array
    correlation: Array
    slopes: Array
    lifted: Array
    bent: Array
    turned: Array
    growth: Array
    widened: Array

    def of(self, profiles: int) -> Bends:
        """Return those of the first profiles alone."""
        return self if len(self.q) == profiles else Bends(*(part[:profiles] for part in astuple(self)))


def bends(
    function: ActivationFunction, kernels: Sequence[PairKernel], samples: Layout | None, most: int
) -> list[Bends]:
    """Return an activation's bends at kernels of one size; for the last two see `by_profile`."""
    profiles = [by_profile(kernel, samples, most) for kernel in kernels]
    middle = profiles[0].shape[1] - 1
    some = max(1, _AT_ONCE // profiles[0].size)
    found: list[Bends] = []
    for start in range(0, len(kernels), some):
        own, part = profiles[start : start + some], kernels[start : start + some]
        far = [np.full((len(c), 1), k.pair_mean / k.second_moment) for k, c in zip(part, own, strict=True)]
        scales = np.concatenate([np.full(len(c), k.log_scale) for k, c in zip(part, own, strict=True)])
        together, apart = np.concatenate(own), np.concatenate(far)
        q = np.where(together[:, middle] > 0, together[:, middle], 1.0)[:, None]
        c = np.clip(np.concatenate([together / q, apart], axis=1), -1.0, 1.0)
        c[:, middle] = 0.0  # known exactly
        fields = _half_line_bends(function, q, c) if function.homogeneous else _bends(function, q, c, scales)
        ends = np.cumsum([len(c) for c in own])[:-1]
        found += [Bends(*row) for row in zip(*(np.split(field, ends) for field in (q, c, *fields)), strict=True)]
    return found


def _half_line_bends(function: ActivationFunction, q: Array, c: Array) -> tuple[Array, ...]:
    """Return what `Bends` has after the correlation, of half-lines: phi'' is their slopes' difference at 0."""
    _, left, right = function.germ_zero
    density = (right - left) ** 2 / (2 * math.pi)
    root = np.sqrt(np.maximum(1 - c * c, _ROUNDING))
    slopes = function.derivative_dual(1.0, 1.0, c)
    growth = np.full_like(q, (left**2 + right**2) / 2)
    return slopes, density * root, density / root, -c * density / root, growth, np.zeros_like(q)


def _bends(function: ActivationFunction, q: Array, c: Array, log_scale: Array) -> tuple[Array, ...]:
    """Return the same by Hermite series."""
    sigma = np.sqrt(q[:, 0]) * np.exp(log_scale / 2)
    (values, slopes, tilted), (_, square, moved, *_) = hermite_expansion(function, sigma)
    root = np.sqrt(np.arange(1, slopes.shape[1]))
    second, third = np.zeros_like(slopes), np.zeros_like(slopes)  # of sigma phi'' and sigma^2 phi'''
    second[:, :-1] = slopes[:, 1:] * root
    third[:, :-1] = second[:, 1:] * root
    series = np.stack([slopes * slopes, second * values / sigma[:, None], second * second, third * slopes], axis=1)
    powers = np.repeat(c[:, None], slopes.shape[1], axis=1)
    powers[:, 0] = 1.0
    found = np.moveaxis(series @ np.cumprod(powers, axis=1), 1, 0)
    growth = np.einsum("nk,nk->n", values, tilted) / sigma**2
    return *found, growth[:, None], (moved / sigma**2 - square)[:, None]


def activated(response: Response, found: Bends, before: Signal, after: Signal) -> Response:
    """Return the response behind an activation."""
    own = response.own
    parts = response.parts * found.slopes + own * found.lifted
    parts[:, :, -2:-1] = own * found.growth
    parts *= math.exp(before.kernel.log_scale - after.kernel.log_scale)
    return replace(response, parts=parts)


def by_profile(kernel: PairKernel, samples: Layout | None, most: int) -> Array:
    """Mean product of two places by offset, shape (profiles, offsets), of each of the first of `samples`.

    Of a kernel of others it is their mean, as one profile.
    """
    blocks, half = kernel.values[: kernel.layout.profiles], _half(kernel.size)
    blocks = blocks[:most] if kernel.layout is samples else blocks.mean(axis=0, keepdims=True)
    if half == 1:
        return blocks[:, 0]
    return np.array([by_offset(block, kernel.size).ravel()[:half] for block in blocks])


def _regridded(response: Response, size: Size, stride: Size) -> Array:
    """Return the parts on a map of another size, of places a stride apart."""
    if stride == (1, 1) and size == response.size:
        return response.parts.copy()
    return response.parts[:, :, np.append(numbers(size, stride, response.size), -1)]


def _half(size: Size) -> int:
    """Return the number of offsets of a map, of two opposite ones one."""
    return (2 * size[0] - 1) * (2 * size[1] - 1) // 2 + 1


def ways_under(window: Window, stride: Size, size: Size) -> tuple[Array, Array]:
    """Return the share of every row of a map of `size`, and of every column, among those under each window."""
    sides = zip(window.kernel, stride, (window.padding[:2], window.padding[2:]), size, strict=True)
    down, across = (_under(kernel, step, padding, side, window.central) for kernel, step, padding, side in sides)
    return down, across


@lru_cache(maxsize=64)
def _under(kernel: int, step: int, padding: tuple[int, int], size: int, central: bool) -> Array:
    """Share of every row or column of a map among those under each window, shape (windows, size)."""
    first = np.arange((size + sum(padding) - kernel) // step + 1) * step - padding[0]
    taps = np.arange(size) - first[:, None]
    return np.where(taps == kernel // 2, 1.0, 0.0) if central else ((taps >= 0) & (taps < kernel)) / kernel


def _both_read(window: Window, stride: Size, size: Size, piece: Size) -> Array:
    """Return the share of the taps on a map of `size` that are so at a place d further, too, by half of the offsets d.

    The last is that of any two places.
    """
    sides = zip(window.kernel, stride, (window.padding[:2], window.padding[2:]), size, piece, strict=True)
    (down, rows), (across, cols) = (_both(*side, window.central) for side in sides)
    found = np.outer(down, across).ravel()
    return np.append(found[: len(found) // 2 + 1], rows * cols)


@lru_cache(maxsize=64)
def _both(
    kernel: int, step: int, padding: tuple[int, int], size: int, piece: int, central: bool
) -> tuple[Array, float]:
    """Return the same of rows or of columns, for offsets up to `piece` - 1 and all beyond, and for any two."""
    first = np.arange((size + sum(padding) - kernel) // step + 1) * step - padding[0]
    taps = np.array([kernel // 2]) if central else np.arange(kernel)
    reads = first[:, None] + taps
    live = ((reads >= 0) & (reads < size)).astype(np.float64)
    both, one = live @ live.T, np.add.outer(live.sum(axis=1), live.sum(axis=1)) / 2
    pairs, whole = (np.bincount(_apart(len(live), piece), m.ravel(), minlength=2 * piece - 1) for m in (both, one))
    return np.divide(pairs, whole, out=np.ones_like(whole), where=whole > 0), float(both.sum() / one.sum())


def _pairs(ways: Array, size: int) -> Array:
    """Sum of the products of two rows of `ways`, by how far these are apart, up to `size` - 1 and all beyond."""
    products = ways @ ways.T
    found = np.bincount(_apart(len(ways), size), products.ravel(), minlength=2 * size - 1)
    return np.asarray(found / ways.shape[1], dtype=np.float64)


@lru_cache(maxsize=64)
def _apart(count: int, size: int) -> Ints:
    """Return how far each two of `count` rows are apart, at most `size` - 1, counted from that far back."""
    apart = np.arange(count) - np.arange(count)[:, None]
    return np.asarray(np.clip(apart, 1 - size, size - 1) + size - 1).ravel()


@lru_cache(maxsize=64)
def numbers(size: Size, jump: Size, known: Size) -> Ints:
    """Return for each offset of a map of `size`, in steps of `jump`, its place among those of one of size `known`."""
    down, across = (np.arange(1 - side, side) * step for side, step in zip(size, jump, strict=True))
    place = clipped_offsets(down, across, known).ravel()
    return np.minimum(place, 2 * _half(known) - 2 - place)[: _half(size)]
