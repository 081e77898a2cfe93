"""Where theory starts: kernels of what the batch alone decides, and the cotangent's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import activation
from varprop.simulator.network import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Network,
    Node,
    Operation,
    Shape,
    ZeroPad,
)
from varprop.simulator.report import Batch
from varprop.simulator.theory.duals import Duals
from varprop.simulator.theory.few_points import Cubature
from varprop.simulator.theory.gradient import Gradient
from varprop.simulator.theory.known import channel_variance, draws_weights
from varprop.simulator.theory.maps import Size, apart_by, clipped_offsets, offsets, pairs_apart, products_by_offset
from varprop.simulator.theory.near import of_data
from varprop.simulator.theory.pairs import CUT, Layout, PairKernel
from varprop.simulator.theory.representative import piece_of, representative, representative_pieces
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.sampling import of_size, repeated
from varprop.simulator.theory.signal import Gaussian, Signal
from varprop.simulator.theory.strays import NONE
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_BUDGET = 4_000_000  # kernel entries carried of a batch of real images, and
_WHOLE = 9_000_000  # where they are all of it: ten of 15 images are less like these than like 64
_NEAR = 8  # rows and columns of large maps where only neighbours matter
_PIECE = 12  # rows and columns of its pieces
_CHOICE = 2 / 3  # share of a batch's images that have a piece carried at most: more are less like the batch together
_SMALL = 500_000  # kernel entries up to which an exchangeable batch is carried whole
_EVENLY = np.array([0.7548776662466927, 0.5698402909980532])  # 1 / g and 1 / g^2, g^3 = g + 1
_NODES = 2**22  # entries of a gradient's covariance, given each channel of the data, at most
_FLAT = 128  # samples of flat data whose pairs are all carried


@dataclass(frozen=True)
class Start:
    """How theory carries the batch.

    Attributes
    ----------
    chosen
        The samples whose pairs are all carried; None of an exchangeable batch of maps, whose kernel is averaged.
    layout
        Of the kernels.
    places
        Where in each image of the batch the piece lies that is carried of a larger map: see `representative_pieces`.
    lean
        Whether only dense convolutions and flattening look at the data: they want the samples themselves, and no
        kernel over positions is worked out.
    """

    chosen: Ints | None
    layout: Layout
    places: Array
    lean: bool

    @cached_property
    def order(self) -> Ints:
        """Numbers of all samples, the chosen ones first."""
        every = np.arange(len(self.places))
        return every if self.chosen is None else np.concatenate([self.chosen, np.setdiff1d(every, self.chosen)])


def start(batch: Batch, network: Network) -> Start:
    """Choose how to carry the batch.

    Of a small batch the whole kernel is carried. A larger one is averaged over samples if it is exchangeable; of images
    a subset is carried that stands for the batch: as many samples as its kernels' size on the network's largest map
    allows.
    """
    found = _chosen(batch, network)
    return replace(found, layout=replace(found.layout, normalised=network.has_batch_norm))


def _chosen(batch: Batch, network: Network) -> Start:
    samples, anywhere = len(batch.data), _anywhere(len(batch.data))
    if batch.data.ndim == 2:
        keep = min(samples, _FLAT)
        return Start(np.arange(keep), Layout.all_pairs(keep, samples), anywhere, False)
    lean = _lean(network)
    maps = [node.shape for node in network.nodes[1 if lean else 0 :] if len(node.shape) == 3]
    if batch.exchangeable and (samples > _FLAT or _entries(samples, maps, CUT) > _SMALL):
        cut = _reach(network)
        layout = replace(Layout.exchangeable(samples), whole=max(cut, _whole(network)), cut=cut)
        return Start(None, layout, anywhere, False)
    padded = {node.shape for node in network.nodes if isinstance(node.operation, ZeroPad)}
    unpadded = [shape for shape in maps if shape not in padded]
    whole = all(max(shape[1:]) <= CUT for shape in unpadded)
    # Few images are carried whole, however large: of pieces alone nobody knows what far positions have in common.
    side = max((max(shape[1:]) for shape in maps), default=1)
    some = _SMALL if batch.exchangeable else _BUDGET
    for cut, most in ((max(side, CUT), some), (CUT, _WHOLE if whole else _BUDGET)):
        if samples <= _FLAT and _entries(samples, maps, cut) <= most:
            chosen, places = representative_pieces(batch.data, samples, _seen(batch.data, maps, cut))
            return Start(chosen, replace(Layout.all_pairs(samples, samples), whole=cut, cut=cut), places, lean)
    # Maps that are carried whole have their true edges; of larger ones many small pieces say more than few large ones.
    cut = side if whole else _PIECE
    keep = min(samples if whole else math.ceil(_CHOICE * samples), _FLAT)
    while keep > 2 and _entries(keep, unpadded, cut) > _BUDGET:
        keep -= 1
    layout = replace(Layout.all_pairs(keep, samples), whole=cut, cut=cut, pieces=not whole)
    if lean:
        layout = replace(layout, paired=keep)
    if whole:
        return Start(representative(batch.data, keep), layout, anywhere, lean)
    chosen, places = representative_pieces(batch.data, keep, _seen(batch.data, unpadded, cut))
    anywhere[chosen] = places
    return Start(chosen, layout, anywhere, lean)


def _anywhere(count: int) -> Array:
    """Return places that are spread evenly, any part of them too, shape (count, 2)."""
    return np.asarray(np.arange(count)[:, None] * _EVENLY % 1.0)


def _seen(data: Array, maps: Sequence[Shape], cut: int) -> Size:
    """Return the size of the part of an image that a piece of the largest of some maps is made of."""
    rows, cols = (max((shape[axis] for shape in maps), default=1) for axis in (1, 2))
    return round(data.shape[2] * min(cut / rows, 1.0)), round(data.shape[3] * min(cut / cols, 1.0))


def _reach(network: Network) -> int:
    """Return how many rows and columns of large maps are carried.

    What positions far apart share matters to channels that are followed from one map to the next, and to means over a
    large map where normalisation has left nothing else; of the spread over draws it is a small part.
    """
    return CUT if any(_looks_far(network, node) for node in network.nodes) else _NEAR


def _whole(network: Network) -> int:
    """Return the most rows or columns, of those that may be carried, of maps that have to be carried whole.

    A mean over all positions sees edges and what far positions share. And where channels are mostly their mean, zeros
    around a map take more from its edges than samples differ by: what a normalisation divides by is that, and all
    samples have it in common.
    """
    shapes = [network.nodes[node.inputs[0]].shape for node in network.nodes if _wants_whole(node, network)]
    return max((side for shape in shapes for side in shape[1:] if side <= CUT), default=0)


def _wants_whole(node: Node, network: Network) -> bool:
    match node.operation:
        case GlobalAveragePool():
            return True
        case Activation():
            function = activation(node.operation.function)
            return network.has_batch_norm and 2.0 * float(function.mean(1.0)) ** 2 > float(function.second_moment(1.0))
    return False


def _looks_far(network: Network, node: Node) -> bool:
    match node.operation:
        case AveragePool() | MaxPool() | Conv2d(depthwise=True):
            return True
        case GlobalAveragePool():
            return network.has_batch_norm and max(network.nodes[node.inputs[0]].shape[1:]) > CUT
    return False


def _entries(samples: int, maps: Sequence[Shape], cut: int) -> int:
    """Return the kernel entries of all pairs on the largest of some maps."""
    largest = max((min(height, cut) * min(width, cut) for _, height, width in maps), default=1)
    return samples * (samples + 1) // 2 * largest**2


def _lean(network: Network) -> bool:
    known: set[int] = set()
    for index, node in enumerate(network.nodes):
        if not node.inputs or (known.issuperset(node.inputs) and not draws_weights(node.operation)):
            known.add(index)
    readers = {r for index in known for r in network.consumers[index]} - known
    return all(
        isinstance(network.nodes[index].operation, Input | ZeroPad | Activation | Flatten) for index in known
    ) and all(
        isinstance(network.nodes[index].operation, Linear) or _is_dense(network.nodes[index].operation)
        for index in readers
    )


def _is_dense(operation: Operation) -> bool:
    return isinstance(operation, Conv2d) and operation.groups == 1


def known_signal(values: Array, operation: Operation, inputs: list[Signal], how: Start, normalised: bool) -> Signal:
    """Return the signal at a node whose values, shape (batch, ...), the batch alone decides.

    `normalised` says whether there is any batch normalisation later on.
    """
    kernel, mean, amplitude, data = _carried(values, how)
    mean = mean * kernel.unit(0.0)
    origin, sample, width, strays, duals, law = None, None, np.inf, NONE, None, None
    if how.chosen is None:
        width = float(values.shape[1])
        strays = NONE.plus("input", 1 / width, kernel) if normalised else NONE
    if isinstance(operation, Input) and how.chosen is None:
        origin = Gaussian(kernel, 0)  # of a photograph's pixels it would not be true
    elif data is None:
        sample = cache(lambda: _sample(values, how, kernel))
    if isinstance(operation, Activation) and data is None:
        (before,) = inputs
        assert before.known is not None
        slopes = activation(operation.function).derivative(before.known)
        derivative = _carried(slopes, how)[0]
        # Nothing before it has weights for a gradient to be opposed through.
        duals = Duals(mean, kernel, derivative, _carried(before.known * slopes, how)[0], 0.0)

        def sampled() -> Sample:
            """Of a few samples slopes have the size that they have of all: alone it would be percents off."""
            gates = of_size(_sample(slopes, how, derivative).values, derivative)
            return replace(_sample(values, how, kernel), slopes=gates.values)

        sample = cache(sampled)
    if isinstance(operation, BatchNorm):
        (before,) = inputs
        assert before.known is not None
        law = _variance_law(channel_variance(before.known), operation.eps)
    cubature = _cubature(values, operation, inputs, how, kernel) if data is None else None
    return Signal(
        kernel, mean, width, strays, origin=origin, sample=sample, amplitude=amplitude, known=values, data=data,
        places=None if data is None else how.places[how.order], near=of_data(values) if values.ndim == 4 else None,
        duals=duals, law=law, cubature=cubature,
    )  # fmt: skip


def _cubature(
    values: Array, operation: Operation, inputs: list[Signal], how: Start, kernel: PairKernel
) -> Cubature | None:
    """Return the channels themselves as the nodes of their law, where all points of the batch are carried."""
    layout = kernel.layout
    points = layout.batch * kernel.values.shape[1]
    if not layout.complete or points**2 * values.shape[1] > _NODES:
        return None
    if isinstance(operation, Activation | BatchNorm):
        (before,) = (signal.cubature for signal in inputs)
        if before is None:
            return None
        if isinstance(operation, BatchNorm):
            return before.normalised(operation.eps)
        return before.activated(activation(operation.function))
    maps = values if values.ndim == 4 else values[:, :, None, None]
    nodes = _pieces(maps, kernel.size, how).transpose(0, 2, 1).reshape(points, -1)
    return Cubature(nodes, np.full(nodes.shape[1], 1.0 / nodes.shape[1]))


def _carried(values: Array, how: Start) -> tuple[PairKernel, Array, Array | None, Array | None]:
    """Kernel and mean of known values, edges of a map larger than the kernel's, and the samples if these are wanted."""
    if how.chosen is None:
        maps = values if values.ndim == 4 else values[:, :, None, None]
        return *_averaged(maps, how.layout), None
    chosen = values[how.chosen]
    if values.ndim == 2 or how.lean:
        # Of maps one entry a pair says how large the data are; patches say the rest.
        kernel, mean = _paired(chosen.reshape(len(chosen), -1, 1), (1, 1), how.layout)
        own = float(np.mean(chosen**2))
        kernel = kernel.scaled(float(np.mean(values**2)) / own if own > 0 else 1.0)
        return kernel, mean, None, None if values.ndim == 2 else values[how.order]
    small, amplitude = how.layout.carried(values.shape[1:]), None
    if small != values.shape[2:]:
        square = np.mean(values**2, axis=(0, 1))
        amplitude = square / float(square.mean()) if square.any() else np.ones_like(square)
    return *_paired(_pieces(values, small, how), small, how.layout), amplitude, None


