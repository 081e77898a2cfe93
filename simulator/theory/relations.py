"""The gradient's way back through one channel, where slopes, weights and normalisations know of one another.

Between two dense layers every operation acts within a channel: normalisation, activation, depthwise convolution,
normalisation, activation. The gradient that arrives knows nothing of the channel, but all that it meets on its way is
made of the same few numbers, so that means of products are not products of means. What they are instead is integrated
over sampled channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.depthwise import Taps, excess, tap_nodes
from varprop.simulator.theory.maps import Ints, Size
from varprop.simulator.theory.sampling import Sample

Array = NDArray[np.float64]

_POINTS = 256  # of the data at which a channel is looked at


@dataclass(frozen=True)
class Relations:
    """Mean products over the product of means, around a depthwise layer; all one if nothing knew of anything.

    Attributes
    ----------
    tilt
        Of the squared slopes after the layer and its 1 / (v + eps).
    reweigh
        What the squared weights add to that.
    gates
        Of what comes back through the layer and the squared slopes before it. An input that is zero closes the gate
        before the layer and adds nothing to the outputs that it feeds; and as the outputs do not change when all inputs
        grow, the gradient is smaller where they are large.
    before
        Of what comes back through those slopes and the 1 / (v + eps) of the normalisation before them, over the same of
        what the weights alone let through.
    lost
        Share of the gradient that the two projections of that normalisation take away; None if there is none. Behind
        ReLU, a depthwise layer that is normalised without eps leaves nothing for the second to take.
    """

    tilt: float = 1.0
    reweigh: float = 1.0
    gates: float = 1.0
    before: float = 1.0
    lost: float | None = None


UNRELATED = Relations()


class _Kernels:
    """Depthwise kernels of sampled channels, (channels, taps), on a map: fields are (channels, samples, positions)."""

    def __init__(self, weights: Array, index: Ints, positions: int) -> None:
        live = (index >= 0).any(axis=1)
        self.weights, self._under = weights[:, live], index[live]
        # Which output lies over an input, tap by tap; a tap reaches an input at most once.
        self._over = np.full((len(self._under), positions + 1), -1)
        for over, under in zip(self._over, self._under, strict=True):
            over[under] = np.arange(index.shape[1])
        self._over = self._over[:, :-1]

    def forward(self, field: Array) -> Array:
        """Convolve."""
        return _gathered(self.weights, self._under, field)

    def back(self, field: Array, power: int = 1) -> Array:
        """Apply the transpose, of the weights or of their squares."""
        return _gathered(self.weights**power, self._over, field)

    def seen(self, field: Array) -> Array:
        """Return a field of outputs as each tap shows it to the inputs, shape (taps, all)."""
        padded = np.pad(field, ((0, 0), (0, 0), (0, 1)))
        return np.stack([padded.take(where, axis=2, mode="wrap").ravel() for where in self._over])


def _gathered(weights: Array, index: Ints, field: Array) -> Array:
    padded = np.pad(field, ((0, 0), (0, 0), (0, 1)))
    total = np.zeros((*field.shape[:2], index.shape[1]))
    for k, where in enumerate(index):
        total += weights[:, k, None, None] * padded.take(where, axis=2, mode="wrap")
    return total


def unrelated(alike: float) -> Relations:
    """Return relations where there are none."""
    return UNRELATED


def relations(taps: Taps, size: Size, after: Sample, points: int, alike: float) -> Relations:
    """Return how the gradient's way through a depthwise layer depends on the channel.

    The gradient that arrives at the activation behind the layer is taken as white over the data, plus a part that is
    the same all over a sample's map. With a normalisation
    between, which takes the directions of ones and of its output y out of the gradient, it lacks its mean, as there is
    another one further on. With weights W, slopes D and P = 1 - (11' + yy') / N the covariance of a channel's gradient
    is W' P D (1 - 11' / N) D P W / (v + eps) before the layer.

    Parameters
    ----------
    size
        The layer's input map.
    after
        Channels behind that activation; those of the second half have the first half's kernels with the opposite sign.
    points
        N: the channel's values over batch and positions behind the layer.
    alike
        Correlation of the arriving gradient at different positions of a sample.
    """
    assert after.slopes is not None
    count, samples = len(taps.covariances), max(1, _POINTS // (size[0] * size[1]))
    kernels = _Kernels(tap_nodes(taps.window.taps, taps.law)[:count], taps.window.index(size), size[0] * size[1])
    identity = _Kernels(np.ones((count, 1)), np.arange(after.slopes.shape[2])[None, :], after.slopes.shape[2])
    slopes = after.slopes[:count, :samples], after.slopes[count:, :samples]
    scale = np.ones(count) if after.inverse is None else after.inverse[:count]
    y = None if after.inverse is None or after.inputs is None else after.inputs[:count, :samples]
    square = (slopes[0] ** 2 + slopes[1] ** 2) / 2
    tilt = excess(square.mean(axis=(1, 2)), scale)
    wide = scale[:, None, None]
    through, arriving = (wide * _passed(k, slopes, y, points) for k in (kernels, identity))
    alone = wide * kernels.back(np.ones((count, 1, square.shape[2])), power=2)
    seen = float(alone.mean()) * float(arriving.mean()) / float(scale.mean())
    if alike > 0:
        through += alike * (wide * _passed_alike(kernels, slopes, y, points) - through)
        seen *= 1.0 + alike * (_apart(kernels, slopes, scale) - 1.0)
    reweigh = float(through.mean()) / seen if seen > 0 else 1.0
    source = taps.source
    if source.slopes is None:
        return Relations(tilt, reweigh)
    gate = source.slopes[:, :samples]
    passed = through * gate**2
    gates = excess(through, gate**2)
    if source.inverse is None or source.inputs is None or y is None:
        return Relations(tilt, reweigh, gates)
    inputs = source.inputs[:, :samples]
    left = source.inverse * passed.mean(axis=(1, 2))
    gone = _overlap(kernels.forward(gate), slopes, y, alike)
    gone += (2.0 - np.mean(inputs**2, axis=(1, 2))) * _overlap(kernels.forward(gate * inputs), slopes, y, alike)
    ratio = square.shape[2] / gate.shape[2]
    lost = float(np.mean(source.inverse * scale * gone)) / float(left.mean()) * ratio**2 / points
    before, alike = (excess(field.mean(axis=(1, 2)), source.inverse) for field in (passed, alone))
    return Relations(tilt, reweigh, gates, before / alike, lost)


def _passed(kernels: _Kernels, slopes: tuple[Array, Array], y: Array | None, points: int) -> Array:
    """Diagonal of W' P D (1 - 11' / N) D P W, averaged over slopes D of both signs of the kernel; P = 1 without y.

    Up to 1 / N, with a = W'1 and b = W'y, it is w^2' d - (2 a W'd + 2 b W'yd - |a + b y|^2 . d + (W'P s)^2) / N for
    slopes s and d = s^2.
    """
    square = (slopes[0] ** 2 + slopes[1] ** 2) / 2
    through = kernels.back(square, power=2)
    if y is None:
        return through
    a, b = kernels.back(np.ones_like(y[:, :1])), kernels.back(y)
    d0, d1, d2 = (_mean(square * y**power) for power in (0, 1, 2))
    taken = 2 * a * kernels.back(square) + 2 * b * kernels.back(y * square) - a * a * d0 - 2 * a * b * d1 - b * b * d2
    for s in slopes:
        taken += (kernels.back(s) - a * _mean(s) - b * _mean(s * y)) ** 2 / 2
    return through - taken / points


def _passed_alike(kernels: _Kernels, slopes: tuple[Array, Array], y: Array | None, points: int) -> Array:
    """Return |W' P D 1|^2 for ones all over one sample's map, to first order in 1 / N."""
    total = np.zeros((1, 1, 1))
    for s in slopes:
        back = kernels.back(s)
        if y is None:
            total = total + back**2 / 2
            continue
        a, b = kernels.back(np.ones_like(y[:, :1])), kernels.back(y)
        own, along = s.mean(axis=2, keepdims=True), (s * y).mean(axis=2, keepdims=True)
        total = total + back * (back - 2 * s.shape[2] / points * (a * own + b * along)) / 2
    return total


def _apart(kernels: _Kernels, slopes: tuple[Array, Array], scale: Array) -> float:
    """Return what ones bring through slopes and weights that know nothing of one another, over what noise does."""
    weights = kernels.weights
    moments = (weights * scale[:, None]).T @ weights
    products = sum(flat @ flat.T for flat in (kernels.seen(s) for s in slopes))
    own = float(np.sum(np.diag(moments) * np.diag(products)))
    return float(np.sum(moments * products)) / own if own > 0 else 1.0


def _overlap(field: Array, slopes: tuple[Array, Array], y: Array, alike: float) -> Array:
    """Variance over the data of D P f, per channel, as the gradient sees it, averaged over slopes of both signs."""
    left = field - _mean(field) - y * _mean(field * y)
    found = np.zeros(len(field))
    for s in slopes:
        seen = s * left
        found += (1 - alike) * seen.var(axis=(1, 2)) / 2
        found += alike * seen.shape[2] * seen.mean(axis=2).var(axis=1) / 2
    return found


def _mean(field: Array) -> Array:
    return np.asarray(field.mean(axis=(1, 2), keepdims=True))
