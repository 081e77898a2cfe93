"""What a report says in words, and the kurtosis behind it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import Activation, Conv2d, Network, NetworkBuilder, ZeroPad
from varprop.simulator.theory import predict
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.kurtosis import WIDE, output_kurtosis
from varprop.simulator.weight_draw import _independent
from varprop.tests.tolerances import BEYOND

HE = parse_initializer("he_normal")


def notes(network: Network, batch: int = 4) -> dict[str, tuple[str, ...]]:
    report = predict(network, load_batch("gaussian", network.nodes[0].shape, batch, 0, None))
    return {node.name: row.notes for node, row in zip(network.nodes, report.layers, strict=True) if row.notes}


def dense(init: str, function: str) -> Network:
    net = NetworkBuilder("dense", "torch", (40,))
    net.linear(8, HE)
    net.activation(function)
    net.linear(4, parse_initializer(init))
    return net.build()


def convolution(init: str, function: str, groups: int, framework: str = "torch", stride: int = 1) -> Network:
    net = NetworkBuilder("convolution", framework, (16, 4, 4))
    net.conv2d(8, 3, HE)
    net.activation(function)
    if stride > 1:
        net.zero_pad((0, 1, 0, 1))
    net.conv2d(8, 3, parse_initializer(init), groups=groups, stride=stride, padding="valid" if stride > 1 else "same")
    return net.build()


def twice(function: str) -> Network:
    net = NetworkBuilder("twice", "torch", (16, 4, 4))
    net.conv2d(8, 3, HE)
    for _ in range(2):
        net.activation(function)
        net.conv2d(8, 3, HE, groups=8)
    return net.build()


CASES = {
    "dense": dense("he_normal", "relu"),
    "dense, uniform": dense("he_uniform", "relu"),
    "dense, SELU": dense("lecun_normal", "selu"),
    "convolution": convolution("he_normal", "relu", 1),
    "depthwise": convolution("he_normal", "relu", 8),
    "depthwise, uniform": convolution("he_uniform", "relu6", 8),
    "depthwise, strided and padded by Keras": convolution("he_normal", "relu", 8, "keras", 2),
    "two depthwise": twice("relu"),
}


def under(maps: np.ndarray, network: Network, index: int) -> np.ndarray:
    """Values of maps, shape (maps, height, width), under a layer's window: (maps, positions, taps)."""
    operation = network.nodes[index].operation
    if not isinstance(operation, Conv2d):
        return maps.reshape(len(maps), 1, 1)
    top, bottom, left, right = operation.padding
    padded = np.pad(maps, ((0, 0), (top, bottom), (left, right)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, operation.kernel, axis=(1, 2))
    windows = windows[:, :: operation.stride[0], :: operation.stride[1]]
    return windows.reshape(len(maps), -1, operation.kernel[0] * operation.kernel[1])


def last_outputs(network: Network, data: np.ndarray, channels: int) -> np.ndarray:
    """Draws of the last layer's outputs at one sample, (draws, positions), from so many channels of the first."""
    rng = np.random.default_rng(7)
    maps = data.reshape(len(data), *(data.shape[1:] or (1, 1)))
    for index, node in enumerate(network.nodes[1:], 1):
        match node.operation:
            case Activation(function=name):
                maps = activation(name).value(maps)
            case ZeroPad(padding=(top, bottom, left, right)):
                maps = np.pad(maps, ((0, 0), (top, bottom), (left, right)))
            case _:
                groups = channels if index == 1 else len(maps) // (1 if node.kind == "depthwise_conv2d" else 8)
                columns = under(maps, network, index)
                columns = columns.reshape(1 if index == 1 else groups, -1, *columns.shape[1:])
                weights = _independent(
                    weight_law(node, network.framework), (groups, columns.shape[1], columns.shape[3]), rng
                )
                if index == 1:
                    maps = np.einsum("gck,cpk->gp", weights, columns[0], optimize=True)
                else:
                    maps = np.einsum("gck,gcpk->gp", weights, columns, optimize=True)
                maps = maps.reshape(groups, *(node.shape[1:] or (1, 1)))
    return maps.reshape(len(maps), -1)


@pytest.mark.parametrize("name", CASES)
def test_kurtosis_against_monte_carlo(name: str) -> None:
    """Given the data the first layer's outputs are Gaussian; 1% is left for the series.

    Behind two depthwise layers theory has a few hundred sampled channels of kurtosis 5, whose own is known to 15%.
    """
    network = CASES[name]
    data = load_batch("gaussian", network.nodes[0].shape, 1, 0, None)
    expected = output_kurtosis(network, len(network) - 1, _forward(network, data, None))
    assert expected is not None
    outputs = last_outputs(network, data.data[0], 48_000)
    squares = outputs**2
    second, fourth = squares.mean(axis=0), np.mean(squares**2, axis=0)
    found = float(np.mean(fourth / second**2))
    influence = np.mean((squares**2 - 2 * squares * fourth / second) / second**2, axis=1)
    error = influence.std() / np.sqrt(len(outputs))
    assert error < 0.05 * found
    assert abs(found - expected) < BEYOND * error + (0.15 if name == "two depthwise" else 0.01) * found


def test_closed_values_of_kurtosis() -> None:
    """ReLU doubles the kurtosis of a Gaussian: 6; one tap of a 1x1 depthwise map gives 3 x 6."""
    net = NetworkBuilder("one tap", "torch", (WIDE, 1, 1))
    net.conv2d(WIDE, 1, HE)
    net.activation("relu")
    net.conv2d(WIDE, 3, HE, groups=WIDE)
    network = net.build()
    signals = _forward(network, load_batch("gaussian", (WIDE, 1, 1), 4, 0, None), None)
    assert output_kurtosis(network, 3, signals) == pytest.approx(18, rel=1e-6)
    assert output_kurtosis(network, 1, signals) is None  # wide enough
    assert output_kurtosis(network, 2, signals) is None  # no weights
    one = dense("he_normal", "relu")
    signals = _forward(one, load_batch("gaussian", (40,), 1, 0, None), None)
    assert output_kurtosis(one, 3, signals) == pytest.approx(3 + 3 * 5 / 8, rel=1e-6)


def test_a_wide_plain_net_has_nothing_to_say() -> None:
    assert notes(build("mlp", width=256, depth=5, activation="relu", init=HE)) == {}


def test_what_nobody_reads_is_not_said() -> None:
    network = dense("he_normal", "relu")
    batch = load_batch("gaussian", network.nodes[0].shape, 4, 0, None)
    said, silent = predict(network, batch), predict(network, batch, remarks=False)
    assert any(row.notes for row in said.layers)
    assert silent.layers == tuple(replace(row, notes=()) for row in said.layers)


def test_small_fans_are_named() -> None:
    found = notes(convolution("he_normal", "relu", 8))
    assert found["conv2"][0].startswith("fan 9: not Gaussian, kurtosis 5.")


def test_eps_and_few_values_are_named_at_the_normalisation() -> None:
    net = NetworkBuilder("normalised", "keras", (32,))
    net.linear(64, parse_initializer("normal(0.005)"))
    net.batch_norm()
    (name, lines), *others = notes(net.build(), 8).items()
    assert name == "bn1"
    assert "eps 0.001 is felt" in lines[0]
    assert lines[1].startswith("normalised over 8 values a channel")
    assert others == []
    assert len(notes(net.build(), 64)["bn1"]) == 1


def test_what_lasts_is_said_where_it_begins() -> None:
    dying = notes(build("mlp", width=256, depth=30, activation="linear", init=parse_initializer("normal(0.001)")))
    said = {name: line for name, lines in dying.items() for line in lines}
    # A factor 256e-6 a layer, from 1: below 1e-30 after the ninth.
    assert said == {
        "linear9": "dead: second moment of the output below 1e-30",
        "linear21.act": "dead: second moment of the gradient below 1e-30",
    }
    growing = notes(build("mlp", width=256, depth=30, activation="linear", init=parse_initializer("normal(1)")))
    assert growing["linear16"] == ("second moment of the output beyond single precision",)
    zero = notes(build("mlp", width=256, depth=3, activation="linear", init=parse_initializer("zeros")))
    assert zero["linear1"] == ("output exactly zero",)
    assert list(zero.values()).count(("gradient exactly zero",)) == 1


def test_a_spread_is_said_once_and_stays_finite() -> None:
    found = notes(build("mlp", width=WIDE, depth=2000, activation="relu", init=HE), 1)
    spreads = [(name, line) for name, lines in found.items() for line in lines if "spreads" in line]
    assert [line.split(" spreads")[0] for _, line in spreads] == ["width 64: log q", "width 64: log g"]
    # 5 / 64 a layer passes .25 in the fourth.
    assert spreads[0][0].startswith("linear4")
