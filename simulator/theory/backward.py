"""The gradient: one rule an operation, from the gradient at its output to the gradient at each input."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import activation
from varprop.simulator.generated.layers import batch_norm_gradient, linear_gradient
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Operation,
    ZeroPad,
)
from varprop.simulator.theory.coherence import known_by_slopes, learnt
from varprop.simulator.theory.corrections import averages
from varprop.simulator.theory.crossing import Crossing
from varprop.simulator.theory.depthwise import excess
from varprop.simulator.theory.drawn import Drawn, corrected, missed
from varprop.simulator.theory.gradient import Gradient, cut_inside, stepped_back
from varprop.simulator.theory.levels import power
from varprop.simulator.theory.levels import projected as projected_levels
from varprop.simulator.theory.maps import Size, Window, by_offset, size_of, window_scatter
from varprop.simulator.theory.opposition import (
    added,
    handed_here,
    handed_on,
    here,
    in_common,
    projected,
    reduced,
    returned,
    shared_out,
    together,
    unmoved,
    within,
)
from varprop.simulator.theory.pair_series import mean_square_correlation
from varprop.simulator.theory.pairs import PairKernel, on_pairs_of, unmerged, windows_transposed
from varprop.simulator.theory.patches import damped_taps
from varprop.simulator.theory.sample import channel_squares
from varprop.simulator.theory.signal import Signal
from varprop.simulator.theory.unpooling import average_unpooled, globally_unpooled, max_unpooled, unflattened, unpadded
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

_LEAST = 1e-4  # opposition, as small ones are handed on linearly


@singledispatch
def pull_back(
    operation: Operation, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    """Return the gradients at a node's inputs.

    `law` is that of the normalisation that alone consumes the node, if one does: its 1 / (v + eps) depends on the
    node's weights.
    """
    raise NotImplementedError(type(operation).__name__)


@pull_back.register
def _(op: Conv2d, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    source = inputs[0]
    assert output.weighted is not None
    assert output.weighted.window is not None
    window = output.weighted.window
    per_group = op.out_channels // op.groups
    related = gradient.relations
    size, loads = _loads(window, source)
    if law is not None and law.taps is not None:
        moments = law.taps / law.inverse
    else:
        kept, gradient = _returned(output, gradient, source, law, loads, op.stride, op.groups)
        # A weight that only ever sees zero padding has nothing to do with its channel's variance.
        by_tap = 1.0 - (1.0 - kept) * window.live * loads.ravel()
        moments = np.diag(window.shares * by_tap) * output.weighted.law.second_moment
    if op.depthwise:
        # Two channels have kernels of their own: only equal taps meet.
        loads = loads * np.diag(moments).reshape(window.kernel)
        loads /= max(float(loads.sum()), 1e-300)
    moments = moments * (per_group * related.reweigh)
    tilt = related.before * (1.0 if law is None else law.tilt)
    if source.data is not None:
        back = _at_data(gradient, moments, window, source.data.shape[2:])
        if law is None or law.modes is None or output.weighted.law.matrix is not None or not law.ratio > 0:
            return [back]
        assert source.known is not None
        damped = damped_taps(source.known, window, output.weighted.law.second_moment, law)
        more = _through_different(gradient.kernel, damped, window, window.out_size(size))
        return [replace(back, kernel=back.kernel.scaled(more))]
    back, more = _handed_on(gradient, source, output, loads, op.stride, size, 0 if op.depthwise else op.groups)
    amplitude = None
    if source.amplitude is None:
        arriving = unmerged(gradient.kernel, source.kernel.layout)
    else:
        arriving, edges = cut_inside(gradient, window.out_size(source.kernel.size), source)
        reach = window_scatter(edges, replace(window, inside=False), size_of(source.amplitude))
        amplitude = reach / (window.taps / (op.stride[0] * op.stride[1]))
    return [
        replace(
            back,
            kernel=windows_transposed(arriving, moments, window, source.kernel.size).scaled(more),
            tilt=tilt,
            lost=related.lost,
            selection=related.gates,
            amplitude=amplitude,
            leaning=shared_out(gradient.leaning, loads, op.stride, size, output.kernel.size),
        )
    ]


def _loads(window: Window, source: Signal) -> tuple[Size, Array]:
    """Return the size of a convolution's input, and each tap's share in the signal under its window."""
    if source.data is not None:
        square = np.mean(source.data**2, axis=(0, 1))
        return size_of(square), window.loads(square.ravel(), size_of(square))
    return source.kernel.size, window.loads(source.kernel.diagonal.mean(axis=0), source.kernel.size)


def _returned(
    output: Signal,
    gradient: Gradient,
    source: Signal,
    law: VarianceLaw | None,
    loads: Array,
    stride: Size,
    groups: int,
) -> tuple[float, Gradient]:
    """Return E[|w^T g|^2] / E[|g|^2] over that of unrelated weights w, and the gradient as opposed behind these.

    A normalisation that follows ties the gradient of an output to its own weights; opposed gradients tie those of two
    outputs to both, if they are of one group. Those of other groups hand on what they have.
    """
    assert output.weighted is not None
    # At the data `bending` counts what slopes know.
    field = gradient.opposition if source.known is None else added(gradient.opposition, gradient.held)
    within = together(field, loads, stride) / groups
    more = 1.0 + 2.0 * max(-within, 0.0) / output.weighted.fan_in
    if law is None or law.modes is None:
        return more / (1.0 + 2.0 * max(within, 0.0) / output.weighted.fan_in), gradient
    channels = int(output.width) // groups
    window = output.weighted.window
    outside = None if window is None or source.known is not None else unmoved(source.kernel, output.kernel, window)
    alone, fresh = returned(law.modes, 0.0, channels, outside)
    within = max(within, _LEAST)
    left, found = returned(law.modes, within, channels, outside)
    handed = 1.0 + ((found - fresh) / within - 1.0) / groups
    opposition, held = gradient.opposition * handed, gradient.held * handed
    opposition[len(opposition) // 2, len(opposition[0]) // 2] += fresh
    kept = more * law.weighted_inverse / law.inverse * left / alone
    # Orthogonal rows keep every gradient's length.
    isometric = output.weighted.law.matrix is not None and output.width <= output.weighted.fan_in
    return 1.0 if isometric else kept, replace(gradient, opposition=opposition, held=held)


def _handed_on(
    gradient: Gradient, source: Signal, output: Signal, loads: Array, stride: Size, size: Size, groups: int
) -> tuple[Gradient, float]:
    """Return a gradient as it is to the channels of a layer's input, and how much more comes back of it for that.

    Slopes know the weights of one of several groups so much better, but of two channels only those of one group; of no
    `groups`, as in a depthwise layer, `relations` say what they know.
    """
    own = gradient.own if groups else 0.0 * gradient.own
    new, lasts = learnt(own, source.kernel, output.kernel, stride)
    coherence, opposition, held = (
        handed_on(added(field, more), loads, stride, size)
        for field, more in ((gradient.coherence, new), (gradient.opposition, -lasts), (gradient.held, lasts))
    )
    alone = max(groups - 1, 0) * handed_here(new, loads, stride)
    left = 2.0 * groups * handed_here(lasts, loads, stride) / source.width if source.known is None else 0.0
    back = Gradient(
        gradient.kernel,
        opposition=opposition,
        leaning=gradient.leaning,
        coherence=coherence,
        alone=alone,
        held=held,
        # What strides skip has no offset from what they read.
        crossings=tuple(part.under(loads, size) for part in gradient.crossings) if stride == (1, 1) else (),
    )
    return back, 1.0 + left


def _at_data(gradient: Gradient, moments: Array, window: Window, size: tuple[int, ...]) -> Gradient:
    """Gradient at data of which only second moments are asked for: their mean, and each position's over that."""
    kernel = gradient.kernel
    field = kernel.diagonal.mean(axis=0).reshape(kernel.size)
    if gradient.amplitude is not None:
        field = gradient.amplitude * float(field.mean())
    seen = window_scatter(field, window, (size[0], size[1])) * (float(np.trace(moments)) / window.taps)
    return _of_field(replace(kernel, size=(1, 1), values=np.ones((len(kernel.values), 1, 1))), seen)


