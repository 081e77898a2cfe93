"""Depthwise layers: nine weights a channel at any width, so that every channel's variance is its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.initializers import WeightLaw
from varprop.simulator.theory.corrections import share_of_batch
from varprop.simulator.theory.maps import (
    Ints,
    Size,
    Window,
    bordered,
    clipped_offsets,
    offsets,
    pairs_apart,
    size_of,
)
from varprop.simulator.theory.pairs import PairKernel, offset_means
from varprop.simulator.theory.sample import Sample, mirrored
from varprop.simulator.theory.stencils import Stencils, moments, moments_inside, pairs_of_taps
from varprop.simulator.theory.transport import transport
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

NODES = 2**14  # depthwise kernels over which 1 / (v + eps) is averaged
_EVERY = 2  # of the channels, one is asked how far samples differ


@dataclass(frozen=True)
class Edges:
    """What there is under the taps of a window on a large map, over what there is inside; nothing on zero padding.

    Attributes
    ----------
    windows
        What lies under those inside: see `windows_inside`.
    level
        Mean square of the channels' means inside.
    deviations
        Root mean square of the deviations from the positions' means, shape (taps, outputs).
    means
        Part of a channel's mean inside by which it has more there than at the same tap on average, of that shape.
    """

    windows: Ints
    level: float
    deviations: Array
    means: Array

    @staticmethod
    def of(kernel: PairKernel, amplitude: Array, common: Array, window: Window) -> Edges:
        """Return those of a map, given the `amplitude` and the `common_root` of its signal and the kernel inside."""
        mean, whole = max(kernel.pair_mean, 0.0), kernel.second_moment
        square = whole * amplitude - mean * common**2
        root = np.sqrt(np.maximum(square / (whole - mean), 0.0)) if whole > mean else np.zeros_like(square)
        index = window.index(size_of(amplitude))
        deviations, means = (np.append(field, 0.0)[index] for field in (root, common))
        level = mean * float(np.exp(kernel.log_scale))
        return Edges(windows_inside(kernel, window), level, deviations, means - means.mean(axis=1, keepdims=True))

    def over_map(self, covariances: Array, means: Array) -> Array:
        """Return covariances of taps over all of the map, shape (channels, taps, taps), given those inside."""
        points = self.means.shape[1]
        shared, lacking = (field @ field.T / points for field in (self.deviations, self.means))
        return np.asarray(covariances * shared + means[:, None, None] * lacking)

    def by_position(self, covariances: Array, means: Array, products: Array) -> Array:
        """Return the mean square of sums with weights of these `products` at every output, over that inside.

        All are of single channels, shapes (channels, taps, taps), of their squared means (channels,).
        """
        inside = np.mean(products * covariances, axis=0)
        lacking = np.tensordot(means, products, 1) / len(means)
        found = np.einsum("kp,kl,lp->p", self.deviations, inside, self.deviations, optimize=True)
        found += np.einsum("kp,kl,lp->p", self.means, lacking, self.means, optimize=True)
        whole = float(inside.sum())
        return found / whole if whole > 0 else np.ones_like(found)


@dataclass(frozen=True)
class Taps:
    """What normalisation needs of a depthwise layer.

    Attributes
    ----------
    covariances
        Of each sampled input channel's values under the taps over the data, shape (channels / 2, taps, taps).
    inside, means, edges
        Of a larger map the same inside of it, squares of the channels' means there, shape (channels / 2,), and what its
        edges change; None of a map that is carried whole.
    law
        Of the weights.
    source
        The sampled input channels.
    shifted
        Their products with themselves: see `Moments`.
    share
        Of what these differ by, that which they would differ by over the whole batch.
    size
        Of the input map.
    """

    covariances: Array
    law: WeightLaw
    window: Window
    source: Sample
    shifted: dict[Size, Array]
    size: Size
    share: float = 1.0
    inside: Array | None = None
    means: Array | None = None
    edges: Edges | None = None

    @property
    def levels(self) -> Array:
        """Mean square of every channel's values under the window over that of all channels there."""
        maps = _with_border(self.source.values.reshape(len(self.source.values), -1) ** 2)
        squares = maps[self.window.index(self.size)].sum(axis=0)
        mean = squares.mean(axis=1, keepdims=True)
        return np.asarray(np.divide(squares, mean, out=np.ones_like(squares), where=mean > 0))


