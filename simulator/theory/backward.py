"""The gradient: one rule an operation, from the gradient at its output to the gradient at each input."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np

from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    Operation,
    ZeroPad,
)
from varprop.simulator.theory.forward import Signal
from varprop.simulator.theory.pairs import PairKernel, plus, unmerged, windows_transposed
from varprop.simulator.theory.variance_law import VarianceLaw


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
    """

    kernel: PairKernel
    alignment: float | None = None
    tilt: float = 1.0


def total(gradients: list[Gradient]) -> Gradient:
    """Sum over a node's consumers, whose gradients are uncorrelated: each passed through weights of its own."""
    if len(gradients) == 1:
        return gradients[0]
    kernel = gradients[0].kernel
    for gradient in gradients[1:]:
        kernel = plus(kernel, gradient.kernel)
    return Gradient(kernel)


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
    if law is not None and law.taps is not None:
        moments = law.taps / law.inverse
    else:
        moments = np.eye(op.kernel[0] * op.kernel[1]) * _seen_variance(output, law)
    window = op.kernel, op.stride, op.padding
    arriving = unmerged(gradient.kernel, inputs[0].kernel.layout)
    kernel = windows_transposed(arriving, moments, *window, inputs[0].kernel.size)
    return [Gradient(kernel.scaled(op.out_channels // op.groups), tilt=law.tilt if law is not None else 1.0)]


def _seen_variance(output: Signal, law: VarianceLaw | None) -> float:
    """E[w^2 g^2] / E[g^2]: a normalisation that follows ties the gradient to the weights."""
    variance = float(output.weighted.law.std**2)
    return variance if law is None else variance * law.weighted_inverse / law.inverse


@pull_back.register
def _(op: Linear, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [Gradient(gradient.kernel.scaled(op.out_features * _seen_variance(output, law)))]


@pull_back.register
def _(op: Activation, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    assert output.duals is not None
    slopes, tilted = output.duals.derivative, output.duals.tilted
    values = gradient.kernel.values * slopes.values
    kernel = replace(gradient.kernel, values=values).scaled(1.0, slopes.log_scale)
    unit = float(np.exp(tilted.log_scale + gradient.kernel.log_scale - kernel.log_scale))
    return [Gradient(kernel, gradient.kernel.pair_product_mean(tilted) * unit, gradient.tilt)]


@pull_back.register
def _(op: BatchNorm, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    own = output.law
    assert own is not None
    alignment = gradient.alignment
    if alignment is None:
        alignment = gradient.kernel.pair_product_mean(output.kernel)
    centred = gradient.kernel.centred()
    lost = (2.0 - own.ratio) * alignment / own.ratio if own.ratio > 0 else 0.0
    values = centred.values - lost * output.kernel.values
    return [Gradient(replace(centred, values=values).scaled(own.inverse * gradient.tilt))]


@pull_back.register
def _(op: Add, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [Gradient(gradient.kernel) for _ in inputs]


@pull_back.register
def _(op: AveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [_spread_out(gradient, op.kernel, op.stride, inputs[0].kernel.size)]


@pull_back.register
def _(
    op: GlobalAveragePool, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    size = inputs[0].kernel.size
    return [_spread_out(gradient, size, (1, 1), size)]


def _spread_out(
    gradient: Gradient, window: tuple[int, int], stride: tuple[int, int], size: tuple[int, int]
) -> Gradient:
    kernel = gradient.kernel
    out_h, out_w = kernel.size
    share = np.zeros((size[0] * size[1], out_h * out_w))
    for row in range(out_h):
        for col in range(out_w):
            mask = np.zeros(size)
            mask[row * stride[0] : row * stride[0] + window[0], col * stride[1] : col * stride[1] + window[1]] = 1.0
            share[:, row * out_w + col] = mask.ravel() / mask.sum()
    return Gradient(replace(kernel, size=size, values=share @ kernel.values @ share.T).scaled(1.0))


@pull_back.register
def _(op: Flatten, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    size = inputs[0].kernel.size
    points = size[0] * size[1]
    # Weights at different positions are independent.
    values = gradient.kernel.values * np.eye(points)
    return [Gradient(replace(gradient.kernel, size=size, values=values))]


@pull_back.register
def _(op: ZeroPad, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    top, bottom, left, right = op.padding
    h, w = gradient.kernel.size
    size = inputs[0].kernel.size
    inner = gradient.kernel.mapped()[:, top : h - bottom, left : w - right, top : h - bottom, left : w - right]
    points = size[0] * size[1]
    return [Gradient(replace(gradient.kernel, size=size, values=inner.reshape(len(inner), points, points)), tilt=gradient.tilt)]
