"""How the kernel of one weight draw strays from its expectation, as far as batch normalisation needs it.

The kernel of a layer's input is a mean over n channels, which strays by 1 / n of the squared second moment; what comes
later inherits that, and a shortcut meets again what its branch has inherited. So an entry's relative deviation is kept
as a combination of independent sources of variance one, each named after the node it came from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Window, at_offsets, by_offset, overlaps, window_sum
from varprop.simulator.theory.pairs import PairKernel

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Strays:
    """Relative deviation of the entries of a centred kernel that belong to two samples at one position.

    Attributes
    ----------
    sources
        Coefficient of every source.
    third
        Mean product of the deviations of the three pairs among three samples. Of products of n Gaussian channels it is
        1 / n^2.
    places
        Correlation of the deviations of two pairs of positions, by how far the one pair is shifted against the other:
        shape (2 height - 1, 2 width - 1), no shift in the middle; None where nothing is known. A window makes
        neighbours alike, and the next one averages little out.
    """

    sources: Mapping[str, float] = field(default_factory=dict)
    third: float = 0.0
    places: Array | None = None

    @property
    def variance(self) -> float:
        """Variance of the deviation, relative to the squared second moment."""
        return sum(c * c for c in self.sources.values())

    def times(self, factor: float) -> Strays:
        """Return what is left after an operation that multiplies small deviations by a factor."""
        sources = {source: factor * c for source, c in self.sources.items()}
        return replace(self, sources=sources, third=self.third * factor**3)

    def plus(self, name: str, variance: float, kernel: PairKernel) -> Strays:
        """Return the deviation with a source more: channels whose products are those of Gaussian ones with a kernel."""
        if variance <= 0:
            return self
        before, fresh = self.variance, _alike(kernel)
        places = (before * self._known(fresh) + variance * fresh) / (before + variance)
        # A random covariance of relative variance 1 / n of that of the channels before.
        third = self.third + 3 * before * variance + variance**2
        return Strays({**self.sources, name: sqrt(self.sources.get(name, 0.0) ** 2 + variance)}, third, places)

    def normalised(self, before: float, after: tuple[float, float], plain: float) -> Strays:
        """Return the deviation after the channels of a weighted layer were divided by their variances.

        The kernel is a mean of n matrices of rank and trace one, so that with A their expectation, given the layers
        before, E tr K^2 = 1 / n + (1 - 1/n) tr A^2 and E tr K^3 = 1 / n^2 + 3 / n (1 - 1/n) tr A^2 + (1 - 1/n) (1 -
        2/n) tr A^3.

        Parameters
        ----------
        before, after
            Variance of what the layer's input strayed by; variance and third moment of what that is in A.
        plain
            tr A^2 of the expected kernel, (tr A)^2 being one.
        """
        fresh = self.variance - before
        if fresh <= 0:
            return self
        variance, third = after
        left = variance * (1 - fresh)
        factor = sqrt(left / before) if before > 0 else 0.0
        *others, newest = self.sources.items()
        sources = {name: factor * c for name, c in others}
        inherited = max(left - sum(c * c for c in sources.values()), 0.0)
        sources[newest[0]] = sqrt(inherited + fresh * (1 - plain))
        third = (1 - fresh) * (1 - 2 * fresh) * third + 3 * left * fresh * (1 - 2 * plain)
        return replace(self, sources=sources, third=third + (1 - plain) * (1 - 2 * plain) * fresh**2)

    def _known(self, fresh: Array) -> Array:
        """Return the correlations on a map whose fresh deviations have the given ones; zero padding adds none."""
        if self.places is None or any(n > m for n, m in zip(self.places.shape, fresh.shape, strict=True)):
            return fresh
        down, across = (np.arange(n) - n // 2 for n in fresh.shape)
        return at_offsets(self.places, down, across)

    def averaged(self, name: str, window: Window, kernel: PairKernel, after: PairKernel) -> Strays:
        """Return the deviation after a window: what it keeps of the sources, and a source of its own for the rest.

        A pair of outputs averages over the pairs of inputs that lie alike under both windows: like a random walk, its
        averages spread as if the map had no edges, but a tap that lies on zero padding adds nothing. What a mean and
        the zeros around it add to the centred kernel `after` the window does not stray.
        """
        if not self.sources:
            return self
        level = kernel.diagonal.mean(axis=0)
        varied = np.maximum(level - kernel.pair_mean, 0.0)
        loads = window.loads(varied, kernel.size)
        centred = after.variance
        if not loads.any() or centred <= 0:
            return NONE
        whole, part = (float(window_sum(field.reshape(kernel.size), window).sum()) for field in (level, varied))
        contrast = min(part / whole * after.second_moment / centred, 1.0)
        known = self._known(_alike(kernel))
        size = window.out_size(kernel.size)
        down, across = (
            stride * np.arange(1 - out, out)[:, None] + np.arange(1 - taps, taps)
            for stride, out, taps in zip(window.stride, size, window.kernel, strict=True)
        )
        places = np.einsum("iajb,ab->ij", at_offsets(known, down, across), overlaps(loads))
        same = float(places[size[0] - 1, size[1] - 1])
        kept, left = contrast * same, contrast**2 * same
        if size == kernel.size:
            rows, cols = (np.arange(taps) - (taps - 1) // 2 for taps in window.kernel)
            kept = min(contrast * float(np.sum(loads * at_offsets(known, rows, cols))), sqrt(left))
        found = self.times(kept)
        own = sqrt(max(self.variance * left - found.variance, 0.0) + found.sources.get(name, 0.0) ** 2)
        # Of the third moment a mean over independent places keeps as much as of the variance, squared.
        return Strays({**found.sources, name: own}, self.third * contrast**3 * same**2, places / same)

    def pooled(self, window: Window, kernel: PairKernel) -> Strays:
        """Return the deviation of the mean under a window, of each channel alone.

        A pair of outputs is the mean over all pairs of taps, whose deviations are alike as products of channels are,
        r(u) r(u') for the one position u and the other u' apart; and more, `places`, where both are as far apart.
        """
        if not self.sources:
            return self
        pairs = overlaps(np.full(window.kernel, 1 / window.taps))
        down, across = (np.arange(n) - n // 2 for n in pairs.shape)
        alike, correlation = _alike(kernel), _correlation(kernel)
        left = float(np.sum(pairs * at_offsets(correlation, down, across)))
        more = float(np.sum(pairs**2 * at_offsets(self._known(alike) - alike, down, across)))
        return self.times(sqrt(max(1.0 + more / left**2, 0.0))) if left > 0 else self


NONE = Strays()


def _correlation(kernel: PairKernel) -> Array:
    """Return the correlation of a channel's values at two positions of a sample, by their offset."""
    same = by_offset(np.mean(kernel.values[: kernel.layout.profiles], axis=0) - kernel.pair_mean, kernel.size)
    own = float(same[kernel.size[0] - 1, kernel.size[1] - 1])
    return np.clip(same / own, -1.0, 1.0) if own > 1e-12 * kernel.second_moment else np.zeros_like(same)


def _alike(kernel: PairKernel) -> Array:
    """Return the squares of these: correlations of what products of Gaussian channels stray by."""
    return np.asarray(_correlation(kernel) ** 2)


def together(shares: Sequence[float], parts: Sequence[Strays]) -> Strays:
    """Return the deviation of a sum, given the terms' shares in it."""
    total: dict[str, float] = {}
    third = sum(share**3 * part.third for share, part in zip(shares, parts, strict=True))
    for share, part in zip(shares, parts, strict=True):
        for source, c in part.sources.items():
            total[source] = total.get(source, 0.0) + share * c
    weights = [share**2 * part.variance for share, part in zip(shares, parts, strict=True)]
    known = [(w, part.places) for w, part in zip(weights, parts, strict=True) if part.places is not None and w > 0]
    if not known or len({places.shape for _, places in known}) > 1:
        return Strays(total, third)
    return Strays(total, third, np.asarray(sum(w * places for w, places in known)) / sum(w for w, _ in known))
