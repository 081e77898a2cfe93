"""The gradient's way back through one channel, where slopes, weights and normalisations know of one another.

Between two dense layers every operation acts within a channel: normalisation, activation, depthwise convolution,
normalisation, activation. The gradient that arrives knows nothing of the channel, but all that it meets on its way is
made of the same few numbers, so that means of products are not products of means. What they are instead is integrated
over sampled channels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.depthwise import Taps, excess, tap_nodes
from varprop.simulator.theory.maps import Ints, Size, bordered
from varprop.simulator.theory.sample import Sample, channel_means, channel_products, channel_squares
from varprop.simulator.theory.stencils import Stencils
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

_POINTS = 64  # of the data at which a channel is looked at: with 256 the same noise is left, that of the channels
_SAMPLES = 4  # of the batch at least
_IMAGES = 16  # and of images, which differ


@dataclass(frozen=True)
class Relations:
    """Mean products over the product of means, around a depthwise layer; all one if nothing knew of anything.

    Attributes
    ----------
    met
        Of what arrives at a channel, as far as that knows it, and the squared slopes after the layer.
    tilt
        Of both and its 1 / (v + eps).
    reweigh
        What the squared weights add to that, at each position.
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

    met: float = 1.0
    tilt: float = 1.0
    reweigh: float = 1.0
    gates: float = 1.0
    before: float = 1.0
    lost: float | None = None


UNRELATED = Relations()


def unrelated(alike: float, opposed: float, along: float) -> Relations:
    """Return relations where there are none."""
    return UNRELATED