def _pieces(maps: Array, size: Size, how: Start) -> Array:
    """Cut a piece out of every sample that is carried; shape (samples, channels, positions)."""
    which = slice(None) if how.chosen is None else how.chosen
    maps, places = maps[which], how.places[which]
    if maps.shape[2:] != size:
        maps = np.stack([piece_of(image, size, place) for image, place in zip(maps, places, strict=True)])
    return maps.reshape(*maps.shape[:2], -1)


def _paired(flat: Array, size: Size, layout: Layout) -> tuple[PairKernel, Array]:
    values = np.einsum("bcp,bcq->bpq", flat[layout.left], flat[layout.right], optimize=True) / flat.shape[1]
    return PairKernel(layout, size, values).scaled(1.0), np.asarray(flat.mean(axis=1))


def _averaged(maps: Array, layout: Layout) -> tuple[PairKernel, Array, Array | None]:
    """Kernel within a sample and between samples, averaged: on all of a small map, by offset on a large one."""
    samples, channels, *_ = maps.shape
    size = maps.shape[2], maps.shape[3]
    small = layout.carried(maps.shape[1:])
    total = maps.sum(axis=0)
    if small == size:
        flat, summed = maps.reshape(samples * channels, -1), total.reshape(channels, -1)
        within, all_pairs = flat.T @ flat, summed.T @ summed
        mean, amplitude = flat.mean(axis=0), None
    else:
        within, all_pairs = _by_offset(maps, small), _by_offset(total[None], small)
        square = np.mean(maps**2, axis=(0, 1))
        mean = np.full(small[0] * small[1], maps.mean())
        amplitude = square / float(square.mean()) if square.any() else np.ones_like(square)
    blocks = [within / (samples * channels)]
    if samples > 1:
        blocks.append((all_pairs - within) / (samples * (samples - 1) * channels))
    return PairKernel(layout, small, np.stack(blocks)).scaled(1.0), mean[None], amplitude


