"""Bands of log second moments over draws: the share of trials in them, and the share that ends beyond a scale."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.bands import BAND, ends, log_quantile, probability_below
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo.engine import simulate_trials
from varprop.simulator.network import Network, NetworkBuilder
from varprop.simulator.report import Moments
from varprop.simulator.theory import predict
from varprop.tests.tolerances import BEYOND

HE = "he_normal"
TRIALS = 400


def mlp(width: int, init: str, framework: str = "torch", function: str = "relu") -> Network:
    return build("mlp", framework=framework, depth=8, width=width, activation=function, init=parse_initializer(init))


def conv(width: int, init: str, framework: str = "torch") -> Network:
    net = NetworkBuilder("convolutions", framework, (3, 8, 8))
    for _ in range(4):
        net.conv2d(width, 3, parse_initializer(init))
        net.activation("relu")
    return net.build()


CASES = {
    "Gaussian": (mlp(128, HE), 1),
    "Gaussian, a batch": (mlp(128, HE), 8),
    "Gaussian, wide": (mlp(256, HE), 4),
    "uniform": (mlp(128, "he_uniform"), 4),
    "truncated": (mlp(128, HE, "keras"), 4),
    "orthogonal": (mlp(128, "orthogonal(1.41421356)"), 1),
    "tanh": (mlp(128, "lecun_normal", function="tanh"), 1),
    "convolutions": (conv(48, HE), 4),
    "convolutions, uniform": (conv(48, "he_uniform"), 4),
    "convolutions, truncated": (conv(32, HE, "keras"), 4),
    "convolutions, orthogonal": (conv(48, "orthogonal(1.41421356)"), 4),
}


@pytest.mark.parametrize("name", CASES)
def test_bands_hold_four_draws_of_five(name: str) -> None:
    """Within 5%, on average over the layers of a net; a single layer's share has a standard error of 2%."""
    network, batch = CASES[name]
    data = load_batch("gaussian", network.nodes[0].shape, batch, 0, None)
    report = predict(network, data)
    for direction, trials in zip(
        ("forward", "backward"), simulate_trials(network, data, trials=TRIALS, seed=11), strict=True
    ):
        shares = []
        for index, layer in enumerate(report.layers):
            moments = getattr(layer, direction)
            low, high = (log_quantile(moments, probability) for probability in BAND)
            if low is not None and high is not None and low < high:
                logs = trials.log_second_moment[:, index]
                shares.append(float(np.mean((low < logs) & (logs < high))))
        # The data are fixed, and rotations keep lengths.
        assert len(shares) >= len(report.layers) - 2
        assert np.mean(shares) == pytest.approx(0.8, abs=0.05)
        assert min(shares) > 0.8 - 0.05 - BEYOND * 0.02


def test_share_of_draws_beyond_a_scale() -> None:
    network = mlp(64, HE)
    data = load_batch("gaussian", (64,), 1, 0, None)
    report = predict(network, data)
    forward, backward = simulate_trials(network, data, trials=1500, seed=2)
    below, above = 0.7, 3.0
    logs = {"forward": forward.log_second_moment[:, -1], "backward": backward.log_second_moment[:, 1]}
    found = ends([report], below, above)
    assert [(end.direction, end.layer, end.side) for end in found] == [
        ("forward", "linear8", "below"),
        ("forward", "linear8", "above"),
        ("backward", "linear1", "below"),
        ("backward", "linear1", "above"),
    ]
    for end in found:
        share = end.share["theory"]
        beyond = logs[end.direction] < math.log(below) if end.side == "below" else logs[end.direction] > math.log(above)
        assert share is not None
        assert 0.02 < share < 0.5
        # A normal law of the log leaves out its skewness, of order root (depth / width) / 10.
        assert abs(beyond.mean() - share) < BEYOND * math.sqrt(share * (1 - share) / 1500) + 0.02
    assert ends([report], None, None) == []


def test_what_is_not_known_is_none() -> None:
    unknown = Moments(0.0, 1.0, 1.0, 0.0, None, None)
    assert log_quantile(unknown, 0.5) is None
    assert probability_below(unknown, 0.0) is None
    zero = Moments(0.0, 0.0, 0.0, -math.inf, None, None)
    assert probability_below(zero, -1000.0) == 1.0
    fixed = Moments(0.0, 1.0, 1.0, 0.0, 0.0, 0.0)
    assert [probability_below(fixed, log) for log in (-1.0, 1.0)] == [0.0, 1.0]


def test_pieces_of_images_spread_as_the_images_do() -> None:
    """Spread of logs on maps carried by pieces: with correlations beyond them it would vanish after activations."""
    net = NetworkBuilder("pieces", "torch", (3, 32, 32))
    for _ in range(3):
        net.conv2d(16, 3, parse_initializer(HE))
        net.batch_norm()
        net.activation("relu")
    network, batch, trials = net.build(), load_batch("photo", (3, 32, 32), 32, 0), 60
    predicted, (measured, _) = predict(network, batch), simulate_trials(network, batch, trials=trials, seed=1)
    for index, node in enumerate(network.nodes):
        if node.kind in ("conv2d", "activation"):
            found = measured.log_second_moment[:, index].std(ddof=1)
            error = predicted.layers[index].forward.log_second_moment_sd - found
            assert abs(error) < BEYOND * found / math.sqrt(2 * (trials - 1)), node.name
