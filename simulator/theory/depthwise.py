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

_POINTS = 512  # of the data over which slopes are compared
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
    inverse
        1 / (v + eps) of the input channels' own normalisation, or None.
    gates
        Squared slopes of the activation before, at the inputs, shape (channels / 2, samples, positions); None where
        there was none.
    """

    covariances: Array
    law: WeightLaw
    inverse: Array | None
    window: Window
    gates: Array | None

    def relations(self, size: Size, after: Array, inverse: Array | None) -> Relations:
        """How the slopes after the layer go with its weights and with the slopes before it.

        Parameters
        ----------
        size
            The layer's input map.
        after
            Squared slopes of the activation after the layer, shape (channels, samples, outputs).
        inverse
            The channels' 1 / (v + eps) if they are normalised first, shape (channels,).
        """
        count = len(self.covariances)
        index = self.window.index(size)
        weights = tap_nodes(self.window.taps, self.law)[:count] ** 2
        samples = max(1, _POINTS // (size[0] * size[1]))
        slopes = (after[:count, :samples] + after[count:, :samples]) / 2
        scale = np.ones(count) if inverse is None else inverse[:count]
        tilt = _excess(slopes.mean(axis=(1, 2)), scale)
        through = np.zeros((count, slopes.shape[1], size[0] * size[1] + 1))
        alone = np.zeros((count, 1, size[0] * size[1] + 1))
        for k, under in enumerate(index):
            # One tap reaches an input at most once, but for the padding, which is dropped.
            factor = (weights[:, k] * scale)[:, None, None]
            through[:, :, under] += factor * slopes
            alone[:, :, under] += factor
        through = through[:, :, :-1]
        seen = float(alone[:, :, :-1].mean()) * float(slopes.mean())
        reweigh = float(through.mean()) / seen / tilt if seen > 0 else 1.0
        gates = 1.0 if self.gates is None else _excess(through, self.gates[:, :samples])
        return Relations(tilt, reweigh, gates)


@dataclass(frozen=True)
class Relations:
    """Mean products over the product of means, around a depthwise layer; all one if nothing knew of anything.

    Attributes
    ----------
    tilt
        Of the slopes after the layer and 1 / (v + eps).
    reweigh
        What the squared weights add to that.
    gates
        Of what comes back through the layer and the slopes before it. An input that is zero closes the gate before the
        layer and adds nothing to the outputs that it feeds: the fewer the taps, the more the gates know of one another.
    """

    tilt: float = 1.0
    reweigh: float = 1.0
    gates: float = 1.0


UNRELATED = Relations()


def _excess(first: Array, second: Array) -> float:
    apart = float(first.mean()) * float(second.mean())
    return float(np.mean(first * second)) / apart if apart > 0 else 1.0


def depthwise(inputs: Sample, size: Size, window: Window, law: WeightLaw, expected: Array) -> tuple[Sample, Taps]:
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
    half = None if inputs.slopes is None else inputs.slopes[::2]
    return Sample(np.concatenate([values, -values])), Taps(covariances, law, inverse, window, half)


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
        tilt = _excess(gain, channels.inverse)
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