def excess(first: Array, second: Array) -> float:
    """Return the mean product of two over the product of their means."""
    apart = float(first.mean()) * float(second.mean())
    return float(np.mean(first * second)) / apart if apart > 0 else 1.0


def depthwise(
    inputs: Sample,
    size: Size,
    window: Window,
    law: WeightLaw,
    expected: Array,
    batch: int,
    edges: Edges | None = None,
) -> tuple[Sample, Taps]:
    """Convolve sampled channels with kernels of their own.

    Every other input channel is used, with a kernel and with its negative, as likely as itself.

    Parameters
    ----------
    expected
        Mean of the taps' covariances, inside a larger map.
    edges
        Of such a map.
    """
    field = np.ascontiguousarray(inputs.values[..., ::2])
    _, samples, count = field.shape
    weights = tap_nodes(window.taps, law, count)
    values = Stencils(weights.T, window, size).forward(field)
    index = window.index(size) if edges is None else edges.windows
    found = moments(field, window, size) if edges is None else moments_inside(field, index)
    mean = found.mean
    covariances = found.products - mean[:, :, None] * mean[:, None, :]
    share = 1.0
    if samples < batch:
        under = np.pad(field, ((0, 1), (0, 0), (0, 0)))[:, :, ::_EVERY][index]
        fixed = [known[:, :: 2 * _EVERY] for known in inputs.normalised]
        share = _share(under - mean[::_EVERY].T[:, None, None], fixed, batch)
        whole = covariances.mean(axis=0)
        covariances = whole + np.sqrt(share) * (covariances - whole)
    trace, wanted = float(np.trace(covariances.mean(axis=0))), float(np.trace(expected))
    if trace > 0:
        onto = transport(covariances.mean(axis=0) / trace, expected / (wanted or 1.0))
        covariances = onto @ covariances @ onto
        covariances *= wanted / trace
    taps = Taps(covariances, law, window, inputs.half(), found.shifted, size, share)
    if edges is None:
        return mirrored(Sample(values)), taps
    taps, over_map = _with_edges(taps, edges, np.mean(mean**2, axis=1), weights)
    return mirrored(Sample(values, over_map=over_map)), taps


def _with_edges(taps: Taps, edges: Edges, means: Array, weights: Array) -> tuple[Taps, Array]:
    """Return what is known of taps inside a larger map for all of it, `means` being squares of the channels' means.

    And by how much the variance of every sum with these weights is larger over the map.
    """
    inside, own = taps.covariances, float(means.mean())
    means = means * (edges.level / own) if own > 0 else means
    whole = edges.over_map(inside, means)
    before, after = (np.einsum("ckl,ck,cl->c", field, weights, weights) for field in (inside, whole))
    over_map = np.divide(after, before, out=np.ones_like(after), where=before > 0)
    return replace(taps, covariances=whole, inside=inside, means=means, edges=edges), over_map


def _share(under: Array, fixed: Sequence[Array], batch: int) -> float:
    """Return the share of what the covariances of channels differ by that is left over a whole batch.

    See `share_of_batch`, and for `fixed`.

    Parameters
    ----------
    under
        What the covariances are made of, centred, in some of the channels: (taps, positions, samples, channels).
    """
    flat = np.ascontiguousarray(under.transpose(2, 3, 0, 1))
    apart = (flat @ flat.transpose(0, 1, 3, 2) / under.shape[1]).reshape(*flat.shape[:2], -1)
    return share_of_batch(apart, fixed, batch)


