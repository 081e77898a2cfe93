"""Plain convolutional network of constant width."""

from __future__ import annotations

from varprop.simulator.architectures.plan import Family, Plan, classify, unit
from varprop.simulator.network import NetworkBuilder


def assemble(net: NetworkBuilder, plan: Plan) -> None:
    """Add `depth` 3x3 convolutions of `width` channels, stride 1, then global pooling and the classifier."""
    for layer in range(1, plan.depth + 1):
        unit(net, plan, f"conv{layer}", plan.width, 3, bias=plan.plain_bias)
    classify(net)


PLAIN_CONV = Family(
    "3x3 convolutions of one width at full resolution, then global pooling; depth counts convolutions",
    assemble,
    depth=10,
    width=64,
)
