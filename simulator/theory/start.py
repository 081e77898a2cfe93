"""Where theory starts: the batch's own kernel, and the cotangent's."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import Conv2d, Flatten, Network, ZeroPad
from varprop.simulator.report import Batch
from varprop.simulator.theory.backward import Gradient
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.signal import Gaussian, Signal, cropped, cut_out

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_DRAWS = 4000  # subsets of a batch compared to find one that stands for it
_BUDGET = 4_000_000  # kernel entries carried for a batch of real images
_FLAT = 128  # samples of flat data whose pairs are all carried


def input_signal(batch: Batch, network: Network) -> Signal:
    """Return the batch's second moments and covariances as the first signal.

    An exchangeable batch is averaged over samples and positions. Of images the whole kernel of a subset is carried that
    stands for the batch: as many samples as its kernels' size on the network's largest map allows.
    """
    data = batch.data
    samples = len(data)
    if data.ndim == 2:
        return _samples(data[:, :, None], (1, 1), min(samples, _FLAT), samples)
    size = data.shape[2], data.shape[3]
    if batch.exchangeable:
        return _exchangeable(data, size)
    lean = all(_reads_data(network, index) for index in network.consumers[0])
    maps = [node.shape for node in network.nodes[1 if lean else 0 :] if len(node.shape) == 3]
    largest = max((cut[0] * cut[1] for cut in map(cut_out, maps)), default=1)
    keep = min(samples, _FLAT)
    while keep > 2 and keep * (keep + 1) // 2 * largest**2 > _BUDGET:
        keep -= 1
    chosen = data[_representative(data, keep)]
    layout = Layout.all_pairs(keep, samples)
    if lean:
        # One entry a pair says how large the data are; patches say the rest.
        flat = chosen.reshape(keep, -1)
        values = np.einsum("bi,bi->b", flat[layout.left], flat[layout.right])[:, None, None] / flat.shape[1]
        return Signal(PairKernel(layout, (1, 1), values), flat.mean(axis=1)[:, None], np.inf, data=chosen)
    small, amplitude = cut_out(data.shape[1:]), None
    if small != size:
        square = np.mean(data**2, axis=(0, 1))
        amplitude = square / float(square.mean())
        chosen = np.stack([cropped(image, small, which) for which, image in enumerate(chosen)])
    signal = _samples(chosen.reshape(keep, data.shape[1], -1), small, keep, samples)
    return replace(signal, amplitude=amplitude)


def _reads_data(network: Network, index: int) -> bool:
    """Whether a node needs no kernel of the data's maps: a dense convolution, flattening, or padding before such."""
    match network.nodes[index].operation:
        case Conv2d(groups=1) | Flatten():
            return True
        case ZeroPad():
            return all(_reads_data(network, reader) for reader in network.consumers[index])
    return False


def _samples(flat: Array, size: tuple[int, int], keep: int, samples: int) -> Signal:
    layout = Layout.all_pairs(keep, samples)
    part = flat[:keep]
    values = np.einsum("bcp,bcq->bpq", part[layout.left], part[layout.right], optimize=True) / flat.shape[1]
    kernel = PairKernel(layout, size, values).scaled(1.0)
    return Signal(kernel, part.mean(axis=1), np.inf, origin=Gaussian(kernel, 0))


def _exchangeable(data: Array, size: tuple[int, int]) -> Signal:
    samples, channels = data.shape[:2]
    flat = data.reshape(samples, channels, -1)
    layout = Layout.exchangeable(samples)
    profile = np.mean(data**2, axis=(0, 1))
    small = cut_out((channels, *size))
    amplitude = None
    level = float(profile.mean())
    if small != size:
        amplitude, profile = profile / level, np.full(small, level)
    positions, points = flat.shape[2], small[0] * small[1]
    total = flat.sum(axis=2)
    values = np.empty((len(layout.left), points, points))
    apart = np.sum(total**2) - np.sum(flat**2)
    values[0] = apart / (samples * channels * positions * (positions - 1)) if positions > 1 else 0.0
    values[0][np.arange(points), np.arange(points)] = profile.ravel()
    if samples > 1:
        between = np.sum(total.sum(axis=0) ** 2) - np.sum(total**2)
        values[1] = between / (samples * (samples - 1) * channels * positions**2)
    kernel = PairKernel(layout, small, values)
    return Signal(kernel, np.full((1, points), flat.mean()), channels, origin=Gaussian(kernel, 0), amplitude=amplitude)


def _representative(data: Array, keep: int) -> Ints:
    """Choose the samples whose statistics together come closest to the whole batch's.

    Compared are what the first layers see of images: second moment, mean, spread of the samples' means, contrast within
    a sample, and the energy of differences between neighbours.
    """
    samples = len(data)
    if keep >= samples:
        return np.arange(samples)
    flat = data.reshape(samples, -1)
    mean = flat.mean(axis=1)
    neighbours = sum(np.mean(np.diff(data, axis=axis) ** 2, axis=tuple(range(1, data.ndim))) for axis in (-1, -2))
    traits = np.stack([mean - mean.mean(), (mean - mean.mean()) ** 2, flat.var(axis=1), neighbours], axis=1)
    whole = traits.mean(axis=0)
    unit = np.array([np.sqrt(whole[1]), *whole[1:]])
    rng = np.random.default_rng(0)
    draws = rng.permuted(np.tile(np.arange(samples), (_DRAWS, 1)), axis=1)[:, :keep]
    gaps = np.sum(((traits[draws].mean(axis=1) - whole) / unit) ** 2, axis=1)
    return np.asarray(draws[int(np.argmin(gaps))])


def cotangent(signal: Signal) -> Gradient:
    """Return an i.i.d. N(0, 1) cotangent: one at a point with itself, else zero."""
    kernel = signal.kernel
    values = np.zeros_like(kernel.values)
    own = np.arange(values.shape[1])
    values[: kernel.layout.profiles, own, own] = 1.0
    amplitude = None if signal.amplitude is None else np.ones_like(signal.amplitude)
    return Gradient(PairKernel(kernel.layout, kernel.size, values), amplitude=amplitude)


def nothing(signal: Signal) -> Gradient:
    """Return the gradient of a node that nobody reads."""
    start = cotangent(signal)
    return replace(start, kernel=replace(start.kernel, values=np.zeros_like(start.kernel.values)))
