"""How large a network may be before its size can only be a slip of the keyboard."""

from __future__ import annotations

import math

from varprop.simulator.errors import UserError
from varprop.simulator.network import Conv2d, Linear, Network, Node

LARGEST_TENSOR = 2**28
"""Elements of one layer's weights, or of one sample's output: 2 GiB in double precision."""

LARGEST_NETWORK = 2**37
"""Elements of all weights and of all outputs of one sample together."""


def weight_count(node: Node) -> int:
    """Return the number of weights of a node, without biases; 0 where it has none."""
    match node.operation:
        case Conv2d(out_channels=out) | Linear(out_features=out):
            return out * (node.fan_in or 0)
    return 0


def refuse_absurd_size(network: Network, what: str, do: str) -> Network:
    """Return the network if its tensors fit the limits.

    Parameters
    ----------
    network
        What was built.
    what, do
        Option or file to blame, and what to change, for the message.

    Raises
    ------
    UserError
        A tensor has more than `LARGEST_TENSOR` elements, or all together more than `LARGEST_NETWORK`.
    """
    total = 0
    for node in network.nodes:
        for elements, kind in ((weight_count(node), "weights"), (math.prod(node.shape), "outputs a sample")):
            total += elements
            if elements > LARGEST_TENSOR:
                raise UserError(what, f"{elements:,} {kind} in {node.name}", f"at most {LARGEST_TENSOR:,}", do)
    if total > LARGEST_NETWORK:
        raise UserError(what, f"{total:,} weights and outputs", f"at most {LARGEST_NETWORK:,}", do)
    return network
