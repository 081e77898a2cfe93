"""Constant and zero starts: which weights no gradient reaches, and how many different channels training can make."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from varprop.simulator.channel_labels import (
    Gradient,
    Labels,
    Signal,
    Weights,
    backward,
    blend,
    distinct,
    forward,
    learned,
    total,
    zero_gradients,
)
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import WeightLaw, bias_law, weight_law
from varprop.simulator.limits import weight_count
from varprop.simulator.network import BatchNorm, Conv2d, Linear, Network, Node


@dataclass(frozen=True, slots=True)
class _Step:
    """A step of training in labels: every node's output and gradient, and what it has learned after the step."""

    signals: list[Signal]
    gradients: list[Gradient]
    weights: list[Weights | None]


@dataclass(frozen=True, slots=True)
class LayerStart:
    """What training can do with one convolution or linear layer.

    Attributes
    ----------
    index, name
        The node.
    weights
        How many it has, without bias.
    zero_gradients
        How many of them have a gradient that is exactly zero at the start.
    reasons
        Why, where all of them have.
    first_step
        The first step of gradient descent that changes a weight, from 1; None if none ever does.
    channels
        Outputs of the layer.
    distinct_at_start, distinct_in_training
        Different ones among them (one that is zero counts), before the first step and in the long run.
    """

    index: int
    name: str
    weights: int
    zero_gradients: int
    reasons: tuple[str, ...]
    first_step: int | None
    channels: int
    distinct_at_start: int
    distinct_in_training: int


@dataclass(frozen=True, slots=True)
class DegenerateStart:
    """What holds of a network and its initializers for any data, under softmax cross-entropy over output channels.

    Attributes
    ----------
    layers
        A row per layer with weights.
    equal_logits
        Whether all output channels are equal at the start, so that the loss is ln(classes).
    classes
        Output channels.
    moves
        Whether any weight or bias ever changes.
    """

    layers: tuple[LayerStart, ...]
    equal_logits: bool
    classes: int
    moves: bool

    @property
    def starting_loss(self) -> float | None:
        """Cross-entropy at uniform logits, ln(classes); None if the logits differ."""
        return math.log(self.classes) if self.equal_logits else None

    @property
    def plateau(self) -> float | None:
        """The loss that training never leaves; None if it moves, or where it stands still depends on the data."""
        return None if self.moves else self.starting_loss


def analyse_start(network: Network, targets: Sequence[int] | None = None) -> DegenerateStart:
    """Tell what training can and cannot change, from the network and its initializers alone.

    Training is followed step by step in labels (`varprop.simulator.channel_labels`) until no step tells anything new
    apart. The result holds for gradient descent at any rate, with momentum and weight decay too, and whether gradients
    are cleared between steps or added up. Input channels are taken as different from each other, in no special
    relation to the targets; a layer whose law is not a constant as one whose weights all differ.

    Parameters
    ----------
    network
        Its last node's channels are the logits.
    targets
        A number per output channel: channels with the same number are treated alike by the loss (the same share of
        target pixels, at the same places). Default: all different.

    Returns
    -------
    DegenerateStart

    Raises
    ------
    UserError
        Not a target per output channel.

    Examples
    --------
    >>> from varprop.simulator.architectures import build
    >>> from varprop.simulator.initializers import parse_initializer
    >>> found = analyse_start(build("two_layer", init=parse_initializer("zeros")))
    >>> found.plateau, [layer.first_step for layer in found.layers]
    (1.0986122886681098, [None, None])
    """
    classes = network.nodes[-1].shape[0]
    roles = list(range(classes)) if targets is None else list(targets)
    if len(roles) != classes:
        raise UserError("targets", f"{len(roles)} values", f"one per output channel of {network.name}: {classes}")
    loss = np.array(roles).astype(np.uint64) + np.uint64(1)
    start = before = _start(network)
    first = last = _step(network, start, loss)
    first_steps: dict[int, int] = {}
    moves = False
    for number in count(1):
        for index, (old, new) in enumerate(zip(before, last.weights, strict=True)):
            if old is not None and new is not None:
                if not np.array_equal(old.labels, new.labels):
                    first_steps.setdefault(index, number)
                moves |= old.bias is not None and new.bias is not None and not np.array_equal(old.bias, new.bias)
        if _pattern(last.weights) == _pattern(before):
            break
        before = last.weights
        last = _step(network, before, loss)
    return DegenerateStart(
        tuple(
            _layer(node, index, start[index], first, last, first_steps.get(index))
            for index, node in enumerate(network.nodes)
            if node.fan_in is not None
        ),
        equal_logits=distinct(first.signals[-1].labels) == 1,
        classes=classes,
        moves=moves or bool(first_steps),
    )


