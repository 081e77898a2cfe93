"""Gradients through shortcuts and through the branches beside them, against matrices written out and against draws."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.crossing import Crossing, met
from varprop.simulator.theory.opposition import within
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.tests.tolerances import BEYOND, NARROW_STEP


def test_opposed_gradients_beside_a_branch():
    """Of z = (1 + A) s and gradients of covariance (1 + w S)^-1: what their two ways have in common, and its shape."""
    n, modes, share, opposition, draws, rng = 96, 32, 0.5, 2.0, 400, np.random.default_rng(0)
    gram = np.zeros(n)
    gram[:modes] = n / modes  # of s, in the basis of its modes
    squares, shapes = np.zeros((2, draws))
    for draw in range(draws):
        a = rng.standard_normal((n, n)) / np.sqrt(n)
        both = (np.eye(n) + a) * np.sqrt(gram)
        covariance = both @ both.T
        t = np.linalg.inv(np.eye(n) + 2 * opposition / np.trace(covariance) * covariance)
        crossed = a.T @ t + t @ a
        squares[draw] = np.trace(crossed) / np.trace(t)
        shapes[draw] = np.sum(np.diag(crossed) * (gram - 1)) / np.sum(gram * (gram - 1)) / np.trace(t) * n
    kernel = PairKernel(Layout.exchangeable(8), (1, 1), np.ones((2, 1, 1)))
    field = np.full((1, 1), opposition)
    crossing = Crossing(kernel, within(opposition, n, 1 / modes), field, 0 * field)
    ways = crossing.share(share), crossing.share(share).gated(1.0, 1.0)
    found, still_open = met([[way] for way in ways], kernel.log_scale)
    assert not still_open
    for measured, expected in (
        (squares, found.square),
        # T = u / (1 + w S), of which the sum over the modes has left 1 / (1 + w S).
        (shapes, -2 * float(found.opposition[0, 0]) / n / (1 + 2 * opposition / modes)),
    ):
        error = measured.std() / np.sqrt(draws)
        # Second order, and one mode in so many is a channel with itself.
        assert abs(measured.mean() - expected) < BEYOND * error + 0.1 * abs(expected)


@pytest.mark.parametrize(("function", "side"), [("linear", 1), ("selu", 1), ("selu", 6)])
def test_residual_blocks_with_normalisation(function, side):
    """Without the products of the two ways the gradient would come out 11% to 13% too large."""
    net, init = NetworkBuilder("crossed", "torch", (32, side, side)), parse_initializer("lecun_normal")

    def layer(channels):
        net.conv2d(channels, 1, init)
        net.batch_norm()

    layer(64)
    for _ in range(5):
        source = net.last
        layer(192)
        net.activation(function)
        layer(64)
        net.add((source, net.last))
    layer(256)
    net.activation(function)
    net.flatten()
    net.linear(10, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, 32, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=300, seed=1))
    assert abs(found.backward[1].relative) < NARROW_STEP
