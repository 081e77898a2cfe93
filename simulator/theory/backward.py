"""The gradient: one rule an operation, from the gradient at its output to the gradient at each input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

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
from varprop.simulator.theory.depthwise import UNRELATED, Relations
from varprop.simulator.theory.maps import Size, Window, window_scatter
from varprop.simulator.theory.pairs import (
    PairKernel,
    merged,
    plus,
    regridded,
    unmerged,
    windows_transposed,
)
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
    selection
        The same for E[g^2 phi'^2] at the activation that it meets next, before a maximum or a depthwise layer.
    relations
        What a depthwise layer on the way is going to do of that kind.
    amplitude
        Of a map larger than the kernel's: second moment at every position over that inside.
    """

    kernel: PairKernel
    alignment: float | None = None
    tilt: float = 1.0
    selection: float = 1.0
    relations: Relations = UNRELATED
    amplitude: Array | None = None

    @property
    def edges(self) -> float:
        """Second moment over the whole map relative to the kernel's."""
        return 1.0 if self.amplitude is None else float(self.amplitude.mean())


def total(gradients: list[Gradient]) -> Gradient:
    """Sum over a node's consumers, whose gradients are uncorrelated: each passed through weights of its own."""
    if len(gradients) == 1:
        return gradients[0]
    kernel = gradients[0].kernel
    for gradient in gradients[1:]:
        kernel = plus(kernel, gradient.kernel)
    fields = [
        g.amplitude * (g.kernel.second_moment * float(np.exp(g.kernel.log_scale - kernel.log_scale)))
        for g in gradients
        if g.amplitude is not None
    ]
    if not fields or not kernel.second_moment:
        return Gradient(kernel, amplitude=gradients[0].amplitude)
    return Gradient(kernel, amplitude=np.asarray(np.sum(fields, axis=0) / kernel.second_moment))


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
    window = Window(op.kernel, op.stride, op.padding, source.amplitude is not None)
    per_group = op.out_channels // op.groups
    if law is not None and law.taps is not None:
        moments = law.taps / law.inverse
    else:
        moments = np.eye(window.taps) * _seen_variance(output, law)
    moments = moments * (per_group * gradient.relations.reweigh)
    tilt = 1.0 if law is None else law.tilt
    if source.data is not None:
        return [_at_data(gradient, moments, window, source.data.shape[2:])]
    if source.amplitude is None:
        arriving = unmerged(gradient.kernel, source.kernel.layout)
        kernel = windows_transposed(arriving, moments, window, source.kernel.size)
        return [Gradient(kernel.scaled(1.0), tilt=tilt, selection=gradient.relations.gates)]
    arriving, edges = _inside(gradient, window.out_size(source.kernel.size), source)
    kernel = windows_transposed(arriving, moments, window, source.kernel.size).scaled(1.0)
    reach = window_scatter(edges, Window(op.kernel, op.stride, op.padding), _size(source.amplitude))
    share = window.taps / (op.stride[0] * op.stride[1])
    return [Gradient(kernel, tilt=tilt, selection=gradient.relations.gates, amplitude=reach / share)]


def _seen_variance(output: Signal, law: VarianceLaw | None) -> float:
    """E[w^2 g^2] / E[g^2]: a normalisation that follows ties the gradient to the weights."""
    assert output.weighted is not None
    variance = output.weighted.law.second_moment
    return variance if law is None else variance * law.weighted_inverse / law.inverse


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
    """Gradient at the data, where only second moments are asked for."""
    kernel = gradient.kernel
    field = kernel.diagonal.mean(axis=0).reshape(kernel.size)
    if gradient.amplitude is not None:
        field = gradient.amplitude * float(field.mean())
    seen = window_scatter(field, window, (size[0], size[1])) * (float(np.trace(moments)) / window.taps)
    values = np.full((len(kernel.values), 1, 1), float(seen.mean()))
    return Gradient(replace(kernel, size=(1, 1), values=values).scaled(1.0))


