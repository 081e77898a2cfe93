"""What gradients of different channels have in common behind sums, in residual networks without normalisation."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Network, NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.shared import Branch, Shared
from varprop.tests.tolerances import BEYOND


def residual(
    blocks: int, width: int, side: int, function: str, *, before: bool = False, halved: bool = False
) -> Network:
    """Blocks of two layers, dense or 3 x 3 on a map of this side, whose activation comes behind the sum or `before`.

    `halved` has one more block at the end, of stride 2 and twice as many channels, with a shortcut of weights.
    """
    he = parse_initializer("he_normal")
    net = NetworkBuilder("residual", "torch", (width, side, side) if side else (width,))

    def layer(channels: int = width, stride: int = 1, kernel: int = 3, source: int | None = None) -> int:
        if not side:
            return net.linear(channels, he)
        return net.conv2d(channels, kernel, he, stride=stride, source=source)

    layer()
    if not before:
        net.activation(function)
    for block in range(blocks + halved):
        source, last = net.last, block == blocks
        channels = 2 * width if last else width
        if before:
            net.activation(function)
        layer(channels, 2 if last else 1)
        net.activation(function)
        branch = layer(channels)
        net.add((branch, layer(channels, 2, 1, source) if last else source))
        if not before:
            net.activation(function)
    if before:
        net.activation(function)
    if side:
        net.global_average_pool()
    net.linear(10, he)
    return net.build()


def off_by(network: Network, batch: int, trials: int, index: int = 1) -> tuple[float, float, float]:
    """Return by how much Monte Carlo is beyond theory at a layer's gradient, what is noise, and the prediction."""
    data = load_batch("gaussian", network.nodes[0].shape, batch, 0)
    run = simulate(network, data, trials=trials, seed=0).layers[index].backward
    found = predict(network, data).layers[index].backward.second_moment
    return run.second_moment / found - 1.0, run.standard_error / found, found


def without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let channels have nothing in common."""
    monkeypatch.setattr(Shared, "back", lambda *_: None)


@pytest.mark.parametrize(
    ("function", "before", "missed"), [("relu", False, 1.15), ("relu", True, 1.1), ("gelu", False, 1.2)]
)
def test_maps_of_16_channels(function, before, missed, monkeypatch):
    """Three blocks that a global pooling reads, whose gradients go together over all of the map."""
    network = residual(3, 16, 8, function, before=before)
    beyond, noise, found = off_by(network, 2, 1500)
    assert noise < 0.02
    assert abs(beyond) < BEYOND * noise + NARROW
    without(monkeypatch)
    known = predict(network, load_batch("gaussian", network.nodes[0].shape, 2, 0)).layers[1].backward.second_moment
    assert found / known > missed


NARROW = 0.05
"""What is left of a quarter that 16 channels have in common, to first order in 1 / n: its square."""


def test_dense_layers_of_64_channels(monkeypatch):
    """Five blocks; the gradient of independent channels is a tenth too small."""
    network = residual(5, 64, 0, "relu")
    beyond, noise, found = off_by(network, 4, 4000)
    assert noise < 0.01
    assert abs(beyond) < BEYOND * noise + WIDE
    without(monkeypatch)
    known = predict(network, load_batch("gaussian", network.nodes[0].shape, 4, 0)).layers[1].backward.second_moment
    assert found / known > 1.08


WIDE = 0.01
"""What is left of a tenth that 64 channels have in common: its square."""


def test_weights_around_a_block_of_another_stride():
    network = residual(2, 12, 8, "relu", halved=True)
    beyond, noise, _ = off_by(network, 2, 2000)
    assert noise < 0.02
    assert abs(beyond) < BEYOND * noise + NARROW


@pytest.mark.parametrize("side", [0, 6])
def test_leaky_slopes_that_are_nearly_equal_have_little_in_common(side, monkeypatch):
    """Branches change sign with their last weights: without slopes that know them products average to zero."""
    network = residual(3, 6, side, "leaky_relu(0.99)")
    data = load_batch("gaussian", network.nodes[0].shape, 2, 0)
    found = [layer.backward.second_moment for layer in predict(network, data).layers]
    without(monkeypatch)
    known = [layer.backward.second_moment for layer in predict(network, data).layers]
    assert found == pytest.approx(known, rel=SAMPLED)


SAMPLED = 0.01
"""Noise of means over hundreds of sampled channels, over six; products of slopes differ by one in a hundred."""


def test_ways_of_a_branch():
    """Of every place, the ways to the end of the branch, counted."""
    network = residual(1, 4, 7, "relu", halved=True)
    data = load_batch("gaussian", network.nodes[0].shape, 2, 0)
    signals = _forward(network, data, None)
    end = max(index for index, node in enumerate(network.nodes) if node.name == "conv5")
    branch = Branch.to(network, end, signals)
    assert branch is not None
    first, second = np.zeros((4, 7, 7)), np.zeros((4, 4, 4))
    for row in range(4):
        for tap in range(3):
            if 0 <= 2 * row + tap - 1 < 7:
                first[row, 2 * row + tap - 1, 0] += 1 / 3
            if 0 <= row + tap - 1 < 4:
                second[row, row + tap - 1, 0] += 1 / 3
    ways = (second[:, :, 0] @ first[:, :, 0]).sum(axis=0)
    assert branch.reach[branch.weighted] == pytest.approx(np.outer(ways, ways))
