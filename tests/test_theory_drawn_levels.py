"""Levels of points in networks without normalisation: their law, and second moments of networks of any width."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import engine, predict
from varprop.simulator.theory.level_law import STILL, arriving, back, before, gathered, passed, stepped, unchanged
from varprop.tests.tolerances import BEYOND, ROUNDING


def test_products_of_chi_squared_variables():
    """Without an activation levels are exactly products of chi^2_n / n."""
    width, depth = 24, 12
    law = STILL
    for _ in range(depth):
        law, _ = stepped(law, unchanged(law), 1 / width, 1.0, 1.0)
    mean = law.mean(law.logs)
    assert law.mean(law.levels) == pytest.approx(1.0, abs=ROUNDING)
    assert mean == pytest.approx(depth * (digamma(width / 2) - np.log(width / 2)), rel=LAW)
    assert law.mean((law.logs - mean) ** 2) == pytest.approx(depth * polygamma(1, width / 2), rel=LAW)


LAW = 2e-3
"""Seven points stand for a mean over channels: their log is that of a polynomial of degree 13, at width 24."""


def test_weighted_share_leaves_the_bias_alone():
    law, step = stepped(STILL, unchanged(STILL), 0.1, 1.0, 0.0)
    assert law.levels == pytest.approx([1.0])
    assert step.plain == pytest.approx(np.ones((1, 1)))


def test_windows_average_levels():
    """Of the variance of levels a window leaves what it is told, and its own channels add theirs."""
    start = gathered(np.exp(0.2 * np.random.default_rng(0).standard_normal(4000)))
    law, _ = stepped(start, unchanged(start), 0.0, 0.25, 1.0)
    variance = [one.mean(one.levels**2) - 1.0 for one in (start, law)]
    assert variance[1] == pytest.approx(0.25 * variance[0], rel=LAW)


@pytest.mark.parametrize("function", ["tanh", "gelu", "selu", "sigmoid"])
def test_chain_of_levels(function):
    """Six layers of 16 channels against the chain itself, drawn: mean of the level, and of phi'^2 behind it."""
    phi, width, draws = activation(function), 16, 20_000
    variance = 1 / float(phi.second_moment(1.0))  # that keeps a level of one
    rng = np.random.default_rng(0)
    law, level, drawn, slopes = STILL, 1.0, np.ones(draws), np.ones(draws)
    steps = []
    for _ in range(6):
        passage = passed(phi, level, law.levels, 0.0, width)
        z = np.sqrt(drawn)[:, None] * rng.standard_normal((draws, width))
        slopes *= np.mean(phi.derivative(z) ** 2, axis=1)
        drawn = variance * np.mean(phi.value(z) ** 2, axis=1)
        before_it = law
        law, step = stepped(law, passage, 1 / width, 1.0, 1.0)
        steps.append((before_it, passage, step))
        level = variance * before_it.mean(passage.square)
        assert abs(drawn.mean() - level) < BEYOND * drawn.std() / draws**0.5
    value = np.ones_like(law.logs)
    for _, passage, step in reversed(steps):
        value = passage.slope * (step.slope @ value)
    error = slopes.std() / draws**0.5
    assert error < 0.02 * slopes.mean()
    assert abs(slopes.mean() - float(value[0])) < BEYOND * error + NEXT_TO_FIRST * slopes.mean()


NEXT_TO_FIRST = 0.01
"""Slopes are taken as linear in the next level: what is left is of the order of 1 / n^2 a layer, at 16 channels."""


def test_gradient_knows_the_weights_that_made_the_outputs():
    """Two layers of GELU, the second's outputs given: the law of W conditioned on z' = W h, drawn."""
    width, q, draws = 12, 2.0, 40_000
    phi, rng = activation("gelu"), np.random.default_rng(1)
    z = np.sqrt(q) * rng.standard_normal((draws, width))
    h = phi.value(z)
    weights = rng.standard_normal((draws, width, width)) * width**-0.5
    after = np.einsum("toi,ti->to", weights, h)
    arrived = phi.derivative(after) * rng.standard_normal((draws, width))
    found = phi.derivative(z) * np.einsum("toi,to->ti", weights, arrived)
    drawn = np.mean(found**2, axis=1)
    passage = passed(phi, q, STILL.levels, 0.0, width)
    law, step = stepped(STILL, passage, 1 / width, 1.0, 1.0)
    behind = passed(phi, STILL.mean(passage.square), law.levels, 0.0, width)
    # The cotangent behind the second activation is independent of everything.
    flat = stepped(law, behind, 1 / width, 1.0, 1.0)
    last, size = before(law, behind, back(flat[1], arriving(flat[0]), width, False))
    _, more = before(STILL, passage, back(step, last, width, False))
    error = drawn.std() / draws**0.5
    independent = float(passage.slope[0]) * size
    assert abs(drawn.mean() - independent) > 2 * BEYOND * error
    assert abs(drawn.mean() - more * size) < BEYOND * error + NEXT_TO_FIRST * drawn.mean()


