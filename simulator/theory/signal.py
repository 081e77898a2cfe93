"""What theory knows of a node's output."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.initializers import WeightLaw
from varprop.simulator.network import Padding
from varprop.simulator.theory.depthwise import Taps
from varprop.simulator.theory.duals import Duals
from varprop.simulator.theory.few_points import Cubature
from varprop.simulator.theory.maps import Size, Window, one_root
from varprop.simulator.theory.near import Near
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.patches import Divided
from varprop.simulator.theory.patchwork import Far
from varprop.simulator.theory.relations import Relations, unrelated
from varprop.simulator.theory.sample import Sample, activated, alike, mirrored, normalised
from varprop.simulator.theory.sampling import draw, draw_strayed, filtered, linear
from varprop.simulator.theory.strays import NONE, Strays
from varprop.simulator.theory.summands import Summand, few, summed
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gaussian:
    """Where a node's channels come from, as long as they are a function of Gaussian ones."""

    kernel: PairKernel
    key: int
    eps: float | None = None  # of the batch normalisation that came next, if any
    variance: float = 0.0  # of a channel over the data, as that normalisation saw it
    edges: float = 1.0  # and how much smaller that was than deep inside the map
    function: ActivationFunction | None = None
    parts: tuple[Gaussian, ...] = ()  # that it is the sum of
    shared: float = 1.0  # and the part of a variance that goes with that inside
    features: Array | None = None  # of the data, shape (samples, features, positions), that it is linear in
    over_map: Array | None = None  # and their covariance over all of the map, if those are of its inside
    summands: tuple[Summand, ...] = ()  # of channels that are sums of few
    levels: float = 0.0  # variance of those that its points have in a single draw, and their correlation by offset
    spots: Array | None = None
    shifted: Array | None = None  # and what two pairs of positions stray by together, by their shift

    def draw(self) -> Sample:
        """Draw channels of the node."""
        return self._drawn

    @cached_property
    def _drawn(self) -> Sample:
        sample = mirrored(self._half)
        return sample if self.function is None else activated(sample, self.function)

    @cached_property
    def _half(self) -> Sample:
        """Half of the channels before the activation, of which the others are the negatives."""
        if self.parts:
            sample = Sample(np.sum(alike(*[part._half.values for part in self.parts]), axis=0))
        elif self.features is not None:
            sample = linear(self.features, self.kernel, self.key, self.over_map)
        elif self.summands:
            sample = summed(self.summands, self.kernel, self.key)
        elif self.spots is not None and self.levels > 0.0:
            sample = draw_strayed(self.kernel.centred, self.key, self.levels, self.spots)
        else:
            sample = draw(self.kernel, self.key)
        if self.shifted is not None:
            sample = filtered(sample, self.kernel, self.shifted, self.key)
        return sample if self.eps is None else normalised(sample, self.eps, self.variance, self.edges, self.shared)


@dataclass(frozen=True)
class Weighted:
    """What batch normalisation and the backward pass need to know of a weighted layer.

    `strays` is how the input's kernel strays as one output sees it, which may be a group of all channels; `shared` the
    variance of what all outputs share of that.
    """

    law: WeightLaw
    fan_in: int
    input: PairKernel
    strays: Strays = NONE
    shared: float = 0.0
    window: Window | None = None
    taps: Taps | None = None


