"""Gradients that go along the signal of a single point, against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from varprop.simulator.activations import activation
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.coherence import known_by_slopes, learnt
from varprop.simulator.theory.duals import apply_activation
from varprop.simulator.theory.levels import Levels
from varprop.simulator.theory.maps import Window, by_offset, here, pairs_apart, walked_by_offset
from varprop.simulator.theory.opposition import handed_on, in_common
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.tests.tolerances import BEYOND, NARROW_STEP, SQUARES_APART, WALK_BY_OFFSET

Array = NDArray[np.float64]


@pytest.mark.parametrize("together", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("function", ["hard_swish", "relu"])
def test_slopes_know_weights_at_several_points(function, together):
    """Three taps over white noise: the products of gradients of two channels, along the channels' own.

    `together` is the gradients' correlation at different points.
    """
    phi, n, outputs, side, taps, draws, rng = activation(function), 48, 48, 24, 3, 300, np.random.default_rng(0)
    layout, white = Layout.exchangeable(10**9), np.eye(side)
    kernel = PairKernel(layout, (1, side), np.stack([white, 0 * white]))
    arriving = PairKernel(layout, (1, side), np.stack([together + (1 - together) * white, 0 * white]))
    duals = apply_activation(phi, kernel, strayed=0.0)
    squared = duals.derivative.second_moment * math.exp(duals.derivative.log_scale)
    known = known_by_slopes(phi, arriving, kernel, squared, duals.levels.known(0.0))
    found = learnt(known, kernel, kernel, (1, 1))[0]
    expected = here(handed_on(found, np.full((1, taps), 1 / taps), (1, 1), (1, side)))
    measured = np.zeros(draws)
    for draw in range(draws):
        x = rng.standard_normal((n, side))
        seen = np.stack([np.roll(x, -tap, axis=1) for tap in range(taps)])
        w = rng.standard_normal((taps, outputs, n)) / math.sqrt(taps * n)
        g = math.sqrt(together) * rng.standard_normal((outputs, 1))
        g = g + math.sqrt(1 - together) * rng.standard_normal((outputs, side))
        g = g * phi.derivative(np.einsum("ton,tns->os", w, seen))
        back = sum(np.roll(w[tap].T @ g, tap, axis=1) for tap in range(taps))
        pairs = np.sum(back * x, axis=0) ** 2 - np.sum((back * x) ** 2, axis=0)
        measured[draw] = pairs.mean() / (2 * (n - 1) * squared)
    error = measured.std() / math.sqrt(draws)
    # To first order in the number of weights.
    assert abs(measured.mean() - expected) < BEYOND * error + 2 * expected / n


def normalised(y: Array) -> tuple[Array, Array]:
    """Return channels over samples at mean zero and variance one, and what each was divided by."""
    size = y.std(axis=0)
    return (y - y.mean(axis=0)) / size, size


def projected(gradient: Array, y: Array) -> Array:
    """Return the gradient before a normalisation, up to the division."""
    return gradient - gradient.mean(axis=0) - y * np.mean(gradient * y, axis=0)


def levels_of(function: str, samples: int, width: float = math.inf) -> Levels:
    """Return what theory knows of an activation behind a normalisation over samples of so many independent numbers."""
    layout = Layout.exchangeable(samples)
    kernel = PairKernel(layout, (1, 1), np.array([[[1.0]], [[-1.0 / (samples - 1)]]]))
    directions = 1.0 / (1.0 / (samples - 1) + 1.0 / width)
    return apply_activation(activation(function), kernel, directions, strayed=0.0).levels


@pytest.mark.parametrize("samples", [6, 12, 48])
@pytest.mark.parametrize("function", ["hard_swish", "tanh", "linear"])
def test_slopes_behind_a_normalisation_know_less(function, samples):
    """Products of the gradients of two channels, along the channels' own and apart from what goes along the data's."""
    phi, n, draws, rng = activation(function), 128, 1500, np.random.default_rng(5)
    found = np.zeros((draws, 5))
    for row in found:
        x = rng.standard_normal((samples, n))
        x -= x.mean(axis=0)
        w = rng.standard_normal((n, n)) / math.sqrt(n)
        y, size = normalised(x @ w)
        g = projected(rng.standard_normal((samples, n)) * phi.derivative(y), y) / size @ w.T
        g /= math.sqrt(np.mean(g**2))
        whole = x.T @ x / samples
        np.fill_diagonal(whole, 0.0)
        ours = np.einsum("pi,ij,pj->", x, whole, x)
        row[:] = (
            np.sum(np.sum(x**2, axis=1) ** 2 - np.sum(x**4, axis=1)),
            ours,
            samples * np.sum(whole**2),
            np.sum(np.sum(g * x, axis=1) ** 2 - np.sum(g**2 * x**2, axis=1)),
            np.einsum("pi,ij,pj->", g, whole, g),
        )
    alone, both, data, here, there = found.mean(axis=0)
    coherence, opposed = np.linalg.solve([[alone, both], [both, data]], [here, there])
    left = found[:, 3] - coherence * found[:, 0] - opposed * found[:, 1]
    left -= both / data * (found[:, 4] - coherence * found[:, 1] - opposed * found[:, 2])
    error = n / 2 * left.std() / math.sqrt(draws) / (alone - both**2 / data)
    expected = levels_of(function, samples, n).known(1 / samples)
    # To first order in the number of samples and in that of weights.
    assert abs(n / 2 * coherence - expected) < BEYOND * error + 2 / samples**2 + 2 * abs(expected) / n


@pytest.mark.parametrize("samples", [6, 12, 48])
@pytest.mark.parametrize("function", ["hard_swish", "tanh", "linear"])
def test_a_normalisation_takes_its_part_of_coherence(function, samples):
    """Gradients along the signal, as they come back to a channel from behind an activation, against draws."""
    phi, channels, draws, rng = activation(function), 4000, 200, np.random.default_rng(3)
    found = np.zeros((draws, 2))
    for row in found:
        y, _ = normalised(rng.standard_normal((samples, channels)))
        x = phi.value(y)
        along = rng.choice([-1.0, 1.0], (samples, 1)) * phi.derivative(y) * (x - x.mean(axis=0))
        row[:] = [np.mean(np.mean(y * g, axis=1) ** 2) for g in (along, projected(along, y))]
    before, behind = found.mean(axis=0)
    levels = levels_of(function, samples)
    expected = levels.coherent(1 / samples) / levels.coherent(0.0)
    error = float(np.std(found[:, 1] / before - found[:, 0] * behind / before**2)) / math.sqrt(draws)
    assert abs(behind / before - expected) < BEYOND * error + 6 / samples**2


def before_a_classifier(net, init, samples, trials, seed):
    """Compare theory with Monte Carlo of layers before a global pooling and a classifier, on Gaussian noise."""
    net.global_average_pool()
    net.linear(10, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    return compare(predict(network, batch), simulate(network, batch, trials=trials, seed=seed))


@pytest.mark.parametrize(("function", "groups"), [("hard_swish", 1), ("relu", 1), ("sigmoid", 1), ("silu", 4)])
def test_narrow_convolutions_before_a_pooling(function, groups):
    """Gradients of neighbours are one there, and what slopes know adds up over taps and over layers."""
    net, init = NetworkBuilder("coherent", "torch", (3, 12, 12)), parse_initializer("he_normal")
    for layer in range(5):
        net.conv2d(16, 3, init, groups=groups if layer % 2 else 1)
        net.batch_norm()
        net.activation(function)
    found = before_a_classifier(net, init, samples=16, trials=300, seed=1)
    for step in found.steps:
        a = step.agreement
        assert abs(a.relative) * (1 - BEYOND / max(abs(a.z), BEYOND)) < NARROW_STEP / 2
    assert abs(found.accumulated) < 2 * NARROW_STEP


@pytest.mark.parametrize("correlation", [0.0, 0.3, 0.6, 1.0])
@pytest.mark.parametrize("function", ["gelu", "silu", "tanh"])
def test_slopes_go_with_the_square_at_another_point(function, correlation):
    """E phi'(y)^2 (phi(y') - M)^2, over the product of the two means, by quadrature in the plane."""
    phi, width = activation(function), 100.0
    layout = Layout.exchangeable(10**9)
    levels = apply_activation(
        phi, PairKernel(layout, (1, 1), np.ones((2, 1, 1)) * [[[1.0]], [[0.0]]]), strayed=0.0
    ).levels
    u, weights = np.polynomial.hermite_e.hermegauss(80)
    weights = weights / weights.sum()
    there = phi.value(correlation * u[:, None] + math.sqrt(1.0 - correlation**2) * u)
    mean = float(weights @ phi.value(u))
    squares, slopes = (there - mean) ** 2 @ weights, phi.derivative(u) ** 2
    more = float(weights @ (slopes * squares)) / float(weights @ slopes) / float(weights @ squares) - 1.0
    found = levels.passed(0.0, correlation**2, correlation - correlation**2, width)[1]
    assert width * (found - 1.0) == pytest.approx(more, rel=SQUARES_APART, abs=SQUARES_APART)


@pytest.mark.parametrize("correlation", [0.9, 0.6])
def test_powers_of_levels_stay_on_the_map(correlation):
    """Pairs of places under windows that are whole near the edges, too: by offset alone, and place by place."""
    size, window, count = (8, 8), Window((3, 3), (1, 1), (1, 1, 1, 1)), 64
    places = np.stack(np.divmod(np.arange(count), 8), axis=1)
    apart = np.abs(places[:, None] - places)
    under = (apart.max(axis=2) <= 1).astype(float)
    under /= under.sum(axis=1, keepdims=True)
    walked, field = np.eye(count), np.ones((1, 1))
    between = correlation ** np.add.outer(np.abs(np.arange(-7, 8)), np.abs(np.arange(-7, 8)))
    for _ in range(12):
        walked = under @ walked @ under
        field = walked_by_offset(field, window, size)
        expected = float(np.vdot(by_offset(walked, size) * pairs_apart(size) / count, between))
        assert in_common(field, between) == pytest.approx(expected, rel=WALK_BY_OFFSET)
    assert field.sum() == pytest.approx(1.0)


def test_levels_that_neighbours_have_in_common():
    """Windows average over levels, layer upon layer: what is left goes with gradients over the whole map."""
    net, init = NetworkBuilder("bent", "torch", (3, 8, 8)), parse_initializer("he_normal")
    for _ in range(8):
        net.conv2d(32, 3, init)
        net.batch_norm()
        net.activation("silu")
    found = before_a_classifier(net, init, samples=16, trials=300, seed=0)
    assert abs(found.accumulated) < 2 * NARROW_STEP


def test_channels_and_levels_before_poolings():
    """Gradients go with levels and channels before an average as they do behind it."""
    net, init = NetworkBuilder("pooled", "torch", (3, 16, 16)), parse_initializer("he_normal")
    for layer in range(9):
        net.conv2d(32, 3, init)
        net.batch_norm()
        net.activation("silu")
        if layer % 3 == 2:
            net.average_pool(2, stride=2)
    found = before_a_classifier(net, init, samples=32, trials=200, seed=0)
    assert abs(found.accumulated) < 2 * NARROW_STEP


def test_levels_behind_depthwise_layers():
    """A depthwise layer's points keep their levels: slopes before it and behind it go with the same ones."""
    net, init = NetworkBuilder("separable", "keras", (3, 16, 16)), parse_initializer("lecun_normal")
    for layer in range(5):
        channels, depthwise = net.shape()[0], layer % 2 == 1
        net.conv2d(
            channels if depthwise else 16 if layer == 0 else 32,
            3 if depthwise or layer == 0 else 1,
            init,
            groups=channels if depthwise else 1,
        )
        net.batch_norm()
        net.activation("hard_swish")
    found = before_a_classifier(net, init, samples=32, trials=200, seed=1)
    assert abs(found.accumulated) < 2 * NARROW_STEP
