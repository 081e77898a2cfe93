"""Depthwise layers: nine weights a channel at any width, so that every channel's variance is its own."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import qmc

from varprop.simulator.initializers import WeightLaw
from varprop.simulator.theory.maps import Size, Window
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.sampling import Sample
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

NODES = 2**15  # depthwise kernels over which 1 / (v + eps) is averaged


@dataclass(frozen=True)
class Taps:
    """What normalisation needs of a depthwise layer.

    Attributes
    ----------
    covariances
        Of each sampled input channel's values under the taps over the data, shape (CHANNELS / 2, taps, taps).
    law
        Of the weights.
    inverse
        1 / (v + eps) of the input channels' own normalisation, or None.
    """

    covariances: Array
    law: WeightLaw
    inverse: Array | None


def depthwise(
    inputs: Sample, size: Size, window: Window, law: WeightLaw, expected: Array
) -> tuple[Sample, Taps]:
    """Convolve sampled channels with kernels of their own; `expected` is the mean of the taps' covariances.

    Every other input channel is used, with a kernel and with its negative, as likely as itself.
    """
    index = window.index(size)
    padded = np.pad(inputs.values[::2], ((0, 0), (0, 0), (0, 1)))
    taps = len(index)
    count, samples, _ = padded.shape
    under = np.ascontiguousarray(padded[:, :, index].transpose(0, 2, 1, 3)).reshape(count, taps, -1)
    weights = tap_nodes(taps, law)[:count]
    values = (weights[:, None, :] @ under).reshape(count, samples, -1)
    under -= under.mean(axis=2, keepdims=True)
    covariances = under @ under.transpose(0, 2, 1) / under.shape[2]
    trace = float(np.trace(covariances.mean(axis=0)))
    if trace > 0:
        covariances *= float(np.trace(expected)) / trace
    inverse = None if inputs.inverse is None else inputs.inverse[::2]
    return Sample(np.concatenate([values, -values])), Taps(covariances, law, inverse)


def depthwise_law(channels: Taps, eps: float) -> VarianceLaw:
    """Law of v = w^T C w over kernels w and input channels, whose covariances C differ."""
    count, taps, _ = channels.covariances.shape
    weights = tap_nodes(taps, channels.law).reshape(-1, count, taps).transpose(1, 0, 2)
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


def tap_covariance(kernel: PairKernel, window: Window) -> Array:
    """Covariance over batch and positions of one channel's values at the taps of a window, shape (taps, taps).

    Zero padding counts as data. Units: those of ``kernel.values``.
    """
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
    unit = qmc.Sobol(taps, scramble=True, rng=0).random(NODES)
    match distribution:
        case "uniform":
            return np.asarray(2 * unit - 1)
        case "truncated_normal":
            low = ndtr(-2.0)
            return np.asarray(ndtri(low + unit * (1 - 2 * low)) / 2)
        case _:
            return np.asarray(ndtri(unit))
