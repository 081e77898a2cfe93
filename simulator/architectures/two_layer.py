"""Two convolutions of three channels: the smallest network that shows why a deep one must not start at zero."""

from __future__ import annotations

from varprop.simulator.architectures.plan import Family, Plan, unit
from varprop.simulator.network import NetworkBuilder


def assemble(net: NetworkBuilder, plan: Plan) -> None:
    """Add `depth` times a 3x3 convolution 3 -> 3 without bias, BN (if any) and the activation; there is no head.

    Depth 1 with no BN and activation ``linear`` is a single bare convolution.
    """
    for layer in range(1, plan.depth + 1):
        unit(net, plan, f"conv{layer}", 3, 3)


TWO_LAYER = Family(
    "3x3 convolution 3 -> 3, BN, activation, twice (once with depth 1); no classifier",
    assemble,
    depth=2,
    normalised=True,
    size=224,
    deepest=2,
)
