"""A `Network` as one torch module, and its weights drawn by the project's own laws."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from varprop.simulator.initializers import bias_law, draw, draw_bias, weight_law
from varprop.simulator.network import Network, Node
from varprop.simulator.torch_backend.layers import Weighted, layer

Observer = Callable[[int, Tensor], None]
"""Called with a node's index and its output, as soon as there is one."""


class TorchNetwork(nn.Module):
    """The network's nodes as modules; weights and biases are undefined until `draw_weights` or `load` sets them.

    The map that goes in has shape (batch, *input shape). Batch normalisation starts with scale 1 and shift 0.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network
        self.layers = nn.ModuleList(layer(node.operation, node, network.framework) for node in network.nodes)
        last_reader = [max(readers, default=-1) for readers in network.consumers]
        self._unread_after = [
            [source for source in set(node.inputs) if last_reader[source] == index]
            for index, node in enumerate(network.nodes)
        ]

    def forward(self, x: Tensor, observe: Observer | None = None) -> Tensor:
        outputs: dict[int, Tensor] = {}
        for index, (node, module) in enumerate(zip(self.network.nodes, self.layers, strict=True)):
            outputs[index] = module(*(outputs[source] for source in node.inputs)) if node.inputs else x
            if observe is not None:
                observe(index, outputs[index])
            for source in self._unread_after[index]:
                del outputs[source]
        return outputs[len(self.network) - 1]

    @property
    def weighted(self) -> Iterator[tuple[int, Node, Weighted]]:
        """Every convolution and linear layer: its index, its node and its module."""
        for index, (node, module) in enumerate(zip(self.network.nodes, self.layers, strict=True)):
            if isinstance(module, Weighted):
                yield index, node, module

    def draw_weights(self, *key: int) -> None:
        """Draw every layer's weights and bias from its law; the same key gives the same weights on any device.

        Parameters
        ----------
        key
            The seed, and what else tells this draw from others.
        """
        for index, node, _ in self.weighted:
            rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(key[0], spawn_key=(1, *key[1:], index))))
            weight = draw(weight_law(node, self.network.framework), node, rng)
            bias = bias_law(node, self.network.framework)
            self.load(index, weight, None if bias is None else draw_bias(bias, node, rng))

    def load(self, index: int, weight: NDArray[np.floating], bias: NDArray[np.floating] | None) -> None:
        """Set one layer's weight and bias; None is a bias of zero."""
        module = self.layers[index]
        assert isinstance(module, Weighted)
        with torch.no_grad():
            module.weight.copy_(torch.from_numpy(weight))
            if module.bias is not None:
                module.bias.copy_(torch.zeros(()) if bias is None else torch.from_numpy(bias))
