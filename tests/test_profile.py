"""Second moments position by position, against plain counts of products and against draws."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from varprop.cli import main
from varprop.figures.profile import MOST_MAPS, profile_maps
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import Conv2d, Network, NetworkBuilder
from varprop.simulator.report import Report
from varprop.simulator.theory import predict
from varprop.tests import naive_engine
from varprop.tests.tolerances import BEYOND, ROUNDING

HE = parse_initializer("he_normal")
GEOMETRIES = {
    "square": ("torch", (8, 8), [(3, 1)] * 4),
    "one sided": ("torch", (5, 9), [(3, 1), (5, 1)]),
    "strides of torch": ("torch", (9, 12), [(3, 1), (3, 2), (3, 1)]),
    "strides of Keras": ("keras", (9, 12), [(3, 2), (2, 1), (3, 2)]),
    "larger than what kernels cover": ("torch", (24, 20), [(3, 1), (3, 1)]),
    "from large to small": ("keras", (24, 24), [(3, 1), (3, 2), (3, 1)]),
}


def chain(
    framework: str, size: tuple[int, int], layers: list[tuple[int, int]], function: str, width: int = 8
) -> Network:
    net = NetworkBuilder("chain", framework, (3, *size))
    for kernel, stride in layers:
        net.conv2d(8, kernel, HE, stride=stride)
        net.activation(function)
    return net.build()


def profiles(report: Report, direction: str) -> list[np.ndarray | None]:
    found = [getattr(layer, direction).profile for layer in report.layers]
    return [None if one is None else np.array(one) for one in found]


def counted(field: np.ndarray, operation: Conv2d, out: tuple[int, int], *, back: bool) -> np.ndarray:
    """Sum a map under a window, or scatter it back, by plain loops."""
    (top, _, left, _), (sh, sw) = operation.padding, operation.stride
    found = np.zeros(out)
    inputs, outputs = (out, field.shape) if back else (field.shape, out)
    for i in range(outputs[0]):
        for j in range(outputs[1]):
            for k in range(operation.kernel[0]):
                for m in range(operation.kernel[1]):
                    r, c = i * sh + k - top, j * sw + m - left
                    if 0 <= r < inputs[0] and 0 <= c < inputs[1]:
                        if back:
                            found[r, c] += field[i, j]
                        else:
                            found[i, j] += field[r, c]
    return found


@pytest.mark.parametrize("name", GEOMETRIES)
@pytest.mark.parametrize("function", ["relu", "linear"])
def test_profiles_count_the_products(name: str, function: str) -> None:
    """He's recurrence at every position: exact at any width, forward; gates of a wide net, backward."""
    network = chain(*GEOMETRIES[name], function)
    batch = load_batch("gaussian", network.nodes[0].shape, 4, 0, None)
    report = predict(network, batch, profile=True)
    forward, backward = profiles(report, "forward"), profiles(report, "backward")
    field = np.mean(batch.data**2, axis=(0, 1))
    for node, found in zip(network.nodes, forward, strict=True):
        if isinstance(node.operation, Conv2d):
            field = counted(field, node.operation, node.shape[1:], back=False)
        assert found is not None
        np.testing.assert_allclose(found, field / field.mean(), rtol=1e-9, err_msg=node.name)
    field = np.ones(network.nodes[-1].shape[1:])
    for index in range(len(network) - 1, 0, -1):
        found, node = backward[index], network.nodes[index]
        assert found is not None
        np.testing.assert_allclose(found, field / field.mean(), rtol=1e-9, err_msg=node.name)
        if isinstance(node.operation, Conv2d):
            field = counted(field, node.operation, network.nodes[index - 1].shape[1:], back=True)