def depthwise_law(channels: Taps, eps: float) -> VarianceLaw:
    """Law of v = w^T C w over kernels w and input channels, whose covariances C differ."""
    count, taps, _ = channels.covariances.shape
    weights = _nodes_by_channel(taps, channels.law.distribution, count)
    square = _node_scale(channels.law) ** 2
    v = np.einsum("ckq,ckq->cq", (square * channels.covariances) @ weights, weights)
    inverse = 1.0 / (v + eps)
    mean = float(inverse.mean())
    products = (weights * inverse[:, None]) @ weights.transpose(0, 2, 1) / weights.shape[2]
    gain = products.diagonal(axis1=1, axis2=2).sum(axis=1)
    length = float(np.vdot(weights, weights)) / NODES
    return VarianceLaw(
        float(v.mean()),
        float(np.mean(v * inverse)),
        mean,
        float(gain.mean()) / length if square else mean,
        taps=square * products.mean(axis=0),
        products=square * products,
        tilt=1.0 if channels.source.inverse is None else excess(gain, channels.source.inverse),
    )


def edges_behind(channels: Taps, law: VarianceLaw) -> Array:
    """Return mean squares over a large map behind a division by each channel's own variance, over that inside.

    A channel whose taps nearly cancel has a small variance where neighbours are alike, and at an edge, where taps fall
    on zeros, they do not cancel.

    Parameters
    ----------
    law
        Of the division.
    """
    assert channels.edges is not None
    assert channels.inside is not None
    assert channels.means is not None
    assert law.products is not None
    return channels.edges.by_position(channels.inside, channels.means, law.products)


def position_gains(channels: Taps, law: VarianceLaw, size: Size) -> Array:
    """Return by what a division by each channel's own variance changes its square at every output, over the mean's.

    E[w_k w_l / (v + eps)] of a channel goes with its own products under the taps: one that is large at the border of a
    map is divided by more than one that is not.

    Parameters
    ----------
    law
        Of the division.
    size
        Of the input map.
    """
    assert law.products is not None
    window, index = channels.window, channels.window.index(size)
    maps = channels.source.values.reshape(*size, *channels.source.values.shape[1:])
    level = _with_border(maps.mean(axis=2))[index]
    mean = level.mean(axis=1)
    common = law.products.mean(axis=0)
    both = np.stack([law.products - common, np.broadcast_to(common, law.products.shape)]) / len(law.products)
    weights = np.ascontiguousarray(both.transpose(2, 3, 0, 1))
    # Of centred products those with the means, and then all others.
    with_means = np.einsum("klwc,kc->lwc", weights, mean)
    found = np.einsum("lwc,lc->w", with_means, mean)[:, None] - 2 * (with_means @ level.transpose(0, 2, 1)).sum(axis=0)
    for shift, pairs in pairs_of_taps(window, size).items():
        first, second = np.transpose([pair[:2] for pair in pairs])
        products = weights[first, second] @ _with_border(channels.shifted[shift]).T
        found += (2.0 if any(shift) else 1.0) * sum(part[:, index[k]] for k, part in zip(first, products, strict=True))
    own, common = found
    gains = np.divide(own, common, out=np.zeros_like(own), where=common > 0)
    return np.asarray(1.0 + np.sqrt(channels.share) * gains)


def _with_border(field: Array) -> Array:
    """Return maps of channels as rows of positions, with a last one of zeros, which -1 of `Window.index` finds."""
    flat = field.reshape(-1, field.shape[-1])
    return np.concatenate([flat, np.zeros_like(flat[:1])])


def tap_covariance(kernel: PairKernel, window: Window) -> Array:
    """Covariance over batch and positions of one channel's values at the taps of a window, shape (taps, taps).

    Zero padding counts as data. Units: those of ``kernel.values``.
    """
    if window.inside and kernel.layout.profiles == 1:
        return _tap_covariance_by_offset(kernel, window)
    index = windows_inside(kernel, window) if window.inside else window.index(kernel.size)
    layout, positions = kernel.layout, kernel.values.shape[1]
    same = bordered(kernel.values[: layout.profiles].mean(axis=0))
    mean = np.tensordot(layout.weight, kernel.values, axes=1)
    mean = bordered((mean + mean.T) / 2)  # of two samples one pair is carried
    moment = same[index[:, None, :], index[None, :, :]].mean(axis=2)
    select = np.stack([np.bincount(k % (positions + 1), minlength=positions + 1) for k in index]) / index.shape[1]
    found = np.asarray(moment - select @ mean @ select.T, dtype=np.float64)
    if not window.inside:
        return found
    # Windows of a single piece are some of all, and points of one part of a piece may be larger than others.
    level = float(np.trace(found)) / window.taps
    return found * (kernel.variance / level) if level > 0 else found


