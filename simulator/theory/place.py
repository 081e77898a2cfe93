"""How the levels of points go together: over the positions of a map, over samples, and behind weights.

Means over n channels stray by 1 / n, at two positions as far together as the square of their channels' correlation.
Under a window the strays of its taps are averaged, pair by pair, and what neighbours share is left; so the correlation
of two points strays, too, by (1 - c^2)^2 / n if they are Gaussian.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import Conv2d, Linear
from varprop.simulator.theory.level_law import STILL, Law, Passage, Step, gathered, stepped, strayed, unchanged
from varprop.simulator.theory.maps import (
    Size,
    Window,
    apart_by,
    at_offsets,
    by_offset,
    here,
    pairs_apart,
    products_by_offset,
    size_apart,
    under_window,
    window_sum,
)
from varprop.simulator.theory.meeting import Meeting, meet
from varprop.simulator.theory.mixture import Mixture
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.sample import squares_alike
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]

_WIDEST = 1 / 3  # variance of a number that may be anything from -1 to 1


@dataclass(frozen=True)
class Place:
    """What is known of the levels at a node; fields by offset have no offset in the middle.

    Attributes
    ----------
    law
        Of the levels of Gaussian points: those of the last dense layer.
    channels
        Their number.
    fixed
        Part of their mean square that the weights leave nothing to chance of.
    places
        Correlation of the levels at two positions of a map, by their offset.
    alike
        Correlation of a channel's squares there.
    others_alike
        That at one position of two samples; None as long as channels are Gaussian, of whose kernel it is the square.
    others
        Correlation of the levels of two samples.
    spread, spread_others
        Variance of the correlation c of two positions, by their offset, and of two samples, over (1 - c^2)^2.
    passage, unfixed
        What the activation since then made of the levels, and would make of points that nothing is fixed of.
    step
        From the levels of the dense layer before.
    meeting
        Behind a sum, from the levels of the two terms.
    own
        Levels that single channels have of their own, behind a depthwise layer.
    """

    law: Law
    channels: float
    fixed: float
    places: Array
    alike: Array
    others: float
    spread: Array
    spread_others: float
    passage: Passage | None = None
    unfixed: Passage | None = None
    step: Step | None = None
    meeting: Meeting | None = None
    own: Mixture | None = None
    others_alike: float | None = None

    @property
    def made(self) -> Passage:
        """What came of the levels so far."""
        return unchanged(self.law) if self.passage is None else self.passage

    def behind(self, passage: Passage, unfixed: Passage, signal: Signal) -> Place:
        """Return the place behind an activation, of which only mixtures need the `signal`."""
        found = replace(self, passage=passage, unfixed=unfixed, step=None, meeting=None, own=None)
        if self.own is None:
            return found
        same, others = squares_alike(signal.draw_inside().values)
        return replace(found, alike=by_offset(same, signal.kernel.size), others_alike=others)

    def on(self, size: Size, stride: Size = (1, 1)) -> Place:
        """Return the place on a map of another size, every so many positions of this one."""
        apart = apart_by(size, stride)
        places, alike, spread = (at_offsets(field, *apart) for field in (self.places, self.alike, self.spread))
        return replace(self, places=places, alike=alike, spread=spread, step=None, meeting=None)


def first(signal: Signal, source: Signal, weighted: float) -> Place:
    """Return the place behind weights whose input's levels are known, or strays as the data do.

    Parameters
    ----------
    signal, source
        Behind the weights, and before.
    weighted
        Share of the second moment that the bias does not make.
    """
    assert signal.weighted is not None
    window, size = signal.weighted.window, signal.kernel.size
    alike = signal.kernel.correlation() ** 2
    law, places, variance = STILL, np.ones_like(alike), 0.0
    if source.known is not None and window is not None and source.origin is not None:
        # Data carried by their average.
        levels = _under(source.known, window)
        variance, places = float(np.mean((levels - 1.0) ** 2)), _correlation(levels, size)
        law, _ = stepped(STILL, strayed(variance), 1.0, 0.0, weighted)
    elif signal.kernel.layout.profiles > 1:
        levels = levels_of(signal.kernel)
        law, places = gathered(levels), _correlation(levels.reshape(-1, *size), size)
    # Products of two of N Gaussian numbers stray half as much as squares.
    return _behind(signal, law, places, alike, 0.0, np.full(alike.shape, variance / 2), variance / 2)


def behind_weights(place: Place, operation: Conv2d | Linear, signal: Signal, source: Signal, weighted: float) -> Place:
    """Return the place behind weights; see `first`."""
    assert signal.weighted is not None
    window, size = signal.weighted.window, signal.kernel.size
    passage, law, channels = place.made, place.law, place.channels
    if isinstance(operation, Conv2d):
        channels /= operation.groups
    mean = law.mean(passage.square)
    relative = passage.square / mean if mean > 0 else np.ones_like(passage.square)
    inherited = max(law.mean(relative**2) - 1.0, 0.0)
    own = law.mean(relative**2 * passage.noise) / channels
    if window is None:
        assert isinstance(operation, Linear)
        before = size_apart(place.alike)
        # Of a map of which only a part is carried, all pairs that have something in common are there.
        pairs = pairs_apart(before) * (channels / operation.in_features / (before[0] * before[1]))
        kept_by, noise_by = (np.full((1, 1), np.sum(pairs * field)) for field in (place.places, place.alike))
        spread = np.zeros((1, 1))
    else:
        assert isinstance(operation, Conv2d)
        loads = window.shares.reshape(window.kernel) / window.taps
        kept_by, noise_by = (under_window(field, window, size, loads) for field in (place.places, place.alike))
        spread = at_offsets(place.spread, *apart_by(size, window.stride))
    kept, noise = (min(max(here(field), 0.0), 1.0) for field in (kept_by, noise_by))
    whole = inherited * kept + own * noise
    places, others = np.ones_like(kept_by), 0.0
    if whole > 0.0:
        places = (inherited * kept_by + own * noise_by) / whole
        together = between(source.kernel) if place.others_alike is None else place.others_alike
        others = (inherited * kept * place.others + own * together) / whole
    law, step = stepped(law, passage, noise / channels, kept, weighted, place.others_alike is not None)
    spread = np.minimum(kept * spread + noise / channels, _WIDEST)
    spread_others = min(kept * place.spread_others + noise / channels, _WIDEST)
    alike = signal.kernel.correlation() ** 2
    return replace(_behind(signal, law, places, alike, others, spread, spread_others), step=step)


def behind_taps(place: Place, signal: Signal, weighted: float) -> Place:
    """Return the place behind a depthwise layer: channels stay apart, and each gets a level of its own."""
    assert signal.weighted is not None
    assert signal.weighted.taps is not None
    window, size, taps = signal.weighted.window, signal.kernel.size, signal.weighted.taps
    assert window is not None
    passage, law = place.made, place.law
    loads = window.shares.reshape(window.kernel) / window.taps
    places = under_window(place.places, window, size, loads)
    kept = min(max(here(places), 0.0), 1.0)
    places = places / kept if kept > 0.0 else np.ones_like(places)
    law, step = stepped(law, passage, 0.0, kept, weighted)
    spread = at_offsets(place.spread, *apart_by(size, window.stride))
    return Place(
        law,
        place.channels,
        0.0,
        places,
        signal.kernel.correlation() ** 2,
        place.others,
        kept * spread,
        kept * place.spread_others,
        step=step,
        own=Mixture.of(taps.levels),
    )


def behind_sum(terms: tuple[Place, Place], shares: tuple[float, float], joint: Array, signal: Signal) -> Place:
    """Return the place behind a sum of two terms; `joint` is the law of their levels, see `meet`."""
    first, second = terms
    law, meeting = meet((first.law, second.law), joint, shares)
    strays = [
        share * np.sqrt(max(term.law.mean(term.law.levels**2) - 1.0, 0.0))
        for term, share in zip(terms, shares, strict=True)
    ]
    together = 2 * meeting.correlation * strays[0] * strays[1]
    whole = strays[0] ** 2 + strays[1] ** 2 + together

    def mixed(one: Array | float, other: Array | float) -> Array:
        """Of the terms' correlations, and of what the two levels have in common their mean."""
        parts = strays[0] ** 2 * one + strays[1] ** 2 * other + together * (one + other) / 2
        return np.asarray(parts / whole if whole > 0.0 else np.ones_like(one))

    def spread(one: Array | float, other: Array | float) -> Array:
        """Of correlations, which stray together as levels do."""
        sizes = shares[0] * np.sqrt(one), shares[1] * np.sqrt(other)
        return np.asarray(sizes[0] ** 2 + sizes[1] ** 2 + 2 * meeting.correlation * sizes[0] * sizes[1])

    return Place(
        law,
        signal.width,
        0.0,
        mixed(first.places, second.places),
        signal.kernel.correlation() ** 2,
        float(mixed(first.others, second.others)),
        spread(first.spread, second.spread),
        float(spread(first.spread_others, second.spread_others)),
        meeting=meeting,
    )


