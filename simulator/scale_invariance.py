"""Which layers' weights may be scaled without changing the network, and how fast gradient descent then turns them."""

from __future__ import annotations

from dataclasses import dataclass

from varprop.simulator.activations import activation
from varprop.simulator.initializers import weight_law
from varprop.simulator.limits import weight_count
from varprop.simulator.network import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Operation,
    ZeroPad,
)
from varprop.simulator.weight_decay import Sgd, effective_learning_rate


@dataclass(frozen=True, slots=True)
class LayerRate:
    """One layer's weights at the start.

    `squared_norm` is the mean of |w|^2 over draws; `effective_lr` is None where the weights' scale matters, or where
    they are all zero.
    """

    index: int
    name: str
    kind: str
    scale_invariant: bool
    squared_norm: float
    effective_lr: float | None


def scale_invariant(network: Network) -> tuple[bool, ...]:
    """Tell of every node whether its weights can be multiplied by any s > 0 without changing the network's output.

    They can where every path from the layer meets a batch normalisation before anything but layers without bias,
    pooling and activations with phi(s z) = s phi(z); a bias of the layer's own must meet it at once. Exact for eps = 0:
    what eps leaves of it is eps / (v + eps) at variance v. False for nodes without weights.
    """
    absorbed = [False] * len(network)
    for index in reversed(range(len(network))):
        readers = network.consumers[index]
        absorbed[index] = bool(readers) and all(
            isinstance(network.nodes[reader].operation, BatchNorm)
            or (_homogeneous(network.nodes[reader].operation) and absorbed[reader])
            for reader in readers
        )
    found = []
    for index, node in enumerate(network.nodes):
        direct = all(isinstance(network.nodes[reader].operation, BatchNorm) for reader in network.consumers[index])
        weighted = isinstance(node.operation, Conv2d | Linear)
        biased = isinstance(node.operation, Conv2d | Linear) and node.operation.bias is not None
        found.append(weighted and absorbed[index] and (direct or not biased))
    return tuple(found)


def effective_learning_rates(network: Network, sgd: Sgd) -> tuple[LayerRate, ...]:
    """Return a row per convolution and linear layer, in the network's order."""
    rows = []
    for index, (node, invariant) in enumerate(zip(network.nodes, scale_invariant(network), strict=True)):
        if node.fan_in is None:
            continue
        norm = weight_count(node) * weight_law(node, network.framework).second_moment
        rate = effective_learning_rate(sgd, norm) if invariant and norm else None
        rows.append(LayerRate(index, node.name, node.kind, invariant, norm, rate))
    return tuple(rows)


def _homogeneous(operation: Operation) -> bool:
    match operation:
        case Activation(function):
            return activation(function).homogeneous
        case Conv2d(bias=bias) | Linear(bias=bias):
            return bias is None
    return isinstance(operation, AveragePool | MaxPool | GlobalAveragePool | Flatten | ZeroPad)
