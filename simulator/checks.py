"""What every engine asks of a network and its batch before it starts."""

from __future__ import annotations

import math

import numpy as np

from varprop.simulator.errors import UserError
from varprop.simulator.network import BatchNorm, Network
from varprop.simulator.report import Batch


def check_batch(network: Network, batch: Batch) -> None:
    """Refuse a batch that the network cannot take.

    Raises
    ------
    UserError
        The batch's shape is not the network's, it holds NaN or infinity, or a batch normalisation would see a single
        value per channel.
    """
    shape = network.nodes[0].shape
    if batch.data.ndim == 0 or batch.data.shape[1:] != shape or len(batch.data) < 1:
        raise UserError("batch shape", batch.data.shape, f"(batch, {', '.join(map(str, shape))})")
    if not np.isfinite(batch.data).all():
        raise UserError("batch", "NaN or infinity", "finite numbers")
    for node in network.nodes:
        if isinstance(node.operation, BatchNorm) and len(batch.data) * math.prod(node.shape[1:]) == 1:
            raise UserError(
                f"{node.name}: batch normalisation",
                "a single value per channel",
                "two or more, over batch and positions",
                "use a larger batch or input",
            )
