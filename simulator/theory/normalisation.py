"""Batch normalisation of the signal: the law of a channel's variance, and the kernel after division by it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.network import BatchNorm
from varprop.simulator.theory.convolution import centred_edges, with_edges
from varprop.simulator.theory.corrections import batch_variances, levelled, missing, paired, shifted
from varprop.simulator.theory.depthwise import depthwise_law, edges_behind, position_gains
from varprop.simulator.theory.few_points import Cubature, gaussian
from varprop.simulator.theory.levels import divided, nodes
from varprop.simulator.theory.maps import at_offsets, one_root, overlaps, pairs_apart, products_by_offset
from varprop.simulator.theory.pair_series import mean_square_correlation
from varprop.simulator.theory.pairs import ROUNDING, PairKernel, windows
from varprop.simulator.theory.patchwork import beside, enlarged, passed, shared_with_inside, torn_alike
from varprop.simulator.theory.sample import Sample, channel_squares, normalised
from varprop.simulator.theory.signal import Signal, fixed
from varprop.simulator.theory.strays import NONE, Strays
from varprop.simulator.theory.variance_law import VarianceLaw, quadratic_form_law

Array = NDArray[np.float64]

_VANISHED = 1e-200  # share of a variance in itself and eps
_MODES = 8  # leading modes of the data that a channel's variance is resolved into


def batch_normalised(operation: BatchNorm, signal: Signal) -> Signal:
    """Return the signal after batch normalisation by the statistics of the batch."""
    sample, own, origin, strays = None, None, signal.origin, signal.strays
    amplitude, near = signal.amplitude, None
    if amplitude is not None:
        if signal.near is not None:
            inside = signal.kernel.second_moment, signal.kernel.pair_mean
            near = signal.near.centred(amplitude, *inside, signal.common)
        amplitude = centred_edges(signal.kernel, amplitude, signal.common)
    edges = 1.0 if amplitude is None else float(amplitude.mean())
    taps = signal.weighted.taps if signal.weighted is not None else None
    far = signal.far
    shared = shared_with_inside(far, amplitude)
    if taps is not None:
        assert signal.weighted is not None
        assert signal.weighted.window is not None
        # A channel's variance is that of its few taps: no single point has much of it.
        points = nodes(signal.levels)[0] * signal.kernel.share
        parts = np.stack([points, 3 * points**2])
        spots = signal.strays.spots_on(signal.kernel)
        law = replace(depthwise_law(taps, operation.eps), levels=signal.levels, parts=parts, spots=spots)
        # Dividing by v damps the directions of w that make v large.
        assert law.taps is not None
        kernel = windows(signal.weighted.input, law.taps, signal.weighted.window).centred
        if kernel.size != signal.kernel.size:
            before = windows(signal.weighted.input, np.diag(signal.weighted.window.shares), signal.weighted.window)
            left = None if far is None else far.times(passed(before.centred, kernel))
            kernel = enlarged(kernel, left, signal.kernel.size)
        if signal.weighted.window.inside and amplitude is None:
            kernel = with_edges(kernel, signal.kernel.centred.diagonal.mean(axis=0))
        elif amplitude is None:
            assert signal.behind is not None
            kernel = with_edges(kernel, position_gains(taps, law, signal.behind[1]))
    else:
        law, kernel, own = _normalised(signal, operation.eps, edges, shared)
    if signal.divided is not None:
        known = signal.divided(operation.eps)
        amplitude = known.amplitude
    elif taps is not None and taps.edges is not None and signal.amplitude is not None:
        amplitude = edges_behind(taps, law).reshape(signal.amplitude.shape)
    elif amplitude is not None and signal.common is not None and law.modes is not None:
        amplitude = _edges_behind(signal, law)
    edges = 1.0 if amplitude is None else float(amplitude.mean())
    if far is not None:
        far = far.times(passed(signal.kernel.centred, kernel)) if signal.divided is None else known.far
    if own is not None:
        strays = _strays_behind(signal, law, kernel, own, shared_with_inside(far, amplitude))
    if signal.sample is not None or (origin is not None and (any(signal.padding) or origin.function is not None)):
        if taps is None:
            law = _sampled_law(signal, law, operation.eps, shared)
        drawn = signal.draw()
        found = normalised(drawn, operation.eps, law.mean, edges, shared)
        sample = fixed(found)
        if taps is not None and kernel.second_moment > 0:
            # Sizes at edges are known already, but not what channels' own kernels do to the variances that divide them.
            kernel = replace(kernel, log_scale=0.0).scaled(float(np.mean(found.values**2)) / kernel.second_moment)
        centred = signal.kernel.centred
        if centred.layout.profiles > 1:
            deviations, sizes = drawn.values - drawn.values.mean(axis=(0, 1)), kernel.diagonal.mean(axis=0)
            kernel = paired(centred, np.zeros_like(centred.diagonal), deviations, found.values)
            kernel = torn_alike(centred, kernel)
            if taps is not None:
                own = kernel.diagonal.mean(axis=0)
                kernel = with_edges(kernel, np.divide(sizes, own, out=np.ones_like(own), where=own > 0))
        else:
            kernel = (
                _as_sampled(levelled(kernel, found), found, centred)
                if taps is None
                else _as_damped(kernel, found, centred)
            )
    elif origin is not None:
        # Channels that are drawn know of the expected kernel's sphere, not of what a single draw's has less dimensions.
        levels = max((1 + law.levels) * (1 + 2 / law.sphere) / (1 + 2 / law.own_sphere) - 1, 0.0)
        spots = signal.strays.spots_on(signal.kernel)
        shifted = None if signal.weighted is None else signal.weighted.strays.shifted(signal.kernel)
        origin = replace(origin, eps=operation.eps, variance=law.mean, edges=edges, shared=shared)
        origin = replace(origin, levels=levels, spots=spots, shifted=shifted)
    if law.ratio > _VANISHED:
        kernel = replace(kernel, log_scale=0.0).scaled(law.ratio / (kernel.second_moment * edges))
    else:
        # Far below eps the variance says nothing any more, and may be out of range.
        kernel = signal.kernel.centred.scaled(1 / operation.eps if operation.eps > 0 else 0.0)
    cubature = _cubature(signal, operation.eps) if taps is None and law.ratio > _VANISHED else None
    if cubature is not None:
        assert cubature.inverse is not None
        kernel = cubature.kernel(signal.kernel, cubature.values)
        inverse = float(cubature.inverse @ cubature.weights)
        seen = law.weighted_inverse * (inverse / law.inverse)
        ratio = kernel.second_moment * float(np.exp(kernel.log_scale))
        law = replace(law, ratio=ratio, inverse=inverse, weighted_inverse=seen)
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        signal.width,
        strays=strays,
        origin=origin if sample is None else None,
        sample=sample,
        amplitude=amplitude,
        near=near,
        far=far,
        law=law,
        behind=signal.behind,
        summands=signal.summands,
        cubature=cubature,
    )


def _normalised(signal: Signal, eps: float, edges: float, shared: float) -> tuple[VarianceLaw, PairKernel, Array]:
    """Law of a channel's variance that sums many modes of the data, and the kernel after division, up to a factor.

    And what products of a single channel stray by then: see `_own_strays`. Over a larger map the variance is `edges`
    times that inside, of which a part is `shared` with it: modes are those of the inside.
    """
    centred = signal.kernel.centred
    q, alike = centred.second_moment, _alike(centred)
    own = centred.share
    scale = float(np.exp(signal.kernel.log_scale)) * edges
    # Layers without weights of their own see a sum of endlessly many.
    fan_in, strayed, kurtosis, strays = 1e9, (0.0, 0.0), 0.0, NONE
    if signal.weighted is not None:
        fan_in, kurtosis = float(signal.weighted.fan_in), signal.weighted.law.excess_kurtosis
        strays = signal.weighted.strays
        strayed = strays.variance, strays.third
        if signal.weighted.law.matrix is not None:
            # A row is part of a point on a sphere of N dimensions: E |w|^4 / (E |w|^2)^2 = (1 + 2 / n) N / (N + 2).
            kurtosis = -2.0 * (fan_in + 2.0) / (max(signal.weighted.law.matrix) + 2.0)
    if signal.directions is None:
        values, vectors = centred.modes(int(min(_MODES, fan_in)))
        values, seen = values * shared, np.full(len(values), 1.0 / (shared or 1.0))
        alike, pair_square = alike * beside(shared), centred.pair_square_mean * beside(shared)
    else:
        every, vectors = (field[:_MODES] for field in signal.directions)
        sizes = np.mean(vectors**2, axis=(1, 2))
        # Of directions that only edges have there is nothing inside.
        vectors = vectors / np.sqrt(np.where(sizes > 0, sizes, 1.0))[:, None, None]
        values, seen = q * every, np.divide(sizes, every, out=np.zeros_like(sizes), where=every > 0)
        alike = float(np.sum(signal.directions[0] ** 2))
        pair_square = alike * q**2
    # Where entries stray, a mode below the average of as many as there are weights has no direction of its own.
    values = values[values > (q / fan_in if strayed[0] > 0.0 else 0.0)]
    if len(values) and not _stands_out(values[0] / q, alike, strayed[0]):
        values = values[:0]
    vectors, seen = vectors[: len(values)], seen[: len(values)]
    rest = max(q - float(values.sum()), 0.0)
    rest_square = max(pair_square - float(np.sum(values**2)), 0.0)
    if centred.layout.profiles > 1 and len(values):
        # All modes were looked at: none of the rest is larger than the least of the leading ones.
        rest_square = min(rest_square, rest * float(values[-1]))
    # A point's own entries stray twice as much as others under a random covariance, which have that already.
    rest_square += max(strays.levels - 2.0 * strays.variance, 0.0) * own * q**2
    lead = min(strays.lead, 0.5)
    if rest > 0 and _stands_out(alike + lead, alike, strayed[0]):
        # One of as many directions as there are becomes larger, all others less.
        one = min(rest_square / rest**2, 0.5)
        values = np.append(values, rest * (one + lead * (1.0 - one)))
        rest, rest_square = rest * (1.0 - one) * (1.0 - lead), rest_square * (1.0 - one) * (1.0 - lead) ** 2
    # In the kernel's own units, whose squares stay in range.
    law = quadratic_form_law(
        values,
        rest,
        max(rest_square, 1e-9 * q**2),
        fan_in,
        eps / scale if scale > 0 else np.inf,
        strayed,
        kurtosis,
        nodes(strays.levels)[0],
        own,
    ).scaled(scale, eps)
    damping = law.damping
    assert damping is not None
    if len(values) > len(vectors) and law.ratio > 0:
        lead *= float(damping[-2]) * q * scale / law.ratio
    second, third = law.strayed
    law = replace(
        law,
        sphere=_sphere(alike, law.ratio),
        own_sphere=_sphere(alike + second, law.ratio),
        strays_sphere=_sphere(2 * alike + (third / second if second > 0.0 else 0.0), law.ratio),
        levels=divided(strays.levels, law.parts[0]) if law.parts.size else 0.0,
        spots=strays.spots_on(signal.kernel),
        lead=lead,
    )
    more = damping[:-1] / damping[-1] - 1.0
    layout = centred.layout
    damped = centred.values.copy()
    there = values[: len(vectors)] * seen  # `lead` has any direction
    for factor, vector in zip(there * more[: len(vectors)], vectors, strict=True):
        damped += factor * vector[layout.left][:, :, None] * vector[layout.right][:, None, :]
    kernel = torn_alike(centred, replace(centred, values=damped))
    shares = values[: len(vectors)] * damping[: len(vectors)] * scale / law.ratio if law.ratio > 0 else np.zeros(0)
    left = 1.0 + more[: len(shares)]
    inside = there[: len(shares)] * left / kernel.second_moment if kernel.second_moment > 0 else there[: len(shares)]
    fields = _autocorrelations(kernel, inside, vectors)
    if law.modes is not None:
        without = np.repeat(fields[-1:], len(values) - len(vectors), axis=0)
        law = replace(law, modes=replace(law.modes, fields=np.insert(fields, -1, without, axis=0)[law.modes.which]))
    return law, kernel, _own_strays(kernel, law, shares, fields)


def _autocorrelations(kernel: PairKernel, shares: Array, vectors: Array) -> Array:
    """Return how alike the modes of a kernel are at two positions, by offset, and last all that do not stand out.

    Parameters
    ----------
    kernel
        Behind the division.
    shares, vectors
        Parts in the kernel of the modes that stand out, and these.
    """
    alike, left = kernel.correlation(kernel.pair_mean), 1.0 - float(shares.sum())
    fields = np.array([products_by_offset(vector.reshape(-1, 1, *kernel.size)) for vector in vectors[: len(shares)]])
    fields = fields.reshape(-1, *alike.shape) / (kernel.layout.profiles * pairs_apart(kernel.size))
    others = (alike - np.tensordot(shares, fields, 1)) / left if left > ROUNDING else np.zeros_like(alike)
    return np.append(fields, others[None], axis=0)


def _own_strays(kernel: PairKernel, law: VarianceLaw, shares: Array, fields: Array) -> Array:
    """Return what products of a single channel stray by behind a division, by offset of two pairs of positions.

    A channel is z = sum_i sqrt(s_i) u_i times signs, its parts s_i in the modes u_i summing to one. So z(x) z(x')
    varies by sum_ij E[s_i s_j] c_i c_j - sum_i p_i^2 c_i^2 at two pairs an offset apart, where c_i is the
    autocorrelation of u_i and p_i = E s_i; at the same pair that is 1 - tr A^2. What all channels have in common does
    not stray, and leading modes are smooth: a window leaves less of the rest than the kernel's own autocorrelation
    would say. Modes that do not stand out, a part 1 - s of the channel, count as having one autocorrelation.

    Parameters
    ----------
    kernel, law
        Behind the division.
    shares, fields
        p_i and c_i of the modes that stand out; the last field is that of all others.
    """
    count, (*_, others) = len(shares), fields
    rest = max(_alike(kernel) - float(shares @ shares), 0.0)
    if not count or law.modes is None:
        return np.asarray((1.0 - rest) * others**2)
    both, fields = law.modes.both[:count, :count] / law.ratio, fields[:count]
    among = max(1.0 - 2.0 * float(shares.sum()) + float(both.sum()) - rest, 0.0)
    mixed = 2.0 * np.tensordot(np.maximum(shares - both.sum(axis=1), 0.0), fields, 1)
    leading = np.einsum("ij,iyx,jyx->yx", both - np.diag(shares**2), fields, fields)
    return np.asarray(leading + (mixed + among * others) * others)


def _edges_behind(signal: Signal, law: VarianceLaw) -> Array:
    """Return the second moments over a large map behind a division, over that inside.

    At an edge a channel lacks what its weights make of its inputs' mean under the missing taps. These weights are few
    of all and have little part in v, so that this is divided as a direction of its own is, by E 1 / (v + eps). So is
    what else a position has beside the inside's: see `_undamped`. The rest is divided as the inside is, which makes v.
    """
    assert signal.amplitude is not None
    assert signal.common is not None
    whole, mean = signal.kernel.second_moment, signal.kernel.pair_mean
    varied = whole - mean
    if not varied > 0.0 or not law.ratio > 0.0:
        return signal.amplitude
    lacking = np.maximum(signal.amplitude + float(signal.common.mean()) - 2.0 * signal.common, 0.0)
    alone = law.inverse * law.mean / law.ratio
    own = np.maximum(signal.amplitude - one_root(signal.common) ** 2, 0.0)
    return signal.amplitude + _undamped(law, signal) * own + mean / varied * alone * lacking


def _undamped(law: VarianceLaw, signal: Signal) -> float:
    """Return how much more a division leaves of what a position at an edge has beside the inside's, over that there.

    Of a mode of the inside only `passed` is left, of a direction beside it all. What is beside it comes of taps that
    are missing, which take from a mode as much as it is one all over a window.
    """
    assert law.modes is not None
    if signal.weighted is None or signal.weighted.window is None:
        return 0.0
    modes, window = law.modes, signal.weighted.window
    pairs = overlaps(np.ones(window.kernel)) / window.taps**2
    steps = [np.arange(1 - taps, taps) // step for taps, step in zip(window.kernel, window.stride, strict=True)]
    smooth = np.array([float(np.sum(pairs * at_offsets(field, *steps))) for field in modes.fields])
    return float(np.sum(modes.counts * modes.damped * (1.0 / modes.passed - 1.0) * np.maximum(smooth, 0.0)))


def _cubature(signal: Signal, eps: float) -> Cubature | None:
    """Return the law of a channel behind a normalisation over few points."""
    if signal.cubature is not None:
        return signal.cubature.normalised(eps)
    origin = signal.gaussian
    if origin is None or signal.amplitude is not None:
        return None
    strayed = 0.0 if signal.weighted is None else signal.weighted.strays.variance
    found = gaussian(origin.kernel.centred if origin.function is None else origin.kernel, eps, strayed)
    if found is not None and origin.function is not None:
        found = found.activated(origin.function)
    return None if found is None else found.normalised(eps)


def _sampled_law(signal: Signal, gaussian: VarianceLaw, eps: float, shared: float) -> VarianceLaw:
    """Law of the variance of channels that are not Gaussian, from a sample of them; its mean is known."""
    v = batch_variances(signal.draw().values, (), signal.kernel.layout.batch)
    size = float(v.mean())
    if size <= 0.0 or not v.var():
        return gaussian
    v = (shared * v + (1.0 - shared) * size) * (gaussian.mean / size)
    inverse = 1.0 / (v + eps)
    return VarianceLaw(gaussian.mean, float(np.mean(v * inverse)), float(inverse.mean()), float(inverse.mean()))


def _as_sampled(kernel: PairKernel, found: Sample, before: PairKernel) -> PairKernel:
    """Give a kernel the averages of sampled channels behind a normalisation, given that `before` the division.

    What the sample misses of the kernel before it misses behind, divided by v + eps; a channel counts as its products
    spread, which goes with v^2.
    """
    assert found.inverse is not None
    spread = channel_squares(found.values) ** 2 / found.inverse**2
    return _shifted(kernel, found, before, float(spread @ found.inverse) / float(spread.sum() or 1.0))


def _as_damped(kernel: PairKernel, found: Sample, before: PairKernel) -> PairKernel:
    """Do the same behind a depthwise layer, whose kernels' damping a kernel behind the division knows already.

    There samples are laid out of pieces, whose positions have nothing in common with those of the next. That is missed
    behind the division by as much as is left of the products of different positions, by least squares.
    """
    count = before.layout.profiles
    apart = ~np.eye(before.values.shape[1], dtype=bool)
    first, second = (part.values[:count, apart] for part in (before, kernel))
    squares = float(np.vdot(first, first))
    left = float(np.vdot(first, second)) / squares if squares > 0 else 0.0
    return _shifted(kernel, found, before, left * float(np.exp(kernel.log_scale - before.log_scale)))


def _shifted(kernel: PairKernel, found: Sample, before: PairKernel, left: float) -> PairKernel:
    """Give a kernel the averages of sampled channels, `left` being what a division leaves of what they miss of it."""
    assert found.inverse is not None
    undivided = found.values / np.sqrt(found.inverse)
    return shifted(kernel, found, [gap * left for gap in missing(before, undivided)])


def _strays_behind(signal: Signal, law: VarianceLaw, kernel: PairKernel, own: Array, shared: float) -> Strays:
    """Return how the kernel strays behind a division; `shared` is the part of a larger map's that its inside has."""
    if signal.weighted is None or law.modes is None:
        return signal.strays
    whole, by_all = signal.weighted.strays.variance, signal.weighted.shared
    second, third = law.strayed
    part = by_all / whole if whole > 0 else 0.0
    places, moments = signal.kernel.product_correlation, (second * part, third * part**2)
    # Pairs of an edge and the inside have less in common, but not a pair with itself.
    left = np.full_like(own, beside(shared))
    left[len(own) // 2, len(own[0]) // 2] = 1.0
    alike = _alike(kernel) * beside(shared)
    return signal.strays.normalised(by_all, moments, alike, (places, own * left), law.levels, law.lead)


def _sphere(alike: float, ratio: float) -> float:
    """Return the dimensions of the sphere that a channel's points lie on once divided by their variance.

    z / sqrt(v + eps) has E z^4 / (E z^2)^2 = 3 - 6 p (2 r - r^2) to first order in the mean p of the squared
    correlation of two points, r = v / (v + eps); on a sphere of d dimensions it is 3 d / (d + 2). Without eps and
    with independent samples, d = B - 1 is exact.
    """
    bent = alike * ratio * (2.0 - ratio)
    return 1.0 / bent if bent > 0 else np.inf


def _alike(kernel: PairKernel) -> float:
    """Return the mean squared correlation of two points, at most one whatever rounding says."""
    return min(mean_square_correlation(kernel), 1.0)


def _stands_out(share: float, alike: float, strayed: float) -> bool:
    """Tell whether the largest mode stands out of those that straying entries make of all others.

    Where a covariance is random, of relative variance c, a single direction that differs shows only by more than
    1 + sqrt(c) of the others' level (Baik, Ben Arous & Peche, Annals of Probability 33, 2005, theorem 1.1): that level
    is `alike` of the whole, the mean squared correlation of two points, and c = strayed / alike.
    """
    return share > alike + float(np.sqrt(strayed * alike))
