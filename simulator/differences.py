"""Where two networks part, layer by layer, and why: fans, distributions, eps, padding, default rules."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from varprop.simulator.compare import merged_layers
from varprop.simulator.initializers import WeightLaw, bias_law, weight_law
from varprop.simulator.network import (
    Activation,
    AveragePool,
    BatchNorm,
    Conv2d,
    FrameworkName,
    Initializer,
    Linear,
    MaxPool,
    Network,
    Node,
    ZeroPad,
)

SAME = 1e-12
"""Relative difference of two variances that is rounding."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A property of one layer that two networks do not share: its two values as text, and why, where that is known."""

    layer: str
    what: str
    values: tuple[str, str]
    reason: str = ""

    @property
    def text(self) -> str:
        """The difference in words, without the layer's name."""
        return f"{self.what} {self.values[0]} against {self.values[1]}" + (f" ({self.reason})" if self.reason else "")


def differences(first: Network, second: Network) -> list[Difference]:
    """Return what differs between two networks, in the order of their layers, which are told apart by name."""
    nodes = [{node.name: node for node in network.nodes} for network in (first, second)]
    found = []
    for name in merged_layers([first, second]):
        one, other = (table.get(name) for table in nodes)
        if one is None or other is None:
            here, there = ("none" if node is None else node.kind for node in (one, other))
            found.append(Difference(name, "layer", (here, there)))
            continue
        after = _facts(other)
        found += [
            Difference(name, key, (value, after[key]))
            for key, value in _facts(one).items()
            if after.get(key, value) != value
        ]
        if isinstance(one.operation, Conv2d | Linear) and isinstance(other.operation, Conv2d | Linear):
            rules = _rule(one.operation.weight, first.framework), _rule(other.operation.weight, second.framework)
            found += _weights(name, rules, weight_law(one, first.framework), weight_law(other, second.framework))
            found += _biases(name, bias_law(one, first.framework), bias_law(other, second.framework))
    return found


def _facts(node: Node) -> dict[str, str]:
    """Return what shapes a node's output, but for the laws of its weights."""
    facts = {"kind": node.kind, "shape": _by(node.shape)}
    match node.operation:
        case Conv2d(kernel=kernel, stride=stride, padding=padding, groups=groups):
            facts |= {"kernel": _by(kernel), "stride": _by(stride), "padding": str(padding), "groups": str(groups)}
        case AveragePool(kernel=kernel, stride=stride) | MaxPool(kernel=kernel, stride=stride):
            facts |= {"kernel": _by(kernel), "stride": _by(stride)}
        case BatchNorm(eps=eps):
            facts |= {"eps": f"{eps:g}"}
        case Activation(function=function):
            facts |= {"function": function}
        case ZeroPad(padding=padding):
            facts |= {"padding": str(padding)}
    return facts


def _by(lengths: tuple[int, ...]) -> str:
    return "x".join(map(str, lengths))


def _rule(initializer: Initializer, framework: FrameworkName) -> str:
    return f"{framework}'s default" if initializer.name == "default" else str(initializer)


def _weights(name: str, rules: tuple[str, str], first: WeightLaw, second: WeightLaw) -> Iterator[Difference]:
    """Laws as drawn: variance, mean, and distribution where all else is equal; with what they follow from."""
    causes = [
        ("", *rules),
        ("", first.distribution, second.distribution),
        ("framework's fan_in, fan_out ", _fans(first), _fans(second)),
    ]
    parts = [f"{what}{a} against {b}" for what, a, b in causes if a != b]
    if not math.isclose(first.mean, second.mean, rel_tol=SAME):
        yield Difference(name, "weight mean", (f"{first.mean:.3g}", f"{second.mean:.3g}"), "; ".join(parts))
    if not math.isclose(first.variance, second.variance, rel_tol=SAME):
        values = f"{first.variance:.3g}", f"{second.variance:.3g}"
        yield Difference(name, "weight variance", values, "; ".join(parts))
    elif first.distribution != second.distribution:
        yield Difference(name, "weights", (first.distribution, second.distribution), "of equal variance")


def _fans(law: WeightLaw) -> str:
    return f"{law.framework_fan_in}, {law.framework_fan_out}"


def _biases(name: str, first: WeightLaw | None, second: WeightLaw | None) -> Iterator[Difference]:
    one, other = (0.0 if law is None else law.second_moment for law in (first, second))
    if not math.isclose(one, other, rel_tol=SAME):
        yield Difference(name, "second moment of the bias", (f"{one:.3g}", f"{other:.3g}"))
