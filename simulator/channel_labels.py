"""What is exactly zero, constant or equal in a network, whatever the data: one rule an operation, forward and back.

Every channel of a map, and every weight (a kernel's taps count as one), carries a 64-bit label: 0 says that it is
exactly zero, and equal labels within one node say that two are equal. A product's label is a hash of its factors', 0
where a factor's is; a sum's label is the sum, whatever the order of its terms. What is told apart is so but for hash
collisions (one pair in 2^64); what is claimed to be zero or equal is so in exact arithmetic, for any data; in floating
point a zero of a product is exact too, one of a sum is rounding noise, which training may let grow. Zeros of sums are
found where normalisation or softmax cause them, and nowhere else; nor is it seen that a part of a map is zero (the
edges that padding adds, where a flattening makes features of them).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import singledispatch
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import activation
from varprop.simulator.network import (
    Activation,
    Add,
    BatchNorm,
    Conv2d,
    Flatten,
    Linear,
    MaxPool,
    Node,
    Operation,
    ZeroPad,
)

Labels = NDArray[np.uint64]
Flags = NDArray[np.bool_]
_T = TypeVar("_T", bound=np.generic)

_STEP = np.uint64(0x9E3779B97F4A7C15)
_FIRST, _SECOND = np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)


@dataclass(frozen=True)
class Signal:
    """A node's output: a label a channel, and whether the channel is one number for all samples and positions."""

    labels: Labels
    constant: Flags
    why_zero: str = ""
    """Where the whole output became exactly zero; empty if it is not."""


@dataclass(frozen=True)
class Gradient:
    """The loss's gradient with respect to a node's output.

    `centred` says of a channel that its gradient sums to zero over samples and positions (batch normalisation sees to
    that), `balanced` that the channels' gradients sum to zero at every position (softmax sees to that, and what treats
    all channels alike keeps it).
    """

    labels: Labels
    centred: Flags
    balanced: bool = False
    why_zero: str = ""


@dataclass(frozen=True)
class Weights:
    """What a node learns.

    Of a convolution or linear layer `labels` has shape (groups, out / groups, in / groups), and there may be a bias.
    Of batch normalisation it has shape (channels,) and stands for scale and shift: 0 while they are 1 and 0.
    """

    labels: Labels
    bias: Labels | None = None


def blend(*parts: Labels) -> Labels:
    """Hash arrays of labels, elementwise and in this order (splitmix64's finalizer, S. Vigna 2015)."""
    with np.errstate(over="ignore"):
        found = np.zeros((), np.uint64)
        for part in parts:
            found = (found ^ part) + _STEP
            found = (found ^ (found >> np.uint64(30))) * _FIRST
            found = (found ^ (found >> np.uint64(27))) * _SECOND
            found = found ^ (found >> np.uint64(31))
    return np.asarray(found, np.uint64)


def product(left: Labels, right: Labels) -> Labels:
    """Label of a product, elementwise: zero where a factor is."""
    return np.where((left == 0) | (right == 0), np.uint64(0), blend(left, right))


def distinct(labels: Labels) -> int:
    """Return how many different channels there are."""
    return len(np.unique(labels))


def edgeless(operation: Operation) -> bool:
    """Whether no zeros are put around the map."""
    return not (isinstance(operation, Conv2d | ZeroPad) and any(operation.padding))


@singledispatch
def forward(operation: Operation, node: Node, weights: Weights | None, sources: Sequence[Signal]) -> Signal:
    """Return a node's output; pooling keeps what holds for its input."""
    return sources[0]


@singledispatch
def backward(operation: Operation, node: Node, weights: Weights | None, source: Signal, gradient: Gradient) -> Gradient:
    """Return the gradient with respect to (each of) a node's inputs; pooling shares it out and keeps its sums."""
    return gradient


def total(pieces: Sequence[Gradient], channels: int) -> Gradient:
    """Return the sum of the gradients that a node's readers send back."""
    if not pieces:
        return Gradient(np.zeros(channels, np.uint64), np.ones(channels, bool), why_zero="nothing reads it")
    if len(pieces) == 1:
        return pieces[0]
    labels = _sum([piece.labels for piece in pieces])
    whys = dict.fromkeys(piece.why_zero for piece in pieces)
    centred = _all([piece.centred for piece in pieces])
    balanced = all(piece.balanced for piece in pieces)
    return Gradient(labels, centred, balanced, "; ".join(whys) if all(whys) else "")