@pytest.mark.parametrize(
    ("function", "init"),
    [
        ("tanh", "glorot_normal"),
        ("selu", "lecun_normal"),
        ("sigmoid", "glorot_uniform"),
        ("gelu", "he_normal"),
        ("tanh", "orthogonal"),
        ("selu", "orthogonal"),
    ],
)
def test_dense_layers_of_32_channels(function, init):
    """Twelve layers; gradients of GELU are two and a half times what known levels make of them."""
    network = build("mlp", depth=12, width=32, activation=function, init=parse_initializer(init))
    batch = load_batch("gaussian", network.nodes[0].shape, 8, 0)
    theory, measured = predict(network, batch), simulate(network, batch, trials=1000, seed=0)
    for index in range(1, len(network)):
        for side in ("forward", "backward"):
            expected, run = (getattr(report.layers[index], side) for report in (theory, measured))
            allowed = BEYOND * run.standard_error + NARROW * run.second_moment
            assert abs(run.second_moment - expected.second_moment) < allowed, (network.nodes[index].name, side)


NARROW = 0.03
"""What is left of 12 layers of 32 channels: (12 / 32)^2 times a fifth, the part of a second order in depth / width that
the shape of the level's law has."""


def convolutions(function, init, width, depth, size):
    net = NetworkBuilder("convolutions", "torch", (3, size, size))
    for _ in range(depth):
        net.conv2d(width, 3, parse_initializer(init))
        net.activation(function)
    net.global_average_pool()
    net.linear(10, parse_initializer(init))
    return net.build()


@pytest.mark.parametrize(
    ("function", "init", "missed"),
    [("relu", "he_normal", 1.25), ("gelu", "he_normal", 1.3), ("tanh", "lecun_normal", 0.99)],
)
def test_gradients_of_convolutions_know_their_weights(function, init, missed, monkeypatch):
    """Six convolutions of 16 channels: without what slopes know of weights the gradient is a third too small."""
    network = convolutions(function, init, 16, 6, 12)
    batch = load_batch("gaussian", network.nodes[0].shape, 8, 0)
    measured = simulate(network, batch, trials=500, seed=0).layers[2].backward
    found = predict(network, batch).layers[2].backward.second_moment
    monkeypatch.setattr(engine, "follow", lambda *_: None)
    known = predict(network, batch).layers[2].backward.second_moment
    error = measured.standard_error / measured.second_moment
    assert error < 0.05
    assert measured.second_moment / known > missed
    assert abs(found / measured.second_moment - 1) < BEYOND * error + ON_MAPS


ON_MAPS = 0.05
"""Of a third that slopes know of weights, to first order in 1 / n: its square, by half."""


def test_pooling_sees_how_correlations_stray(monkeypatch):
    """SELU keeps the mean at zero: what a global pooling leaves is of correlations that differ from draw to draw."""
    network = convolutions("selu", "lecun_normal", 16, 6, 12)
    batch = load_batch("gaussian", network.nodes[0].shape, 8, 0)
    pooled = len(network) - 2
    measured = simulate(network, batch, trials=600, seed=0).layers[pooled].forward
    found = predict(network, batch).layers[pooled].forward.second_moment
    monkeypatch.setattr(engine, "follow", lambda *_: None)
    known = predict(network, batch).layers[pooled].forward.second_moment
    assert measured.standard_error < 0.04 * measured.second_moment
    assert measured.second_moment / known > 1.15
    assert abs(found / measured.second_moment - 1) < BEYOND * measured.standard_error / measured.second_moment


def test_levels_of_the_data_under_a_window():
    """Patches of 27 numbers differ in size: tanh at the first layer is 2% smaller than at their mean."""
    network = convolutions("tanh", "he_normal", 64, 1, 16)
    batch = load_batch("gaussian", network.nodes[0].shape, 200, 0)
    measured = simulate(network, batch, trials=150, seed=0).layers[2].forward
    found = predict(network, batch).layers[2].forward.second_moment
    assert measured.standard_error < 0.005 * found
    assert abs(found - measured.second_moment) < BEYOND * measured.standard_error


def test_levels_that_an_activation_is_not_known_at():
    """A draw in many sends more through eight channels than quadrature of a sine follows: levels count as known."""
    network = build("mlp", depth=6, width=8, activation="sin(x)")
    report = predict(network, load_batch("gaussian", network.nodes[0].shape, 4, 0))
    assert all(np.isfinite(layer.forward.log_second_moment) for layer in report.layers)
