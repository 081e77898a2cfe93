"""A network as frozen data: operations, and nodes in topological order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from varprop.simulator.errors import UserError

Shape = tuple[int, ...]
"""Shape of one sample: (channels, height, width) or (features,)."""

Padding = tuple[int, int, int, int]
"""Rows and columns of zeros added: (top, bottom, left, right)."""

FrameworkName = Literal["torch", "keras"]


@dataclass(frozen=True, slots=True)
class Initializer:
    """A named rule with its parameters, before any framework or fan is known.

    `name` is one of `varprop.simulator.initializers.NAMES`; `parameters` are sorted (key, value) pairs,
    so that equal rules compare and hash equal. `str()` gives the text that parses back to it.
    """

    name: str
    parameters: tuple[tuple[str, float | str], ...] = ()

    def __str__(self) -> str:
        inside = ", ".join(f"{key}={value}" for key, value in self.parameters)
        return f"{self.name}({inside})" if inside else self.name


ZEROS = Initializer("zeros")


@dataclass(frozen=True, slots=True)
class Input:
    """The batch enters here."""

    shape: Shape


@dataclass(frozen=True, slots=True)
class Conv2d:
    """Cross-correlation with zero padding; weights have shape (out, in / groups, *kernel)."""

    in_channels: int
    out_channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: Padding
    groups: int
    weight: Initializer
    bias: Initializer | None  # None: the layer has no bias

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels > 1


@dataclass(frozen=True, slots=True)
class Linear:
    """Dense layer on a flat input; weights have shape (out, in)."""

    in_features: int
    out_features: int
    weight: Initializer
    bias: Initializer | None


@dataclass(frozen=True, slots=True)
class BatchNorm:
    """Training-mode batch normalisation with scale 1 and shift 0, over batch and positions."""

    eps: float
    momentum: float


@dataclass(frozen=True, slots=True)
class Activation:
    """Elementwise function by registry name (`varprop.simulator.activations`), e.g. ``relu`` or ``leaky_relu(0.2)``."""

    function: str


@dataclass(frozen=True, slots=True)
class Add:
    """Sum of two or more equal shapes."""


@dataclass(frozen=True, slots=True)
class AveragePool:
    """Mean over windows, no padding; trailing rows and columns that fill no window are dropped."""

    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, slots=True)
class MaxPool:
    """Maximum over windows, no padding; ties send the gradient to the first in row-major order."""

    kernel: tuple[int, int]
    stride: tuple[int, int]


@dataclass(frozen=True, slots=True)
class GlobalAveragePool:
    """Mean over all positions: (channels, h, w) to (channels,)."""


@dataclass(frozen=True, slots=True)
class Flatten:
    """(channels, h, w) to (channels * h * w,), row-major."""


@dataclass(frozen=True, slots=True)
class ZeroPad:
    """Rows and columns of zeros around the map."""

    padding: Padding


Operation = (
    Input
    | Conv2d
    | Linear
    | BatchNorm
    | Activation
    | Add
    | AveragePool
    | MaxPool
    | GlobalAveragePool
    | Flatten
    | ZeroPad
)

_KINDS: dict[type, str] = {
    Input: "input",
    Conv2d: "conv2d",
    Linear: "linear",
    BatchNorm: "batch_norm",
    Activation: "activation",
    Add: "add",
    AveragePool: "average_pool",
    MaxPool: "max_pool",
    GlobalAveragePool: "global_average_pool",
    Flatten: "flatten",
    ZeroPad: "zero_pad",
}


@dataclass(frozen=True, slots=True)
class Node:
    """One operation in the graph; `inputs` are indices of earlier nodes."""

    name: str
    operation: Operation
    inputs: tuple[int, ...]
    shape: Shape

    @property
    def kind(self) -> str:
        """The operation's name in reports (`depthwise_conv2d` for a convolution with one channel a group)."""
        if isinstance(self.operation, Conv2d) and self.operation.depthwise:
            return "depthwise_conv2d"
        return _KINDS[type(self.operation)]

    @property
    def dense(self) -> bool:
        """Whether the operation mixes channels: a linear layer or a convolution that is not depthwise."""
        return isinstance(self.operation, Linear) or (
            isinstance(self.operation, Conv2d) and not self.operation.depthwise
        )

    @property
    def fan_in(self) -> int | None:
        """Number of products that one output sums (groups respected); None without weights."""
        match self.operation:
            case Conv2d(in_channels=channels, kernel=(kh, kw), groups=groups):
                return channels // groups * kh * kw
            case Linear(in_features=features):
                return features
        return None

    @property
    def fan_out(self) -> int | None:
        """Number of outputs that one input feeds, away from edges and at stride 1; None without weights."""
        match self.operation:
            case Conv2d(out_channels=channels, kernel=(kh, kw), groups=groups):
                return channels // groups * kh * kw
            case Linear(out_features=features):
                return features
        return None