def _through_different(kernel: PairKernel, taps: Array, window: Window, size: Size) -> float:
    """Return what comes back through all pairs of taps over what does through equal ones, on a map of `size`."""
    known = by_offset(kernel.values[: kernel.layout.profiles].mean(axis=0), kernel.size)
    rows, cols = np.divmod(np.arange(window.taps), window.kernel[1])
    down, across = rows[:, None] - rows, cols[:, None] - cols
    meet = (down % window.stride[0] == 0) & (across % window.stride[1] == 0)
    down, across = down // window.stride[0], across // window.stride[1]
    h, w = kernel.size
    products = known[np.clip(down, 1 - h, h - 1) + h - 1, np.clip(across, 1 - w, w - 1) + w - 1]
    # Near an edge there is no place so far apart.
    pairs = np.maximum(1 - np.abs(down) / size[0], 0.0) * np.maximum(1 - np.abs(across) / size[1], 0.0)
    alone = float(np.trace(taps)) * float(known[h - 1, w - 1])
    return float(np.sum(taps * products * pairs * meet)) / alone if alone > 0 else 1.0


def _of_field(unit: PairKernel, field: Array) -> Gradient:
    mean = float(field.mean())
    return Gradient(unit.scaled(mean), amplitude=field / mean if mean > 0 else field)


