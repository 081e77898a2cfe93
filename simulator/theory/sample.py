"""Channels that are not Gaussian, followed as a sample: what it holds, and what single operations make of it.

Where a sum over many inputs makes a channel Gaussian, its kernel says everything. Behind a depthwise kernel (nine taps
at any width) or a shortcut from behind an activation it does not. There theory integrates over the law of one
channel by cubature: it draws a few hundred channels over points of the data (`sampling`), and what an activation does
to them corrects the Gaussian averages (`corrections`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.theory.maps import Ints, Size

Array = NDArray[np.float64]

_SOME = 64  # values of a position that are looked at before all are


@dataclass(frozen=True)
class Sample:
    """Channels drawn from their law.

    Attributes
    ----------
    values
        At sampled points of the data, shape (positions, samples, channels): what a window or a linear map of the
        positions does is done to whole rows.
    inverse
        1 / (v + eps) of the last batch normalisation that each channel went through, shape (channels,); None
        where there was none.
    slopes, inputs
        Of the activation that gave the values, of their shape; None where none did.
    lift
        What that normalisation took for each channel's mean, divided as the rest, shape (channels,).
    over_map
        Of a larger map's inside, each channel's variance over all of the map over that at the sampled positions; None
        where that is not known.
    """

    values: Array
    inverse: Array | None = None
    slopes: Array | None = None
    inputs: Array | None = None
    lift: Array | None = None
    over_map: Array | None = None

    @cached_property
    def varies(self) -> NDArray[np.bool_]:
        """At which positions the values are not one number, as in zero padding; none at all counts as all."""
        flat = self.values.reshape(len(self.values), -1)
        varies: NDArray[np.bool_] = np.any(flat[:, :_SOME] != flat[:, :1], axis=1)
        alike = np.flatnonzero(~varies)
        varies[alike] = np.any(flat[alike] != flat[alike, :1], axis=1)
        return varies if varies.any() else ~varies

    @property
    def normalised(self) -> tuple[Array, ...]:
        """What normalisation fixes the mean over samples of, at an activation behind it: (samples, channels) each."""
        if self.inverse is None or self.inputs is None:
            return ()
        return self.inputs.mean(axis=0), np.einsum("psc,psc->sc", self.inputs, self.inputs) / len(self.inputs)

    def at(self, samples: Ints) -> Sample:
        """Return some of the samples, numbers of which are given."""
        values, inverse, slopes, inputs = (
            field if field is None or field.ndim == 1 else field[:, samples]
            for field in (self.values, self.inverse, self.slopes, self.inputs)
        )
        assert values is not None
        return Sample(values, inverse, slopes, inputs)

    def half(self) -> Sample:
        """Return every other channel."""
        others = (None if field is None else field[..., ::2] for field in (self.inverse, self.slopes, self.inputs))
        return Sample(self.values[..., ::2], *others)


def alike(*drawn: Array) -> list[Array]:
    """Keep the samples and channels that all fields have."""
    samples, channels = (min(values.shape[axis] for values in drawn) for axis in (1, 2))
    return [values[:, :samples, :channels] for values in drawn]


def mirrored(half: Sample) -> Sample:
    """Return channels and their negatives; of what an activation has not seen yet."""
    inverse = None if half.inverse is None else np.tile(half.inverse, 2)
    lift = None if half.lift is None else np.concatenate([half.lift, -half.lift])
    over_map = None if half.over_map is None else np.tile(half.over_map, 2)
    return Sample(np.concatenate([half.values, -half.values], axis=2), inverse, lift=lift, over_map=over_map)


def mapped(matrix: Array, values: Array) -> Array:
    """Apply a linear map of the positions, shape (after, before), to sampled fields."""
    return (matrix @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])


def cropped_piece(values: Array, size: Size, wanted: Size) -> Array:
    """Keep the first rows and columns of maps, the first axis of an array: what `regrown` continued."""
    if size == wanted:
        return values
    return values.reshape(*size, *values.shape[1:])[: wanted[0], : wanted[1]].reshape(-1, *values.shape[1:])


def normalised(sample: Sample, eps: float, mean: float, edges: float, shared: float = 1.0) -> Sample:
    """Normalise every channel over the batch by its own statistics.

    Parameters
    ----------
    mean
        The known mean of the channels' variances.
    edges, shared
        How much smaller that is than the sampled positions' own, if these are a map's inside; and the part of it that
        varies as the inside does.
    """
    lift = channel_means(sample.values)
    z = sample.values - lift
    v = channel_squares(z)
    if sample.over_map is None:
        v = (shared * v + (1.0 - shared) * v.mean()) * edges
    else:
        v *= sample.over_map
    average = float(v.mean())
    # The sample's few points miss part of what varies over the whole batch.
    scale = mean / average if average > 0 else 1.0
    v *= scale
    inverse = 1.0 / (v + eps)
    root = np.sqrt(scale * inverse)
    z *= root
    return Sample(z, inverse, lift=lift * root)


def activated(sample: Sample, function: ActivationFunction) -> Sample:
    """Apply an activation to every value."""
    value, slope = function.value(sample.values), function.derivative(sample.values)
    return Sample(value, sample.inverse, slope, sample.values, sample.lift)


def squares_apart(values: Array) -> float:
    """Return the relative variance of channels' squares at one point, less the channels' means."""
    squares = values - channel_means(values)
    squares *= squares
    means = squares @ np.full(squares.shape[2], 1 / squares.shape[2])
    whole = float(np.vdot(means, means))
    return float(np.vdot(squares, squares)) / (whole * squares.shape[2]) - 1.0 if whole > 0.0 else 0.0


def channel_means(values: Array) -> Array:
    """Mean of each channel."""
    flat = values.reshape(-1, values.shape[2])
    return np.asarray(np.full(len(flat), 1 / len(flat)) @ flat)


def channel_squares(values: Array) -> Array:
    """Mean square of each channel."""
    flat = values.reshape(-1, values.shape[2])
    return np.asarray(np.einsum("nc,nc->c", flat, flat) / len(flat))


def channel_products(first: Array, second: Array) -> Array:
    """Mean product of each channel of two."""
    return np.asarray(np.einsum("psc,psc->c", first, second) / (first.shape[0] * first.shape[1]))


def position_squares(values: Array) -> Array:
    """Mean square at each position."""
    flat = values.reshape(len(values), -1)
    return np.asarray(np.vecdot(flat, flat) / flat.shape[1])


def kernels(values: Array) -> tuple[Array, Array]:
    """Mean product within a sample and between samples, each (positions, positions)."""
    positions, samples, channels = values.shape
    flat = values.reshape(positions, -1)
    same = flat @ flat.T / flat.shape[1]
    if samples == 1:
        return same, same
    total = values.sum(axis=1)
    return same, (total @ total.T / channels - samples * same) / (samples * (samples - 1))


def squares_alike(values: Array) -> tuple[Array, float]:
    """Return the correlation of channels' squares at two positions of a sample, and at one position of two samples."""
    squares = values**2
    squares -= squares.mean(axis=(1, 2), keepdims=True)
    same, cross = kernels(squares)
    root = np.sqrt(same.diagonal())
    sizes = np.outer(root, root)
    same = np.divide(same, sizes, out=np.ones_like(same), where=sizes > 0)
    whole = float(np.trace(sizes))
    return same, float(np.trace(cross)) / whole if whole > 0 else 0.0