def _by_offset(maps: Array, size: Size) -> Array:
    """Sum over maps of the mean product of two positions at each offset, on a piece of `size`.

    As in `regridded`, offsets beyond the largest in the piece count as that one.
    """
    whole = maps.shape[-2], maps.shape[-1]
    where = clipped_offsets(*apart_by(whole), size).ravel()
    summed, count = (np.bincount(where, found.ravel()) for found in (products_by_offset(maps), pairs_apart(whole)))
    return np.asarray((summed / count)[offsets(size)], dtype=np.float64)


def _sample(values: Array, how: Start, kernel: PairKernel) -> Sample:
    """Return known channels as a sample."""
    maps = values if values.ndim == 4 else values[:, :, None, None]
    return repeated(_pieces(maps, kernel.size, how), kernel.layout)


def _variance_law(variance: Array, eps: float) -> VarianceLaw:
    """Law of known variances."""
    inverse = np.divide(1.0, variance + eps, out=np.zeros_like(variance), where=variance + eps > 0)
    mean = float(inverse.mean())
    return VarianceLaw(float(variance.mean()), float(np.mean(variance * inverse)), mean, mean)


def cotangent(signal: Signal) -> Gradient:
    """Return an i.i.d. N(0, 1) cotangent: one at a point with itself, else zero."""
    kernel = signal.kernel
    values = np.zeros_like(kernel.values)
    own = np.arange(values.shape[1])
    values[: kernel.layout.profiles, own, own] = 1.0
    amplitude = None if signal.amplitude is None else np.ones_like(signal.amplitude)
    # However like the batch a few of its samples are, each sample has a cotangent of its own.
    return Gradient(PairKernel(kernel.layout.alone, kernel.size, values), amplitude=amplitude)


def nothing(signal: Signal) -> Gradient:
    """Return the gradient of a node that nobody reads."""
    start = cotangent(signal)
    return replace(start, kernel=replace(start.kernel, values=np.zeros_like(start.kernel.values)))
