"""Depthwise layers: nine weights a channel at any width, so that every channel's variance is its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.initializers import WeightLaw
from varprop.simulator.theory.maps import Size, Window
from varprop.simulator.theory.pairs import PairKernel, grown
from varprop.simulator.theory.sampling import Sample
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

NODES = 2**14  # depthwise kernels over which 1 / (v + eps) is averaged


@dataclass(frozen=True)
class Taps:
    """What normalisation needs of a depthwise layer.

    Attributes
    ----------
    covariances
        Of each sampled input channel's values under the taps over the data, shape (channels / 2, taps, taps).
    law
        Of the weights.
    source
        The sampled input channels.
    """

    covariances: Array
    law: WeightLaw
    window: Window
    source: Sample


def excess(first: Array, second: Array) -> float:
    """Return the mean product of two over the product of their means."""
    apart = float(first.mean()) * float(second.mean())
    return float(np.mean(first * second)) / apart if apart > 0 else 1.0


def depthwise(
    inputs: Sample, size: Size, window: Window, law: WeightLaw, expected: Array, batch: int
) -> tuple[Sample, Taps]:
    """Convolve sampled channels with kernels of their own; `expected` is the mean of the taps' covariances.

    Every other input channel is used, with a kernel and with its negative, as likely as itself.
    """
    index = window.index(size)
    padded = np.pad(inputs.values[::2], ((0, 0), (0, 0), (0, 1)))
    taps, (count, samples, _) = len(index), padded.shape
    under = np.ascontiguousarray(padded[:, :, index].transpose(0, 2, 1, 3)).reshape(count, taps, -1)
    weights = tap_nodes(taps, law)[:count]
    values = (weights[:, None, :] @ under).reshape(count, samples, -1)
    under -= under.mean(axis=2, keepdims=True)
    covariances = under @ under.transpose(0, 2, 1) / under.shape[2]
    if samples < batch:
        covariances = _of_batch(covariances, under.reshape(count, taps, samples, -1), batch)
    trace = float(np.trace(covariances.mean(axis=0)))
    if trace > 0:
        covariances *= float(np.trace(expected)) / trace
    return Sample(np.concatenate([values, -values])), Taps(covariances, law, window, inputs.half())


def _of_batch(covariances: Array, under: Array, batch: int) -> Array:
    """Return the channels' covariances over a whole batch, given those over a few samples.

    Channels differ less over the whole batch: their spread is brought down by the part that the samples' own spread
    says is due to their number. It would count twice, as E[1 / v] grows with the spread of v.

    Parameters
    ----------
    under
        What the covariances, (channels, taps, taps), are made of, centred: (channels, taps, samples, positions).
    """
    samples = under.shape[2]
    spread = float(covariances.var(axis=0).sum())
    if samples == 1 or spread == 0.0:
        return covariances
    apart = np.einsum("ctsp,cusp->sctu", under, under) / under.shape[3]
    noise = float(apart.var(axis=0, ddof=1).mean(axis=0).sum()) / samples * (1 - samples / batch)
    mean = covariances.mean(axis=0)
    return np.asarray(mean + np.sqrt(max(1.0 - noise / spread, 0.0)) * (covariances - mean))


def depthwise_law(channels: Taps, eps: float) -> VarianceLaw:
    """Law of v = w^T C w over kernels w and input channels, whose covariances C differ."""
    count, taps, _ = channels.covariances.shape
    weights = tap_nodes(taps, channels.law).reshape(-1, count, taps).transpose(1, 0, 2)
    v = np.einsum("cqk,cqk->cq", weights @ channels.covariances, weights)
    inverse = 1.0 / (v + eps)
    flat, scale = weights.reshape(-1, taps), inverse.reshape(-1, 1)
    norm = np.sum(flat**2, axis=1)
    tilt = 1.0
    if channels.source.inverse is not None:
        gain = np.mean(np.sum(weights**2, axis=2) * inverse, axis=1)
        tilt = excess(gain, channels.source.inverse)
    return VarianceLaw(
        float(v.mean()),
        float(np.mean(v * inverse)),
        float(inverse.mean()),
        float(norm @ scale[:, 0]) / float(norm.sum()) if norm.any() else float(inverse.mean()),
        taps=(flat * scale).T @ flat / len(flat),
        tilt=tilt,
    )


def tap_covariance(kernel: PairKernel, window: Window) -> Array:
    """Covariance over batch and positions of one channel's values at the taps of a window, shape (taps, taps).

    Zero padding counts as data. Units: those of ``kernel.values``.
    """
    if window.inside:
        kernel, window = grown(kernel, window), Window(window.kernel, window.stride)
    index = window.index(kernel.size)
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
    # Roberts' sequence: multiples of the powers of the positive root of x^(taps + 1) = x + 1, modulo one. Each axis is
    # replaced by its ranks, so that every tap takes every quantile of its law once.
    root = 2.0
    for _ in range(64):
        root = (1.0 + root) ** (1.0 / (taps + 1))
    unit = (np.arange(1, NODES + 1)[:, None] * root ** -np.arange(1.0, taps + 1)) % 1.0
    rank = np.argsort(np.argsort(unit, axis=0), axis=0)
    return _quantiles(distribution)[rank]


@lru_cache(maxsize=3)
def _quantiles(distribution: str) -> Array:
    """Return those of the unit law at the middles of NODES equal cells."""
    p = (0.5 + np.arange(NODES)) / NODES
    if distribution == "uniform":
        return 2 * p - 1
    normal = NormalDist()
    if distribution == "truncated_normal":
        low = normal.cdf(-2.0)
        return np.array([normal.inv_cdf(x) for x in low + p * (1 - 2 * low)]) / 2
    return np.array([normal.inv_cdf(x) for x in p])
