"""Depthwise layers, where no sum over channels makes things Gaussian or self-averaging.

A channel of a depthwise layer is w * h with nine weights of its own and one input channel h. Theory integrates over the
law of one such channel by cubature: Gaussian pre-activations with the kernel that the layers before give, its
activation, the weights. What comes out corrects the Gaussian kernels of the layers that follow.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.initializers import WeightLaw
from varprop.simulator.theory.duals import Duals
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
Window = tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]

POINTS = 2048  # data points at which each sampled channel is followed
CHANNELS = 128  # sampled input channels
DRAWS = 4  # depthwise kernels for each of them whose outputs are followed
_RANK = 300  # leading directions kept of a kernel over many points
NODES = 2**14  # depthwise kernels over which 1 / (v + eps) is averaged


@dataclass(frozen=True)
class Channels:
    """Sampled channels over sampled points of the data: values, shape (channels, samples, positions)."""

    values: Array
    layout: Layout
    size: tuple[int, int]
    inverse: Array | None


@dataclass(frozen=True)
class DepthwiseChannels:
    """A depthwise layer's sampled output channels, and the covariances of the inputs under its taps.

    Attributes
    ----------
    values
        Shape (CHANNELS * DRAWS, samples, positions).
    covariances
        Of each input channel's values under the taps over the data, shape (CHANNELS, taps, taps).
    law
        Of the weights.
    """

    values: Array
    covariances: Array
    law: WeightLaw
    inverse: Array | None


def sample_channels(kernel: PairKernel, eps: float | None, function: ActivationFunction | None) -> Channels:
    """Draw channels with the given Gaussian kernel, and put them through the activation.

    `eps` is that of a batch normalisation in between, which each channel goes through with its own statistics.
    """
    layout, positions = kernel.layout, kernel.values.shape[1]
    rng = np.random.Generator(np.random.Philox(7))
    if layout.profiles == 1 and len(layout.left) <= 2:
        samples = int(min(layout.batch, max(POINTS // positions, 4)))
        cross = kernel.values[1] if layout.batch > 1 else np.zeros((positions, positions))
        shared = rng.standard_normal((CHANNELS, 1, positions)) @ _root(cross).T
        own = rng.standard_normal((CHANNELS, samples, positions)) @ _root(kernel.values[0] - cross).T
        z = shared + own
    else:
        samples = layout.profiles
        root = _root(assemble(kernel))
        z = (rng.standard_normal((CHANNELS, root.shape[1])) @ root.T).reshape(CHANNELS, samples, positions)
    z = z * np.exp(kernel.log_scale / 2)
    inverse = None
    if eps is not None:
        z = z - z.mean(axis=(1, 2), keepdims=True)
        v = np.mean(z * z, axis=(1, 2), keepdims=True)
        z /= np.sqrt(v + eps)
        inverse = 1.0 / (v[:, 0, 0] + eps)
    return Channels(function.value(z) if function else z, layout, kernel.size, inverse)


def assemble(kernel: PairKernel) -> Array:
    """The kernel of all carried points as one symmetric matrix."""
    layout, positions = kernel.layout, kernel.values.shape[1]
    full = np.empty((layout.profiles, positions, layout.profiles, positions))
    for a, b, block in zip(layout.left, layout.right, kernel.values, strict=True):
        full[a, :, b, :] = block
        full[b, :, a, :] = block.T
    return full.reshape(layout.profiles * positions, -1)


def _root(matrix: Array) -> Array:
    """A square root of a matrix that is positive semidefinite up to approximation errors."""
    size = len(matrix)
    if size <= 300:
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        return np.asarray(vectors * np.sqrt(np.maximum(values, 0.0)))
    # Nystrom's approximation in the leading directions, with approximation errors of the wrong sign cut off.
    probe = np.random.default_rng(0).standard_normal((size, _RANK))
    probe = np.linalg.qr(matrix @ probe)[0]
    image = matrix @ probe
    values, vectors = np.linalg.eigh(probe.T @ image)
    keep = values > values[-1] * 1e-10
    root = image @ (vectors[:, keep] / np.sqrt(values[keep]))
    found = np.sum(root**2, axis=1)
    return np.asarray(root * np.sqrt(np.diag(matrix) / np.maximum(found, 1e-300))[:, None])


def depthwise(channels: Channels, window: Window, law: WeightLaw, expected: Array) -> DepthwiseChannels:
    """Convolve each sampled channel with kernels of its own; `expected` is the mean of the taps' covariances."""
    index = tap_index(channels.size, *window)
    padded = np.pad(channels.values, ((0, 0), (0, 0), (0, 1)))
    taps = len(index)
    under = padded[:, :, index]  # channels, samples, taps, outputs
    count, samples, _, outputs = under.shape
    flat = under.transpose(0, 2, 1, 3).reshape(count, taps, samples * outputs)
    centred = flat - flat.mean(axis=2, keepdims=True)
    covariances = centred @ centred.transpose(0, 2, 1) / (samples * outputs)
    trace = float(np.trace(covariances.mean(axis=0)))
    if trace > 0:
        covariances = covariances * (float(np.trace(expected)) / trace)
    weights = tap_nodes(taps, law)[: CHANNELS * DRAWS].reshape(CHANNELS, DRAWS, taps)
    values = (weights @ flat).reshape(CHANNELS * DRAWS, samples, outputs)
    return DepthwiseChannels(values, covariances, law, channels.inverse)


