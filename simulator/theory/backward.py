"""The gradient: one rule an operation, from the gradient at its output to the gradient at each input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, reduce, singledispatch
from itertools import combinations

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
from varprop.simulator.theory.depthwise import excess
from varprop.simulator.theory.drawn import Drawn, chosen, corrected, drawn
from varprop.simulator.theory.drawn import plus as summed_up
from varprop.simulator.theory.maps import Size, Window, window_scatter
from varprop.simulator.theory.opposition import average, handed_on, projected, returned, together
from varprop.simulator.theory.pairs import (
    PairKernel,
    merged,
    plus,
    regridded,
    unmerged,
    windows_transposed,
)
from varprop.simulator.theory.relations import UNRELATED, Relations
from varprop.simulator.theory.sampling import Sample, channel_squares, crossed
from varprop.simulator.theory.signal import Signal
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradient:
    """Gradient of the loss with respect to one node's output.

    Attributes
    ----------
    kernel
        E[g(x) g(x')] averaged over channels.
    alignment
        E[(mean over x of g(x) z(x))^2] within a channel with the node's own output z, where the consumer knows it
        better than from the product of the two kernels; in units of ``exp(kernel.log_scale)``.
    tilt
        Factor by which E[g^2 / (v + eps)] differs from the product of averages at the normalisation that the gradient
        meets next, because both depend on the channel.
    lost
        Share that the projections of that normalisation take away, where it is known better than from the kernels.
    selection
        As `tilt`, for E[g^2 phi'^2] at the activation that it meets next, before a depthwise layer.
    relations
        What a depthwise layer on the way is going to do of that kind.
    amplitude
        Of a map larger than the kernel's: second moment at every position over that inside.
    drawn
        The gradient at the channels that the signal is sampled at, drawn when asked for.
    tied
        Whether it depends on the channels, so that the next slopes are not independent of it.
    opposition
        How far the gradients of two channels c, c' go against the channels themselves: over the weights of later layers
        E[g_c(x) g_c'(x')] = -2 opposition / channels * E[g(x)^2] cov(z_c, z_c') / var(z) where it is small, with one
        entry for each offset of x' from x, none in the middle; `opposition` has the rest.
    """

    kernel: PairKernel
    alignment: float | None = None
    tilt: float = 1.0
    lost: float | None = None
    selection: float = 1.0
    relations: Relations = UNRELATED
    amplitude: Array | None = None
    drawn: Callable[[], Drawn] | None = None
    tied: bool = False
    opposition: Array = field(default_factory=lambda: np.zeros((1, 1)))

    @property
    def edges(self) -> float:
        """Second moment over the whole map relative to the kernel's."""
        return 1.0 if self.amplitude is None else float(self.amplitude.mean())


def untied(gradient: Gradient, key: int) -> Gradient:
    """Return a gradient just behind weights, which is Gaussian whatever the channels; `key` is of its draws."""
    return replace(gradient, drawn=cache(lambda: drawn(gradient.kernel, key)), tied=False)


def total(gradients: list[Gradient], exits: list[frozenset[int]]) -> Gradient:
    """Sum over a node's consumers.

    Gradients are uncorrelated if each passed through weights of its own. Those that share one of the `exits`, the
    layers they came from, are multiplied at sampled channels.
    """
    if len(gradients) == 1:
        return gradients[0]
    kernel = reduce(plus, (gradient.kernel for gradient in gradients))
    for (one, first), (other, second) in combinations(zip(gradients, exits, strict=True), 2):
        if first & second and one.drawn is not None and other.drawn is not None:
            kernel = plus(
                kernel, crossed(one.kernel, other.kernel, *(Sample(g().values) for g in (one.drawn, other.drawn)))
            )
    draws = [gradient.drawn for gradient in gradients if gradient.drawn is not None]
    summed = cache(lambda: summed_up([draw() for draw in draws])) if len(draws) == len(gradients) else None
    tied = any(gradient.tied for gradient in gradients)
    sizes = [g.kernel.second_moment * float(np.exp(g.kernel.log_scale - kernel.log_scale)) for g in gradients]
    fields = [gradient.amplitude for gradient in gradients if gradient.amplitude is not None]
    amplitude, opposition = gradients[0].amplitude, gradients[0].opposition
    if kernel.second_moment:
        opposition = average([gradient.opposition for gradient in gradients], sizes)
        amplitude = np.average(fields, axis=0, weights=sizes) if fields else None
    return Gradient(kernel, amplitude=amplitude, drawn=summed, tied=tied, opposition=opposition)


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
        kept, opposition = _returned(output, gradient, law, loads, op.stride, op.groups)
        # A weight that only ever sees zero padding has nothing to do with its channel's variance.
        by_tap = 1.0 - (1.0 - kept) * window.live * loads.ravel()
        moments = np.diag(window.shares * by_tap) * output.weighted.law.second_moment
    if op.depthwise:
        # Two channels have kernels of their own: only equal taps meet.
        opposition, loads = gradient.opposition, loads * np.diag(moments).reshape(window.kernel)
        loads /= max(float(loads.sum()), 1e-300)
    opposition = handed_on(opposition, loads, op.stride, size)
    moments = moments * (per_group * related.reweigh)
    tilt = related.before * (1.0 if law is None else law.tilt)
    if source.data is not None:
        return [_at_data(gradient, moments, window, source.data.shape[2:])]
    if source.amplitude is None:
        arriving = unmerged(gradient.kernel, source.kernel.layout)
        kernel = windows_transposed(arriving, moments, window, source.kernel.size)
        return [Gradient(kernel.scaled(1.0), None, tilt, related.lost, related.gates, opposition=opposition)]
    arriving, edges = _inside(gradient, window.out_size(source.kernel.size), source)
    kernel = windows_transposed(arriving, moments, window, source.kernel.size).scaled(1.0)
    reach = window_scatter(edges, replace(window, inside=False), _size(source.amplitude))
    share = window.taps / (op.stride[0] * op.stride[1])
    back = Gradient(kernel, None, tilt, related.lost, related.gates, opposition=opposition)
    return [replace(back, amplitude=reach / share)]


def _loads(window: Window, source: Signal) -> tuple[Size, Array]:
    """Return the size of a convolution's input, and each tap's share in the signal under its window."""
    if source.data is not None:
        square = np.mean(source.data**2, axis=(0, 1))
        return _size(square), window.loads(square.ravel(), _size(square))
    return source.kernel.size, window.loads(source.kernel.diagonal.mean(axis=0), source.kernel.size)


def _returned(
    output: Signal, gradient: Gradient, law: VarianceLaw | None, loads: Array, stride: Size, groups: int
) -> tuple[float, Array]:
    """Return E[|w^T g|^2] / E[|g|^2] over that of unrelated weights w, and the opposition by offset under a window.

    A normalisation that follows ties the gradient of an output to its own weights; opposed gradients tie those of two
    outputs to both, if they are of one group. Those of other groups hand on what they have.
    """
    assert output.weighted is not None
    field = gradient.opposition
    within = together(field, loads, stride) / groups
    if law is None or law.modes is None:
        return 1.0 / (1.0 + 2.0 * within / output.weighted.fan_in), field
    channels = int(output.width) // groups
    alone, fresh = returned(law.modes, 0.0, channels)
    left, found = returned(law.modes, within, channels)
    handed = (found - fresh) / within if within > 0 else 1.0
    field = field * (1.0 + (handed - 1.0) / groups)
    field[len(field) // 2, len(field[0]) // 2] += fresh
    return law.weighted_inverse / law.inverse * left / alone, field


def _size(field: Array) -> Size:
    return field.shape[0], field.shape[1]


def _inside(gradient: Gradient, size: Size, source: Signal) -> tuple[PairKernel, Array]:
    """Gradient on a cut-out of the given size, and the field of its second moments over that on the whole map."""
    kernel = gradient.kernel
    if gradient.amplitude is not None:
        field = gradient.amplitude
    else:
        field = kernel.diagonal.mean(axis=0).reshape(kernel.size)
        field = field / float(field.mean()) if field.any() else np.ones_like(field)
    if kernel.size != size:
        kernel = regridded(merged(kernel), size)
    return unmerged(kernel, source.kernel.layout), field


def _at_data(gradient: Gradient, moments: Array, window: Window, size: tuple[int, ...]) -> Gradient:
    """Gradient at data of which only second moments are asked for: their mean, and each position's over that."""
    kernel = gradient.kernel
    field = kernel.diagonal.mean(axis=0).reshape(kernel.size)
    if gradient.amplitude is not None:
        field = gradient.amplitude * float(field.mean())
    seen = window_scatter(field, window, (size[0], size[1])) * (float(np.trace(moments)) / window.taps)
    return _of_field(replace(kernel, size=(1, 1), values=np.ones((len(kernel.values), 1, 1))), seen)


def _of_field(unit: PairKernel, field: Array) -> Gradient:
    mean = float(field.mean())
    return Gradient(unit.scaled(mean), amplitude=field / mean if mean > 0 else field)


@pull_back.register
def _(op: Linear, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    assert output.weighted is not None
    kept, opposition = _returned(output, gradient, law, np.ones((1, 1)), (1, 1), 1)
    factor = float(linear_gradient(op.out_features, output.weighted.law.second_moment * kept, 1.0))
    return [Gradient(gradient.kernel.scaled(factor), opposition=opposition)]


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
    kernel = replace(gradient.kernel, values=values).scaled(gradient.selection, slopes.log_scale)
    with np.errstate(over="ignore"):  # no normalisation comes next then, and nobody asks
        unit = float(np.exp(tilted.log_scale + gradient.kernel.log_scale - kernel.log_scale))
    alignment = gradient.kernel.pair_product_mean(tilted) * unit
    related = output.relations(gradient.kernel.alike())
    tilt = gradient.tilt * related.tilt
    # Of a product of slopes, and of covariances, only what is linear in each channel is opposed.
    linear = output.duals.linear
    spread = _ratio(_data_variance(source), _data_variance(output)) * slopes.second_moment
    opposition = gradient.opposition * linear**2 * spread * float(np.exp(slopes.log_scale))
    function = activation(op.function)
    draws = _after(gradient, lambda found: found.times(function.derivative(source.draw().values)))
    if gradient.tied and draws is not None:
        kernel = corrected(kernel, draws())
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
        )
    ]


def _after(gradient: Gradient, step: Callable[[Drawn], Drawn]) -> Callable[[], Drawn] | None:
    """Return how to draw a gradient after one more step back."""
    draws = gradient.drawn
    return None if draws is None else cache(lambda: step(draws()))


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
    centred = kernel.centred()
    before = centred.second_moment + kernel.pair_mean
    # The scalar recurrence gives the size; the two projections take their part out of the kernel.
    size = float(batch_norm_gradient(before, kernel.pair_mean, alignment, own.mean, op.eps)) * (own.mean + op.eps)
    if gradient.lost is not None:
        size = before * (1.0 - gradient.lost)
    opposition, left = gradient.opposition, centred.second_moment
    if own.modes is not None and 0 < size < left:
        opposition = opposition * projected(own.modes, float(opposition.max()), 1.0 - size / left)
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
    kernel = kernel.scaled(own.inverse * tilt)

    def divided(found: Drawn) -> Drawn:
        inverse = output.draw().inverse
        # The projections are in the kernel: a few sampled points have others than the batch.
        return (found if inverse is None else found.times(np.sqrt(inverse)[None, None])).like(kernel)

    draws = _after(gradient, divided)
    tied = gradient.tied or sampled
    back = replace(gradient, kernel=kernel, alignment=None, tilt=1.0, lost=None, selection=1.0, drawn=draws, tied=tied)
    return [replace(back, opposition=opposition)]


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
    return [
        replace(passed, opposition=gradient.opposition * _ratio(part, whole)) for part in map(_data_variance, inputs)
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
    source = inputs[0]
    window = Window(op.kernel, op.stride)
    arriving, field = _inside(gradient, window.out_size(source.kernel.size), source)
    back = _through(gradient, arriving, window.averaging(source.kernel.size), source)
    return [back if source.amplitude is None else _unpooled(back, field, window, source.amplitude)]


@pull_back.register
def _(
    op: GlobalAveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    source = inputs[0]
    positions = source.kernel.values.shape[1]
    whole = positions if source.amplitude is None else source.amplitude.size
    back = _through(gradient, gradient.kernel, np.full((1, positions), 1 / whole), source)
    return [back if source.amplitude is None else replace(back, amplitude=np.ones_like(source.amplitude))]


def _through(gradient: Gradient, arriving: PairKernel, matrix: Array, source: Signal) -> Gradient:
    """Gradient before a fixed linear map of the positions; `arriving` is its kernel on the map's own outputs."""
    values = matrix.T @ arriving.values @ matrix
    draws = _after(gradient, lambda found: found.on(arriving, gradient.kernel.size).mapped(matrix.T, arriving.layout))
    kernel = replace(arriving, size=source.kernel.size, values=values).scaled(1.0)
    return Gradient(kernel, drawn=draws, tied=gradient.tied)


@pull_back.register
def _(op: MaxPool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    source = inputs[0]
    window = Window(op.kernel, op.stride)
    kernel, field = _inside(gradient, window.out_size(source.kernel.size), source)
    # Each tap of a window is the largest equally often; two windows choose almost independently, one chooses once.
    # What sampled channels choose corrects that.
    average = window.averaging(source.kernel.size)
    values = average.T @ kernel.values @ average
    count = kernel.layout.profiles
    own = np.arange(values.shape[1])
    for outputs in average:
        inside = np.flatnonzero(outputs)
        values[:count, inside[:, None], inside[None, :]] = 0.0
    values[:count, own, own] = kernel.diagonal @ average
    back = replace(kernel, size=source.kernel.size, values=values).scaled(1.0)
    draws = _after(
        gradient,
        lambda found: chosen(source.draw().values, found.on(kernel, gradient.kernel.size), window, source.kernel.size),
    )
    if draws is not None:
        back = corrected(back, draws())
    found = Gradient(back, drawn=draws, tied=True)
    return [found if source.amplitude is None else _unpooled(found, field, window, source.amplitude)]


def _unpooled(gradient: Gradient, field: Array, window: Window, amplitude: Array) -> Gradient:
    """Gradient before a pooling of a large map, given that on a cut-out, at whose edges windows are missing.

    Its kernel is that of positions under all their windows; `field` is the second moment after the pooling.
    """
    size = gradient.kernel.size
    share = window.taps / (window.stride[0] * window.stride[1])
    covered = window_scatter(np.ones(window.out_size(size)), window, size) / share
    rows, cols = (_all_phases(k, s, n) for k, s, n in zip(window.kernel, window.stride, size, strict=True))
    inner = gradient.kernel.mapped()[:, rows, cols, rows, cols]
    height, width = inner.shape[1:3]
    points = height * width
    whole = replace(gradient.kernel, size=(height, width), values=inner.reshape(len(inner), points, points))
    kernel = unmerged(regridded(merged(whole), size), whole.layout)
    fill = np.divide(1.0, np.sqrt(covered.ravel()), out=np.zeros(covered.size), where=covered.ravel() > 0)
    draws = _after(gradient, lambda found: replace(found, values=found.values * fill[:, None, None]).like(kernel))
    reach = window_scatter(field, window, _size(amplitude)) / share
    return replace(gradient, kernel=kernel, amplitude=reach, drawn=draws)


def _all_phases(kernel: int, stride: int, size: int) -> slice:
    """Rows of a map that lie under all their windows, as often at every phase of the stride."""
    last = (size - kernel) // stride * stride  # where the last window starts
    first = min(kernel - 1, last)
    return slice(first, first + max((last + 1 - first) // stride, 1) * stride)


@pull_back.register
def _(op: Flatten, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    source = inputs[0]
    if source.data is not None:
        return [gradient]
    points = source.kernel.values.shape[1]
    # Weights at different positions are independent.
    values = gradient.kernel.values * np.eye(points)
    amplitude = None if source.amplitude is None else np.ones_like(source.amplitude)
    return [Gradient(replace(gradient.kernel, size=source.kernel.size, values=values), amplitude=amplitude)]


@pull_back.register
def _(op: ZeroPad, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    top, bottom, left, right = op.padding
    source = inputs[0]
    if source.data is not None or source.amplitude is not None:
        field = gradient.amplitude
        if field is None:
            return [gradient]  # alike at all positions
        h, w = field.shape
        return [replace(gradient, amplitude=field[top : h - bottom, left : w - right])]
    h, w = gradient.kernel.size
    size = source.kernel.size
    inner = gradient.kernel.mapped()[:, top : h - bottom, left : w - right, top : h - bottom, left : w - right]
    points = size[0] * size[1]
    kernel = replace(gradient.kernel, size=size, values=inner.reshape(len(inner), points, points))
    grid = np.arange(h * w).reshape(h, w)[top : h - bottom, left : w - right].ravel()
    draws = _after(gradient, lambda found: replace(found, values=found.values[grid]))
    return [replace(gradient, kernel=kernel, drawn=draws)]