@singledispatch
def learned(operation: Operation, weights: Weights, source: Signal, gradient: Gradient) -> Weights:
    """Return the weights after a step along minus their gradient; what has no gradient keeps its label."""
    raise NotImplementedError(type(operation).__name__)


def zero_gradients(operation: Conv2d | Linear, weights: Weights, source: Signal, gradient: Gradient) -> float:
    """Return the share of the layer's weights whose gradient is exactly zero."""
    return float(np.mean(_weight_gradient(operation, weights, source, gradient)[2]))


def _weight_gradient(
    operation: Conv2d | Linear, weights: Weights, source: Signal, gradient: Gradient
) -> tuple[Labels, Labels, Flags]:
    """Return the labels of the two factors of every weight's gradient, and whether it is exactly zero.

    The gradient of w[o, i] is the sum over samples and positions of g[o] x[i]: zero if a factor is, or if x[i] is one
    number and g[o] sums to zero.
    """
    groups = len(weights.labels)
    g, x = _columns(gradient.labels, groups), _rows(source.labels, groups)
    still = (g == 0) | (x == 0)
    if edgeless(operation):
        still = still | (_columns(gradient.centred, groups) & _rows(source.constant, groups))
    return g, x, np.broadcast_to(still, weights.labels.shape)


def _sum(terms: Sequence[Labels]) -> Labels:
    return np.asarray(np.sum(terms, axis=0, dtype=np.uint64))


def _all(flags: Sequence[Flags]) -> Flags:
    return np.asarray(np.all(flags, axis=0))


def _columns(values: NDArray[_T], groups: int) -> NDArray[_T]:
    return values.reshape(groups, -1, 1)


def _rows(values: NDArray[_T], groups: int) -> NDArray[_T]:
    return values.reshape(groups, 1, -1)


@forward.register
def _(operation: Conv2d | Linear, node: Node, weights: Weights, sources: Sequence[Signal]) -> Signal:
    source = sources[0]
    groups = len(weights.labels)
    terms = product(weights.labels, _rows(source.labels, groups))
    still = terms == 0
    if edgeless(operation):
        still = still | _rows(source.constant, groups)
    labels = terms.sum(axis=2, dtype=np.uint64).ravel()
    if weights.bias is not None:
        labels = labels + np.where(weights.bias == 0, np.uint64(0), blend(weights.bias))
    why = ""
    if not labels.any():
        why = source.why_zero or f"all weights of {node.name} are zero"
    return Signal(labels, still.all(axis=2).ravel(), why)


@backward.register
def _(operation: Conv2d | Linear, node: Node, weights: Weights, source: Signal, gradient: Gradient) -> Gradient:
    groups = len(weights.labels)
    terms = product(weights.labels, _columns(gradient.labels, groups))
    cancels = np.zeros((groups, terms.shape[2]), bool)
    if gradient.balanced and groups == 1:
        cancels = (weights.labels == weights.labels[:, :1]).all(axis=1)
    labels = np.where(cancels, np.uint64(0), terms.sum(axis=1, dtype=np.uint64)).ravel()
    centred = np.zeros(labels.shape, bool)
    if edgeless(operation):
        centred = ((terms == 0) | _columns(gradient.centred, groups)).all(axis=1).ravel()
    why = ""
    if not labels.any():
        why = f"softmax's gradient sums to zero over the equal outputs of {node.name}"
        if not weights.labels.any():
            why = f"all weights of {node.name} are zero"
        why = gradient.why_zero or why
    return Gradient(labels, centred, why_zero=why)


@learned.register
def _(operation: Conv2d | Linear, weights: Weights, source: Signal, gradient: Gradient) -> Weights:
    g, x, still = _weight_gradient(operation, weights, source, gradient)
    labels = np.where(still, weights.labels, blend(weights.labels, g, x))
    bias = weights.bias
    if bias is not None:
        bias = np.where((gradient.labels == 0) | gradient.centred, bias, blend(bias, gradient.labels))
    return Weights(labels, bias)


