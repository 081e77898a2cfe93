"""How channels of a known kernel are drawn: how many, at which points, and with how little noise."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.maps import Ints, Size, at_offsets, by_offset, offsets
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sample import Sample, channel_squares
from varprop.simulator.theory.transport import transport

Array = NDArray[np.float64]
Noise = Callable[[np.random.Generator, Size], Array]

_SIGNS = np.where(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1), 1.0, -1.0)  # of the bits of a byte
_CHANNELS = 256  # at least, of an exchangeable batch; of images, whose channels differ more, twice as many
_MOST = 1024  # with twice as many the same noise is left in the gradient
_UNSIZED = 8  # times as many where nothing normalises them: with 256 slopes behind depthwise layers had noise of 4%
_ALIKE = 4  # samples there at least: deep down they are alike, and more channels say more
VALUES = 2**17  # values that a sample of an exchangeable batch holds at most
_PRODUCTS = 2**21  # multiply-adds up to which more channels are drawn where all pairs of points are told apart
_PRODUCTS_UNSIZED = 2**29  # the same where nothing normalises them, and
_FEW = 16  # points that fewer count as
_TAPS = 2**14  # channels drawn at most: half of them there are depthwise kernels for
_LINEAR = 2**21  # values that a sample of channels that are linear in images holds at most
_RANK = 300  # leading directions kept of a kernel over many points
_CANDIDATES = 32  # weights that one is taken of, and
_WEIGHTS = 2**16  # of all of them at most
_GOLDEN = (5**0.5 - 1) / 2  # step of a sequence of which any part is spread evenly
_POWERS = 16  # steps of the power method; a direction that rules stands out
_SOLVED = 64  # points up to which a covariance that has negative directions is resolved into all its directions
_NEGLIGIBLE = 1e-6  # share of the largest variance that leading directions may leave of any
_ROUNDING = 1e-10  # share of the largest below which a direction's variance is nothing but rounding


def counts(layout: Layout, positions: int, values: int = VALUES) -> tuple[int, int]:
    """Return how many samples and channels are drawn of a map of so many positions, at most so many `values`."""
    channels, points = _CHANNELS, layout.profiles * positions
    if layout.profiles > 1:
        most, products = (_TAPS, _PRODUCTS) if layout.normalised else (_UNSIZED * _CHANNELS, _PRODUCTS_UNSIZED)
        while channels < most and 2 * channels * points * max(points, _FEW) <= products:
            channels *= 2
        return layout.profiles, 2 * channels
    if not layout.normalised:
        channels *= _UNSIZED
        while channels < _UNSIZED * _MOST and 2 * channels * positions * _ALIKE <= values:
            channels *= 2
    while channels < _MOST and 2 * channels * positions * layout.batch <= values:
        channels *= 2
    return min(layout.batch, max(values // (channels * positions), 2)), channels


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
        z = _coloured(noise, rng, 1, half, assemble(kernel), tiles=_tiles(kernel)).reshape(samples, positions, half)
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


def linear(features: Array, kernel: PairKernel, key: int, over_map: Array | None = None) -> Sample:
    """Draw half of the channels that are linear in features of the data, shape (samples, features, positions).

    Of a map's inside, `over_map` is the features' covariance over all of the map.

    Weights are unit ones. There may be more samples than the kernel's. A channel's variance over the data takes its
    quantiles, evenly: where few directions of the data rule, what is divided by it depends on a few channels. The
    weights' covariance is that of their law, as far as there are as many channels as features, and the channels' kernel
    is exact then: each direction of the data is rid of what it has in common with those that rule more, so that a
    channel that is small in them all stays so. There are twice as many channels as further on: none differ more, and
    half as many left 3% of noise in a step of the gradient.
    """
    samples, entries, positions = features.shape
    flat = features.transpose(1, 0, 2).reshape(entries, -1)
    variance, directions = (part[..., ::-1] for part in np.linalg.eigh(np.cov(flat, bias=True)))
    half = min(counts(kernel.layout, positions)[1], _TAPS)
    candidates = min(_CANDIDATES, _WEIGHTS // half)
    weights = np.random.Generator(np.random.SFC64(key)).standard_normal((entries, half * candidates))
    weights = weights[:, np.argsort(variance @ weights**2)[(ranks(half) * candidates).astype(int)]]
    if entries <= half:
        weights = np.linalg.solve(np.linalg.cholesky(weights @ weights.T / half), weights)
    own = directions @ weights
    values = (flat.T @ own).reshape(samples, positions, half).transpose(1, 0, 2)
    found = of_size(values, kernel)
    if over_map is None:
        return found
    inside, whole = variance @ weights**2, np.einsum("fc,fc->c", over_map @ own, own)
    return replace(found, over_map=np.divide(whole, inside, out=np.ones_like(whole), where=inside > 0))


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


def filtered(sample: Sample, kernel: PairKernel, shifted: Array, key: int) -> Sample:
    """Give every sampled channel of a kernel correlations of its own between positions a shift u apart.

    Given the kernel K of one draw, a channel's mean product c(u) over all points varies from channel to channel by

        E K(p, q) K(p + u, q + u)        (p, q two points),

    which no number of samples takes away: it is what entries of different samples, that stray, have in common with
    those a shift further. To first order x(p) + sum_u d(u) x(p - u) / 2 has sum_v d(v) c(u - v) more for an even d,
    which is drawn, shift by shift, with this variance over sum_v c(v)^2. Maps count as closed to rings.

    Parameters
    ----------
    shifted
        That covariance by shift, over the squared second moment.
    """
    size, (_, samples, channels) = kernel.size, sample.values.shape
    if size == (1, 1) or not shifted.any():
        return sample
    apart = [np.minimum(np.arange(side), side - np.arange(side)) for side in size]
    drawn = np.random.Generator(np.random.SFC64([key, 2])).standard_normal((*size, channels))
    even = (drawn + np.roll(drawn[::-1, ::-1], (1, 1), axis=(0, 1))) / math.sqrt(2)
    alike = float(np.sum(at_offsets(kernel.centred.correlation(), *apart) ** 2))
    taps = np.sqrt(np.maximum(at_offsets(shifted, *apart), 0.0) / max(alike, 1.0))[:, :, None] * even / 2
    taps[0, 0] = 1.0
    maps = sample.values.reshape(*size, samples, channels)
    found = np.fft.rfft2(maps, axes=(0, 1)) * np.fft.rfft2(taps, axes=(0, 1))[:, :, None]
    return of_size(np.fft.irfft2(found, size, axes=(0, 1)).reshape(-1, samples, channels), kernel)


def of_size(values: Array, kernel: PairKernel) -> Sample:
    """Give sampled channels the second moment of their kernel, which takes part of their noise away."""
    size = math.sqrt(float(channel_squares(values).mean()))
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
    noise: Noise,
    rng: np.random.Generator,
    samples: int,
    channels: int,
    covariance: Array,
    size: Size | None = None,
    tiles: Sequence[Ints] = (),
) -> Array:
    """Draw channels of a covariance, shape (points, samples, channels).

    Parameters
    ----------
    size
        That of points that are a map.
    tiles
        Points that go together as the covariance says, which as a whole is none: see `patchwork`.
    """
    root = _root(covariance, size)
    drawn = root @ noise(rng, (root.shape[1], samples * channels))
    # What a few leading directions leave of a point is a matter of near points, which go together the less for it.
    alone = np.maximum(np.diag(covariance) - np.vecdot(root, root), 0.0)
    if float(alone.max()) > _NEGLIGIBLE * float(covariance.diagonal().max()):
        drawn += np.sqrt(alone)[:, None] * noise(rng, drawn.shape)
    if samples == 1 and noise is not signs:
        _evenly(drawn, covariance)
    for tile in tiles:
        # What the whole has of negative directions changes how neighbours go together, and with it the larger of two.
        found = root[tile] @ root[tile].T + np.diag(alone[tile])
        drawn[tile] = transport(found, covariance[np.ix_(tile, tile)]) @ drawn[tile]
    return np.asarray(drawn.reshape(len(drawn), samples, channels))


def _tiles(kernel: PairKernel) -> list[Ints]:
    """Return the points of each piece that maps are laid out of side by side."""
    layout, points = kernel.layout, kernel.values.shape[1]
    if layout.tile is None:
        return []
    numbers = layout.tile_of(kernel.size)
    tiles = [np.flatnonzero(numbers == number) for number in np.unique(numbers)]
    return [tile + profile * points for profile in range(layout.profiles) for tile in tiles]


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
    """Return a root of Nystrom's approximation in the leading directions, nowhere larger than the matrix's diagonal."""
    probe = np.random.default_rng(0).standard_normal((len(matrix), rank))
    probe = np.linalg.qr(matrix @ probe)[0]
    image = matrix @ probe
    values, vectors = np.linalg.eigh(probe.T @ image)
    keep = values > values[-1] * _ROUNDING  # approximation errors of the wrong sign are cut off
    basis = vectors[:, keep]
    root = image @ (basis / np.sqrt(values[keep]))
    found = np.sum(root**2, axis=1)
    level = np.sqrt(np.minimum(np.maximum(np.diag(matrix), 0.0) / np.maximum(found, 1e-300), 1.0))
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
