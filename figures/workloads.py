"""What `varprop.figures.benchmarks` runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from varprop.simulator.architectures import build
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import Network
from varprop.simulator.report import Batch

Clock = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """A network with its batch, and how many trials a round takes of each engine."""

    name: str
    network: Network
    batch: Batch
    trials: int
    peer_trials: int


def mobilenet(depth: int = 16) -> Work:
    """Return the direct engine's work; `depth` counts blocks, of which the network has 16.

    A run's start, a tenth of a second, goes with a third of the trials that bring every standard error below 1%.
    """
    network = build("mobilenet_v2", depth=depth)
    name = "MobileNetV2" if depth == 16 else f"MobileNetV2 of {depth} blocks"
    return Work(f"{name}, 32x32, batch 64", network, load_batch("gaussian", (3, 32, 32), 64, 0), 64, 4)


def mlp(width: int, depth: int, batch: int, trials: int = 8) -> Work:
    """Return work for the engine without weights."""
    network = build("mlp", width=width, depth=depth)
    name = f"ReLU MLP, width {width}, depth {depth}, batch {batch}"
    return Work(name, network, load_batch("gaussian", network.nodes[0].shape, batch, 0), trials, 1)


def plain_conv(depth: int, width: int, size: int, batch: int) -> Work:
    """Return a network for which neural-tangents has a kernel that fits into memory."""
    network = build("plain_conv", depth=depth, width=width, size=size)
    name = f"3x3 convolutions, {depth} layers of width {width}, {size}x{size}, batch {batch}"
    return Work(name, network, load_batch("gaussian", (3, size, size), batch, 0), 16, 16)