@forward.register
def _(operation: BatchNorm, node: Node, weights: Weights, sources: Sequence[Signal]) -> Signal:
    source = sources[0]
    learned_too = np.where(weights.labels == 0, source.labels, blend(source.labels, weights.labels))
    labels = np.where(source.constant, weights.labels, learned_too)
    why = "" if labels.any() else source.why_zero or f"{node.name} normalises a constant"
    return Signal(labels, source.constant, why)


@learned.register
def _(operation: BatchNorm, weights: Weights, source: Signal, gradient: Gradient) -> Weights:
    # The scale's gradient is zero where the normalised value is, the shift's where the gradient is centred.
    still = (gradient.labels == 0) | (source.constant & gradient.centred)
    return Weights(np.where(still, weights.labels, blend(weights.labels, gradient.labels, source.labels)))


@backward.register
def _(operation: BatchNorm, node: Node, weights: Weights | None, source: Signal, gradient: Gradient) -> Gradient:
    assert weights is not None
    labels = np.where(gradient.labels == 0, np.uint64(0), blend(gradient.labels, source.labels))
    balanced = gradient.balanced and distinct(source.labels) == distinct(weights.labels) == 1
    return Gradient(labels, np.ones(labels.shape, bool), balanced, gradient.why_zero)


@forward.register
def _(operation: Activation, node: Node, weights: Weights | None, sources: Sequence[Signal]) -> Signal:
    source = sources[0]
    if activation(operation.function).germ_zero[0] == 0:
        return source
    return Signal(blend(source.labels), source.constant)


@backward.register
def _(operation: Activation, node: Node, weights: Weights | None, source: Signal, gradient: Gradient) -> Gradient:
    function = activation(operation.function)
    if function.family == "linear":
        return gradient
    labels = np.where(gradient.labels == 0, np.uint64(0), blend(gradient.labels, source.labels))
    flat = float(function.derivative(0.0)) == 0
    if flat:
        labels = np.where(source.labels == 0, np.uint64(0), labels)
    why = gradient.why_zero
    if not labels.any() and not why:
        why = f"{function.name}'(0) = 0 at {node.name}, whose input is exactly zero"
    balanced = gradient.balanced and distinct(source.labels) == 1
    return Gradient(labels, gradient.centred & source.constant, balanced, why)


@backward.register
def _(operation: MaxPool, node: Node, weights: Weights | None, source: Signal, gradient: Gradient) -> Gradient:
    return replace(gradient, balanced=gradient.balanced and distinct(source.labels) == 1)


@forward.register
def _(operation: Add, node: Node, weights: Weights | None, sources: Sequence[Signal]) -> Signal:
    labels = _sum([source.labels for source in sources])
    constant = _all([source.constant for source in sources])
    whys = dict.fromkeys(source.why_zero for source in sources)
    return Signal(labels, constant, "; ".join(whys) if all(whys) else "")


@forward.register
def _(operation: ZeroPad, node: Node, weights: Weights | None, sources: Sequence[Signal]) -> Signal:
    source = sources[0]
    return source if edgeless(operation) else replace(source, constant=source.labels == 0)


@backward.register
def _(operation: ZeroPad, node: Node, weights: Weights | None, source: Signal, gradient: Gradient) -> Gradient:
    centred = gradient.centred if edgeless(operation) else np.zeros(gradient.centred.shape, bool)
    return replace(gradient, centred=centred)


@forward.register
def _(operation: Flatten, node: Node, weights: Weights | None, sources: Sequence[Signal]) -> Signal:
    source = sources[0]
    places = _places(node, source)
    labels = source.labels[:, None]
    features = np.where(source.constant[:, None], labels, product(labels, places))
    return Signal(features.ravel(), np.repeat(source.constant, len(places)), source.why_zero)


@backward.register
def _(operation: Flatten, node: Node, weights: Weights | None, source: Signal, gradient: Gradient) -> Gradient:
    places = _places(node, source)
    labels = product(gradient.labels.reshape(-1, len(places)), places).sum(axis=1, dtype=np.uint64)
    centred = np.asarray(gradient.centred.reshape(-1, len(places)).all(axis=1))
    return Gradient(labels, centred, why_zero=gradient.why_zero)


def _places(node: Node, source: Signal) -> Labels:
    """Return a label for each of the map's positions."""
    return np.arange(1, node.shape[0] // len(source.labels) + 1, dtype=np.uint64)