@dataclass(frozen=True)
class Signal:
    """What theory knows of one node's output.

    Attributes
    ----------
    kernel
        E[z(x) z(x')] averaged over channels.
    mean
        E z(x), shape (profiles, positions), in units of ``exp(kernel.log_scale / 2)``.
    width
        Number of channels that `kernel` is the expected average of; infinite where it is known exactly.
    strays
        How far the kernel of one draw, averaged over its channels, strays from `kernel`; empty without normalisation.
    weighted
        Of a weighted layer's output, what normalisation and the backward pass need.
    origin, sample
        The channels' law: a function of Gaussian ones, or, where it is not, a sample, drawn when asked for.
    padding
        Zeros around the map since `origin` or `sample`.
    amplitude
        None while the kernel's map is the node's map. Of a larger map the kernel is a cut-out deep inside, and
        `amplitude`, shape (height, width), is the second moment at every position over that inside: edges.
    known
        Of a node before the first weights, its values on the whole batch, shape (batch, ...).
    data, places
        Of a map of these that only dense layers look at, the samples, shape (batch, channels, height, width), those
        first that are carried: their kernel is worked out where it is needed, on the convolution's output. And where in
        each of them the piece lies that is carried of a larger map, shape (batch, 2).
    common
        Of such a map: mean product of every position with all others, over that inside, where it does not fall off as
        the deviations do. Padding takes a tap from one of two positions, and what they have in common goes with it.
    divided
        Of such a map that a convolution of the data has made: what a normalisation of a given eps makes of it.
    directions
        Of such a map, the directions in which the whole of it varies: see `patches.directions`.
    near
        Of such a map, what near positions have in common at its edges, and of data.
    far
        Of pieces of images, what positions of one image have in common beyond their reach: see `patchwork`.
    terms
        Of a sum on a larger map, the terms, of those that are sums themselves theirs: their edges may differ, and with
        them the law at a position.
    slopes
        Of an activation on a larger map: E phi'^2 at every position over that inside, shape (height, width). Of a
        maximum of such values, that of the one it takes.
    behind
        Behind a depthwise layer its taps and input map, until the next activation has looked at them.
    summands
        The channels behind activations that its channels are sums of.
    cubature
        Behind a normalisation over few points, the law of a channel.
    duals, law, relations
        What an activation or a normalisation found on the way, for the backward pass.
    """

    kernel: PairKernel
    mean: Array
    width: float
    strays: Strays = NONE
    weighted: Weighted | None = None
    origin: Gaussian | None = None
    sample: Callable[[], Sample] | None = None
    padding: Padding = (0, 0, 0, 0)
    amplitude: Array | None = None
    known: Array | None = None
    data: Array | None = None
    places: Array | None = None
    common: Array | None = None
    divided: Callable[[float], Divided] | None = None
    directions: tuple[Array, Array] | None = None
    near: Near | None = None
    far: Far | None = None
    terms: tuple[Signal, ...] = ()
    slopes: Array | None = None
    cubature: Cubature | None = None
    duals: Duals | None = None
    law: VarianceLaw | None = None
    behind: tuple[Taps, Size] | None = None
    summands: tuple[Summand, ...] = ()
    relations: Callable[[float, float, float], Relations] = unrelated

    @property
    def edges(self) -> float:
        """Second moment over the whole map relative to the kernel's."""
        return 1.0 if self.amplitude is None else float(self.amplitude.mean())

    @property
    def levels(self) -> float:
        """Variance of the levels that a channel's law has: the layer's own noise is of the mean over its channels."""
        return max(self.strays.levels - 2.0 / self.width, 0.0)

    @property
    def together(self) -> float:
        """Mean squared correlation of two channels by what the kernel strays: 1 / width is a channel's with itself."""
        return max(self.strays.variance - 1.0 / self.width, 0.0)

    @property
    def common_root(self) -> Array:
        """Root of what two positions of a large map have in common: the product of theirs, if that is of rank one."""
        assert self.amplitude is not None
        if self.common is None:
            return np.sqrt(self.amplitude)
        return one_root(self.common)

    @property
    def gaussian(self) -> Gaussian | None:
        """Where the channels come from if they are Gaussian at every position, zero padding excluded."""
        return None if self.sample is not None or any(self.padding) else self.origin

    def draw_inside(self) -> Sample:
        """Draw channels of the node, before any zero padding."""
        if self.sample is not None:
            return self.sample()
        assert self.origin is not None
        return self.origin.draw()

    def draw(self) -> Sample:
        """Draw channels of the node."""
        sample = self.draw_inside()
        if not any(self.padding):
            return sample
        top, bottom, left, right = self.padding
        size = self.kernel.size[0] - top - bottom, self.kernel.size[1] - left - right

        def padded(values: Array) -> Array:
            maps = values.reshape(*size, *values.shape[1:])
            return np.pad(maps, ((top, bottom), (left, right), (0, 0), (0, 0))).reshape(-1, *values.shape[1:])

        slopes = None if sample.slopes is None else padded(sample.slopes)
        return Sample(padded(sample.values), sample.inverse, slopes, over_map=sample.over_map)


def summands(signal: Signal) -> tuple[Summand, ...]:
    """Return the channels behind activations that sums over a node's channels are made of, if they are few."""
    found = signal.summands
    if signal.duals is not None and signal.known is None and not any(signal.padding):
        found = (Summand(signal.draw_inside, int(signal.width)),)
    return found if few(found) else ()


def fixed(sample: Sample | None) -> Callable[[], Sample] | None:
    """Return a sample as something to ask for; None for none."""
    return None if sample is None else lambda: sample


def key_of(name: str) -> int:
    """Return a number of a node's own for its draws."""
    return zlib.crc32(name.encode())


def variance_ratio(part: Signal, whole: Signal) -> float:
    """Return the variance over the data of one signal over that of another."""
    (one, scale), (all_of_it, unit) = map(_data_variance, (part, whole))
    return one / all_of_it * float(np.exp(scale - unit)) if all_of_it > 0 else 0.0


def _data_variance(signal: Signal) -> tuple[float, float]:
    """Return the variance over the data as a number and a log scale."""
    kernel = signal.kernel
    return max(kernel.second_moment - kernel.pair_mean, 0.0), kernel.log_scale