def windows_inside(kernel: PairKernel, window: Window) -> Ints:
    """Return what lies under windows on a kernel's map, the inside of a larger one, as `Window.index` does.

    Those that look beyond it see its border again, and what such a map is laid out of are pieces of different images:
    only windows that see a single piece count, if there are any.
    """
    index = Window(window.kernel, (1, 1), inside=True).index(kernel.size)
    under, once = kernel.layout.tile_of(kernel.size)[index], np.sort(index, axis=0)
    single = np.all(under == under[0], axis=0) & np.all(once[1:] != once[:-1], axis=0)
    return index[:, single] if single.any() else index


def _tap_covariance_by_offset(kernel: PairKernel, window: Window) -> Array:
    """Do the same deep inside a large map, where K is a function of the offset."""
    profile = offset_means(kernel)
    near, far = _taps_apart(kernel.size, window)
    found = profile[0, near] - far @ (kernel.layout.weight @ profile)
    return np.asarray(found[offsets(window.kernel)])


@lru_cache(maxsize=32)
def _taps_apart(size: Size, window: Window) -> tuple[Ints, Array]:
    """Offsets of two taps in one window, and the share of every offset in those of all windows.

    Returns
    -------
    near, far
        By offset of the taps: the number of that in `offsets`, and shares of these numbers, which sum to one.
    """
    (kh, kw), out = window.kernel, window.out_size(size)
    down, across = (np.arange(1 - count, count) for count in out)
    pairs = (pairs_apart(out) / (out[0] * out[1]) ** 2).ravel()
    rows, cols = np.arange(1 - kh, kh), np.arange(1 - kw, kw)
    count = (2 * size[0] - 1) * (2 * size[1] - 1)
    far = [
        clipped_offsets(down * window.stride[0] + row, across * window.stride[1] + col, size)
        for row in rows
        for col in cols
    ]
    shares = np.stack([np.bincount(where.ravel(), pairs, minlength=count) for where in far])
    return clipped_offsets(rows, cols, size).ravel(), np.asarray(shares, dtype=np.float64)


def tap_nodes(taps: int, law: WeightLaw, count: int) -> Array:
    """Return the first `count` depthwise kernels of a set of low-discrepancy points, shape (count, taps)."""
    return unit_nodes(taps, law.distribution)[:count] * _node_scale(law)


def _node_scale(law: WeightLaw) -> float:
    return law.std if law.distribution not in ("uniform", "truncated_normal") else law.limit


@lru_cache(maxsize=8)
def _nodes_by_channel(taps: int, distribution: str, count: int) -> Array:
    """Share the unit nodes out to channels, shape (count, taps, nodes / count)."""
    return np.ascontiguousarray(unit_nodes(taps, distribution).reshape(-1, count, taps).transpose(1, 2, 0))


@lru_cache(maxsize=8)
def unit_nodes(taps: int, distribution: str) -> Array:
    """Return low-discrepancy points of independent numbers of a unit law, shape (NODES, taps)."""
    # Roberts' sequence: multiples of the powers of the positive root of x^(taps + 1) = x + 1, modulo one. Each axis is
    # replaced by its ranks, so that every tap takes every quantile of its law once.
    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (taps + 1))
    unit = (np.arange(1, NODES + 1)[:, None] * root ** -np.arange(1.0, taps + 1)) % 1.0
    nodes = np.empty_like(unit)
    np.put_along_axis(nodes, np.argsort(unit, axis=0), _quantiles(distribution)[:, None], axis=0)
    return nodes


@lru_cache(maxsize=3)
def _quantiles(distribution: str) -> Array:
    """Return those of the unit law at the middles of NODES equal cells."""
    p = (0.5 + np.arange(NODES)) / NODES
    if distribution == "uniform":
        return 2 * p - 1
    normal, truncated = NormalDist(), distribution == "truncated_normal"
    low = normal.cdf(-2.0) if truncated else 0.0
    lower = np.array([normal.inv_cdf(x) for x in low + p[: NODES // 2] * (1 - 2 * low)])
    return np.concatenate([lower, -lower[::-1]]) / (2 if truncated else 1)