def _behind(
    signal: Signal, law: Law, places: Array, alike: Array, others: float, spread: Array, spread_others: float
) -> Place:
    assert signal.weighted is not None
    weights, width = signal.weighted.law, signal.width
    fixed = 1.0 - width * weights.fresh(int(width), signal.weighted.fan_in)
    return Place(law, width, fixed, places, alike, others, spread, spread_others)


def levels_of(kernel: PairKernel) -> Array:
    """Second moments of samples at each position over their mean there, shape (profiles, positions)."""
    expected = kernel.diagonal.mean(axis=0)
    return np.asarray(np.divide(kernel.diagonal, expected, out=np.ones_like(kernel.diagonal), where=expected > 0))


def between(kernel: PairKernel) -> float:
    """Square of the mean correlation of a channel's values at one position of two samples."""
    cross = kernel.values[kernel.layout.profiles :]
    if not len(cross):
        return 0.0
    return min(float(np.mean(cross.diagonal(axis1=1, axis2=2))) / kernel.second_moment, 1.0) ** 2


def _under(values: Array, window: Window) -> Array:
    """Levels of the data under a window over their mean at the place, shape (samples, height, width)."""
    squares, whole = np.mean(values**2, axis=1), replace(window, inside=False)
    expected = window_sum(squares.mean(axis=0), whole)
    found = np.stack([window_sum(one, whole) for one in squares])
    return np.divide(found, expected, out=np.ones_like(found), where=expected > 0)


def _correlation(levels: Array, size: Size) -> Array:
    """Correlation of levels, shape (samples, height, width), by offset on a map of `size`."""
    whole = levels.shape[1], levels.shape[2]
    covariance = at_offsets(products_by_offset(levels - levels.mean()) / pairs_apart(whole), *apart_by(size))
    own = float(covariance[size[0] - 1, size[1] - 1])
    return np.asarray(covariance / own) if own > 0 else np.ones_like(covariance)