@pull_back.register
def _(op: Linear, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    assert output.weighted is not None
    alone = np.ones((1, 1))
    kept, gradient = _returned(output, gradient, inputs[0], law, alone, (1, 1), 1)
    back, more = _handed_on(gradient, inputs[0], output, alone, (1, 1), (1, 1), 1)
    factor = float(linear_gradient(op.out_features, output.weighted.law.second_moment * kept * more, 1.0))
    return [replace(back, kernel=gradient.kernel.scaled(factor))]


@pull_back.register
def _(
    op: Activation, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    (source,) = inputs
    if source.data is not None:
        assert source.known is not None
        slope = activation(op.function).derivative(source.known)
        field = np.mean(slope**2, axis=(0, 1))
        return [_of_field(gradient.kernel, field if gradient.amplitude is None else gradient.amplitude * field)]
    assert output.duals is not None
    slopes, tilted = output.duals.derivative, output.duals.tilted
    values = gradient.kernel.values * slopes.values
    levels, squared = output.duals.levels, slopes.second_moment * float(np.exp(slopes.log_scale))
    # The covariance that two channels' gradients oppose has one part in so many from the very point.
    share = slopes.share
    coherence = added(gradient.coherence, -share * gradient.opposition)
    spots = source.strays.spots_on(source.kernel) if source.law is None else source.law.spots
    leant = in_common(gradient.leaning, spots)
    together = source.kernel.correlation(source.kernel.pair_mean)
    odd, even = (in_common(gradient.leaning, part) for part in (together, together**2))
    along = 2.0 * (here(coherence) + gradient.alone)
    # Behind a depthwise layer sampled channels know their own squares.
    own = even + along if source.behind is None else even
    factor, left, more = levels.passed(leant, own, odd - even, output.width)
    leaning = added(gradient.leaning * levels.bent, np.full((1, 1), left - leant * levels.bent))
    lost = 0.0 if source.law is None else share
    new = np.zeros((2, 1, 1))
    if levels.slopes is not None and source.behind is None:
        known = levels.known(lost)
        new = known_by_slopes(activation(op.function), gradient.kernel, source.kernel, squared, known)
    related = output.relations(gradient.kernel.alike(), _opposed(gradient, output), along / output.width)
    kernel = replace(gradient.kernel, values=values).scaled(gradient.selection * factor * related.met, slopes.log_scale)
    alignment = None
    if tilted is not None:
        with np.errstate(over="ignore"):  # no normalisation comes next then, and nobody asks
            unit = float(np.exp(tilted.log_scale + gradient.kernel.log_scale - kernel.log_scale))
        # Levels go with the gradient's at the very point.
        points = float(np.mean(gradient.kernel.diagonal * tilted.diagonal))
        alignment = (gradient.kernel.pair_product_mean(tilted) + share * (more - 1.0) * points) * (unit * related.met)
    tilt = gradient.tilt * related.tilt
    # Of a product of slopes, and of covariances, only what is linear in each channel is opposed.
    linear = output.duals.linear
    spread = _ratio(_data_variance(source), _data_variance(output)) * squared
    alike = left = linear**2 * spread
    coherent = float(np.sqrt(levels.coherent(0.0) * spread))
    if source.law is not None and source.law.modes is not None:
        left = reduced(source.law.modes, float(gradient.opposition.max()), left, output.width)
    # Coherence does not oppose what both channels are on the mean.
    kept = gradient.coherence * (levels.coherent(0.0) - alike)
    opposition, held = added(gradient.opposition * left, -kept), added(gradient.held * left, kept)
    coherence = added(coherence * levels.coherent(lost), share * alike * gradient.opposition)

    def gated(found: Drawn) -> Drawn:
        gates = output.draw().slopes
        # Of data only the values are kept.
        return found.times(activation(op.function).derivative(source.draw().values) if gates is None else gates)

    draws = stepped_back(gradient, gated)
    if gradient.tied and draws is not None and gradient.drawn is not None:
        behind = draws()
        gaps = missed(gradient.kernel, gradient.drawn().part(*behind.values.shape[1:]))
        kernel = corrected(kernel, behind, [gap * product for gap, product in zip(gaps, averages(slopes), strict=True)])
    amplitude = gradient.amplitude
    if output.slopes is not None:
        amplitude = output.slopes if amplitude is None else amplitude * output.slopes
    return [
        replace(
            gradient,
            kernel=kernel,
            alignment=alignment,
            tilt=tilt,
            selection=1.0,
            relations=related,
            amplitude=amplitude,
            drawn=draws,
            tied=True,
            opposition=opposition,
            leaning=leaning,
            coherence=coherence,
            alone=0.0,
            own=new,
            held=held,
            crossings=tuple(part.gated(linear * spread, coherent) for part in gradient.crossings),
        )
    ]


def _opposed(gradient: Gradient, output: Signal) -> float:
    """Return w of E[g_c^2] ~ 1 / (1 + w v_c), v_c being a channel's variance over that of all."""
    opposition = max(here(gradient.opposition), 0.0)
    return opposition * _unit(opposition, output)


def _unit(opposition: float, output: Signal) -> float:
    """Return the same over the opposition."""
    centred = output.kernel.centred
    if not centred.second_moment:
        return 0.0
    # Of what the kernel of all channels strays by, one in so many is a channel with itself.
    alike = mean_square_correlation(centred) + max(output.strays.variance - 1.0 / output.width, 0.0)
    return within(opposition, output.width, alike)


@pull_back.register
def _(
    op: BatchNorm, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    own = output.law
    assert own is not None
    kernel = gradient.kernel
    alignment = gradient.alignment
    if alignment is None:
        alignment = kernel.pair_product_mean(output.kernel) * float(np.exp(output.kernel.log_scale))
    centred = kernel.centred
    before = centred.second_moment + kernel.pair_mean
    # The scalar recurrence gives the size; the two projections take their part out of the kernel.
    size = float(batch_norm_gradient(before, kernel.pair_mean, alignment, own.mean, op.eps)) * (own.mean + op.eps)
    if gradient.lost is not None:
        size = before * (1.0 - gradient.lost)
    opposition, left = gradient.opposition, centred.second_moment
    if own.modes is not None and 0 < size < left:
        opposition = opposition * projected(own.modes, float(opposition.max()), 1.0 - size / left, output.width)
    shape = centred.values
    if own.ratio > 0:
        unit = float(np.exp(output.kernel.log_scale)) / own.ratio
        shape = shape - (2.0 - own.ratio) * alignment * unit * output.kernel.values
    kernel = replace(centred, values=shape)
    left = kernel.second_moment
    if left > 0 and size > 0:
        kernel = kernel.scaled(size / left)
    # Behind a depthwise layer `tilt` says how slopes and 1 / (v + eps) go together; of other channels that are not
    # Gaussian their sample does.
    sampled = output.sample is not None and output.behind is None
    tilt = _together(gradient, output) if sampled else gradient.tilt
    left_of_it, kernel = kernel, kernel.scaled(own.inverse * tilt)

    def divided(found: Drawn) -> Drawn:
        inverse, found = output.draw().inverse, found.centred(left_of_it)
        return (found if inverse is None else found.times(np.sqrt(inverse)[None, None])).like(kernel)

    draws = stepped_back(gradient, divided)
    tied = gradient.tied or sampled
    back = replace(gradient, kernel=kernel, alignment=None, tilt=1.0, lost=None, selection=1.0, drawn=draws, tied=tied)
    leant = in_common(gradient.leaning, own.spots)
    leaning = gradient.leaning
    if leant:
        leaning = leaning * (projected_levels(leant, own.levels, kernel.share, own.parts) / leant)
    if inputs[0].weighted is not None:
        leaning = leaning * power(inputs[0].weighted.strays.levels, own.levels)
    crossings = tuple(part.kept(size / before) for part in gradient.crossings) if before > 0 else ()
    return [replace(back, opposition=opposition, leaning=leaning, crossings=crossings)]


def _together(gradient: Gradient, output: Signal) -> float:
    """Return E[g^2 / (v + eps)] over sampled channels, over the product of the two means."""
    inverse = output.draw().inverse
    if inverse is None or gradient.drawn is None or not gradient.tied:
        return 1.0
    squares = channel_squares(gradient.drawn().values)
    count = min(len(squares), len(inverse))
    return excess(squares[:count], inverse[:count])


@pull_back.register
def _(op: Add, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    whole = _data_variance(output)
    passed = Gradient(gradient.kernel, amplitude=gradient.amplitude, drawn=gradient.drawn, tied=gradient.tied)
    unit = _unit(max(here(gradient.opposition), 0.0), output)
    crossings = *gradient.crossings, Crossing(gradient.kernel, unit, gradient.opposition, gradient.coherence)
    shares = (_ratio(_data_variance(part), whole) for part in inputs)
    return [
        replace(
            passed,
            kernel=on_pairs_of(gradient.kernel, part.kernel.layout),
            opposition=gradient.opposition * share,
            leaning=gradient.leaning * share,
            coherence=gradient.coherence * share,
            alone=gradient.alone * share,
            own=gradient.own * share,
            crossings=tuple(part.share(share) for part in crossings),
        )
        for part, share in zip(inputs, shares, strict=True)
    ]


def _data_variance(signal: Signal) -> tuple[float, float]:
    """Return the variance over the data as a number and a log scale."""
    kernel = signal.kernel
    return max(kernel.second_moment - kernel.pair_mean, 0.0), kernel.log_scale


def _ratio(part: tuple[float, float], whole: tuple[float, float]) -> float:
    return part[0] / whole[0] * float(np.exp(part[1] - whole[1])) if whole[0] > 0 else 0.0


@pull_back.register
def _(
    op: AveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    return [average_unpooled(op, gradient, inputs[0])]


@pull_back.register
def _(
    op: GlobalAveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    return [globally_unpooled(gradient, inputs[0])]


@pull_back.register
def _(op: MaxPool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [max_unpooled(op, gradient, inputs[0])]


@pull_back.register
def _(op: Flatten, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [unflattened(gradient, inputs[0])]


@pull_back.register
def _(op: ZeroPad, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [unpadded(op, gradient, inputs[0])]
