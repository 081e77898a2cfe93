"""Levels without normalisation behind depthwise layers, whose channels have levels of their own, and behind sums."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import engine, predict
from varprop.simulator.theory.level_law import (
    STILL,
    Returned,
    gathered,
    stepped,
    strayed,
    unchanged,
)
from varprop.simulator.theory.meeting import meet, parted
from varprop.simulator.theory.mixture import Mixture, passed_by_mixture
from varprop.simulator.theory.sample import squares_alike
from varprop.tests.tolerances import BEYOND, ROUNDING


@pytest.mark.parametrize("function", ["relu6", "tanh", "gelu", "sigmoid"])
def test_passage_of_a_mixture(function):
    """Every mean against channels that are drawn: a third silent, the others of exponential levels."""
    phi, rng, draws, q, level = activation(function), np.random.default_rng(0), 2_000_000, 3.0, 1.7
    own = np.where(rng.random(draws) < 1 / 3, 0.0, rng.exponential(1.5, draws))
    passage = passed_by_mixture(phi, q, np.array([1.0, level]), Mixture.of(own))
    z = np.sqrt(q * level * own / own.mean()) * rng.standard_normal(draws)
    value, slope = phi.value(z), phi.derivative(z)
    square, steep, turned, along = value**2, slope**2, (z * slope) ** 2, z * slope * value
    fields = {
        "mean": value,
        "square": square,
        "slope": steep,
        "tilted": turned / (q * level),
        "coherent": square / (q * level),
    }
    for name, field in fields.items():
        error = field.std() / math.sqrt(draws)
        assert abs(getattr(passage, name)[1] - field.mean()) < BEYOND * error + ON_A_GRID * abs(field.mean()), name
    noise = square.var() / square.mean() ** 2
    ratios = {
        "noise": noise,
        "along": along.mean() / square.mean(),
        "gate": (steep * square).mean() / (steep.mean() * square.mean()),
        "on_slope": (np.cov(steep, square)[0, 1]) / (steep.mean() * square.mean()) / noise,
        "on_tilted": (np.cov(turned, square)[0, 1]) / (turned.mean() * square.mean()) / noise,
        "on_along": (np.cov(along, square)[0, 1]) / (along.mean() * square.mean()) / noise,
    }
    for name, ratio in ratios.items():
        assert getattr(passage, name)[1] == pytest.approx(ratio, rel=RATIOS, abs=RATIOS), name


ON_A_GRID = 2e-3
"""An exponential law reaches down to nothing, where the grid of its logarithm ends."""
RATIOS = 0.03
"""Ratios of fourth moments of two million draws, whose deviation is below one percent."""


def test_means_of_squares_are_gamma_and_of_mixtures_log_normal():
    """Skewness over coefficient of variation, small ones: 2 for squares, 2.96 for those times an exponential number."""
    for moments, expected in (((1, 3, 15), 2.0), ((1, 2 * 3, 6 * 15), 2.96)):
        first, second, third = moments
        variance, cumulant = second - first**2, third - 3 * first * second + 2 * first**3
        assert cumulant * first / variance**2 == pytest.approx(expected)
    channels = 4000
    for mixed, noise, expected in ((False, 2.0, 2.0), (True, 5.0, 3.0)):
        law, _ = stepped(STILL, strayed(noise), 1 / channels, 1.0, 1.0, mixed)
        apart = law.levels - law.mean(law.levels)
        variance = law.mean(apart**2)
        assert variance == pytest.approx(noise / channels, rel=0.01)
        assert law.mean(apart**3) / variance**2 == pytest.approx(expected, rel=0.05)


def chain(rng, draws):
    """Levels of a node and of one behind it, with their joint law."""
    first = gathered(rng.gamma(4.0, 0.25, 4000))
    last, step = stepped(first, unchanged(first), 0.15, 1.0, 1.0)
    joint = first.masses[:, None] * step.plain
    one = rng.gamma(4.0, 0.25, draws)
    return (first, last), joint, one, one * rng.gamma(1 / 0.3, 0.3, draws)


def test_sum_of_levels_that_know_of_one_another():
    rng, draws, share = np.random.default_rng(1), 400_000, 0.3
    laws, joint, one, other = chain(rng, draws)
    law, meeting = meet(laws, joint, (share, 1 - share))
    drawn = share * one + (1 - share) * other
    assert law.mean(law.levels) == pytest.approx(1.0, abs=ROUNDING)
    for power in (0.5, 2.0, 3.0):
        assert law.mean(law.levels**power) == pytest.approx(np.mean(drawn**power), rel=LEVELS)
    assert meeting.correlation == pytest.approx(np.corrcoef(one, other)[0, 1], rel=0.02)
    # Each term's way to the sum: the mean of a function of the sum's level given the term's.
    for term, (level, matrix) in enumerate(zip((one, other), meeting.plain, strict=True)):
        near = np.abs(level - 1.0) < 0.02
        node = np.array([np.interp(1.0, laws[term].levels, column) for column in matrix.T])
        assert float(node @ law.levels**2) == pytest.approx(np.mean(drawn[near] ** 2), rel=0.02)


LEVELS = 0.01
"""Third powers of gamma laws over 400,000 draws, on nodes two fifths of a deviation apart."""


def test_what_comes_back_to_a_term_of_a_sum():
    """A gradient that goes with the sum of Gaussian terms, drawn: A_1^2 / q_1 - D of one of them."""
    rng, draws, width, shares = np.random.default_rng(2), 200_000, 6, (0.3, 0.7)
    _, meeting = meet((STILL, STILL), np.ones((1, 1)), shares)
    one, other = (np.sqrt(share) * rng.standard_normal((draws, width)) for share in shares)
    whole = one + other
    back = 0.5 * whole + rng.standard_normal((draws, width))  # knows the sum, and nothing else
    square = np.sum(back**2, axis=1)
    # In units of D: that of all channels is `width` of one's.
    found = Returned(np.ones(1), np.array([np.mean(np.sum(whole * back, axis=1) ** 2 - square) / square.mean()]))
    excess = np.sum(one * back, axis=1) ** 2 / shares[0] - square
    expected = parted(meeting, 0, found).excess[0] * square.mean()
    assert expected > 0.5
    assert abs(excess.mean() - expected) < BEYOND * excess.std() / math.sqrt(draws) * math.sqrt(2)


def test_squares_alike_are_plain_correlations():
    rng = np.random.default_rng(3)
    values = rng.standard_normal((3, 4, 50)) * rng.exponential(size=50) + rng.standard_normal((3, 1, 50))
    same, others = squares_alike(values)
    square = values**2 - (values**2).mean(axis=(1, 2), keepdims=True)
    for a in range(3):
        for b in range(3):
            product = np.mean(square[a] * square[b])
            size = math.sqrt(np.mean(square[a] ** 2) * np.mean(square[b] ** 2))
            assert same[a, b] == pytest.approx(product / size)
    pairs = [square[:, i] * square[:, j] for i in range(4) for j in range(4) if i != j]
    assert others == pytest.approx(np.mean(pairs) / np.mean(square**2))


def network(activations, shortcuts, blocks=4, channels=24, init="he_normal"):
    """Inverted residuals of 96 channels on 8 x 8 maps, without normalisation."""
    net, law = NetworkBuilder("inverted", "torch", (16, 8, 8)), parse_initializer(init)
    for block in range(blocks):
        before = net.last
        for groups in (1, 96):
            net.conv2d(96, 1 if groups == 1 else 3, law, groups=groups)
            net.activation(activations)
        net.conv2d(channels, 1, law)
        if shortcuts and block:
            net.add((net.last, before))
    net.global_average_pool()
    net.linear(10, law)
    return net.build()


@pytest.mark.parametrize(
    ("function", "init", "shortcuts"),
    [("relu6", "he_normal", False), ("relu6", "he_normal", True), ("tanh", "lecun_normal", False)],
)
def test_inverted_residuals_without_normalisation(function, init, shortcuts, monkeypatch):
    """Signal and gradient; with levels that start anew the signal of ReLU6 is 10 to 20% too large."""
    net = network(function, shortcuts, init=init)
    batch = load_batch("gaussian", net.nodes[0].shape, 32, 0)
    measured = simulate(net, batch, trials=500, seed=0)
    compared = compare(predict(net, batch), measured)
    pooled = len(net) - 2
    for node, (forward, backward) in enumerate(zip(compared.forward, compared.backward, strict=True)):
        run = measured.layers[node]
        for found, moments, left in (
            (forward, run.forward, POOLED if node >= pooled else ONWARDS),
            (backward, run.backward, BACKWARDS),
        ):
            error = moments.standard_error / moments.second_moment
            assert abs(found.relative) < BEYOND * error + left, (net.nodes[node].name, found)
    monkeypatch.setattr(engine, "follow", lambda *_: None)
    known = compare(predict(net, batch), measured)
    last = pooled - 1
    assert abs(known.forward[last].relative) > abs(compared.forward[last].relative)


ONWARDS, POOLED, BACKWARDS = 0.02, 0.05, 0.08
"""What is left of twelve layers, the narrowest of 24 channels: of first order in depth / width for a pooled map and on
the way back, where slopes know of weights."""


def test_relu_behind_a_depthwise_layer_keeps_half():
    """Kernels are as likely as their negatives, so that half of the second moment is left, however it is carried."""
    net = network("relu", False, blocks=1)
    for samples in (8, 64):
        rows = predict(net, load_batch("gaussian", net.nodes[0].shape, samples, 0)).layers
        assert rows[4].forward.second_moment == pytest.approx(rows[3].forward.second_moment / 2, rel=ROUNDING)