@dataclass(frozen=True)
class Network:
    """A directed acyclic graph of nodes in topological order; the first node is the input, the last the output."""

    name: str
    framework: FrameworkName
    nodes: tuple[Node, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    @cached_property
    def has_batch_norm(self) -> bool:
        """Whether any node normalises over the batch."""
        return any(isinstance(node.operation, BatchNorm) for node in self.nodes)

    @cached_property
    def consumers(self) -> tuple[tuple[int, ...], ...]:
        """For each node the indices of the nodes that read it."""
        found: list[list[int]] = [[] for _ in self.nodes]
        for index, node in enumerate(self.nodes):
            for source in node.inputs:
                found[source].append(index)
        return tuple(map(tuple, found))

    @cached_property
    def roots(self) -> tuple[frozenset[int], ...]:
        """For each node the weighted layers that a channel of it comes from, back to the last that mixes channels.

        Dense layers mix channels; all other operations, depthwise convolutions too, follow each on its own.
        """
        found: list[frozenset[int]] = []
        for index, node in enumerate(self.nodes):
            own = frozenset() if node.fan_in is None else frozenset([index])
            before = [] if node.dense else [found[source] for source in node.inputs]
            found.append(own.union(*before))
        return tuple(found)

    @cached_property
    def exits(self) -> tuple[frozenset[int], ...]:
        """For each node the weighted layers that its channels go to next; the last node goes to none but itself."""
        found: list[frozenset[int]] = [frozenset()] * len(self)
        found[-1] = frozenset([len(self) - 1])
        for index in reversed(range(len(self))):
            for reader in self.consumers[index]:
                found[index] |= found[reader] if self.nodes[reader].fan_in is None else {reader}
        return tuple(found)


class NetworkBuilder:
    """Adds one node after the other, works out shapes and refuses what does not fit.

    Every method returns the new node's index; `source` defaults to the node added last.

    Examples
    --------
    >>> from varprop.simulator.network import Initializer, NetworkBuilder
    >>> net = NetworkBuilder("tiny", "torch", (4,))
    >>> _ = net.linear(3, Initializer("he_normal"))
    >>> _ = net.activation("relu")
    >>> [node.shape for node in net.build().nodes]
    [(4,), (3,), (3,)]
    """

    def __init__(self, name: str, framework: FrameworkName, shape: Shape) -> None:
        if len(shape) not in (1, 3) or min(shape) < 1:
            raise UserError("input shape", shape, "(features,) or (channels, height, width), all at least 1")
        self._name = name
        self.framework: FrameworkName = framework
        self._nodes = [Node("input", Input(shape), (), shape)]
        self._names = {"input"}
        self._counts: Counter[str] = Counter()

    @property
    def last(self) -> int:
        """Index of the node added last."""
        return len(self._nodes) - 1

    def shape(self, index: int | None = None) -> Shape:
        """Return the output shape of a node (default: the last)."""
        return self._nodes[self.last if index is None else index].shape

    def name(self, index: int | None = None) -> str:
        """Return a node's name (default: the last)."""
        return self._nodes[self.last if index is None else index].name

    def build(self) -> Network:
        """Return the finished network."""
        return Network(self._name, self.framework, tuple(self._nodes))

    def conv2d(
        self,
        out_channels: int,
        kernel: int | tuple[int, int],
        weight: Initializer,
        *,
        stride: int | tuple[int, int] = 1,
        padding: Literal["same", "valid"] | Padding = "same",
        groups: int = 1,
        bias: Initializer | None = None,
        name: str | None = None,
        source: int | None = None,
    ) -> int:
        """Add a convolution; 'same' pads as the network's framework does."""
        name = name or self._auto("conv")
        channels, height, width = self._map(name, source)
        kernel, stride = _pair(kernel), _pair(stride)
        if out_channels < 1 or groups < 1 or channels % groups or out_channels % groups:
            raise UserError(
                f"{name}: groups", f"{groups} for {channels} -> {out_channels} channels", "a divisor of both"
            )
        pads = self._padding(padding, (height, width), kernel, stride)
        shape = (out_channels, *self._windows(name, (height, width), kernel, stride, pads))
        operation = Conv2d(channels, out_channels, kernel, stride, pads, groups, weight, bias)
        return self._append(name, operation, source, shape)

    def linear(
        self,
        out_features: int,
        weight: Initializer,
        *,
        bias: Initializer | None = None,
        name: str | None = None,
        source: int | None = None,
    ) -> int:
        """Add a dense layer; its input must be flat."""
        name = name or self._auto("linear")
        shape = self.shape(source)
        if len(shape) != 1:
            raise UserError(f"{name}: input shape", shape, "(features,)", "put flatten or a global pooling before it")
        if out_features < 1:
            raise UserError(f"{name}: out_features", out_features, "at least 1")
        return self._append(name, Linear(shape[0], out_features, weight, bias), source, (out_features,))

    def batch_norm(
        self,
        *,
        eps: float | None = None,
        momentum: float | None = None,
        name: str | None = None,
        source: int | None = None,
    ) -> int:
        """Add batch normalisation; eps and momentum default to the framework's."""
        default_eps, default_momentum = (1e-5, 0.1) if self.framework == "torch" else (1e-3, 0.99)
        eps = default_eps if eps is None else eps
        momentum = default_momentum if momentum is None else momentum
        name = name or self._auto("bn")
        if not 0 <= eps < float("inf"):
            raise UserError(f"{name}: eps", eps, "a number of at least 0")
        return self._append(name, BatchNorm(eps, momentum), source, self.shape(source))

    def activation(self, function: str, *, name: str | None = None, source: int | None = None) -> int:
        """Add an elementwise function by its registry name."""
        return self._append(name or self._auto("act"), Activation(function), source, self.shape(source))

    def add(self, sources: Iterable[int], *, name: str | None = None) -> int:
        """Add the sum of two or more nodes of equal shape."""
        name = name or self._auto("add")
        inputs = tuple(sources)
        shapes = {self.shape(index) for index in inputs}
        if len(inputs) < 2 or len(shapes) != 1:
            raise UserError(f"{name}: input shapes", sorted(map(str, shapes)), "two or more equal shapes")
        return self._append(name, Add(), inputs, shapes.pop())

    def average_pool(
        self,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        name: str | None = None,
        source: int | None = None,
    ) -> int:
        """Add average pooling (stride defaults to the kernel)."""
        return self._pool(AveragePool, "avgpool", kernel, stride, name, source)

    def max_pool(
        self,
        kernel: int | tuple[int, int],
        *,
        stride: int | tuple[int, int] | None = None,
        name: str | None = None,
        source: int | None = None,
    ) -> int:
        """Add maximum pooling (stride defaults to the kernel)."""
        return self._pool(MaxPool, "maxpool", kernel, stride, name, source)

    def global_average_pool(self, *, name: str | None = None, source: int | None = None) -> int:
        """Add the mean over all positions."""
        name = name or self._auto("gap")
        channels, _, _ = self._map(name, source)
        return self._append(name, GlobalAveragePool(), source, (channels,))

    def flatten(self, *, name: str | None = None, source: int | None = None) -> int:
        """Add flattening of a map to features."""
        name = name or self._auto("flatten")
        channels, height, width = self._map(name, source)
        return self._append(name, Flatten(), source, (channels * height * width,))

    def zero_pad(self, padding: Padding, *, name: str | None = None, source: int | None = None) -> int:
        """Add rows and columns of zeros: (top, bottom, left, right)."""
        name = name or self._auto("pad")
        channels, height, width = self._map(name, source)
        if min(padding) < 0:
            raise UserError(f"{name}: padding", padding, "four numbers of at least 0")
        top, bottom, left, right = padding
        return self._append(name, ZeroPad(padding), source, (channels, height + top + bottom, width + left + right))

    def _append(self, name: str, operation: Operation, source: int | tuple[int, ...] | None, shape: Shape) -> int:
        if name in self._names:
            raise UserError("layer name", repr(name), "a name that is used once")
        self._names.add(name)
        inputs = source if isinstance(source, tuple) else (self.last if source is None else source,)
        self._nodes.append(Node(name, operation, inputs, shape))
        return self.last

    def _auto(self, stem: str) -> str:
        self._counts[stem] += 1
        return f"{stem}{self._counts[stem]}"

    def _map(self, name: str, source: int | None) -> tuple[int, int, int]:
        shape = self.shape(source)
        if len(shape) != 3:
            raise UserError(f"{name}: input shape", shape, "(channels, height, width)")
        return shape[0], shape[1], shape[2]

    def _padding(
        self,
        padding: Literal["same", "valid"] | Padding,
        size: tuple[int, int],
        kernel: tuple[int, int],
        stride: tuple[int, int],
    ) -> Padding:
        if padding == "valid":
            return (0, 0, 0, 0)
        if padding == "same":
            (top, bottom), (left, right) = (
                same_padding(self.framework, n, k, s) for n, k, s in zip(size, kernel, stride, strict=True)
            )
            return (top, bottom, left, right)
        return padding

    def _windows(
        self, name: str, size: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], pads: Padding
    ) -> tuple[int, int]:
        if min(kernel) < 1 or min(stride) < 1 or min(pads) < 0:
            raise UserError(f"{name}: kernel, stride, padding", (kernel, stride, pads), "kernel and stride at least 1")
        padded = (size[0] + pads[0] + pads[1], size[1] + pads[2] + pads[3])
        if padded[0] < kernel[0] or padded[1] < kernel[1]:
            raise UserError(
                f"{name}: kernel", kernel, f"at most the padded map {padded}", "use a larger input or fewer strides"
            )
        return (padded[0] - kernel[0]) // stride[0] + 1, (padded[1] - kernel[1]) // stride[1] + 1

    def _pool(
        self,
        operation: type[AveragePool] | type[MaxPool],
        stem: str,
        kernel: int | tuple[int, int],
        stride: int | tuple[int, int] | None,
        name: str | None,
        source: int | None,
    ) -> int:
        name = name or self._auto(stem)
        channels, height, width = self._map(name, source)
        kernel = _pair(kernel)
        stride = kernel if stride is None else _pair(stride)
        shape = (channels, *self._windows(name, (height, width), kernel, stride, (0, 0, 0, 0)))
        return self._append(name, operation(kernel, stride), source, shape)


def same_padding(framework: FrameworkName, size: int, kernel: int, stride: int) -> tuple[int, int]:
    """Return the zeros (before, after) that 'same' puts around one axis.

    torch users pad (kernel - 1) // 2 on both sides whatever the stride; Keras pads as little as gives
    ceil(size / stride) outputs, and the odd zero goes to the end.

    Examples
    --------
    >>> same_padding("torch", 32, 3, 2), same_padding("keras", 32, 3, 2)
    ((1, 1), (0, 1))
    """

    def least() -> int:
        return max((-(-size // stride) - 1) * stride + kernel - size, 0)

    total = kernel - 1 if framework == "torch" else least()
    return total // 2, total - total // 2


def _pair(value: int | tuple[int, int]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else value
