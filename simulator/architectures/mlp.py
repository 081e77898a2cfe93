"""Multilayer perceptron of constant width."""

from __future__ import annotations

from varprop.simulator.architectures.plan import Family, Plan, normalise_and_activate
from varprop.simulator.network import NetworkBuilder


def assemble(net: NetworkBuilder, plan: Plan) -> None:
    """Add `depth` linear layers of `width` outputs, each but the last followed by BN (if any) and the activation.

    Images are flattened first. The last layer is bare, as the logits or regression outputs of a network are.
    """
    if len(net.shape()) == 3:
        net.flatten(name="flatten")
    for layer in range(1, plan.depth + 1):
        name = f"linear{layer}"
        net.linear(plan.width, plan.init, bias=plan.plain_bias, name=name)
        if layer < plan.depth:
            normalise_and_activate(net, plan, name)


MLP = Family(
    "linear layers of one width, activation between them; depth counts layers",
    assemble,
    depth=10,
    width=256,
    size=None,
)