def relations(
    taps: Taps,
    size: Size,
    after: Sample,
    points: int,
    law: VarianceLaw | None,
    images: bool,
    alike: float,
    opposed: float,
    along: float,
) -> Relations:
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
    law
        Of the normalisation between, if there is one.
    images
        Whether the sampled points are those of images, not of draws of one law.
    alike
        Correlation of the arriving gradient at different positions of a sample.
    opposed
        By how much of its mean the squared gradient is smaller for a channel's variance over that of all: channels that
        vary more are a larger part of what later normalisations divide by.
    along
        By how much of its mean it is larger for the channel's own square at the point, over the mean of that.
    """
    assert after.slopes is not None
    if not after.slopes.any():
        return UNRELATED
    count, samples = len(taps.covariances), max(_IMAGES if images else _SAMPLES, _POINTS // (size[0] * size[1]))
    weights = tap_nodes(taps.window.taps, taps.law, count).T
    kernels = Stencils(weights, taps.window, size)
    known = _met(after, opposed, along)[:, :samples] * after.slopes[:, :samples]
    slopes = np.ascontiguousarray(known[:, :, :count]), np.ascontiguousarray(known[:, :, count:])
    scale = np.ones(count) if after.inverse is None else after.inverse[:count]
    y = None
    if after.inverse is not None and after.inputs is not None:
        y = np.ascontiguousarray(after.inputs[:, :samples, :count])
    square = (slopes[0] ** 2 + slopes[1] ** 2) / 2
    tilt = excess(channel_means(square), scale)
    met = float(square.mean()) / float(np.mean(after.slopes[:, :samples] ** 2))
    sent, arrived = _Sent.by(kernels.back, slopes, square, y), _Sent.by(_unchanged, slopes, square, y)
    through, arriving = (scale * _passed(way, slopes, square, y, points) for way in (sent, arrived))
    alone = scale * kernels.back(np.ones((len(square), 1, count)), power=2)
    # What positions differ by, kernels know.
    known = arriving.mean(axis=_alike(images), keepdims=True) / float(scale.mean())
    seen = float(np.mean(scale * kernels.back(np.repeat(known, count, axis=2), power=2)))
    if alike > 0:
        through, arriving = (
            field + alike * (scale * _passed_alike(way, slopes, y, points) - field)
            for field, way in ((through, sent), (arriving, arrived))
        )
        seen *= 1.0 + alike * (_apart(weights, taps.window.index(size), slopes, scale) - 1.0)
    reweigh = float(through.mean()) / seen if seen > 0 else 1.0
    source = taps.source
    if source.slopes is None:
        return Relations(met, tilt, reweigh)
    gate = source.slopes[:, :samples]
    passed = through * gate**2
    gates = _excess_by_place(through, gate**2, images)
    if law is not None and law.products is not None:
        # A few of the kernels, of small variance, count for much: the mean over all of them is known at each channel.
        squares = np.ascontiguousarray(law.products.diagonal(axis1=1, axis2=2).T)
        known = Stencils(squares, taps.window, size).back(np.ones((len(square), 1, count)))
        gates *= _excess_by_place(known, gate**2, images) / _excess_by_place(alone, gate**2, images)
    if source.inverse is None or source.inputs is None or y is None:
        return Relations(met, tilt, reweigh, gates)
    inputs = source.inputs[:, :samples]
    left = source.inverse * channel_means(passed)
    gone = _overlap(kernels.forward(gate), slopes, y, alike)
    gone += (2.0 - channel_squares(inputs)) * _overlap(kernels.forward(gate * inputs), slopes, y, alike)
    ratio = len(square) / len(gate)
    whole = float(left.mean())
    lost = float(np.mean(source.inverse * scale * gone)) / whole * ratio**2 / points if whole > 0 else None
    before, alike = (excess(channel_means(field), source.inverse) for field in (passed, alone))
    return Relations(met, tilt, reweigh, gates, before / alike, lost)


def _alike(images: bool) -> tuple[int, ...]:
    """Return the axes of a field, (positions, samples, channels), along which its law is one."""
    return (2,) if images else (1, 2)


def _excess_by_place(first: Array, second: Array, images: bool) -> float:
    """Return the mean product of two fields over that of their means at a point."""
    one, other = (field.mean(axis=_alike(images)) for field in (first, second))
    apart = float(np.mean(one * other))
    return float(np.mean(first * second)) / apart if apart > 0 else 1.0


def _met(after: Sample, opposed: float, along: float) -> Array:
    """Return the gradient that arrives at each channel and point over its root mean square.

    That is T = 1 / (1 + w S) of `opposition`, and what goes with the channel's own square at the point.
    """
    square = (after.values - channel_means(after.values)) ** 2
    v = channel_means(square)
    mean = float(v.mean())
    if mean == 0.0:
        return np.ones_like(square)
    level = square.mean(axis=2, keepdims=True)
    own = np.divide(square, level, out=np.ones_like(square), where=level > 0)
    met = np.maximum(1.0 + along * (own - 1.0), 0.0) / (1.0 + opposed * v / mean)
    return np.asarray(np.sqrt(met / met.mean()))


@dataclass(frozen=True)
class _Sent:
    """What the transposed weights make of ones, of y, of the slopes of either sign, and of their square alone and by y.

    `spread` is what the squared weights make of that square.
    """

    spread: Array
    slopes: tuple[Array, ...]
    square: Array
    ones: Array | None = None
    y: Array | None = None
    square_y: Array | None = None

    @staticmethod
    def by(back: Callable[..., Array], slopes: tuple[Array, Array], square: Array, y: Array | None) -> _Sent:
        """Send all of them."""
        spread, both = back(square, power=2), tuple(back(s) for s in slopes)
        if y is None:
            return _Sent(spread, both, square)
        return _Sent(spread, both, back(square), back(np.ones_like(y[:, :1])), back(y), back(y * square))


def _unchanged(field: Array, power: int = 1) -> Array:
    return field


def _passed(way: _Sent, slopes: tuple[Array, Array], square: Array, y: Array | None, points: int) -> Array:
    """Diagonal of W' P D (1 - 11' / N) D P W, averaged over slopes D of both signs of the kernel; P = 1 without y.

    Up to 1 / N, with a = W'1 and b = W'y, it is w^2' d - (2 a W'd + 2 b W'yd - |a + b y|^2 . d + (W'P s)^2) / N for
    slopes s and d = s^2.
    """
    if y is None:
        return way.spread
    assert way.ones is not None
    assert way.y is not None
    assert way.square_y is not None
    a, b, weighted = way.ones, way.y, y * square
    d0, d1, d2 = channel_means(square), channel_means(weighted), channel_products(weighted, y)
    taken = a * (2 * way.square - b * d1 - a * d0) + b * (2 * way.square_y - b * d2 - a * d1)
    for s, back in zip(slopes, way.slopes, strict=True):
        rest = back - b * channel_products(s, y) - a * channel_means(s)
        taken += rest * rest / 2
    return way.spread - taken / points


def _passed_alike(way: _Sent, slopes: tuple[Array, Array], y: Array | None, points: int) -> Array:
    """Return the diagonal of W' P D A D P W for gradients A alike all over a sample's map, and without their mean.

    At a sample x of B that is, with a = W'1, b = W'y and the means over the sample's map s of slopes and t of slopes
    by y, less their means over all samples, (W'D1)^2 - [2 W'D1 (a s + b t) - <(a s + b t)^2>] / (B - 1), where <> is
    the mean over samples of s and t alone. Of a single sample nothing is left.
    """
    total = np.zeros_like(way.spread)
    samples = points / len(slopes[0])
    if y is not None and samples <= 1.0:
        return total
    for s, back in zip(slopes, way.slopes, strict=True):
        total += back**2 / 2
        if y is None:
            continue
        assert way.ones is not None
        assert way.y is not None
        share = 1.0 / (samples - 1.0)
        mean, along = (field.mean(axis=0) - channel_means(field) for field in (s, s * y))
        total -= share * back * (way.ones * mean + way.y * along)
        first, second = way.ones**2 * np.mean(mean**2, axis=0), way.y**2 * np.mean(along**2, axis=0)
        total += share / 2 * (first + 2 * way.ones * way.y * np.mean(mean * along, axis=0) + second)
    return total


def _apart(weights: Array, under: Ints, slopes: tuple[Array, Array], scale: Array) -> float:
    """Return what ones bring through slopes and weights that know nothing of one another, over what noise does."""
    moments = (weights * scale) @ weights.T
    flat = [s.reshape(len(s), -1) for s in slopes]
    between = bordered(reduce(np.add, (s @ s.T for s in flat)))  # of two outputs; nothing lies beyond the edge
    # Which output lies over an input, tap by tap; a tap reaches an input at most once.
    over = np.full((len(under), int(under.max()) + 2), -1)
    for outputs, inputs in zip(over, under, strict=True):
        outputs[inputs] = np.arange(under.shape[1])
    over = over[:, :-1]
    products = between[over[:, None], over[None, :]].sum(axis=2)
    own = float(np.sum(np.diag(moments) * np.diag(products)))
    return float(np.sum(moments * products)) / own if own > 0 else 1.0


def _overlap(field: Array, slopes: tuple[Array, Array], y: Array, alike: float) -> Array:
    """Variance over the data of D P f, per channel, as the gradient sees it, averaged over slopes of both signs."""
    left = field - y * channel_products(field, y) - channel_means(field)
    found = np.zeros(field.shape[2])
    for s in slopes:
        seen = s * left
        found += (1 - alike) * (channel_squares(seen) - channel_means(seen) ** 2) / 2
        found += alike * len(seen) * seen.mean(axis=0).var(axis=0) / 2
    return found
