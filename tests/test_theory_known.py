"""Activations and normalisations of the data themselves, before any weights: all of them is known."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.tests.tolerances import KNOWN_SLOPES

HE = parse_initializer("he_normal")
STEP = 1e-5  # of numerical derivatives, which are right to its square and to rounding over it


def applied(order, function, values):
    """Apply activations and normalisations to values, shape (batch, channels)."""
    for part in order.split():
        if part == "act":
            values = activation(function).value(values)
        else:
            values = values - values.mean(axis=0)
            values = values / np.sqrt(np.mean(values**2, axis=0) + 1e-5)
    return values


@pytest.mark.parametrize("order", ["act", "act bn", "bn act", "act bn act", "bn bn"])
@pytest.mark.parametrize("function", ["tanh", "gelu"])
@pytest.mark.parametrize("batch", [2, 5, 12])
def test_gradients_at_data_are_those_of_their_jacobian(order, function, batch):
    """Behind one linear layer gradients of all samples are independent; what comes before it is known."""
    net = NetworkBuilder("known", "torch", (16,))
    for part in order.split():
        net.batch_norm() if part == "bn" else net.activation(function)
    net.linear(10, HE)
    network = net.build()
    data = load_batch("gaussian", (16,), batch=batch, seed=3)
    x = data.data
    squares = 0.0
    for sample in range(batch):
        moved = np.zeros_like(x)
        moved[sample] = STEP
        slopes = (applied(order, function, x + moved) - applied(order, function, x - moved)) / (2 * STEP)
        squares += np.sum(slopes**2)
    expected = 10 * 2 / 16 * squares / x.size
    assert predict(network, data).layers[0].backward.second_moment == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("functions", [("tanh", "tanh"), ("gelu", "tanh"), ("relu", "gelu")])
def test_slopes_of_activations_in_a_row_know_one_another(functions):
    """On maps of a large batch a few samples stand for all."""
    net = NetworkBuilder("known", "torch", (3, 12, 12))
    for function in functions:
        net.activation(function)
    net.flatten()
    net.linear(10, HE)
    network = net.build()
    batch = load_batch("gaussian", (3, 12, 12), batch=32, seed=0)
    layers = predict(network, batch).layers
    first, second = map(activation, functions)
    x = batch.data
    expected = np.mean((first.derivative(x) * second.derivative(first.value(x))) ** 2)
    found = layers[0].backward.second_moment / layers[2].backward.second_moment
    assert found == pytest.approx(expected, rel=KNOWN_SLOPES)
