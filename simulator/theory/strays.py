"""How the kernel of one weight draw strays from its expectation, as far as batch normalisation needs it.

The kernel of a layer's input is a mean over n channels, which strays by 1 / n of the squared second moment; what comes
later inherits that, and a shortcut meets again what its branch has inherited. So an entry's relative deviation is kept
as a combination of independent sources, each named after the node it came from: a coefficient on maps of many
positions, a root of the covariance of entries on maps of few (`place_pairs`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory import place_pairs
from varprop.simulator.theory.maps import (
    Padding,
    Size,
    Window,
    apart_by,
    at_offsets,
    by_offset,
    here,
    offsets,
    overlaps,
    seen_by_offset,
    size_apart,
    under_window,
    window_sum,
)
from varprop.simulator.theory.pairs import ROUNDING, PairKernel

Array = NDArray[np.float64]
Source = float | Array

_VANISHED = 1e-200  # variance that is none
_MANY = 4  # sources, from which on those of a node that all paths lead through become one


@dataclass(frozen=True)
class Strays:
    """Relative deviation of the entries of a centred kernel that belong to two samples at one position.

    Attributes
    ----------
    sources
        Coefficient of every source, of variance one; on a map of few positions its root.
    third
        Mean product of the deviations of the three pairs among three samples. Of products of n Gaussian channels it is
        1 / n^2.
    places
        Correlation of the deviations of two pairs of positions, by how far the one pair is shifted against the other:
        shape (2 height - 1, 2 width - 1), no shift in the middle; None where nothing is known. A window makes
        neighbours alike, and the next one averages little out. Roots know better.
    walk
        Covariance of the entries that belong to one point, its level, with sources of their own, as fields by offset:
        how far from the point the source's value lies, the coefficient at the very point in the middle. Two windows
        come back to where they began more often than each alone stays there. See `Levels`: what a shortcut carries is
        as large in the samples that the branch has large, where other entries go either way.
    spots
        Correlation of the levels at two positions of a sample, as `places`; those of products of Gaussian channels
        where None.
    lead
        Share of the kernel in the one direction that straying levels bring about.
    """

    sources: Mapping[str, Source] = field(default_factory=dict)
    third: float = 0.0
    places: Array | None = None
    walk: Mapping[str, Array] = field(default_factory=dict)
    spots: Array | None = None
    lead: float = 0.0

    @cached_property
    def variance(self) -> float:
        """Variance of the deviation, relative to the squared second moment."""
        return sum(map(_square, self.sources.values()))

    @cached_property
    def levels(self) -> float:
        """Variance of the levels."""
        return sum(here(c) ** 2 for c in self.walk.values())

    def spots_on(self, kernel: PairKernel) -> Array:
        """Return `spots` on the map of a kernel."""
        return _known(self.spots, kernel.product_correlation)

    def shifted(self, kernel: PairKernel) -> Array:
        """Return the covariance of the entries at two pairs of positions on the map of a kernel, by their shift."""
        if not self.sources:
            return np.zeros([2 * side - 1 for side in kernel.size])
        if self._few(kernel):
            return place_pairs.by_shift(place_pairs.total(map(np.asarray, self.on(kernel).values())), kernel.size)
        return self.variance * _known(self.places, kernel.product_correlation)

    @property
    def rooted(self) -> bool:
        """Whether sources are known as roots, as on maps of few positions."""
        return any(not isinstance(c, float) for c in self.sources.values())

    def times(self, factor: float) -> Strays:
        """Return what is left after an operation that multiplies small deviations by a factor."""
        sources = {source: factor * c for source, c in self.sources.items()}
        walk = {source: factor * c for source, c in self.walk.items()}
        return replace(self, sources=sources, third=self.third * factor**3, walk=walk)

    def through(self, factor: float, slopes: PairKernel, level: Array) -> Strays:
        """Return what is left behind an activation of the given factor, and of these mean products of its slopes.

        Near the edges of a map, where the signal is smaller, its slopes are others: the factor is their mean, with the
        weights `level` of the positions.
        """
        if not self.rooted:
            return self.times(factor)
        cross = slopes.values[min(slopes.layout.profiles, len(slopes.values) - 1) :].mean(axis=0)
        whole = float(level @ cross @ level)
        if not whole > 0.0:
            return self.times(factor)  # slopes that exclude one another, as behind a normalisation of two values
        factors = factor * (cross + cross.T) / (2 * whole / level.sum() ** 2)
        shape = place_pairs.shape(slopes.size)
        sources = {
            name: place_pairs.scaled(c, factors, slopes.size)
            if isinstance(c, np.ndarray) and c.shape[:2] == shape
            else factor * c
            for name, c in self.sources.items()
        }
        return replace(self, sources=sources, third=self.third * factor**3)

    def plus(self, name: str, variance: float, kernel: PairKernel) -> Strays:
        """Return the deviation with a source more: channels whose products are those of Gaussian ones with a kernel."""
        if variance <= 0:
            return self
        before = self.variance
        # A random covariance of relative variance 1 / n of that of the channels before.
        third = self.third + 3 * before * variance + variance**2
        sources = self.on(kernel)
        # Squares of a Gaussian channel stray twice as much as products.
        walked = self.walked(name, 1.0, 2 * variance, kernel)
        if self._few(kernel):
            own = sqrt(variance) * _fresh(kernel)
            if name in sources:
                own = place_pairs.root(place_pairs.total([np.asarray(sources[name]), own]))
            return replace(walked, sources={**sources, name: own}, third=third)
        fresh = kernel.product_correlation
        places = (before * _known(self.places, fresh) + variance * fresh) / (before + variance)
        size = sqrt(_square(sources.get(name, 0.0)) + variance)
        return replace(walked, sources={**sources, name: size}, third=third, places=places)

    def _few(self, kernel: PairKernel) -> bool:
        """Tell whether roots are kept on the map of a kernel: on small ones, and with the zeros around them."""
        return self.rooted or kernel.values.shape[1] <= place_pairs.FEW

    def on(self, kernel: PairKernel) -> Mapping[str, Source]:
        """Return the sources on the map of a kernel."""
        shape = place_pairs.shape(kernel.size)
        if not self._few(kernel) or all(np.shape(c)[:2] == shape for c in self.sources.values()):
            return self.sources
        # What only the size is known of, from a larger map or behind a pooling.
        root = _fresh(kernel)
        if self.places is not None:
            places, level = _known(self.places, kernel.product_correlation), np.diag(_covariance(kernel))
            root = place_pairs.unit_root(place_pairs.alike(places, level, kernel.size))
        return {n: c if np.shape(c)[:2] == shape else sqrt(_square(c)) * root for n, c in self.sources.items()}

    def merged(self, name: str, kernel: PairKernel) -> Strays:
        """Return the same deviation at a node that all paths lead through: one source, to all that comes."""
        if max(len(self.sources), len(self.walk)) <= _MANY:
            return self
        walk = _with(name, self.levels, self.spots_on(kernel), {})
        if not self.sources:  # orthogonal weights leave products as they are, but not levels
            return replace(self, walk=walk)
        one: Source = sqrt(self.variance)
        if not any(isinstance(c, float) for c in self.sources.values()):
            one = place_pairs.root(place_pairs.total(map(np.asarray, self.sources.values())))
        return replace(self, sources={name: one}, walk=walk)

    def padded(self, padding: Padding, kernel: PairKernel) -> Strays:
        """Return the deviation on the map of a kernel with zeros around it."""
        if not self._few(kernel):
            return self
        share = (kernel.size[0] + sum(padding[:2])) * (kernel.size[1] + sum(padding[2:])) / kernel.values.shape[1]
        roots = self.on(kernel)
        sources = {n: share * place_pairs.padded(np.asarray(c), padding, kernel.size) for n, c in roots.items()}
        return replace(self, sources=sources)

    def normalised(
        self,
        before: float,
        after: tuple[float, float],
        plain: float,
        alone: tuple[Array, Array],
        levels: float,
        lead: float,
    ) -> Strays:
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
        alone
            What a single channel strays by, by offset as `places`: its correlation before, and its size behind.
        levels, lead
            In A.
        """
        fresh = min(self.variance - before, 1.0)  # what one channel has
        if fresh <= 0:
            return self
        variance, third = after
        left = variance * (1 - fresh)
        factor = sqrt(left / before) if before > _VANISHED else 0.0
        *others, (name, newest) = self.sources.items()
        sources = {source: factor * c for source, c in others}
        inherited = max(left - sum(map(_square, sources.values())), 0.0)
        more = fresh * alone[1]
        sources[name] = newest * sqrt(max(inherited + here(more), 0.0) / _square(newest))
        third = (1 - fresh) * (1 - 2 * fresh) * third + 3 * left * fresh * (1 - 2 * plain)
        third += (1 - plain) * (1 - 2 * plain) * fresh**2
        kept = levels / (self.levels - 2 * fresh) if self.levels > 2 * fresh else 0.0
        walk = {source: sqrt(kept) * c for source, c in self.walk.items()}
        before_division = here(self.walk[name]) ** 2
        own = max(kept * (before_division - 2 * fresh) + 2 * fresh, 0.0)
        walk[name] = sqrt(own / before_division) * self.walk[name]
        places = self.places
        if places is not None:
            common = self.variance * _known(places, alone[0]) - fresh * alone[0]
            together = more + (left / before * common if before > 0 else 0.0)
            places = together / here(together) if here(together) > 0 else places
        return replace(self, sources=sources, third=third, places=places, walk=walk, lead=lead)

    def walked(self, name: str, gain: float, more: float, kernel: PairKernel) -> Strays:
        """Return levels whose variance has a gain, and what single channels of a kernel add of their own."""
        kept = gain * self.levels
        if kept + more <= 0.0:
            return replace(self, walk={}, spots=None)
        spots = (kept * self.spots_on(kernel) + more * kernel.product_correlation) / (kept + more)
        walk = {n: sqrt(gain) * c for n, c in self.walk.items()}
        return replace(self, walk=_with(name, more, kernel.product_correlation, walk), spots=spots)

    def apart(self, name: str, fields: Array, kernel: PairKernel) -> Strays:
        """Return levels that differ as those of samples that are draws of one law from now on.

        `fields` are second moments of every sample at every position; zeros around the map have none.
        """
        mean = fields.mean(axis=0)
        more = _relative(np.cov(fields, rowvar=False, bias=True).reshape(len(mean), -1), mean, kernel.size)
        own = here(more)
        if own <= 0.0:
            return self
        spots = (self.levels * self.spots_on(kernel) + more) / (self.levels + own)
        return replace(self, walk=_with(name, own, more / own, self.walk), spots=spots)

    def _seen(self, name: str, window: Window, kernel: PairKernel) -> Strays:
        """Return the levels under a window.

        Each position counts by its second moment, as it will under the next window: zero padding has no level, and
        near it few points are averaged over, but what comes there is small. The means that half-lines leave go with the
        root of a point's level, so that the level of all is that of the deviations.
        """
        before, after = kernel.size, window.out_size(kernel.size)
        known = self.spots_on(kernel)
        if window.inside:
            spots = under_window(known, window, after, window.shares.reshape(window.kernel) / window.taps)
        else:
            level = kernel.diagonal.mean(axis=0)
            means = window.averaging(before) * level
            seen = means.sum(axis=1)
            spots = _relative(means @ known.ravel()[offsets(before)] @ means.T, seen, after)
        left = here(spots)
        if left <= 0.0 or not self.walk:
            return Strays(lead=self.lead)
        walk = self._walked_under(name, window, before, self.levels * spots)
        return Strays(walk=walk, spots=spots / left, lead=self.lead)

    def _walked_under(self, name: str, window: Window, before: Size, covariance: Array) -> Mapping[str, Array]:
        """Return the levels' sources behind a window over a map of a size, and one of its own for the rest.

        `covariance` is that of the levels there, by offset.
        """
        size, left = size_apart(covariance), here(covariance)
        fields = seen_by_offset(np.array([at_offsets(c, *apart_by(before)) for c in self.walk.values()]), window, size)
        kept = fields[:, size[0] - 1, size[1] - 1]
        whole = float(kept @ kept)
        if whole > left:  # near edges
            fields, kept = fields * sqrt(left / whole), kept * sqrt(left / whole)
        rest = covariance - np.tensordot(kept, fields, 1)
        walk = dict(zip(self.walk, fields, strict=True))
        return _with(name, here(rest), rest / (here(rest) or 1.0), walk)

    def averaged(self, name: str, window: Window, kernel: PairKernel, after: PairKernel) -> Strays:
        """Return the deviation after a window: what it keeps of the sources, and a source of its own for the rest.

        A pair of outputs averages over the pairs of inputs that lie alike under both windows: like a random walk, its
        averages spread as if the map had no edges, but a tap that lies on zero padding adds nothing. What a mean and
        the zeros around it add to the centred kernel `after` the window does not stray.
        """
        if not self.variance > 0.0:
            return self
        level = kernel.diagonal.mean(axis=0)
        varied = np.maximum(np.diag(_covariance(kernel)), 0.0)
        loads = window.loads(varied, kernel.size)
        centred = after.variance
        if not loads.any() or centred <= 0:
            return NONE
        whole, part = (float(window_sum(field.reshape(kernel.size), window).sum()) for field in (level, varied))
        contrast = min(part / whole * after.second_moment / centred, 1.0)
        walked = self._seen(name, window, kernel)
        if self._few(kernel) and not window.inside:
            # In units of the mean over positions, before and behind.
            gain = contrast * float(varied.mean()) / part * float(np.prod(window.out_size(kernel.size)))
            roots = self.on(kernel)
            sources = {n: gain * place_pairs.windowed(np.asarray(c), window, kernel.size) for n, c in roots.items()}
            found = Strays(sources)
            third = self.third * found.variance**2 / (self.variance**2 * contrast)
            return replace(walked, sources=sources, third=third)
        known = _known(self.places, kernel.product_correlation)
        size = window.out_size(kernel.size)
        places = under_window(known, window, size, loads)
        same = here(places)
        kept, left = contrast * same, contrast**2 * same
        if size == kernel.size:
            rows, cols = (np.arange(taps) - (taps - 1) // 2 for taps in window.kernel)
            kept = min(contrast * float(np.sum(loads * at_offsets(known, rows, cols))), sqrt(left))
        sized = {source: kept * sqrt(_square(c)) for source, c in self.sources.items()}
        lost = max(left - kept**2, 0.0) * self.variance
        own = sqrt(lost + _square(sized.get(name, 0.0)))
        # Of the third moment a mean over independent places keeps as much as of the variance, squared.
        third = self.third * contrast**3 * same**2
        return replace(walked, sources={**sized, name: own}, third=third, places=places / same)

    def pooled(self, window: Window, kernel: PairKernel) -> Strays:
        """Return the deviation of the mean under a window, of each channel alone.

        A pair of outputs is the mean over all pairs of taps, whose deviations are alike as products of channels are,
        r(u) r(u') for the one position u and the other u' apart; and more, `places`, where both are as far apart.
        """
        if not self.variance > 0.0:
            return self
        pairs = overlaps(np.full(window.kernel, 1 / window.taps))
        down, across = apart_by(window.kernel)
        correlation = kernel.correlation(kernel.pair_mean)
        left = float(np.sum(pairs * at_offsets(correlation, down, across)))
        if self._few(kernel):
            covariances = [
                place_pairs.total(map(np.asarray, roots)) for roots in (self.on(kernel).values(), [_fresh(kernel)])
            ]
            extra = covariances[0] / self.variance - covariances[1]
            more = place_pairs.averaged(extra, window.averaging(kernel.size), kernel.size)
        else:
            alike = correlation**2
            more = float(np.sum(pairs**2 * at_offsets(_known(self.places, alike) - alike, down, across)))
        sized = replace(self, sources={name: sqrt(_square(c)) for name, c in self.sources.items()})
        if left <= 0:
            return sized
        factor = max(1.0 + more / left**2, 0.0)
        return replace(sized.times(sqrt(factor)), third=self.third * factor**2)

    def gathered(
        self, name: str, window: Window, before: PairKernel, after: PairKernel, own: tuple[float, float]
    ) -> Strays:
        """Return the deviation whose levels are those behind a pooling, the same for every channel.

        A mean over positions strays in what all channels have in common by as much as each of them, as all products of
        the positions do; only neighbours are more alike behind it. The pooled channels' own squares stray on their own.

        Parameters
        ----------
        before, after
            Kernels before and behind the pooling.
        own
            What single channels' squares add to the variance of the levels, before and behind.
        """
        fresh = own[0] * before.product_correlation
        common = self.levels * self.spots_on(before) - fresh
        pooled = under_window(common, window, after.size, np.full(window.kernel, 1 / window.taps))
        alike = pooled / here(pooled) if here(pooled) > 0.0 else after.product_correlation
        whole = max(here(common), 0.0)
        spots = whole * alike + own[1] * after.product_correlation
        left = here(spots)
        if left <= 0.0:
            return replace(self, walk={}, spots=None)
        return replace(self, walk=self._walked_under(name, window, before.size, spots), spots=spots / left)


NONE = Strays()


def _square(source: Source) -> float:
    return float(np.vdot(source, source))


def _sum(one: Source, other: Source) -> Source:
    """Return what two branches make of one source together."""
    if np.shape(one) == np.shape(other):
        return one + other
    # Pooling leaves of roots what they come to in all.
    return one * (1.0 + sqrt(_square(other) / max(_square(one), 1e-300)))


def _fresh(kernel: PairKernel) -> Array:
    """Return the root, of variance one, of what products of Gaussian channels with a kernel stray by."""
    if kernel.size == (1, 1):
        return np.ones((1, 1, 1))
    covariance = _covariance(kernel)
    if float(np.trace(covariance)) <= ROUNDING * len(covariance) * kernel.second_moment:
        covariance = np.eye(len(covariance))  # of numbers that do not vary
    return place_pairs.unit_root(place_pairs.products(covariance, kernel.size))


def _covariance(kernel: PairKernel) -> Array:
    """Return the covariance of a channel's values at two positions of a sample, none with the zeros around a map."""
    live = kernel.diagonal.mean(axis=0) > 0
    if not live.any():
        return np.zeros_like(kernel.values[0])
    same = np.mean(kernel.values[: kernel.layout.profiles], axis=0)
    return np.asarray(np.where(live[:, None] & live, same - kernel.pair_mean / float(np.mean(live)) ** 2, 0.0))


def _relative(covariance: Array, level: Array, size: Size) -> Array:
    """Return a covariance of squares over those of their means, by offset: where these are small, it says little."""
    squares = by_offset(np.outer(level, level), size)
    return np.divide(by_offset(covariance, size), squares, out=np.zeros_like(squares), where=squares > 0)


def _with(name: str, variance: float, alike: Array, walk: Mapping[str, Array]) -> Mapping[str, Array]:
    """Return the levels' sources one of which has more variance, and what that has of correlations by offset."""
    if variance <= 0.0:
        return walk
    field = variance * alike
    field[len(field) // 2, len(field[0]) // 2] = variance  # also of numbers that do not vary
    if name in walk:
        field = field + here(walk[name]) * _known(walk[name], field)
    return {**walk, name: field / sqrt(here(field))}


def _known(field: Array | None, fresh: Array) -> Array:
    """Return correlations by offset on a map whose fresh deviations have the given ones; zero padding adds none."""
    if field is None or any(n > m for n, m in zip(field.shape, fresh.shape, strict=True)):
        return fresh
    if field.shape == fresh.shape:
        return field
    return at_offsets(field, *apart_by(size_apart(fresh)))


def together(shares: Sequence[float], parts: Sequence[Strays], kernel: PairKernel) -> Strays:
    """Return the deviation of a sum, given the terms' shares in it and the kernel of one of them."""
    total: dict[str, Source] = {}
    third = sum(share**3 * part.third for share, part in zip(shares, parts, strict=True))
    for share, part in zip(shares, parts, strict=True):
        for source, c in part.on(kernel).items():
            total[source] = _sum(total[source], share * c) if source in total else share * c
    weights = [share**2 * part.variance for share, part in zip(shares, parts, strict=True)]
    found = Strays(total, third, lead=sum(share * part.lead for share, part in zip(shares, parts, strict=True)))
    walk: dict[str, Array] = {}
    for share, part in zip(shares, parts, strict=True):
        for source, c in part.walk.items():
            walk[source] = share * c + (_known(walk[source], c) if source in walk else 0.0)
    apart = [share**2 * part.levels for share, part in zip(shares, parts, strict=True)]
    places, spots = (
        _mixed(weighed, fields)
        for weighed, fields in ((weights, [part.places for part in parts]), (apart, [part.spots for part in parts]))
    )
    return replace(found, places=places, walk=walk, spots=spots)


def in_step(one: Strays, other: Strays) -> float:
    """Return the covariance of the levels of two signals at one point."""
    return sum(here(c) * here(other.walk[source]) for source, c in one.walk.items() if source in other.walk)


def gone_along(own: Strays, parts: Sequence[Strays], shares: Sequence[float], share: float) -> float:
    """Return the power of a term's levels that those of a sum go with, given all terms' shares in it and its own."""
    if not own.levels > 0.0:
        return share
    return sum(each * in_step(own, part) for each, part in zip(shares, parts, strict=True)) / own.levels


def _mixed(weights: Sequence[float], fields: Sequence[Array | None]) -> Array | None:
    """Return the mean of those fields that are there, if they are of one size."""
    known = [(w, field) for w, field in zip(weights, fields, strict=True) if field is not None and w > 0]
    if len({field.shape for _, field in known}) != 1:
        return None
    return np.asarray(sum(w * field for w, field in known)) / sum(w for w, _ in known)