def test_result_10_profile_is_the_slowest_mode() -> None:
    """Behind many layers sin(pi i / (n + 1)) on either axis is left, the others having decayed faster."""
    size, depth = 8, 60
    report = predict(*_with_batch(chain("torch", (size, size), [(3, 1)] * depth, "relu")), profile=True)
    wave = np.sin(math.pi * np.arange(1, size + 1) / (size + 1))
    mode = np.outer(wave, wave)
    for found in (profiles(report, "forward")[-1], profiles(report, "backward")[1]):
        assert found is not None
        # The next mode's factor, relative to the slowest, to the power of the depth.
        ratio = (1 + 2 * math.cos(2 * math.pi / (size + 1))) / (1 + 2 * math.cos(math.pi / (size + 1)))
        np.testing.assert_allclose(found, mode / mode.mean(), rtol=30 * ratio ** (depth - 1))
    step = report.layers[-1].forward.log_second_moment - report.layers[-3].forward.log_second_moment
    assert math.exp(step) == pytest.approx(0.921207, abs=5e-7)


def _with_batch(network: Network):
    return network, load_batch("gaussian", network.nodes[0].shape, 2, 0, None)


def test_profiles_against_draws() -> None:
    """tanh, a pooling and a bias; 8% are left for a width of 12."""
    net = NetworkBuilder("mixed", "torch", (2, 6, 6))
    for pooled in (True, False):
        net.conv2d(12, 3, parse_initializer("normal(0.2)"), bias=parse_initializer("normal(0.3)"))
        net.activation("tanh")
        if pooled:
            net.average_pool(2)
    network = net.build()
    batch = load_batch("gaussian", (2, 6, 6), 2, 0, None)
    report = predict(network, batch, profile=True)
    squares: list[tuple[list[np.ndarray], list[np.ndarray]]] = [([], []) for _ in network.nodes]
    for trial in range(150):
        parameters, cotangent = naive_engine.draw(network, 5, trial, 2)
        for node, *both in zip(squares, *naive_engine.run(network, batch.data, parameters, cotangent), strict=True):
            for kept, values in zip(node, both, strict=True):
                kept.append(np.mean(values**2, axis=(0, 1)))
    for index in range(1, len(network)):
        for direction, kept in zip(("forward", "backward"), squares[index], strict=True):
            expected = profiles(report, direction)[index]
            assert expected is not None
            draws = np.array(kept) / np.mean(kept)
            error = draws.std(axis=0) / math.sqrt(len(draws))
            gap = np.abs(draws.mean(axis=0) - expected)
            assert np.all(gap < (BEYOND + 0.5) * error + 0.08), f"{network.nodes[index].name} {direction}"


def test_what_has_no_profile() -> None:
    network, batch = _with_batch(chain("torch", (4, 4), [(3, 1)], "relu"))
    assert all(layer.forward.profile is None for layer in predict(network, batch).layers)
    net = NetworkBuilder("flat", "torch", (5,))
    net.linear(4, HE)
    assert all(one is None for one in profiles(predict(*_with_batch(net.build()), profile=True), "forward"))
    dead = chain("torch", (4, 4), [(3, 1)], "relu")
    zero = load_batch("gaussian", (3, 4, 4), 2, 0, None)
    zero.data[:] = 0.0
    assert profiles(predict(dead, zero, profile=True), "forward") == [None] * 3


def test_maps_are_drawn_and_tabulated(tmp_path, capsys) -> None:
    plot = tmp_path / "maps.png"
    command = ["propagate", "plain_conv", "--depth", "12", "--width", "4", "--size", "6", "--engine", "theory"]
    assert main([*command, "--profile", "--format", "json", "--plot", str(plot)]) == 0
    layers = json.loads(capsys.readouterr().out)["layers"]
    profile = np.array(layers[1]["forward"]["theory"]["profile"])
    assert profile.shape == (6, 6)
    assert profile.mean() == pytest.approx(1, rel=ROUNDING * 100)
    rows = list(csv.DictReader(plot.with_suffix(".csv").read_text().splitlines()))
    same = [row for row in rows if (row["layer"], row["direction"]) == ("conv1", "forward")]
    assert [float(row["relative_second_moment"]) for row in same] == list(profile.ravel())
    assert main([*command, "--profile"]) == 0
    assert "profile: conv12: corner, edge and middle" in capsys.readouterr().out
    network, batch = _with_batch(chain("torch", (6, 6), [(3, 1)] * 12, "relu"))
    figure = profile_maps(predict(network, batch, profile=True))
    assert sum(bool(axes.images) for axes in figure.axes) == 2 * MOST_MAPS
