"""What sampled channels say of kernels: averages over them in place of Gaussian ones, with as little of their noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.duals import Duals
from varprop.simulator.theory.maps import Ints, near_offsets, offsets
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.patchwork import torn_alike
from varprop.simulator.theory.sample import Sample, channel_means, channel_squares, kernels, position_squares
from varprop.simulator.theory.sampling import of_size

Array = NDArray[np.float64]


def sized(sample: Sample, kernel: PairKernel) -> Sample:
    """Bring sampled channels to the size of their kernel."""
    return replace(sample, values=of_size(sample.values, kernel).values)


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
        kernel = torn_alike(before, paired(before, mean, after.inputs, after.values))
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


def paired(kernel: PairKernel, mean: Array, before: Array, after: Array) -> PairKernel:
    """Return the mean product at every pair of points of what sampled channels `before` become, `after`.

    Of a batch whose pairs are all told apart. Corrections of averages alone leave kernels of smooth images with large
    negative eigenvalues, which the next normalisation takes for leading modes. Channels `before` are control variates,
    as their kernel and mean, shape (profiles, positions), are known: what their products happen to miss, the others
    miss in one proportion, that which leaves the least noise in all entries together. But for their size, as that of
    channels `after` is right already.
    """
    count, unit = len(mean), float(np.exp(kernel.log_scale / 2))
    fields = [values[:, :count].transpose(1, 0, 2) for values in (before, after)]
    fields[0] = fields[0] - unit * mean[:, :, None]
    left, right = kernel.layout.left, kernel.layout.right
    known = unit**2 * (kernel.values - mean[left][:, :, None] * mean[right][:, None, :])
    size, wanted = float(np.vdot(fields[0], fields[0])) / fields[0].shape[2], float(np.einsum("bpp->", known[:count]))
    fields[0] *= math.sqrt(max(wanted, 0.0) / size) if size > 0 else 1.0
    drawn, found = (_products(field)[left, :, right] for field in fields)
    # Over all pairs of points, the sums of the covariances of two products and of the variances of one.
    one, other = ((field - field.mean(axis=2, keepdims=True)).reshape(-1, field.shape[2]) for field in fields)
    channels = one.shape[1]
    own, others = (field @ field.T if len(field) < channels else field.T @ field for field in (one, other))
    together = float(np.sum((one * other).sum(axis=0) ** 2)) - float(np.vdot(own, others)) / channels
    alone = float(np.sum((one * one).sum(axis=0) ** 2)) - float(np.vdot(own, own)) / channels
    share = together / alone if alone > 0 else 0.0
    values, points = found + share * (known - drawn), np.arange(found.shape[1])
    # A small point's square may be less than what the control variate takes from it.
    sizes = values[:count, points, points]
    values[:count, points, points] = np.where(sizes > 0, sizes, found[:count, points, points])
    return replace(kernel, values=values, log_scale=0.0).scaled(1.0)


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
    alone = [kernels(values) for values in units]
    products = [both - sum(parts) for both, *parts in zip(kernels(units[0] + units[1]), *alone, strict=True)]
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


def shifted(kernel: PairKernel, sample: Sample, missed: Sequence[Array | float] = (0.0, 0.0)) -> PairKernel:
    """Move a kernel's averages to those of sampled channels, and what these miss of the mean product of two points.

    The shift is one number for each offset between two positions, and one for all far ones, within a sample and between
    samples: few enough that the noise of the sample stays small, and that a stride, which makes near offsets of far
    ones, finds little of it. It is a correlation's: points differ in size, and products with them. Pairs
    with a position where the sample is one number, as behind zero padding, have a number of their own.
    """
    layout = kernel.layout
    same, cross = (values + more for values, more in zip(carried(sample.values, layout), missed, strict=True))
    numbers = near_offsets(kernel.size)
    # Where a gradient is zero, behind a stride, products are as well, and the others take the whole shift.
    shifts = sample.varies | (position_squares(sample.values) == 0.0)
    if not shifts.all():
        both = np.add.outer(shifts.astype(int), shifts.astype(int))
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


def levelled(kernel: PairKernel, sample: Sample) -> PairKernel:
    """Give a kernel the second moment of sampled channels at each position."""
    before = kernel.diagonal.mean(axis=0) * float(np.exp(kernel.log_scale))
    after = position_squares(sample.values)
    sizes = np.sqrt(np.divide(after, before, out=np.zeros_like(before), where=before > 0))
    return replace(kernel, values=kernel.values * sizes[:, None] * sizes[None, :]).scaled(1.0)


def matched(kernel: PairKernel, sample: Sample) -> PairKernel:
    """Give a kernel the second moment and the mean between samples of sampled channels, keeping its shape."""
    same, cross = kernels(sample.values)
    inner, outer = float(np.trace(same)) / len(same), float(cross.mean())
    count = kernel.layout.profiles
    between = float(kernel.values[count:].mean()) if len(kernel.values) > count else 0.0
    gap = kernel.second_moment - between
    slope = (inner - outer) / gap if gap > 0 else 0.0
    return shifted(replace(kernel, values=outer + slope * (kernel.values - between), log_scale=0.0), sample)


def lacking(kernel: PairKernel, values: Array) -> list[Array]:
    """Return what sampled channels miss of a kernel's averages, within a sample and between samples."""
    return [true - drawn for true, drawn in zip(averages(kernel), carried(values, kernel.layout), strict=True)]


def missing(kernel: PairKernel, values: Array) -> list[Array]:
    """Return what sampled channels miss of a kernel's averages, but of sizes, which were brought to it already."""
    gaps = lacking(kernel, values)
    np.fill_diagonal(gaps[0], 0.0)
    return gaps


def averages(kernel: PairKernel) -> tuple[Array, Array]:
    """Return a kernel within a sample and between samples, each averaged over samples."""
    layout, scale = kernel.layout, float(np.exp(kernel.log_scale))
    same = kernel.values[: layout.profiles].mean(axis=0) * scale
    if len(layout.left) == layout.profiles:
        return same, same
    share = layout.weight[layout.profiles :]
    cross = np.tensordot(share / share.sum(), kernel.values[layout.profiles :], axes=1) * scale
    return same, (cross + cross.T) / 2


def carried(values: Array, layout: Layout) -> tuple[Array, Array]:
    """Return `kernels` as a layout's blocks stand for them.

    Of a few samples that stand for all of a batch, more pairs are of one with itself than of the many drawn at.
    """
    same, cross = kernels(values)
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


def _products(field: Array) -> Array:
    """Return the mean product over channels at every two points, of values of shape (profiles, positions, channels)."""
    profiles, positions, channels = field.shape
    flat = field.reshape(-1, channels)
    return np.asarray(flat @ flat.T / channels).reshape(profiles, positions, profiles, positions)


def _correlations(kernel: PairKernel) -> list[Array]:
    """Return `averages` of a kernel over its second moment."""
    unit = kernel.second_moment or 1.0
    return [values / unit for values in averages(replace(kernel, log_scale=0.0))]


def _position_means(values: Array) -> Array:
    """Mean at each position."""
    flat = values.reshape(len(values), -1)
    return np.asarray(flat @ np.full(flat.shape[1], 1 / flat.shape[1]))


def _by_offset(values: Array, numbers: Ints) -> Array:
    """Replace every entry by the mean over entries of the same offset."""
    count = np.bincount(numbers.ravel())
    total = np.bincount(numbers.ravel(), values.ravel())
    return np.asarray((total / np.maximum(count, 1))[numbers], dtype=np.float64)
