"""Every operation as a torch module; they take and give tensors with the sample first."""

from __future__ import annotations

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    FrameworkName,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    Node,
    Operation,
    Padding,
    ZeroPad,
)

NATIVE: dict[str, Callable[[Tensor, float], Tensor]] = {
    "linear": lambda z, a: z,
    "relu": lambda z, a: functional.relu(z),
    "leaky_relu": functional.leaky_relu,
    "relu6": lambda z, a: functional.relu6(z),
    "elu": functional.elu,
    "selu": lambda z, a: functional.selu(z),
    "sigmoid": lambda z, a: torch.sigmoid(z),
    "tanh": lambda z, a: torch.tanh(z),
    "erf": lambda z, a: torch.erf(z),
    "gelu": lambda z, a: functional.gelu(z),
    "silu": lambda z, a: functional.silu(z),
    "hard_swish": lambda z, a: functional.hardswish(z),
}
"""torch's own function of every family of activations, given its parameter; derivatives at kinks are torch's too."""


class Weighted(nn.Module):
    """A layer with a weight and perhaps a bias, both undefined until they are loaded."""

    def __init__(self, shape: tuple[int, ...], bias: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.empty(shape[0])) if bias else None


class Dense(Weighted):
    """x W^T + b."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight, self.bias)


class Convolution(Weighted):
    """Cross-correlation; zeros that differ from side to side (Keras's 'same') are added beforehand."""

    def __init__(self, operation: Conv2d) -> None:
        shape = (operation.out_channels, operation.in_channels // operation.groups, *operation.kernel)
        super().__init__(shape, operation.bias is not None)
        self.operation = operation

    def forward(self, x: Tensor) -> Tensor:
        top, bottom, left, right = self.operation.padding
        inside = (top, left)
        if inside != (bottom, right):
            x, inside = pad(x, self.operation.padding), (0, 0)
        return functional.conv2d(x, self.weight, self.bias, self.operation.stride, inside, 1, self.operation.groups)


class Function(nn.Module):
    """A function without parameters."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *sources: Tensor) -> Tensor:
        return self.function(*sources)


class _Elementwise(torch.autograd.Function):
    """An activation that torch has not, evaluated by NumPy in double precision on the host."""

    @staticmethod
    def forward(ctx: Any, z: Tensor, function: ActivationFunction) -> Tensor:
        ctx.save_for_backward(z)
        ctx.function = function
        return _on_host(function.value, z)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (z,) = ctx.saved_tensors
        return gradients[0] * _on_host(ctx.function.derivative, z), None


def _on_host(function: Callable[..., Any], z: Tensor) -> Tensor:
    return torch.from_numpy(function(z.detach().double().cpu().numpy())).to(z)


def pad(x: Tensor, padding: Padding) -> Tensor:
    """Add rows and columns of zeros."""
    top, bottom, left, right = padding
    return functional.pad(x, (left, right, top, bottom))


@singledispatch
def layer(operation: Operation, node: Node, framework: FrameworkName) -> nn.Module:
    """Return the module of an operation; `node` is where it stands, `framework` whose conventions hold."""
    raise NotImplementedError(type(operation).__name__)


@layer.register
def _(operation: Input, node: Node, framework: FrameworkName) -> nn.Module:
    return nn.Identity()


@layer.register
def _(operation: Conv2d, node: Node, framework: FrameworkName) -> nn.Module:
    return Convolution(operation)


@layer.register
def _(operation: Linear, node: Node, framework: FrameworkName) -> nn.Module:
    return Dense((operation.out_features, operation.in_features), operation.bias is not None)


@layer.register
def _(operation: BatchNorm, node: Node, framework: FrameworkName) -> nn.Module:
    # torch's momentum weighs the new batch, Keras's the old average; both average Bessel's variance.
    kind = nn.BatchNorm2d if len(node.shape) == 3 else nn.BatchNorm1d
    momentum = operation.momentum if framework == "torch" else 1 - operation.momentum
    eps = operation.eps or torch.finfo(torch.float32).tiny  # torch refuses a zero
    return kind(node.shape[0], eps=eps, momentum=momentum)


@layer.register
def _(operation: Activation, node: Node, framework: FrameworkName) -> nn.Module:
    function = activation(operation.function)
    native = NATIVE.get(function.family)
    if native is None:
        return Function(lambda z: _Elementwise.apply(z, function))  # type: ignore[no-untyped-call]
    return Function(lambda z: native(z, function.parameter))


@layer.register
def _(operation: Add, node: Node, framework: FrameworkName) -> nn.Module:
    def add(first: Tensor, *rest: Tensor) -> Tensor:
        for term in rest:
            first = first + term
        return first

    return Function(add)


@layer.register
def _(operation: AveragePool, node: Node, framework: FrameworkName) -> nn.Module:
    return nn.AvgPool2d(operation.kernel, operation.stride)


@layer.register
def _(operation: MaxPool, node: Node, framework: FrameworkName) -> nn.Module:
    return nn.MaxPool2d(operation.kernel, operation.stride)


@layer.register
def _(operation: GlobalAveragePool, node: Node, framework: FrameworkName) -> nn.Module:
    return Function(lambda x: x.mean(dim=(2, 3)))


@layer.register
def _(operation: Flatten, node: Node, framework: FrameworkName) -> nn.Module:
    return nn.Flatten()


@layer.register
def _(operation: ZeroPad, node: Node, framework: FrameworkName) -> nn.Module:
    return Function(lambda x: pad(x, operation.padding))
