"""Convolutions of the signal: dense and depthwise, of whole maps, of cut-outs of large maps and of the data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.generated.layers import bias_second_moment, linear_second_moment
from varprop.simulator.initializers import WeightLaw, bias_square, weight_law
from varprop.simulator.network import Conv2d, Network, Node
from varprop.simulator.theory.depthwise import Edges, Taps, depthwise, tap_covariance
from varprop.simulator.theory.maps import Size, Window, under_taps, window_sum
from varprop.simulator.theory.pairs import PairKernel, merged, plus, windows
from varprop.simulator.theory.patches import (
    Divided,
    between,
    directions,
    divided,
    gathered,
    interior,
    levelled,
    matched,
    statistics,
)
from varprop.simulator.theory.patchwork import Far, arranged, enlarged
from varprop.simulator.theory.representative import piece_of
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.sampling import affordable
from varprop.simulator.theory.signal import Gaussian, Signal, Weighted, fixed, key_of, summands
from varprop.simulator.theory.strays import NONE, Strays

Array = NDArray[np.float64]

_EVEN = 1e-3  # share of what varies over a map below which its inside counts as even
_MERGE = 16  # positions of a map from which on samples that stand for a real batch count as draws of one law


def convolved(operation: Conv2d, node: Node, network: Network, signal: Signal) -> Signal:
    """Return the signal after a convolution."""
    law = weight_law(node, network.framework)
    per_group = operation.in_channels // operation.groups
    central = law.distribution == "delta_orthogonal"
    if central:
        taps_in_all = operation.kernel[0] * operation.kernel[1]
        law = replace(law, excess_kurtosis=(law.excess_kurtosis + 3) / taps_in_all - 3)  # of the weight at the centre
    if signal.data is not None:
        return _first_convolution(operation, node, network, signal, law)
    window = Window(operation.kernel, operation.stride, operation.padding, signal.amplitude is not None, central)
    kernel = windows(signal.kernel, np.diag(window.shares), window)
    if signal.amplitude is not None and kernel.second_moment > 0:
        # Deep inside a map all positions are alike, which those that a stride leaves of a few pieces are not.
        kernel = kernel.scaled(float(window.shares.sum()) * signal.kernel.second_moment / kernel.second_moment)
    kernel = kernel.scaled(float(linear_second_moment(per_group, law.variance, 1.0)))
    strays, seen = _strays(operation, node, signal, window, kernel)
    source, sample, taps, amplitude, common = signal.kernel, None, None, None, None
    full, near = replace(window, inside=False), None
    far = None if signal.far is None else signal.far.weighed(full)
    if signal.amplitude is not None:
        near = None if signal.near is None else signal.near.weighed(full)
        amplitude = window_sum(signal.amplitude, full) / window.taps
        under = under_taps(signal.common_root, full)
        common = (under.mean(axis=1) @ under).reshape(amplitude.shape)
    if operation.depthwise:
        sample, taps = _depthwise(signal, window, law)
    shrinks = kernel.values.shape[1] < signal.kernel.values.shape[1]
    few = signal.amplitude is not None or kernel.values.shape[1] <= _MERGE
    if kernel.layout.stands_for_more and shrinks and few and far is None:
        apart = kernel.centred.diagonal
        kernel, more = _pooled_over_samples(kernel)
        if network.has_batch_norm:
            strays, seen = (
                replace(part.plus(node.name, more, kernel), walk=part.walk, spots=part.spots).apart(
                    node.name, apart, kernel
                )
                for part in (strays, seen)
            )
        source = merged(source)
    if amplitude is not None:
        if shrinks:
            wanted = kernel.layout.carried(node.shape)
            kernel = enlarged(kernel, far, wanted)
            if sample is not None and taps is not None:
                out, maps = window.out_size(signal.kernel.size), None if far is None else kernel.layout.profiles
                if maps is not None:
                    # The piece that each map begins with is followed back to where it comes from.
                    pieces, _ = arranged(sample.values.shape[1], maps, out, out)
                    taps = replace(taps, source=taps.source.at(pieces[:, 0]))
                sample = regrown(sample, out, kernel.size, maps)
        if kernel.size == amplitude.shape:
            kernel, amplitude, common = framed(kernel, amplitude, under.T @ under), None, None
            near = far = None
    kernel = with_bias(kernel, node, network)
    weighted = Weighted(law, per_group * window.live, source, seen, strays.variance, window, taps)
    # Windows sum a channel at several positions with weights of their own, and a bias is no sum.
    alone = (
        window.taps == 1
        and window.stride == (1, 1)
        and operation.groups == 1
        and not bias_square(node, network.framework)
    )
    parts = summands(signal) if alone else ()
    if network.has_batch_norm and not operation.depthwise:
        # Channels of a depthwise layer are those before it, whose number counts once.
        strays = strays.plus(node.name, law.fresh(operation.out_channels, weighted.fan_in), kernel)
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        operation.out_channels,
        strays=strays,
        weighted=weighted,
        origin=Gaussian(kernel, key_of(node.name), summands=parts),
        sample=fixed(sample),
        summands=parts,
        behind=None if taps is None else (taps, _unpadded(signal)),
        amplitude=amplitude,
        common=common,
        near=near,
        far=far,
    )


def _unpadded(signal: Signal) -> Size:
    """Size of the map before any zero padding."""
    if signal.amplitude is not None:
        return signal.kernel.size
    top, bottom, left, right = signal.padding
    return signal.kernel.size[0] - top - bottom, signal.kernel.size[1] - left - right


def _first_convolution(operation: Conv2d, node: Node, network: Network, signal: Signal, law: WeightLaw) -> Signal:
    """Return the kernel of a convolution of the data themselves: products of patches, position by position."""
    data = signal.data
    assert data is not None
    size = node.shape[1], node.shape[2]
    window = Window(
        operation.kernel, operation.stride, operation.padding, central=law.distribution == "delta_orthogonal"
    )
    index = window.index((data.shape[2], data.shape[3]))
    layout = signal.kernel.layout
    small = layout.carried(node.shape)
    data = data[: affordable(layout, small[0] * small[1])]
    amplitude = common = near = far = known_directions = None
    behind: Callable[[float], Divided] | None = None
    if small != size:
        assert signal.known is not None
        near = None if signal.near is None else signal.near.weighed(window)
        far = Far.of(signal.known).weighed(window) if layout.pieces else None
        everywhere = slice(size[0]), slice(size[1])
        # Where nothing is known of what else there is on a map, pieces stand for all of it.
        inner = interior(index, size, small) if layout.pieces else everywhere
        known = statistics(signal.known, index, window)
        there = statistics(signal.known, index.reshape(-1, *size)[:, *inner].reshape(len(index), -1), window)
        if not np.trace(there[1]) > _EVEN * np.trace(known[1]):
            inner, there = everywhere, known  # images of one colour each
        field = window_sum(np.mean(signal.known**2, axis=(0, 1)), window).reshape(size)
        amplitude = field / (float(field[inner].mean()) or 1.0)
        maps = index.reshape(-1, *size)[:, *inner]
        assert signal.places is not None
        places = signal.places[: len(data)]
        pieces = np.stack([piece_of(maps, small, place).reshape(len(maps), -1) for place in places])
        patches = gathered(data, pieces, window)
    else:
        patches = gathered(data, index, window)
    patches, others = patches[: layout.profiles], patches[layout.profiles :]
    whole: Array | None = None
    if small != size or layout.profiles < layout.batch:
        assert signal.known is not None
        if small == size:
            patches = levelled(patches, gathered(signal.known, index, window))
            wanted = *statistics(signal.known, index, window), between(signal.known, index, window, size, small)
        else:
            behind = partial(divided, signal.known, window, inner, known, law.second_moment)
            # Pieces are of the inside; what there is at edges, channels' variances have, too.
            inside, shape = maps.reshape(len(maps), -1), (maps.shape[1], maps.shape[2])
            wanted = *there, between(signal.known, inside, window, shape, small)
            whole = known[1]
        patches = matched(patches, *wanted)
        if len(others):
            others = matched(others, *wanted)
        if whole is not None:
            known_directions = directions(patches, whole)
        if amplitude is not None and wanted[0].any():
            (averaged,) = gathered(signal.known.mean(axis=0)[None], index, window)
            common = (known[0] @ averaged).reshape(size) / float(wanted[0] @ wanted[0])
    gram = patches.transpose(0, 2, 1)[layout.left] @ patches[layout.right]
    per_group = operation.in_channels // operation.groups
    kernel = PairKernel(layout, small, gram / operation.in_channels).scaled(
        float(linear_second_moment(per_group, law.variance, 1.0))
    )
    kernel = with_bias(kernel, node, network)
    features = _features(np.concatenate([patches, others]), network, node, law)
    if whole is not None:
        more = features.shape[1] - len(whole)
        whole = np.pad(whole * law.second_moment, (0, more))
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        operation.out_channels,
        strays=NONE.plus(node.name, 1 / operation.out_channels, kernel) if network.has_batch_norm else NONE,
        weighted=Weighted(law, per_group * window.live, signal.kernel, window=window),
        origin=Gaussian(kernel, key_of(node.name), features=features, over_map=whole),
        amplitude=amplitude,
        common=common,
        divided=behind,
        directions=known_directions,
        near=near,
        far=far,
    )


def _features(patches: Array, network: Network, node: Node, law: WeightLaw) -> Array:
    """Return what a channel of the first convolution is a sum of with weights of variance one."""
    features = np.asarray(patches * np.sqrt(law.second_moment))
    bias = bias_square(node, network.framework)
    if not bias:
        return features
    alone = np.full((len(features), 1, features.shape[2]), np.sqrt(bias))
    return np.concatenate([features, alone], axis=1)


def _strays(operation: Conv2d, node: Node, signal: Signal, window: Window, after: PairKernel) -> tuple[Strays, Strays]:
    """Return how the mean over all channels under a window strays, and the mean over those that one output sees."""
    whole = signal.strays
    if not whole.variance > 0.0:
        return whole, whole
    part = whole
    if operation.depthwise:
        # Its channels are as many as those before, each with taps of its own.
        whole = whole.averaged(node.name, window, signal.kernel, after)
        whole = whole.plus(node.name, (1.0 - whole.variance / part.variance) / signal.width, after)
        return whole, whole
    if operation.groups > 1:
        part = whole.plus(node.name, (operation.groups - 1) / signal.width, signal.kernel)
    if window.taps == 1:
        return whole, part
    averaged = whole.averaged(node.name, window, signal.kernel, after)
    return averaged, averaged if part is whole else part.averaged(node.name, window, signal.kernel, after)


def _depthwise(signal: Signal, window: Window, law: WeightLaw) -> tuple[Sample, Taps]:
    """Sample channels of a depthwise layer; they are those of the node before any zero padding."""
    inputs, batch = signal.draw_inside(), signal.kernel.layout.batch
    expected = tap_covariance(signal.kernel, window) * float(np.exp(signal.kernel.log_scale))
    if signal.amplitude is not None:
        edges = Edges.of(signal.kernel, signal.amplitude, signal.common_root, replace(window, inside=False))
        return depthwise(inputs, signal.kernel.size, window, law, expected, batch, edges)
    (top, bottom, left, right), before = window.padding, signal.padding
    padding = top + before[0], bottom + before[1], left + before[2], right + before[3]
    padded = Window(window.kernel, window.stride, padding)
    return depthwise(inputs, _unpadded(signal), padded, law, expected, batch)


def _pooled_over_samples(kernel: PairKernel) -> tuple[PairKernel, float]:
    """Treat the samples as draws of one law; how much their kernels differ becomes part of the spread."""
    together = merged(kernel)
    before, after = kernel.centred, together.centred
    lost = before.pair_square_mean - after.pair_square_mean
    return together, max(lost, 0.0) / after.second_moment**2 if after.second_moment > 0 else 0.0


def with_edges(kernel: PairKernel, amplitude: Array, common: Array | None = None) -> PairKernel:
    """Return the kernel on a whole map from that of its inside and the second moments at its positions.

    `common` is the share of what all points have in common that two positions keep, shape (positions, positions), if
    that is not as their deviations are.
    """
    root = np.sqrt(amplitude.ravel())
    sizes = np.outer(root, root)
    if common is None:
        return replace(kernel, values=kernel.values * sizes)
    return replace(kernel, values=kernel.values * sizes + kernel.pair_mean * (common - sizes))


def framed(kernel: PairKernel, amplitude: Array, common: Array | None = None) -> PairKernel:
    """Return the same at the inside's second moment times the map's: large points may lie where edges take most."""
    level = kernel.diagonal.mean(axis=0)
    there = float(level @ amplitude.ravel())
    sized = kernel.scaled(float(level.sum() * amplitude.mean()) / there if there > 0 else 1.0)
    return with_edges(sized, amplitude, common)


def centred_edges(kernel: PairKernel, amplitude: Array, common: Array | None) -> Array:
    """Second moments over a large map once each channel's mean over data and positions is gone, over those inside."""
    inside = kernel.second_moment - kernel.pair_mean
    if common is None or inside <= 0.0:
        return amplitude
    product = kernel.pair_mean * (float(common.mean()) - 2 * common)
    return np.asarray((kernel.second_moment * amplitude + product) / inside)


