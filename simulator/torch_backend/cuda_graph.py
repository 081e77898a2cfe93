"""A training step as one CUDA graph: at small batches a GPU otherwise waits for a hundred launches a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from varprop.simulator.activations import activation
from varprop.simulator.network import Activation, Network
from varprop.simulator.torch_backend.layers import NATIVE

WARM_UP = 3
"""Steps before the capture, in which libraries choose algorithms and allocate workspaces."""


def capturable(network: Network, device: torch.device) -> bool:
    """Whether a step runs on a GPU without asking the host, as an activation evaluated by NumPy does."""
    functions = (node.operation.function for node in network.nodes if isinstance(node.operation, Activation))
    return device.type == "cuda" and all(activation(function).family in NATIVE for function in functions)


class GraphedStep:
    """Calls of `step` on batches of one size, captured once and replayed.

    Parameters
    ----------
    step
        Takes the indices of a batch; works on memory that stays where it is.
    index
        Some batch, for shape and device.
    state
        Every tensor that a step changes: put back after the steps that warm up and capture.
    """

    def __init__(self, step: Callable[[Tensor], None], index: Tensor, state: Sequence[Tensor]) -> None:
        self._index = index.clone()
        with torch.no_grad():
            saved = [tensor.clone() for tensor in state]
        current = torch.cuda.current_stream(index.device)
        side = torch.cuda.Stream(index.device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        with torch.cuda.stream(side):
            for _ in range(WARM_UP):
                step(self._index)
        current.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other runs may work on this device meanwhile: only this thread's calls are held to the rules of a capture.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            step(self._index)
        with torch.no_grad():
            for tensor, before in zip(state, saved, strict=True):
                tensor.copy_(before)

    def __call__(self, index: Tensor) -> None:
        """Do the step on another batch of the same size."""
        self._index.copy_(index)
        self._graph.replay()
