"""How lopsided channels are behind a weighted layer, and what that does to bands behind a normalisation."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo.engine import simulate_trials
from varprop.simulator.network import Network, NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pair_series import square_series
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.signal import Weighted
from varprop.simulator.theory.skewness import Skewness, output_skewness
from varprop.simulator.weight_law import WeightLaw

POINTS = 40_000
LAWS = {"normal": (0.0, 2000), "uniform": (-1.2, 2000)}


def weights(rng: np.random.Generator, name: str, shape: tuple[int, ...]) -> np.ndarray:
    return rng.standard_normal(shape) if name == "normal" else rng.uniform(-1, 1, shape) * math.sqrt(3)


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("rank", [24, 1000])
def test_squared_skewness_is_that_of_drawn_weights(name: str, taps: int, rank: int) -> None:
    """Of 24 channels, alone or going together as Gaussian ones that read 24 inputs do; first orders in 1 / 24."""
    excess, draws = LAWS[name]
    channels, decay, rng = 24, 0.6, np.random.default_rng(3)
    found = []
    for _ in range(8):
        # Channels read the same inputs at every point and tap, of which neighbours go together.
        inputs = rng.standard_normal((rank, taps, POINTS // 8))
        for tap in range(1, taps):
            inputs[:, tap] = decay * inputs[:, tap - 1] + math.sqrt(1 - decay**2) * inputs[:, tap]
        mix = rng.standard_normal((channels, rank)) / math.sqrt(rank)
        x = np.maximum(np.tensordot(mix, inputs, 1), 0.0).reshape(channels * taps, -1)
        z = weights(rng, name, (draws // 8, channels * taps)) @ (x - x.mean(axis=1, keepdims=True))
        found.append((z**3).mean(axis=1) / (z**2).mean(axis=1) ** 1.5)
    squares = np.concatenate(found) ** 2
    # What a mean of z^3 over so many points strays by, 15 / POINTS, is no skewness.
    measured = squares.mean() - 15 * 8 / POINTS
    kernel = np.array([[decay ** abs(i - j) for j in range(taps)] for i in range(taps)])
    relu = activation("relu")
    dual = relu.dual(1.0, 1.0, kernel)
    source = PairKernel(Layout.exchangeable(POINTS), (1, taps), np.stack([dual, np.full_like(dual, 1 / (2 * np.pi))]))
    law = WeightLaw(name, 0.0, 1.0, math.inf, excess, channels * taps, channels)
    window = Window((1, taps), (1, 1)) if taps > 1 else None
    gaussian = PairKernel(Layout.exchangeable(2), (1, 1), np.array([[[1.0]], [[0.0]]]))
    skewness = Skewness.activated(square_series(relu, gaussian).third, 1 / rank)
    expected = output_skewness(Weighted(law, channels * taps, source, window=window), skewness)
    deviation = squares.std() / math.sqrt(len(squares))
    assert abs(measured - expected) < 4 * deviation + 0.15 * expected


def narrow(function: str, kernel: int) -> Network:
    net = NetworkBuilder("narrow", "torch", (3, 12, 12))
    for side in (3, kernel):
        net.conv2d(12, side, parse_initializer("he_normal"))
        net.batch_norm()
        net.activation(function)
    return net.build()


def depthwise() -> Network:
    net = NetworkBuilder("depthwise", "torch", (3, 8, 8))
    net.conv2d(24, 3, parse_initializer("he_normal"))
    net.batch_norm()
    net.activation("hard_swish")
    net.conv2d(24, 3, parse_initializer("he_normal"), groups=24)
    net.batch_norm()
    net.activation("hard_swish")
    return net.build()


def sigmoid_sum() -> Network:
    net = NetworkBuilder("sum", "torch", (64,))
    net.linear(32, parse_initializer("he_normal"))
    trunk = net.activation("sigmoid")
    net.linear(32, parse_initializer("he_normal"))
    net.add((trunk, net.activation("sigmoid")))
    return net.build()


def rotated() -> Network:
    net = NetworkBuilder("rotated", "torch", (3, 8, 8))
    net.conv2d(8, 3, parse_initializer("orthogonal"))
    return net.build()


@pytest.mark.parametrize(
    ("network", "batch", "off"),
    [
        # To first orders: what channels inherit of earlier ones' skewness is left out.
        pytest.param(narrow("gelu", 1), 8, 0.25, id="skewed channels"),
        pytest.param(narrow("silu", 1), 32, 0.25, id="skewed channels of a larger batch"),
        pytest.param(depthwise(), 16, 0.25, id="depthwise channels"),
        pytest.param(sigmoid_sum(), 8, 0.15, id="a sum of terms with means"),
        pytest.param(rotated(), 4, 0.15, id="a rotation of inputs that are alike in all directions"),
    ],
)
def test_the_last_log_second_moment_spreads_as_drawn(network: Network, batch: int, off: float) -> None:
    """Without its term each is off by more than half, or three times as large."""
    data = load_batch("gaussian", network.nodes[0].shape, batch, 0)
    predicted = predict(network, data).layers[-1].forward.log_second_moment_sd
    measured = simulate_trials(network, data, trials=800, seed=1)[0].log_second_moment[:, -1].std(ddof=1)
    assert predicted == pytest.approx(measured, rel=off)