def regrown(sample: Sample, size: Size, wanted: Size, maps: int | None) -> Sample:
    """Continue sampled channels on a larger piece of the map.

    Of images, whose far positions are known, by those of others side by side, on as many `maps` as `laid_out` has them:
    mirrored ones would give far positions much in common. Otherwise mirrored, as no neighbours are torn apart then.
    """
    count = sample.values.shape[1]
    pieces = np.arange(count)[:, None]
    if maps is not None:
        pieces, where = arranged(count, maps, size, wanted)
    else:
        rows, cols = (
            np.pad(np.arange(old), (0, new - old), mode="symmetric") for old, new in zip(size, wanted, strict=True)
        )
        where = (rows[:, None] * size[1] + cols).ravel()

    def laid(field: Array | None) -> Array | None:
        return None if field is None else np.ascontiguousarray(field[where, pieces].transpose(1, 0, 2))

    values = laid(sample.values)
    assert values is not None
    return Sample(values, sample.inverse, laid(sample.slopes), over_map=sample.over_map)


def with_bias(kernel: PairKernel, node: Node, network: Network) -> PairKernel:
    """Return the kernel after a layer's bias, which is the same at every point and adds to every entry."""
    bias = bias_square(node, network.framework)
    if not bias:
        return kernel
    alone = np.full_like(kernel.values, float(bias_second_moment(0.0, bias)))
    return plus(kernel, replace(kernel, values=alone, log_scale=0.0))