def depthwise_law(channels: DepthwiseChannels, eps: float) -> VarianceLaw:
    """Law of v = w^T C w over kernels w and input channels, whose covariances C differ."""
    taps = channels.covariances.shape[1]
    weights = tap_nodes(taps, channels.law).reshape(-1, CHANNELS, taps).transpose(1, 0, 2)
    v = np.einsum("cqk,cqk->cq", weights @ channels.covariances, weights)
    inverse = 1.0 / (v + eps)
    flat, scale = weights.reshape(-1, taps), inverse.reshape(-1, 1)
    norm = np.sum(flat**2, axis=1)
    tilt = 1.0
    if channels.inverse is not None:
        gain = np.mean(np.sum(weights**2, axis=2) * inverse, axis=1)
        tilt = float(np.mean(gain * channels.inverse) / (gain.mean() * channels.inverse.mean()))
    return VarianceLaw(
        float(v.mean()),
        float(np.mean(v * inverse)),
        float(inverse.mean()),
        float(norm @ scale[:, 0]) / float(norm.sum()),
        taps=(flat * scale).T @ flat / len(flat),
        tilt=tilt,
    )


def normalise(channels: DepthwiseChannels, law: VarianceLaw, eps: float) -> DepthwiseChannels:
    """Batch normalisation of every sampled channel by its own statistics."""
    z = channels.values - channels.values.mean(axis=(1, 2), keepdims=True)
    v = np.mean(z * z, axis=(1, 2), keepdims=True)
    z = z / np.sqrt(v * (law.mean / float(v.mean())) + eps) * np.sqrt(law.mean / float(v.mean()))
    z *= np.sqrt(law.ratio / float(np.mean(z * z)))
    return replace(channels, values=z)


def correct(duals: Duals, function: ActivationFunction, channels: DepthwiseChannels) -> Duals:
    """Replace an activation's Gaussian averages by those over the sampled channels.

    The kernel is shifted by one number for each offset between two positions, within a sample and between samples: few
    enough that the noise of the sample stays small.
    """
    out = function.value(channels.values)
    flipped = function.value(-channels.values)  # -w is as likely as w
    kernel = duals.kernel
    scale = float(np.exp(kernel.log_scale))
    same, cross = (sum(parts) / 2 for parts in zip(_kernels(out), _kernels(flipped), strict=True))
    layout = kernel.layout
    values = kernel.values * scale
    offsets = _offsets(kernel.size)
    mean_same = values[: layout.profiles].mean(axis=0)
    shift_same = _by_offset(same - mean_same, offsets)
    values[: layout.profiles] += shift_same
    if len(layout.left) > layout.profiles and cross is not None:
        share = layout.weight[layout.profiles :]
        mean_cross = np.tensordot(share / share.sum(), values[layout.profiles :], axes=1)
        values[layout.profiles :] += _by_offset((cross + cross.T - mean_cross - mean_cross.T) / 2, offsets)
    slopes = function.derivative(channels.values), function.derivative(-channels.values)
    exact = float(np.mean(slopes[0] ** 2) + np.mean(slopes[1] ** 2)) / 2
    factor = exact / (duals.derivative.second_moment * np.exp(duals.derivative.log_scale))
    mean = float(out.mean() + flipped.mean()) / 2
    before = float(duals.mean.mean())
    return replace(
        duals,
        mean=duals.mean + (mean - before),
        kernel=replace(kernel, values=values, log_scale=0.0).scaled(1.0),
        derivative=duals.derivative.scaled(factor),
    )