@pull_back.register
def _(op: Linear, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    factor = float(linear_gradient(op.out_features, _seen_variance(output, law), 1.0))
    return [Gradient(gradient.kernel.scaled(factor))]


@pull_back.register
def _(
    op: Activation, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    assert output.duals is not None
    slopes, tilted = output.duals.derivative, output.duals.tilted
    values = gradient.kernel.values * slopes.values
    kernel = replace(gradient.kernel, values=values).scaled(gradient.selection, slopes.log_scale)
    unit = float(np.exp(tilted.log_scale + gradient.kernel.log_scale - kernel.log_scale))
    alignment = gradient.kernel.pair_product_mean(tilted) * unit
    tilt = gradient.tilt * output.relations.tilt
    return [Gradient(kernel, alignment, tilt, relations=output.relations, amplitude=gradient.amplitude)]


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
    shape = centred.values
    if own.ratio > 0:
        shape = shape - (2.0 - own.ratio) * alignment / own.ratio * output.kernel.values
    kernel = replace(centred, values=shape)
    left = kernel.second_moment
    if left > 0 and size > 0:
        kernel = kernel.scaled(size / left)
    kernel = kernel.scaled(own.inverse * gradient.tilt)
    return [Gradient(kernel, relations=gradient.relations, amplitude=gradient.amplitude)]


@pull_back.register
def _(op: Add, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [Gradient(gradient.kernel, amplitude=gradient.amplitude) for _ in inputs]


@pull_back.register
def _(
    op: AveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    source = inputs[0]
    window = Window(op.kernel, op.stride)
    arriving, field = _inside(gradient, window.out_size(source.kernel.size), source)
    back = _through(arriving, window.averaging(source.kernel.size), source)
    if source.amplitude is None:
        return [back]
    reach = window_scatter(field, window, _size(source.amplitude)) / window.taps * (op.stride[0] * op.stride[1])
    return [replace(back, amplitude=reach)]


@pull_back.register
def _(
    op: GlobalAveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    source = inputs[0]
    positions = source.kernel.values.shape[1]
    whole = positions if source.amplitude is None else source.amplitude.size
    back = _through(gradient.kernel, np.full((1, positions), 1 / whole), source)
    return [back if source.amplitude is None else replace(back, amplitude=np.ones_like(source.amplitude))]


def _through(kernel: PairKernel, matrix: Array, source: Signal) -> Gradient:
    """Gradient before a fixed linear map of the positions."""
    values = matrix.T @ kernel.values @ matrix
    return Gradient(replace(kernel, size=source.kernel.size, values=values).scaled(1.0))


@pull_back.register
def _(op: MaxPool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    source = inputs[0]
    window = Window(op.kernel, op.stride)
    kernel, field = _inside(gradient, window.out_size(source.kernel.size), source)
    # Each tap of a window is the largest equally often; two windows choose almost independently, one chooses once.
    average = window.averaging(source.kernel.size)
    values = average.T @ kernel.values @ average
    count = kernel.layout.profiles
    own = np.arange(values.shape[1])
    for outputs in average:
        inside = np.flatnonzero(outputs)
        values[:count, inside[:, None], inside[None, :]] = 0.0
    values[:count, own, own] = kernel.diagonal @ average
    back = replace(kernel, size=source.kernel.size, values=values).scaled(1.0)
    if source.amplitude is None:
        return [Gradient(back, selection=output.selection)]
    reach = window_scatter(field, window, _size(source.amplitude)) / window.taps * (op.stride[0] * op.stride[1])
    return [Gradient(back, selection=output.selection, amplitude=reach)]


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
    if source.data is not None:
        return [gradient]
    if source.amplitude is not None:
        assert gradient.amplitude is not None
        h, w = gradient.amplitude.shape
        return [replace(gradient, amplitude=gradient.amplitude[top : h - bottom, left : w - right])]
    h, w = gradient.kernel.size
    size = source.kernel.size
    inner = gradient.kernel.mapped()[:, top : h - bottom, left : w - right, top : h - bottom, left : w - right]
    points = size[0] * size[1]
    kernel = replace(gradient.kernel, size=size, values=inner.reshape(len(inner), points, points))
    return [Gradient(kernel, tilt=gradient.tilt, selection=gradient.selection)]
