"""Every operation on the maps of several trials with their powers of two: forward, and the gradient back to its input.

The exponents make the signal of a deep network without normalisation, and every gradient, immune to the floating range.
"""

from __future__ import annotations

from functools import singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import FORMULA, activation
from varprop.simulator.montecarlo import kernels
from varprop.simulator.montecarlo.call import Call, in_place_of
from varprop.simulator.montecarlo.convolution import (
    convolved,
    convolved_back,
    fixed,
    fixed_back,
    linear,
    linear_back,
)
from varprop.simulator.montecarlo.normalisation import activated, activated_back, normalised, normalised_back
from varprop.simulator.montecarlo.signal import Signal, added
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

Array = NDArray[np.floating]


@singledispatch
def forward(operation: Operation, call: Call, out: Array) -> Signal:
    """Write the output, of shape (trials, *node shape, batch), to `out`; return it, with its moments if known."""
    raise NotImplementedError(type(operation).__name__)


@singledispatch
def backward(operation: Operation, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to an input, given that with respect to the output, whose memory is used up.

    The statistics of inputs and output are as they were; values are still there only where `reads_source` asks for
    them. Of a sum, all inputs have the same gradient. Where the source is not stored, the gradient is that with
    respect to its origin.
    """
    raise NotImplementedError(type(operation).__name__)


def reads_source(operation: Operation) -> bool:
    """Whether `backward` reads the input's values."""
    return isinstance(operation, Activation | BatchNorm | MaxPool)


def overwrites(operation: Operation) -> bool:
    """Whether `backward` writes over the gradient that it is given, or passes it on."""
    return takes_unstored(operation) or isinstance(operation, Add | BatchNorm | Flatten)


def takes_unstored(operation: Operation) -> bool:
    """Whether the operation can read a map that is not stored."""
    return isinstance(operation, Activation) and activation(operation.function).family != FORMULA


forward.register(Linear, linear)
backward.register(Linear, linear_back)
forward.register(Conv2d, convolved)
backward.register(Conv2d, convolved_back)
forward.register(BatchNorm, normalised)
backward.register(BatchNorm, normalised_back)
forward.register(Activation, activated)
backward.register(Activation, activated_back)
for kind in (AveragePool, GlobalAveragePool, ZeroPad):
    forward.register(kind, fixed)
    backward.register(kind, fixed_back)


@forward.register
def _(operation: Add, call: Call, out: Array) -> Signal:
    total, *others = call.sources
    for source in others:
        total = added(total, source, out, call.pool)
    return total


@forward.register
def _(operation: MaxPool, call: Call, out: Array) -> Signal:
    kernels.max_pool(_channels(call.source.values), operation.kernel, operation.stride, _channels(out))
    return Signal(out, call.source.exponent)


@backward.register
def _(operation: MaxPool, call: Call, gradient: Signal) -> Signal:
    out = call.pool.take(call.source_shape)
    g, x = _channels(gradient.values), _channels(call.source.values)
    kernels.max_pool_backward(g, x, operation.kernel, operation.stride, _channels(out))
    return in_place_of(gradient, out, call.pool)


def _channels(array: Array) -> Array:
    """View the channels of all trials as those of one map."""
    return array.reshape(-1, *array.shape[2:])


@forward.register
def _(operation: Flatten, call: Call, out: Array) -> Signal:
    out[...] = call.source.values.reshape(out.shape)
    return Signal(out, call.source.exponent)


@backward.register
def _(operation: Add, call: Call, gradient: Signal) -> Signal:
    return gradient


@backward.register
def _(operation: Flatten, call: Call, gradient: Signal) -> Signal:
    return Signal(gradient.values.reshape(call.source_shape), gradient.exponent)
