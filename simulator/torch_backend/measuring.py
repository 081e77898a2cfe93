"""What is read off a network while it trains: signals, gradients, weights and what a step does to them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varprop.simulator.torch_backend.engine import tensor_moments
from varprop.simulator.torch_backend.module import TorchNetwork
from varprop.simulator.torch_backend.records import LayerRecord

WATCHED_WEIGHTS = 10


class LayerWatch:
    """Collects one step of every layer; made before the step, weights are those of then."""

    def __init__(self, module: TorchNetwork) -> None:
        self._module = module
        self._rows: list[dict[str, float]] = [{} for _ in module.layers]
        for index, _, layer in module.weighted:
            weight = layer.weight.detach().double()
            self._rows[index] = {
                "weight_mean": float(weight.mean()),
                "weight_variance": float(weight.var(correction=0)),
                "weight_norm": float(weight.norm()),
            }

    def observe(self, index: int, output: Tensor) -> None:
        """Note a node's output, and its gradient once there is one."""
        mean, second_moment, variance = _values(output.detach())
        self._rows[index] |= {"mean": mean, "second_moment": second_moment, "variance": variance}
        self._rows[index]["gradient_second_moment"] = 0.0  # unless one arrives

        def note(gradient: Tensor) -> None:
            self._rows[index]["gradient_second_moment"] = _values(gradient)[1]

        output.register_hook(note)  # type: ignore[no-untyped-call]

    def gradients(self) -> None:
        """Note the kernels' gradients."""
        for index, _, layer in self._module.weighted:
            assert layer.weight.grad is not None
            self._rows[index]["gradient_norm"] = float(layer.weight.grad.double().norm())

    def update(self, before: Sequence[Tensor]) -> None:
        """Note the angles between the kernels and what they were before the step."""
        for (index, _, layer), old in zip(self._module.weighted, before, strict=True):
            self._rows[index]["angle"] = angle(old.double(), layer.weight.detach().double())

    def rows(self, step: int, epoch: int) -> list[LayerRecord]:
        """Return the records, a row per node."""
        return [
            LayerRecord(step, epoch, index, node.name, node.kind, **values)
            for index, (node, values) in enumerate(zip(self._module.network.nodes, self._rows, strict=True))
        ]


def angle(before: Tensor, after: Tensor) -> float:
    """Return the angle between two kernels in radians, accurate where it is small; 0 if one of them is zero."""
    if not before.any() or not after.any():
        return 0.0
    a, b = before / before.norm(), after / after.norm()
    # Kahan: 2 atan2(|a - b|, |a + b|); the arc cosine would lose half of the digits.
    return float(2 * torch.atan2((a - b).norm(), (a + b).norm()))


def first_weights(module: TorchNetwork, name: str, count: int = WATCHED_WEIGHTS) -> tuple[float, ...]:
    """Return the first weights of a layer as its framework stores them: Keras has (rows, columns, in, out)."""
    weight = next(layer.weight.detach() for _, node, layer in module.weighted if node.name == name)
    if module.network.framework == "keras":
        weight = weight.permute(*range(2, weight.ndim), 1, 0)
    return tuple(weight.flatten()[:count].double().tolist())


def _values(x: Tensor) -> tuple[float, float, float]:
    """Return mean, second moment and mean channel variance."""
    mean, second_moment, variance, exponent = tensor_moments(x).tolist()
    scale = 2.0**exponent
    return mean * scale, second_moment * scale * scale, variance * scale * scale