def _start(network: Network) -> list[Weights | None]:
    rng = np.random.default_rng(0)
    found: list[Weights | None] = []
    for node in network.nodes:
        operation = node.operation
        if isinstance(operation, Conv2d | Linear):
            groups = operation.groups if isinstance(operation, Conv2d) else 1
            channels = node.shape[0]
            inputs = network.nodes[node.inputs[0]].shape[0]
            bias = bias_law(node, network.framework)
            found.append(
                Weights(
                    _labels(weight_law(node, network.framework), (groups, channels // groups, inputs // groups), rng),
                    None if bias is None else _labels(bias, (channels,), rng),
                )
            )
        elif isinstance(operation, BatchNorm):
            found.append(Weights(np.zeros(node.shape[0], np.uint64)))
        else:
            found.append(None)
    return found


def _labels(law: WeightLaw, shape: tuple[int, ...], rng: np.random.Generator) -> Labels:
    """Return one label for all weights of a constant law, 0 if the constant is; else a label for each."""
    if law.distribution != "constant":
        return rng.integers(1, 2**64, shape, np.uint64)
    return np.full(shape, np.uint64(law.mean != 0))


def _step(network: Network, weights: list[Weights | None], loss: Labels) -> _Step:
    """Return every node's output, gradient, and weights after one step."""
    signals: list[Signal] = []
    for node, own in zip(network.nodes, weights, strict=True):
        if node.inputs:
            signals.append(forward(node.operation, node, own, [signals[source] for source in node.inputs]))
        else:
            names = np.arange(1, node.shape[0] + 1, dtype=np.uint64)
            signals.append(Signal(blend(names), np.zeros(node.shape[0], bool)))
    arriving: list[list[Gradient]] = [[] for _ in network.nodes]
    logits = signals[-1]
    arriving[-1].append(Gradient(blend(logits.labels, loss), np.zeros(loss.shape, bool), balanced=True))
    gradients: list[Gradient] = []
    after: list[Weights | None] = []
    for index in reversed(range(len(network))):
        node, own = network.nodes[index], weights[index]
        gradient = total(arriving[index], node.shape[0])
        gradients.append(gradient)
        for source in node.inputs:
            arriving[source].append(backward(node.operation, node, own, signals[source], gradient))
        after.append(None if own is None else learned(node.operation, own, signals[node.inputs[0]], gradient))
    return _Step(signals, gradients[::-1], after[::-1])


def _layer(node: Node, index: int, weights: Weights | None, first: _Step, last: _Step, moved: int | None) -> LayerStart:
    assert weights is not None
    assert isinstance(node.operation, Conv2d | Linear)
    source, gradient = first.signals[node.inputs[0]], first.gradients[index]
    share = zero_gradients(node.operation, weights, source, gradient)
    reasons = []
    if share == 1:
        if source.why_zero:
            reasons.append(f"its input is exactly zero: {source.why_zero}")
        if gradient.why_zero:
            reasons.append(f"no gradient arrives: {gradient.why_zero}")
        if not reasons:
            reasons.append("its gradient sums to zero over a batch that gives it constants")
    return LayerStart(
        index=index,
        name=node.name,
        weights=weight_count(node),
        zero_gradients=round(share * weight_count(node)),
        reasons=tuple(reasons),
        first_step=moved,
        channels=node.shape[0],
        distinct_at_start=distinct(first.signals[index].labels),
        distinct_in_training=distinct(last.signals[index].labels),
    )


def _pattern(weights: list[Weights | None]) -> list[tuple[int, int]]:
    """Return how many weights are told apart and how many are zero; steps only ever tell more apart."""
    learnt = [part for own in weights if own is not None for part in (own.labels, own.bias) if part is not None]
    return [(distinct(part), int(np.count_nonzero(part == 0))) for part in learnt]
