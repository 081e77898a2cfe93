"""The gradient: one rule an operation, from the gradient at its output to the gradient at each input."""

from __future__ import annotations

from dataclasses import replace
from functools import singledispatch

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
from varprop.simulator.theory.activation_back import opposed_unit, through_activation
from varprop.simulator.theory.coherence import learnt
from varprop.simulator.theory.convolution_back import through_convolution, through_linear
from varprop.simulator.theory.crossing import Crossing
from varprop.simulator.theory.gradient import Gradient
from varprop.simulator.theory.maps import here
from varprop.simulator.theory.normalisation_back import through_normalisation
from varprop.simulator.theory.opposition import added
from varprop.simulator.theory.pairs import on_pairs_of
from varprop.simulator.theory.signal import Signal, variance_ratio
from varprop.simulator.theory.strays import gone_along
from varprop.simulator.theory.unpooling import average_unpooled, globally_unpooled, max_unpooled, unflattened, unpadded
from varprop.simulator.theory.variance_law import VarianceLaw


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
    return [through_convolution(op, gradient, inputs[0], output, law)]


@pull_back.register
def _(op: Linear, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [through_linear(op, gradient, inputs[0], output, law)]


@pull_back.register
def _(
    op: Activation, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    return [through_activation(op, gradient, inputs[0], output)]


@pull_back.register
def _(
    op: BatchNorm, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None
) -> list[Gradient]:
    return [through_normalisation(op, gradient, inputs[0], output)]


@pull_back.register
def _(op: Add, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    passed = Gradient(gradient.kernel, amplitude=gradient.amplitude, drawn=gradient.drawn, tied=gradient.tied)
    unit = opposed_unit(max(here(gradient.opposition), 0.0), output)
    # Slopes know a channel of the branch by that of the shortcut, which is added to it.
    new, lasts = learnt(gradient.own, output.kernel, output.kernel, (1, 1))
    opposition, coherence = added(gradient.opposition, -lasts), added(gradient.coherence, new)
    crossings = *gradient.crossings, Crossing(gradient.kernel, unit, opposition, coherence)
    shares = [variance_ratio(part, output) for part in inputs]
    return [
        replace(
            passed,
            kernel=on_pairs_of(gradient.kernel, part.kernel.layout),
            opposition=gradient.opposition * share,
            leaning=gradient.leaning * gone_along(part.strays, [other.strays for other in inputs], shares, share),
            coherence=gradient.coherence * share,
            alone=gradient.alone * share,
            own=gradient.own * share,
            crossings=tuple(crossing.share(share) for crossing in crossings),
        )
        for part, share in zip(inputs, shares, strict=True)
    ]


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
    return [max_unpooled(op, gradient, inputs[0], output)]


@pull_back.register
def _(op: Flatten, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [unflattened(gradient, inputs[0])]


@pull_back.register
def _(op: ZeroPad, gradient: Gradient, inputs: list[Signal], output: Signal, law: VarianceLaw | None) -> list[Gradient]:
    return [unpadded(op, gradient, inputs[0])]
