"""Where theory starts: the batch's own kernel, and the cotangent's."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.report import Batch
from varprop.simulator.theory.forward import Signal
from varprop.simulator.theory.pairs import Layout, PairKernel

Array = NDArray[np.float64]
Ints = NDArray[np.intp]

_DRAWS = 4000  # subsets of a batch compared to find one that stands for it
_BUDGET = 5_000_000  # kernel entries carried for a batch of real images


def input_signal(batch: Batch, budget: int = _BUDGET, points: int | None = None) -> Signal:
    """Return the batch's second moments and covariances as the first signal."""
    data = batch.data
    samples, channels = data.shape[:2]
    size = (data.shape[2], data.shape[3]) if data.ndim == 4 else (1, 1)
    if data.ndim == 2:
        channels = data.shape[1]
    flat = data.reshape(samples, channels, -1)
    points = points or flat.shape[2]
    if batch.exchangeable and flat.shape[2] > 1:
        return _exchangeable(flat, size)
    keep = samples
    while keep > 2 and keep * (keep + 1) // 2 * points**2 > budget:
        keep -= 1
    chosen = _representative(data, keep)
    layout = Layout.all_pairs(keep, samples)
    part = flat[chosen]
    values = np.einsum("bcp,bcq->bpq", part[layout.left], part[layout.right], optimize=True) / channels
    return Signal(PairKernel(layout, size, values).scaled(1.0), part.mean(axis=1), np.inf)


def _exchangeable(flat: Array, size: tuple[int, int]) -> Signal:
    samples, channels, points = flat.shape
    layout = Layout.exchangeable(samples)
    profile = np.mean(flat**2, axis=(0, 1))
    total = flat.sum(axis=2)
    own = np.mean(total**2 - np.sum(flat**2, axis=2)) / (points * (points - 1))
    values = np.empty((len(layout.left), points, points))
    values[0] = own
    values[0][np.arange(points), np.arange(points)] = profile
    if samples > 1:
        whole = total.sum(axis=0)
        values[1] = np.mean(whole**2 - np.sum(total**2, axis=0)) / (samples * (samples - 1) * points**2)
    return Signal(PairKernel(layout, size, values), flat.mean(axis=(0, 1))[None], channels)


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


def cotangent(signal: Signal) -> PairKernel:
    """Kernel of an i.i.d. N(0, 1) cotangent: one at a point with itself, else zero."""
    kernel = signal.kernel
    values = np.zeros_like(kernel.values)
    own = np.arange(values.shape[1])
    values[: kernel.layout.profiles, own, own] = 1.0
    return PairKernel(kernel.layout, kernel.size, values)
