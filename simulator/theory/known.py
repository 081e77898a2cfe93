"""Nodes before the first weights: the batch alone decides their values, so theory works them out."""

from __future__ import annotations

from functools import reduce, singledispatch

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from varprop.simulator.activations import activation
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

Array = NDArray[np.float64]


@singledispatch
def evaluate(operation: Operation, *inputs: Array) -> Array:
    """Return an operation's output, shape (batch, channels, height, width) or (batch, features), given its inputs'.

    Raises
    ------
    TypeError
        The operation draws weights.
    """
    raise TypeError(f"{type(operation).__name__} has no value before its weights are drawn")


def draws_weights(operation: Operation) -> bool:
    """Whether an operation's output depends on the weights."""
    return isinstance(operation, Conv2d | Linear)


@evaluate.register
def _(operation: Activation, x: Array) -> Array:
    return np.asarray(activation(operation.function).value(x))


@evaluate.register
def _(operation: BatchNorm, x: Array) -> Array:
    axes = _over_data(x)
    mean, variance = x.mean(axis=axes, keepdims=True), x.var(axis=axes, keepdims=True)
    # Without eps a channel that does not vary stays at zero.
    root = np.sqrt(variance + operation.eps)
    return np.asarray(np.divide(x - mean, root, out=np.zeros_like(x), where=root > 0))


@evaluate.register
def _(operation: Add, *inputs: Array) -> Array:
    return reduce(np.add, inputs)


@evaluate.register
def _(operation: ZeroPad, x: Array) -> Array:
    top, bottom, left, right = operation.padding
    return np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))


@evaluate.register
def _(operation: Flatten, x: Array) -> Array:
    return np.asarray(x.reshape(len(x), -1))


@evaluate.register
def _(operation: GlobalAveragePool, x: Array) -> Array:
    return np.asarray(x.mean(axis=(2, 3)))


@evaluate.register
def _(operation: AveragePool, x: Array) -> Array:
    return np.asarray(_windows(operation, x).mean(axis=(4, 5)))


@evaluate.register
def _(operation: MaxPool, x: Array) -> Array:
    return np.asarray(_windows(operation, x).max(axis=(4, 5)))


def _windows(operation: AveragePool | MaxPool, x: Array) -> Array:
    """View of a map's windows, shape (batch, channels, rows, columns, *kernel)."""
    rows, cols = operation.stride
    return sliding_window_view(x, operation.kernel, axis=(2, 3))[:, :, ::rows, ::cols]


def channel_variance(x: Array) -> Array:
    """Variance of each channel over the batch and positions, shape (channels,)."""
    return np.asarray(x.var(axis=_over_data(x)))


def _over_data(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))
