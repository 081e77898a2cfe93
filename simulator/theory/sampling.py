"""Channels that are not Gaussian, followed as a sample.

Where a sum over many inputs makes a channel Gaussian, its kernel says everything. Behind a depthwise kernel (nine taps
at any width) or a shortcut from behind an activation it does not. There theory integrates over the law of one
channel by cubature: it draws a few hundred channels over points of the data, and what an activation does to them
corrects the Gaussian averages.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.theory.duals import Duals
from varprop.simulator.theory.maps import Ints, Size, by_offset, near_offsets, offsets
from varprop.simulator.theory.pairs import Layout, PairKernel

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, Size], Array]

_SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), 1.0, -1.0)  # of the bits of a byte

_CHANNELS = 256  # at least, of an exchangeable batch; of images, whose channels differ more, twice as many
_MOST = 1024  # with twice as many the same noise is left in the gradient
VALUES = 2**17  # values that a sample of an exchangeable batch holds at most
_PRODUCTS = 2**21  # multiply-adds up to which more channels are drawn where all pairs of points are told apart, and
_FEW = 16  # points that fewer count as
_TAPS = 2**14  # channels drawn at most: half of them there are depthwise kernels for
_LINEAR = 2**21  # values that a sample of channels that are linear in images holds at most
_RANK = 300  # leading directions kept of a kernel over many points
_CANDIDATES = 32  # weights that one is taken of, and
_WEIGHTS = 2**16  # of all of them at most
_GOLDEN = (5**0.5 - 1) / 2  # step of a sequence of which any part is spread evenly
_POWERS = 16  # steps of the power method; a direction that rules stands out
_SOME = 64  # values of a position that are looked at before all are
_SOLVED = 64  # points up to which a covariance that has negative directions is resolved into all its directions
_ROUNDING = 1e-10  # share of the largest below which a direction's variance is nothing but rounding


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
    """

    values: Array
    inverse: Array | None = None
    slopes: Array | None = None
    inputs: Array | None = None
    lift: Array | None = None

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

    def half(self) -> Sample:
        """Return every other channel."""
        others = (None if field is None else field[..., ::2] for field in (self.inverse, self.slopes, self.inputs))
        return Sample(self.values[..., ::2], *others)


