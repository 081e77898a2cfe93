"""Gradients at sampled channels.

A gradient that comes back through a dense layer knows nothing of the channels it arrives at: it is Gaussian, its kernel
says everything, and the first slopes on its way multiply that kernel. From there on it is tied to the channels: the
next slopes, or a maximum's choices, depend on the values that made the first ones what they were, and so do gradients
that come back along several paths from one layer. There it is followed at the channels that the signal is sampled at.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.corrections import averages, lacking, levelled, shifted
from varprop.simulator.theory.maps import Size, Window
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sample import Sample, channel_means, cropped_piece, mapped, mirrored, position_squares
from varprop.simulator.theory.sampling import VALUES, counts, draw, signs

Array = NDArray[np.float64]

_VALUES = VALUES // 2  # that are drawn: of less noise than signals, as what they miss is given back


@dataclass(frozen=True)
class Drawn:
    """A gradient at sampled channels, shape (positions, samples, channels), in units of ``exp(log_scale / 2)``."""

    values: Array
    log_scale: float

    def times(self, factor: Array) -> Drawn:
        """Multiply by a factor of each value; both may have channels and samples that the other lacks."""
        found = self.part(factor.shape[1] if factor.shape[1] > 1 else self.values.shape[1], factor.shape[2])
        _, samples, channels = found.values.shape
        return replace(found, values=found.values * factor[:, :samples, :channels])

    def part(self, samples: int, channels: int) -> Drawn:
        """Keep some channels and samples, at the second moment of all."""
        values = self.values[:, :samples, :channels]
        if values.shape == self.values.shape:
            return self
        size = float(np.mean(values**2))
        factor = np.sqrt(float(np.mean(self.values**2)) / size) if size > 0 else 0.0
        return replace(self, values=values * factor)

    def mapped(self, matrix: Array, layout: Layout) -> Drawn:
        """Apply a linear map of the positions, shape (after, before), to as much as is drawn of a map of its size."""
        _, *have = self.values.shape
        samples, channels = map(min, have, counts(layout, len(matrix)))
        found = self.part(samples, channels)
        return replace(found, values=mapped(matrix, found.values))

    def on(self, kernel: PairKernel, size: Size) -> Drawn:
        """Keep as many rows and columns of a map of `size` as a kernel deep inside it has, at its sizes.

        Behind a stride a kernel has what positions have on average, and some of these have no gradient.
        """
        if size == kernel.size:
            return self
        values = cropped_piece(self.values, size, kernel.size)
        level = np.sqrt(position_squares(values))
        wanted = np.sqrt(np.maximum(kernel.diagonal.mean(axis=0), 0.0) * np.exp(kernel.log_scale - self.log_scale))
        factor = np.divide(wanted, level, out=np.zeros_like(level), where=level > 0)
        seen, whole = float(np.sum(wanted[level > 0] ** 2)), float(np.sum(wanted**2))
        factor *= np.sqrt(whole / seen) if seen > 0 else 1.0
        return replace(self, values=values * factor[:, None, None])

    def centred(self, kernel: PairKernel) -> Drawn:
        """Leave of each channel's mean what `kernel` says, that of the gradient less its mean over the whole batch.

        A few sampled points have a mean of their own, which stays.
        """
        samples = self.values.shape[1]
        same, cross = (float(values.mean()) for values in averages(kernel))
        size = kernel.second_moment * float(np.exp(kernel.log_scale))
        share = (same + (samples - 1) * cross) / (samples * size) if size > 0 else 0.0
        mean = channel_means(self.values)
        rest = self.values - mean
        known, left = float(np.mean(mean**2)), float(np.mean(rest**2))
        if known == 0.0 or share >= 1.0:
            return self
        return replace(self, values=rest + mean * np.sqrt(max(share, 0.0) / (1.0 - share) * left / known))

    def like(self, kernel: PairKernel) -> Drawn:
        """Scale to the second moment of a kernel."""
        size = float(np.mean(self.values**2))
        factor = np.sqrt(max(kernel.second_moment, 0.0) / size) if size > 0 else 0.0
        return Drawn(self.values * factor, kernel.log_scale)


def drawn(kernel: PairKernel, key: int) -> Drawn:
    """Draw a gradient that is not tied to the channels; only its products are looked at."""
    return Drawn(mirrored(draw(replace(kernel, log_scale=0.0), key, signs, _VALUES)).values, 0.0).like(kernel)


def plus(parts: list[Drawn]) -> Drawn:
    """Add gradients at the same channels."""
    samples, channels = (min(part.values.shape[axis] for part in parts) for axis in (1, 2))
    scale = max(part.log_scale for part in parts)
    pieces = [part.part(samples, channels).values * np.exp((part.log_scale - scale) / 2) for part in parts]
    return Drawn(np.sum(pieces, axis=0), scale)


def missed(kernel: PairKernel, gradient: Drawn) -> list[Array]:
    """Return what a drawn gradient misses of its kernel's averages, within a sample and between samples."""
    return lacking(replace(kernel, log_scale=kernel.log_scale - gradient.log_scale), gradient.values)


def corrected(kernel: PairKernel, gradient: Drawn, gaps: Sequence[Array | float] = (0.0, 0.0)) -> PairKernel:
    """Give a gradient's kernel the averages of sampled channels: sizes at each position, products at each offset.

    `gaps` are what the sample `missed` before the operation, as it comes through it: control variates, which behind the
    slopes of ReLU take nine tenths of the noise's variance away.
    """
    scale = gradient.log_scale  # that both are in units of meanwhile
    own, sample = replace(kernel, log_scale=kernel.log_scale - scale), Sample(gradient.values)
    found = shifted(levelled(own, sample), sample, gaps)
    return replace(found, log_scale=found.log_scale + scale)


def chosen(signal: Array, gradient: Drawn, window: Window, size: Size) -> Drawn:
    """Send a gradient after a maximum to the position that is the largest in each window."""
    gradient = gradient.part(*signal.shape[1:])
    _, samples, channels = gradient.values.shape
    index = window.index(size)
    under = signal[:, :samples, :channels][index]
    winner = under.argmax(axis=0)
    values = np.zeros((len(signal), samples, channels))
    for tap, where in enumerate(index):  # each reaches an input at most once
        values[where] += np.where(winner == tap, gradient.values, 0.0)
    return replace(gradient, values=values)