def _kernels(values: Array) -> tuple[Array, Array]:
    """Mean product within a sample and between samples, each (positions, positions)."""
    channels, samples, positions = values.shape
    flat = values.reshape(-1, positions)
    same = flat.T @ flat / len(flat)
    if samples == 1:
        return same, same
    total = values.sum(axis=1)
    return same, (total.T @ total / channels - samples * same) / (samples * (samples - 1))


@lru_cache(maxsize=64)
def _offsets(size: tuple[int, int]) -> Ints:
    """A number for each offset between two positions of a map, shape (positions, positions)."""
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    down = rows[:, None] - rows[None, :] + size[0] - 1
    across = cols[:, None] - cols[None, :] + size[1] - 1
    return np.asarray(down * (2 * size[1] - 1) + across)


def _by_offset(values: Array, offsets: Ints) -> Array:
    """Replace every entry by the mean over entries of the same offset."""
    count = np.bincount(offsets.ravel())
    total = np.bincount(offsets.ravel(), values.ravel())
    return np.asarray((total / np.maximum(count, 1))[offsets], dtype=np.float64)


def tap_index(
    size: tuple[int, int], window: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int, int, int]
) -> Ints:
    """Flat input position under each tap at each output position, shape (taps, outputs); -1 in the padding."""
    (h, w), (top, bottom, left, right) = size, padding
    out_h = (h + top + bottom - window[0]) // stride[0] + 1
    out_w = (w + left + right - window[1]) // stride[1] + 1
    index = np.empty((window[0] * window[1], out_h * out_w), np.intp)
    for k in range(len(index)):
        rows = np.arange(out_h) * stride[0] + k // window[1] - top
        cols = np.arange(out_w) * stride[1] + k % window[1] - left
        inside = ((rows >= 0) & (rows < h))[:, None] & ((cols >= 0) & (cols < w))[None, :]
        index[k] = np.where(inside, rows[:, None] * w + cols[None, :], -1).ravel()
    return index


def tap_covariance(kernel: PairKernel, window: Window) -> Array:
    """Covariance over batch and positions of one channel's values at the taps of a window, shape (taps, taps).

    Zero padding counts as data. Units: those of ``kernel.values``.
    """
    index = tap_index(kernel.size, *window)
    layout, positions = kernel.layout, kernel.values.shape[1]
    same = np.pad(kernel.values[: layout.profiles].mean(axis=0), (0, 1))
    mean = np.pad(np.tensordot(layout.weight, kernel.values, axes=1), (0, 1))
    moment = same[index[:, None, :], index[None, :, :]].mean(axis=2)
    select = np.stack([np.bincount(k % (positions + 1), minlength=positions + 1) for k in index]) / index.shape[1]
    return np.asarray(moment - select @ mean @ select.T, dtype=np.float64)


def tap_nodes(taps: int, law: WeightLaw) -> Array:
    """Depthwise kernels as low-discrepancy points, shape (NODES, taps)."""
    scale = law.std if law.distribution not in ("uniform", "truncated_normal") else law.limit
    return _unit_nodes(taps, law.distribution) * scale


@lru_cache(maxsize=8)
def _unit_nodes(taps: int, distribution: str) -> Array:
    unit = qmc.Sobol(taps, scramble=True, rng=0).random(NODES)
    match distribution:
        case "uniform":
            return np.asarray(2 * unit - 1)
        case "truncated_normal":
            low = ndtr(-2.0)
            return np.asarray(ndtri(low + unit * (1 - 2 * low)) / 2)
        case _:
            return np.asarray(ndtri(unit))