def counts(layout: Layout, positions: int, values: int = VALUES) -> tuple[int, int]:
    """Return how many samples and channels are drawn of a map of so many positions, at most so many `values`."""
    channels, points = _CHANNELS, layout.profiles * positions
    if layout.profiles > 1:
        while channels < _TAPS and 2 * channels * points * max(points, _FEW) <= _PRODUCTS:
            channels *= 2
        return layout.profiles, 2 * channels
    while channels < _MOST and 2 * channels * positions * layout.batch <= values:
        channels *= 2
    return min(layout.batch, max(values // (channels * positions), 2)), channels


def alike(*drawn: Array) -> list[Array]:
    """Keep the samples and channels that all fields have."""
    samples, channels = (min(values.shape[axis] for values in drawn) for axis in (1, 2))
    return [values[:, :samples, :channels] for values in drawn]


def draw(
    kernel: PairKernel, key: int, noise: Noise = np.random.Generator.standard_normal, values: int = VALUES
) -> Sample:
    """Draw half of the channels with the given kernel, the others being their negatives: Gaussian ones if `noise` is.

    `key` keeps the draws of different nodes apart.
    """
    return of_size(_drawn(kernel, key, noise, values), kernel)


def _drawn(kernel: PairKernel, key: int, noise: Noise, values: int) -> Array:
    """Draw the same before they are brought to the kernel's size."""
    layout, positions = kernel.layout, kernel.values.shape[1]
    samples, channels = counts(layout, positions, values)
    rng = np.random.Generator(np.random.SFC64(key))
    half = channels // 2
    if layout.profiles > 1:
        z = _coloured(noise, rng, 1, half, assemble(kernel)).reshape(samples, positions, half)
        z = np.ascontiguousarray(z.transpose(1, 0, 2))
    elif layout.batch == 1:
        z = _coloured(noise, rng, 1, half, kernel.values[0], kernel.size)
    else:
        # A batch's own covariance between samples may have either sign, but that of the batch's mean and that of
        # what is left of every sample are positive: draw these.
        own, cross = kernel.values
        rest = layout.batch - samples
        apart = _coloured(noise, rng, samples + (rest > 0), half, own - cross, kernel.size)
        z = apart[:, :samples]
        summed = z.sum(axis=1, keepdims=True)
        if rest:
            summed += np.sqrt(rest) * apart[:, samples:]
        # What samples share is of a few directions, which are no function of the offset near edges.
        shared = _coloured(noise, rng, 1, half, cross + (own - cross) / layout.batch)
        z = z + (shared - summed / layout.batch)
    return z


def mirrored(half: Sample) -> Sample:
    """Return channels and their negatives; of what an activation has not seen yet."""
    inverse = None if half.inverse is None else np.tile(half.inverse, 2)
    lift = None if half.lift is None else np.concatenate([half.lift, -half.lift])
    return Sample(np.concatenate([half.values, -half.values], axis=2), inverse, lift=lift)


def signs(rng: np.random.Generator, shape: Size) -> Array:
    """Draw numbers that are 1 or -1.

    Whatever is of second order in a linear function of them has the mean that it has of normal ones, and less variance
    (Hutchinson, "A stochastic estimator of the trace of the influence matrix", Communications in Statistics 18, 1989).
    """
    count = shape[0] * shape[1]
    drawn = np.frombuffer(rng.bytes(-(-count // 8)), np.uint8)
    return np.take(_SIGNS, drawn, axis=0).ravel()[:count].reshape(shape)


def affordable(layout: Layout, positions: int) -> int:
    """Return the number of samples that channels linear in the data are drawn at."""
    return max(_LINEAR // (positions * 2 * counts(layout, positions)[1]), layout.profiles)


def linear(features: Array, kernel: PairKernel, key: int) -> Sample:
    """Draw half of the channels that are linear in features of the data, shape (samples, features, positions).

    Weights are unit ones. There may be more samples than the kernel's. A channel's variance over the data takes its
    quantiles, evenly: where few directions of the data rule, what is divided by it depends on a few channels. The
    weights' covariance is that of their law, as far as there are as many channels as features, and the channels' kernel
    is exact then. There are twice as many as further on: none differ more, and half as many left 3% of noise in a step
    of the gradient.
    """
    samples, entries, positions = features.shape
    flat = features.transpose(1, 0, 2).reshape(entries, -1)
    half = counts(kernel.layout, positions)[1]
    candidates = min(_CANDIDATES, _WEIGHTS // half)
    weights = np.random.Generator(np.random.SFC64(key)).standard_normal((entries, half * candidates))
    covariance = np.cov(flat, bias=True)
    variance = np.einsum("ec,ec->c", weights, covariance @ weights)
    weights = weights[:, np.argsort(variance)[(ranks(half) * candidates).astype(int)]]
    if entries <= half:
        weights = np.linalg.solve(np.linalg.cholesky(weights @ weights.T / half), weights)
    values = (flat.T @ weights).reshape(samples, positions, half).transpose(1, 0, 2)
    return of_size(values, kernel)


def ranks(count: int) -> Array:
    """Return the middles of equal shares, from 0 to `count`, in an order of which any part is spread evenly."""
    order = np.argsort(np.arange(count) * _GOLDEN % 1.0)
    found = np.empty(count)
    found[order] = np.arange(count) + 0.5
    return found


def draw_strayed(kernel: PairKernel, key: int, levels: float, spots: Array) -> Sample:
    """Draw half of the channels with a kernel whose points have levels of their own, as in a single draw of a network.

    Levels are log-normal, of mean one. What two positions of a sample have in common is as expected then.

    Parameters
    ----------
    levels
        Their variance.
    spots
        Their correlation at two positions of a sample, by offset.
    """
    layout, log = kernel.layout, np.log1p(levels * np.take(spots, offsets(kernel.size)))
    own = math.log1p(levels)
    values = kernel.values.copy()
    values[: layout.profiles] *= np.exp((own - log) / 4)
    drawn = _drawn(replace(kernel, values=values), key, np.random.Generator.standard_normal, VALUES)
    root = _root(log, kernel.size)
    noise = np.random.Generator(np.random.SFC64([key, 1])).standard_normal((root.shape[1], drawn[0].size))
    level = root @ noise
    level -= own / 2
    level /= 2
    drawn *= np.exp(level, out=level).reshape(drawn.shape)
    return of_size(drawn, kernel)


def of_size(values: Array, kernel: PairKernel) -> Sample:
    """Give sampled channels the second moment of their kernel, which takes part of their noise away."""
    size = math.sqrt(float(np.vdot(values, values)) / values.size)
    wanted = np.sqrt(max(kernel.second_moment, 0.0)) * np.exp(kernel.log_scale / 2)
    return Sample(values * (wanted / size) if size > 0 else values)


def repeated(channels: Array, layout: Layout) -> Sample:
    """Take known channels, shape (samples, channels, positions), in turn and each twice: as many as are drawn."""
    positions = channels.shape[2]
    count = _CHANNELS if layout.profiles == 1 else 2 * _CHANNELS
    if layout.profiles == 1:
        channels = channels[: max(VALUES // (count * positions), 2)]
    turn = np.arange(count) // 2 % channels.shape[1]
    return Sample(np.ascontiguousarray(channels.transpose(2, 0, 1)[..., turn]))


def _coloured(
    noise: Noise, rng: np.random.Generator, samples: int, channels: int, covariance: Array, size: Size | None = None
) -> Array:
    """Draw channels of a covariance, shape (points, samples, channels); `size` is that of points that are a map."""
    root = _root(covariance, size)
    drawn = root @ noise(rng, (root.shape[1], samples * channels))
    if samples == 1 and noise is not signs:
        _evenly(drawn, covariance)
    return np.asarray(drawn.reshape(len(drawn), samples, channels))


def _evenly(draws: Array, covariance: Array) -> None:
    """Sample one direction evenly if it rules; `draws`, shape (points, draws), are changed in place.

    Given u'z of a direction u, z is Gaussian around C u (u'z) / u'Cu: only that mean is moved.
    """
    total = float(np.trace(covariance))
    direction = covariance.sum(axis=0)
    for _ in range(_POWERS):
        length = math.sqrt(float(direction @ direction))
        if length == 0.0:
            return
        image = covariance @ (direction / length)
        size = float(direction @ image) / length
        if size <= 0.0:
            return
        direction, along = image, direction / length
    if 2 * size > total:
        found = along @ draws / np.sqrt(size)
        wanted = np.empty_like(found)
        wanted[np.argsort(found)] = _levels(len(found))
        draws += np.outer(image / np.sqrt(size), wanted - found)


@cache
def _levels(count: int) -> Array:
    """Quantiles of a standard normal at the middle of equal shares, scaled to its variance."""
    levels = np.array([NormalDist().inv_cdf((i + 0.5) / count) for i in range(count)])
    return np.asarray(levels / np.sqrt(np.mean(levels**2)))


def assemble(kernel: PairKernel) -> Array:
    """Return the kernel of all carried points as one symmetric matrix."""
    layout, positions = kernel.layout, kernel.values.shape[1]
    full = np.empty((layout.profiles, positions, layout.profiles, positions))
    for a, b, block in zip(layout.left, layout.right, kernel.values, strict=True):
        full[a, :, b, :] = block
        full[b, :, a, :] = block.T
    return full.reshape(layout.profiles * positions, -1)


def _root(matrix: Array, map_size: Size | None) -> Array:
    """Return R, R R' being a matrix that is positive semidefinite up to approximation errors.

    Of a map's points, if its size is given, a matrix that is not counts as a function of the offset.
    """
    size = len(matrix)
    if size > _RANK:
        return _leading_root(matrix, _RANK)
    own = np.diag(matrix)
    try:
        root = np.linalg.cholesky(matrix + np.diag(np.full(size, _ROUNDING * float(own.max()))))
        root[own <= 0.0] = 0.0
        return np.asarray(root)
    except np.linalg.LinAlgError:
        if size > _SOLVED:
            return _leading_root(matrix, _SOLVED) if map_size is None else _root(_stationary(matrix, map_size), None)
        values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
        values = np.where(values > values[-1] * _ROUNDING, values, 0.0)
        # The symmetric root, as directions of equal variance are only known up to a rotation.
        return np.asarray((vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T)


def _leading_root(matrix: Array, rank: int) -> Array:
    """Return a root of Nystrom's approximation in the leading directions, at the matrix's own diagonal."""
    probe = np.random.default_rng(0).standard_normal((len(matrix), rank))
    probe = np.linalg.qr(matrix @ probe)[0]
    image = matrix @ probe
    values, vectors = np.linalg.eigh(probe.T @ image)
    keep = values > values[-1] * _ROUNDING  # approximation errors of the wrong sign are cut off
    basis = vectors[:, keep]
    root = image @ (basis / np.sqrt(values[keep]))
    found = np.sum(root**2, axis=1)
    level = np.sqrt(np.maximum(np.diag(matrix), 0.0) / np.maximum(found, 1e-300))
    return np.asarray((root * level[:, None]) @ basis.T)


def _stationary(matrix: Array, size: Size) -> Array:
    """Return a positive semidefinite matrix like the given one, whose correlations depend on the offset alone.

    On a torus of all offsets Fourier modes are the eigenvectors; negative powers are approximation errors.
    """
    root = np.sqrt(np.maximum(np.diag(matrix), 0.0))
    sizes = np.outer(root, root)
    correlation = np.divide(matrix, sizes, out=np.zeros_like(matrix), where=sizes > 0)
    power = np.fft.rfft2(np.fft.ifftshift(by_offset((correlation + correlation.T) / 2, size))).real
    torus = 2 * size[0] - 1, 2 * size[1] - 1
    found = np.fft.fftshift(np.fft.irfft2(np.maximum(power, 0.0), torus))
    return np.asarray(sizes * np.take(found, offsets(size)))


def normalised(sample: Sample, eps: float, mean: float, edges: float) -> Sample:
    """Normalise every channel over the batch by its own statistics.

    `mean` is the known mean of the channels' variances; `edges` how much smaller it is than that of the sampled
    positions, if these are a map's inside.
    """
    lift = channel_means(sample.values)
    z = sample.values - lift
    v = channel_squares(z)
    average = float(v.mean())
    scale = 1.0
    if average > 0:
        # The sample's few points miss part of what varies over the whole batch.
        v *= mean / average
        scale = mean / edges / average
    inverse = 1.0 / (v + eps)
    root = np.sqrt(scale * inverse)
    z *= root
    return Sample(z, inverse, lift=lift * root)


def activated(sample: Sample, function: ActivationFunction) -> Sample:
    """Apply an activation to every value."""
    value, slope = function.value(sample.values), function.derivative(sample.values)
    return Sample(value, sample.inverse, slope, sample.values, sample.lift)


def controlled(after: Sample, before: Sample, kernel: PairKernel) -> Sample:
    """Correct the size of activated channels for what the channels before happen to miss of their kernel's.

    A control variate: as much of the difference counts as the two sizes go together from channel to channel.
    """
    size, source = (channel_squares(sample.values) for sample in (after, before))
    mean, known = float(size.mean()), float(source.mean())
    apart = source - known
    spread = float(apart @ apart)
    if spread == 0.0 or mean == 0.0:
        return after
    slope = float(apart @ size) / spread
    missing = kernel.second_moment * math.exp(kernel.log_scale) - known
    varies = after.varies
    own = mean - float(position_squares(after.values) @ ~varies) / len(varies)
    wanted = own + slope * missing
    if wanted <= 0.0:
        return after
    return replace(after, values=after.values * np.where(varies, np.sqrt(wanted / own), 1.0)[:, None, None])


def correct(duals: Duals, after: Sample, before: PairKernel, mean: Array) -> Duals:
    """Replace an activation's Gaussian averages by those over sampled channels, `before` being their kernel.

    Where zero padding went in, the sample is one number, and the averages are right already. What the sample misses of
    the kernel before the activation it misses behind it by the mean product of two slopes, and gets back: the noise in
    the mean product of far positions, which a global pooling sees alone, would add up from layer to layer. `mean` is
    that of the channels before, shape (profiles, positions).
    """
    assert after.slopes is not None
    assert after.inputs is not None
    varies = after.varies
    exact = float(position_squares(after.slopes)[varies].mean())
    gaussian = float(duals.derivative.diagonal[:, varies].mean()) * float(np.exp(duals.derivative.log_scale))
    derivative = duals.derivative
    if gaussian > 0:
        factor = np.where(varies, np.sqrt(exact / gaussian), 1.0)
        derivative = replace(derivative, values=derivative.values * np.outer(factor, factor)).scaled(1.0)
    if before.layout.profiles > 1:
        kernel = paired(before, mean, after.inputs, after.values)
        means = after.values.mean(axis=2).T[: len(mean)] * kernel.unit(0.0)
        return replace(duals, mean=means, kernel=kernel, derivative=derivative)
    gaps = missing(before, after.inputs)
    slopes = averages(duals.derivative)
    kernel = shifted(duals.kernel, after, [gap * slope for gap, slope in zip(gaps, slopes, strict=True)])
    mean = duals.mean * kernel.unit(duals.kernel.log_scale)
    more = float(_position_means(after.values)[varies].mean()) * kernel.unit(0.0) - float(mean[:, varies].mean())
    return replace(duals, mean=mean + more * varies, kernel=kernel, derivative=derivative)


def squared_slope(inputs: Array, values: Array) -> float:
    """Return the squared slope of the line that fits what an activation makes of a channel, its mean over positions."""
    positions, samples, _ = inputs.shape
    mean = channel_means(inputs)
    varied = np.maximum(channel_squares(inputs) - mean**2, 0.0)
    # The product of two halves' fits has no part of the noise of either.
    half = (samples + 1) // 2
    along = np.einsum("psc,psc->sc", inputs, values) - mean * np.add.reduce(values, axis=0)
    first, second = (along[part].sum(axis=0) / (half * positions) for part in (slice(half), slice(-half, None)))
    fitted = np.divide(first * second, varied, out=np.zeros_like(varied), where=varied > 0)
    return float(fitted.sum() / varied.sum()) if varied.any() else 0.0


def lacking(kernel: PairKernel, values: Array) -> list[Array]:
    """Return what sampled channels miss of a kernel's averages, within a sample and between samples."""
    return [true - drawn for true, drawn in zip(averages(kernel), carried(values, kernel.layout), strict=True)]


def missing(kernel: PairKernel, values: Array) -> list[Array]:
    """Return what sampled channels miss of a kernel's averages, but of sizes, which were brought to it already."""
    gaps = lacking(kernel, values)
    np.fill_diagonal(gaps[0], 0.0)
    return gaps


def levelled(kernel: PairKernel, sample: Sample) -> PairKernel:
    """Give a kernel the second moment of sampled channels at each position."""
    before = kernel.diagonal.mean(axis=0) * float(np.exp(kernel.log_scale))
    after = position_squares(sample.values)
    sizes = np.sqrt(np.divide(after, before, out=np.zeros_like(before), where=before > 0))
    return replace(kernel, values=kernel.values * sizes[:, None] * sizes[None, :]).scaled(1.0)


def matched(kernel: PairKernel, sample: Sample) -> PairKernel:
    """Give a kernel the second moment and the mean between samples of sampled channels, keeping its shape."""
    same, cross = _kernels(sample.values)
    inner, outer = float(np.trace(same)) / len(same), float(cross.mean())
    count = kernel.layout.profiles
    between = float(kernel.values[count:].mean()) if len(kernel.values) > count else 0.0
    gap = kernel.second_moment - between
    slope = (inner - outer) / gap if gap > 0 else 0.0
    return shifted(replace(kernel, values=outer + slope * (kernel.values - between), log_scale=0.0), sample)


def paired(kernel: PairKernel, mean: Array, before: Array, after: Array) -> PairKernel:
    """Return the mean product at every pair of points of what sampled channels `before` become, `after`.

    Of a batch whose pairs are all told apart. Corrections of averages alone leave kernels of smooth images with large
    negative eigenvalues, which the next normalisation takes for leading modes. Channels `before` are control variates,
    as their kernel and mean, shape (profiles, positions), are known: what their products happen to miss, the others
    miss in one proportion, that which leaves the least noise in all entries together.
    """
    count, unit = len(mean), float(np.exp(kernel.log_scale / 2))
    fields = [values[:, :count].transpose(1, 0, 2) for values in (before, after)]
    fields[0] = fields[0] - unit * mean[:, :, None]
    left, right = kernel.layout.left, kernel.layout.right
    drawn, found = (field[left] @ field[right].transpose(0, 2, 1) / field.shape[2] for field in fields)
    known = unit**2 * (kernel.values - mean[left][:, :, None] * mean[right][:, None, :])
    # Over all pairs of points, the sums of the covariances of two products and of the variances of one.
    one, other = ((field - field.mean(axis=2, keepdims=True)).reshape(-1, field.shape[2]) for field in fields)
    channels = one.shape[1]
    own, others = (field @ field.T if len(field) < channels else field.T @ field for field in (one, other))
    together = float(np.sum((one * other).sum(axis=0) ** 2)) - float(np.vdot(own, others)) / channels
    alone = float(np.sum((one * one).sum(axis=0) ** 2)) - float(np.vdot(own, own)) / channels
    share = together / alone if alone > 0 else 0.0
    return replace(kernel, values=found + share * (known - drawn), log_scale=0.0).scaled(1.0)


def crossed(first: PairKernel, second: PairKernel, one: Sample, other: Sample) -> PairKernel:
    """Mean product of two functions of the same channels, both orders, from sampled channels of both.

    Numbers for each offset between two positions, as correlations. Samples that miss a part of the two kernels, which
    are known, miss of the product what goes with it: rho / (1 + rho^2) of either, rho the correlation, is the share
    that leaves the least noise of Gaussian ones.
    """
    points, channels = (min(one.values.shape[axis], other.values.shape[axis]) for axis in (1, 2))
    units = []
    for sample in (one, other):
        values = sample.values[:, :points, :channels]
        size = float(np.sqrt(np.mean(values**2)))
        units.append(values / size if size > 0 else values)
    numbers, layout = offsets(first.size), first.layout
    alone = [_kernels(values) for values in units]
    products = [both - sum(parts) for both, *parts in zip(_kernels(units[0] + units[1]), *alone, strict=True)]
    rho = float(np.trace(products[0])) / (2 * len(products[0]))
    share = 2 * rho / (1 + rho * rho)  # of a product in both orders
    known = [_correlations(kernel) for kernel in (first, second)]
    same, cross = (
        product + share * sum(exact - found for exact, found in zip(of_known, of_sample, strict=True))
        for product, of_known, of_sample in zip(
            products, zip(*known, strict=True), zip(*alone, strict=True), strict=True
        )
    )
    # Points differ in size, and products with them.
    one_size, other_size = (np.sqrt(np.maximum(kernel.diagonal, 0.0)) for kernel in (first, second))
    sizes = one_size[layout.left][:, :, None] * other_size[layout.right][:, None, :]
    sizes = (sizes + other_size[layout.left][:, :, None] * one_size[layout.right][:, None, :]) / 2
    at_points = float(np.mean(one_size * other_size))
    if at_points > 0:
        sizes *= np.sqrt(first.second_moment * second.second_moment) / at_points
    sizes[: layout.profiles] *= _by_offset(same, numbers)
    sizes[layout.profiles :] *= _by_offset((cross + cross.T) / 2, numbers)
    return replace(first, values=sizes, log_scale=(first.log_scale + second.log_scale) / 2)


def _correlations(kernel: PairKernel) -> list[Array]:
    """Return `averages` of a kernel over its second moment."""
    unit = kernel.second_moment or 1.0
    return [values / unit for values in averages(replace(kernel, log_scale=0.0))]


def averages(kernel: PairKernel) -> tuple[Array, Array]:
    """Return a kernel within a sample and between samples, each averaged over samples."""
    layout, scale = kernel.layout, float(np.exp(kernel.log_scale))
    same = kernel.values[: layout.profiles].mean(axis=0) * scale
    if len(layout.left) == layout.profiles:
        return same, same
    share = layout.weight[layout.profiles :]
    cross = np.tensordot(share / share.sum(), kernel.values[layout.profiles :], axes=1) * scale
    return same, (cross + cross.T) / 2


def shifted(kernel: PairKernel, sample: Sample, missed: Sequence[Array | float] = (0.0, 0.0)) -> PairKernel:
    """Move a kernel's averages to those of sampled channels, and what these miss of the mean product of two points.

    The shift is one number for each offset between two positions, and one for all far ones, within a sample and between
    samples: few enough that the noise of the sample stays small, and that a stride, which makes near offsets of far
    ones, finds little of it. It is a correlation's: points differ in size, and products with them. Pairs
    with a position where the sample is one number, as zero padding is, have a number of their own.
    """
    layout = kernel.layout
    same, cross = (values + more for values, more in zip(carried(sample.values, layout), missed, strict=True))
    numbers = near_offsets(kernel.size)
    varies = sample.varies
    if not varies.all():
        both = np.add.outer(varies.astype(int), varies.astype(int))
        numbers = np.where(both == 2, numbers, numbers.max() + 1 + both)
    values = kernel.values * float(np.exp(kernel.log_scale))
    size = np.sqrt(np.maximum(kernel.diagonal, 0.0))
    sizes = size[layout.left][:, :, None] * size[layout.right][:, None, :]
    parts = [(slice(layout.profiles), same, layout.weight[: layout.profiles])]
    if len(layout.left) > layout.profiles:
        parts.append((slice(layout.profiles, None), (cross + cross.T) / 2, layout.weight[layout.profiles :]))
    for blocks, wanted, weight in parts:
        share = weight / weight.sum()
        own, unit = (np.tensordot(share, field[blocks], axes=1) for field in (values, sizes))
        missing, unit = (np.bincount(numbers.ravel(), field.ravel()) for field in (wanted - own, unit))
        values[blocks] += sizes[blocks] * np.divide(missing, unit, out=np.zeros_like(unit), where=unit > 0)[numbers]
    return replace(kernel, values=values, log_scale=0.0).scaled(1.0)


def mapped(matrix: Array, values: Array) -> Array:
    """Apply a linear map of the positions, shape (after, before), to sampled fields."""
    return (matrix @ values.reshape(len(values), -1)).reshape(-1, *values.shape[1:])


def cropped_piece(values: Array, size: Size, wanted: Size) -> Array:
    """Keep the first rows and columns of maps, the first axis of an array: what `regrown` continued."""
    if size == wanted:
        return values
    return values.reshape(*size, *values.shape[1:])[: wanted[0], : wanted[1]].reshape(-1, *values.shape[1:])


def _kernels(values: Array) -> tuple[Array, Array]:
    """Mean product within a sample and between samples, each (positions, positions)."""
    positions, samples, channels = values.shape
    flat = values.reshape(positions, -1)
    same = flat @ flat.T / flat.shape[1]
    if samples == 1:
        return same, same
    total = values.sum(axis=1)
    return same, (total @ total.T / channels - samples * same) / (samples * (samples - 1))


def carried(values: Array, layout: Layout) -> tuple[Array, Array]:
    """Return `_kernels` as a layout's blocks stand for them.

    Of a few samples that stand for all of a batch, more pairs are of one with itself than of the many drawn at.
    """
    same, cross = _kernels(values)
    samples, paired = values.shape[1], layout.paired
    if paired < min(samples, layout.batch):
        every = same / samples + (1 - 1 / samples) * cross
        cross = (every - same / paired) / (1 - 1 / paired)
    return same, cross


def batch_variances(values: Array, fixed: Sequence[Array], batch: int) -> Array:
    """Return the variance of every sampled channel over a whole batch.

    At some of the batch's points channels differ more than over all of them: see `share_of_batch`, and for `fixed`.
    """
    first, second = values.mean(axis=0), np.einsum("psc,psc->sc", values, values) / len(values)
    mean = first.mean(axis=0)
    v = second.mean(axis=0) - mean**2
    # To first order a channel's v is the average of these.
    share = share_of_batch((second - 2 * mean * first)[:, :, None], fixed, batch)
    return np.asarray(v.mean() + np.sqrt(share) * (v - v.mean()))


def share_of_batch(apart: Array, fixed: Sequence[Array], batch: int) -> float:
    """Return the share of what sampled channels differ by that they would differ by over a whole batch.

    The rest is noise of the few samples: what a mean over them varies by, as their own differences say. Those that all
    channels have in common are none, as they set no channel apart; neither is what goes along with numbers whose mean
    over the samples is known, linearly.

    Parameters
    ----------
    apart
        Of which the channels' means over samples are taken, shape (samples, channels, numbers).
    fixed
        Numbers of each sample in each channel, shape (samples, channels), whose mean normalisation sets.
    """
    samples, channels, _ = apart.shape
    apart = apart - apart.mean(axis=1, keepdims=True)
    means = apart.mean(axis=0)
    squares = float(np.sum(means**2))
    if samples == 1 or squares == 0.0:
        return 1.0
    rest = float(np.vdot(apart, apart)) - samples * squares
    if fixed:
        flat = apart.reshape(samples * channels, -1)
        known = [(field - field.mean(axis=0)).ravel() for field in fixed]  # few and maybe alike
        along = np.stack([field @ flat for field in known])
        products = np.array([[one @ other for other in known] for one in known])
        rest -= float(np.vdot(along, np.linalg.lstsq(products, along)[0]))
    noise = rest / (channels * (samples - 1) * samples) * (1 - samples / batch)
    return float(max(1.0 - noise * channels / squares, 0.0))


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


def _position_means(values: Array) -> Array:
    """Mean at each position."""
    flat = values.reshape(len(values), -1)
    return np.asarray(flat @ np.full(flat.shape[1], 1 / flat.shape[1]))


def _by_offset(values: Array, numbers: Ints) -> Array:
    """Replace every entry by the mean over entries of the same offset."""
    count = np.bincount(numbers.ravel())
    total = np.bincount(numbers.ravel(), values.ravel())
    return np.asarray((total / np.maximum(count, 1))[numbers], dtype=np.float64)
