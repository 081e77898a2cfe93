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

from varprop.simulator.theory.maps import Size
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
        Correlation of the deviations at two positions of the map, shape (positions, positions); None for one position
        or where nothing strays. A window over a small map makes them alike, and the next one averages nothing out.
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
        known = self.places if self.places is not None and len(self.places) == len(fresh) else fresh
        places = (before * known + variance * fresh) / (before + variance)
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

    def padded(self, size: Size, rows: tuple[tuple[int, int], tuple[int, int]]) -> Strays:
        """Return the deviation on a map with zeros around it."""
        if self.places is None or len(self.places) != size[0] * size[1]:
            return self
        places = np.pad(self.places.reshape(*size, *size), (*rows, *rows))
        points = places.shape[0] * places.shape[1]
        return replace(self, places=places.reshape(points, points))

    def averaged(self, matrix: Array, kernel: PairKernel) -> tuple[Strays, float]:
        """Return what a window keeps of the sources, place by place, and the variance of all that it makes of them.

        `matrix` averages over the window, shape (outputs, inputs).
        """
        known = self.places if self.places is not None and len(self.places) == matrix.shape[1] else _alike(kernel)
        # A place adds to the deviation what it adds to the second moment: zero padding nothing.
        weights = matrix * np.mean(kernel.diagonal, axis=0)
        whole = float(weights.sum()) / len(weights)
        if whole <= 0:
            return NONE, 0.0
        weights /= whole
        half = weights @ known
        places = half @ weights.T
        level = float(np.trace(places)) / len(places)
        kept = float(np.trace(half)) / len(half) if len(half) == half.shape[1] else level
        # Of the third moment a mean over independent places keeps as much as of the variance, squared.
        left = replace(self.times(min(kept, sqrt(level))), third=self.third * level**2, places=places / level)
        return left, self.variance * level


NONE = Strays()


def _alike(kernel: PairKernel) -> Array:
    """Return the squared correlation of a channel's values at two positions of a sample."""
    same = np.mean(kernel.values[: kernel.layout.profiles], axis=0) - kernel.pair_mean
    own = np.diag(same)
    inverse = np.divide(1.0, own, out=np.zeros_like(own), where=own > 1e-12 * kernel.second_moment)
    return np.asarray(np.minimum(same**2 * inverse[:, None] * inverse[None, :], 1.0))


def together(shares: Sequence[float], parts: Sequence[Strays]) -> Strays:
    """Return the deviation of a sum, given the terms' shares in it."""
    total: dict[str, float] = {}
    third = sum(share**3 * part.third for share, part in zip(shares, parts, strict=True))
    for share, part in zip(shares, parts, strict=True):
        for source, c in part.sources.items():
            total[source] = total.get(source, 0.0) + share * c
    weights = [share**2 * part.variance for share, part in zip(shares, parts, strict=True)]
    known = [(w, part.places) for w, part in zip(weights, parts, strict=True) if part.places is not None and w > 0]
    if not known or len({len(places) for _, places in known}) > 1:
        return Strays(total, third)
    return Strays(total, third, np.asarray(sum(w * places for w, places in known)) / sum(w for w, _ in known))
