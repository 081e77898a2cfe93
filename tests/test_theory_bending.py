"""Gradients at the data: slopes know the weights before them.

The oracle is the definition. The output is a Gaussian function of the data with the layers' kernel, and the gradient's
second moment the kernel's mixed derivative, taken by finite differences of dual activations.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Network, NetworkBuilder
from varprop.simulator.report import Batch
from varprop.simulator.theory import predict
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.response import Response, followed
from varprop.tests.tolerances import BENT_MAP, BENT_POINT, BENT_STEP, BEYOND, KINK, QUADRATURE

Array = NDArray[np.float64]

HE = parse_initializer("he_normal")
OUTPUTS = 4
WIDE = 10**9


def perceptron(function: str, depth: int, inputs: int, width: int = 64, norm: bool = False) -> Network:
    net = NetworkBuilder("perceptron", "torch", (inputs,))
    for _ in range(depth):
        net.linear(width, HE)
        if norm:
            net.batch_norm(eps=0.0)
        net.activation(function)
    net.linear(OUTPUTS, HE)
    return net.build()


def convolutions(function: str, depth: int, size: int, norm: bool = False, width: int = 64) -> Network:
    net = NetworkBuilder("convolutions", "torch", (3, size, size))
    for _ in range(depth):
        net.conv2d(width, 3, HE)
        if norm:
            net.batch_norm(eps=0.0)
        net.activation(function)
    net.global_average_pool()
    net.linear(OUTPUTS, HE)
    return net.build()


def dual(function: ActivationFunction, left: Array, right: Array, between: Array) -> Array:
    """E[phi(z) phi(z')] for variances by place and covariances of two places."""
    scale = np.sqrt(np.outer(left, right))
    return function.dual(left[:, None], right[None, :], between / scale)


def perceptron_kernel(function: ActivationFunction, depth: int, left: Array, right: Array) -> float:
    """Covariance of one output at two inputs, He's rule."""
    own, other, between = (2 * np.mean(x * y).reshape(1, 1) for x, y in ((left, left), (right, right), (left, right)))
    for _ in range(depth):
        own, other, between = (
            2 * dual(function, np.diag(a), np.diag(b), c)
            for a, b, c in ((own, own, own), (other, other, other), (own, other, between))
        )
    return float(between[0, 0])


def under_windows(kernel: Array, size: int) -> Array:
    padded = np.pad(kernel.reshape((size,) * 4), 1)
    taps = (slice(i, i + size) for i in range(3))
    windows = [(down, across) for down in list(taps) for across in [slice(j, j + size) for j in range(3)]]
    return sum(padded[*one, *one] for one in windows).reshape(kernel.shape) / 9


def map_kernel(function: ActivationFunction, depth: int, left: Array, right: Array) -> float:
    """Covariance of one output behind global pooling at two images, shape (channels, height, width)."""
    size, flat = left.shape[1], [image.reshape(len(image), -1) for image in (left, right)]
    grams = [a.T @ b / len(a) for a, b in ((flat[0], flat[0]), (flat[1], flat[1]), (flat[0], flat[1]))]
    for _ in range(depth):
        own, other, between = (2 * under_windows(gram, size) for gram in grams)
        grams = [
            dual(function, np.diag(a).copy(), np.diag(b).copy(), c)
            for a, b, c in ((own, own, own), (other, other, other), (own, other, between))
        ]
    return 2 * float(grams[2].mean())


def gradient_square(kernel: Callable[[Array, Array], float], data: Array, h: float = 1e-3) -> float:
    """Mean over the data of the mixed derivative of an output's covariance, of all outputs together.

    At a kink the error of a finite difference is linear in its step: half the step takes it away.
    """
    return 2 * difference(kernel, data, h / 2) - difference(kernel, data, h)


def difference(kernel: Callable[[Array, Array], float], data: Array, h: float) -> float:
    total = 0.0
    for place in np.ndindex(data.shape):
        step = np.zeros_like(data)
        step[place] = h
        up, down = data + step, data - step
        total += (kernel(up, up) - 2 * kernel(up, down) + kernel(down, down)) / (4 * h * h)
    return OUTPUTS * total / data.size


@pytest.mark.parametrize("function", ["tanh", "gelu", "sigmoid", "relu", "selu"])
@pytest.mark.parametrize("depth", [1, 3])
def test_gradient_at_three_inputs_is_the_mixed_derivative_of_the_kernel(function, depth):
    data = np.random.default_rng(0).standard_normal((3, 3))
    data *= np.sqrt(3 / np.sum(data**2, axis=1, keepdims=True))  # or samples' levels would be known to 1e-4 only
    network = perceptron(function, depth, 3, width=WIDE)
    found = predict(network, Batch(data, "drawn", False)).layers[0].backward.second_moment
    phi = activation(function)
    expected = np.mean([gradient_square(lambda x, y: perceptron_kernel(phi, depth, x, y), sample) for sample in data])
    assert found == pytest.approx(expected, rel=KINK if function == "selu" else BENT_POINT)


@pytest.mark.parametrize("function", ["relu", "gelu"])
def test_gradient_at_images_is_the_mixed_derivative_of_the_kernel(function, monkeypatch):
    """Behind a global pooling, where independent slopes would leave out a fifth; edges are followed on average only."""
    data = np.random.default_rng(0).standard_normal((2, 3, 6, 6))
    network, phi, batch = convolutions(function, 2, 6), activation(function), Batch(data, "drawn", False)
    found = predict(network, batch).layers[0].backward.second_moment
    monkeypatch.setattr("varprop.simulator.theory.engine.gained", lambda *arguments: 1.0)
    independent = predict(network, batch).layers[0].backward.second_moment
    expected = np.mean([gradient_square(lambda x, y: map_kernel(phi, 2, x, y), image) for image in data])
    assert expected / independent > 1.1
    assert abs(found - expected) < BENT_MAP * abs(expected - independent)


@pytest.mark.parametrize("step", [1, 2])
def test_means_are_read_where_both_taps_are_on_the_map(step):
    """A mean that responds alike with every place, behind a window with zeros around its map, tap by tap."""
    side = 5
    net = NetworkBuilder("padded", "torch", (1, side, side))
    net.conv2d(1, 3, HE, stride=step, padding=(1, 1, 1, 1))
    net.global_average_pool()
    net.linear(OUTPUTS, HE)
    network = net.build()
    source, output = _forward(network, load_batch("gaussian", (1, side, side), 4, 0), None)[:2]
    alike = Response((side, side), (1, 1), (np.eye(side), np.eye(side)), np.zeros((3, 1, (2 * side - 1) ** 2 // 2 + 2)))
    alike.parts[1] = 1.0
    found = followed(network.nodes[1].operation, alike, source, output).parts[1, 0]
    out = output.kernel.size[0]
    places = list(np.ndindex(out, out))
    taps = {
        o: {k for k in np.ndindex(3, 3) if min(step * np.array(o) + k) > 0 and max(step * np.array(o) + k) <= side}
        for o in places
    }
    offsets = list(np.ndindex(2 * out - 1, 2 * out - 1))[: len(found) - 1]
    both, one = np.zeros((2, len(offsets)))
    for o in places:
        for other in places:
            offset = other[0] - o[0] + out - 1, other[1] - o[1] + out - 1
            if offset in offsets:
                both[offsets.index(offset)] += len(taps[o] & taps[other])
                one[offsets.index(offset)] += (len(taps[o]) + len(taps[other])) / 2
    np.testing.assert_allclose(found[:-1] / found[-2], both / one, rtol=1e-12)
    every = [len(taps[o] & taps[other]) for o in places for other in places]
    assert found[-1] / found[-2] == pytest.approx(np.mean(every) / np.mean([len(taps[o]) for o in places]), rel=1e-12)


def test_means_respond_at_the_edges_of_small_maps():
    """Normalised 4 x 4 maps behind 3x3 taps, where a mean that responded alike everywhere would leave out 7%."""
    network = convolutions("hard_swish", 4, 4, True)
    batch = load_batch("gaussian", network.nodes[0].shape, batch=64, seed=0)
    theory = predict(network, batch)
    measured = [simulate(network, batch, trials=100, seed=seed) for seed in range(5)]
    steps = [m.layers[0].backward.log_second_moment - m.layers[1].backward.log_second_moment for m in measured]
    expected = theory.layers[0].backward.log_second_moment - theory.layers[1].backward.log_second_moment
    error = np.std(steps, ddof=1) / np.sqrt(len(steps))
    assert abs(np.mean(steps) - expected) < BEYOND * error + BENT_STEP
    assert error < 0.01  # or nothing would be seen


@pytest.mark.parametrize(("net", "function"), [("perceptron", "tanh"), ("convolutions", "gelu")])
def test_gradient_at_data_before_a_normalisation(net, function):
    """Ten layers behind 16 inputs, where independent slopes miss 10%; or two convolutions, where they miss 15%."""
    network = perceptron(function, 10, 16, 128, True) if net == "perceptron" else convolutions(function, 2, 8, True)
    batch = load_batch("gaussian", network.nodes[0].shape, batch=16, seed=0)
    theory = predict(network, batch)
    steps = []
    for seed in range(6):
        measured = simulate(network, batch, trials=60, seed=seed)
        logs = [
            m.layers[0].backward.log_second_moment - m.layers[1].backward.log_second_moment for m in (measured, theory)
        ]
        steps.append(logs[0] - logs[1])
    error = np.std(steps, ddof=1) / np.sqrt(len(steps))
    assert abs(np.mean(steps)) < BEYOND * error + BENT_STEP
    assert BEYOND * error < 0.05  # or nothing would be seen


def test_half_lines_at_one_point_gain_nothing():
    """phi'^2 of ReLU is a step, whose second derivative is odd."""
    batch = load_batch("gaussian", (3,), batch=4, seed=0)
    theory = predict(perceptron("relu", 4, 3), batch)
    gradients = [layer.backward.second_moment for layer in theory.layers]
    assert gradients[0] == pytest.approx(gradients[1] * 2 / 3 * 64, rel=1e-12)


@pytest.mark.parametrize(("init", "kernel"), [("delta_orthogonal", 3), ("orthogonal", 1)])
@pytest.mark.parametrize(("inputs", "width"), [(4, 4), (4, 12), (8, 4)])
def test_orthogonal_weights_at_one_point(init, kernel, inputs, width):
    """Orthonormal rows keep a gradient's length, whatever slopes know of them; so does a kernel that is all centre."""
    if init == "delta_orthogonal" and width < inputs:
        pytest.skip("needs as many channels out as in")
    net = NetworkBuilder("orthogonal", "torch", (inputs, 3, 3))
    net.conv2d(width, kernel, parse_initializer(init))
    net.activation("tanh")
    network, batch = net.build(), load_batch("gaussian", (inputs, 3, 3), batch=4, seed=0)
    found, expected = (
        report.layers[0].backward.second_moment / report.layers[1].backward.second_moment * inputs / width
        for report in (predict(network, batch), simulate(network, batch, trials=1000, seed=0, threads=1))
    )
    if width <= inputs:
        assert found == pytest.approx(1.0, rel=1e-12)
    assert found == pytest.approx(expected, rel=BENT_STEP)


@pytest.mark.parametrize("function", ["relu", "tanh"])
def test_gain_does_not_depend_on_units(function):
    """Signals beyond float range, or data that are zero, neither overflow nor leave a number out."""
    for init, depth in (("random_normal(0.00001)", 150), ("random_normal(100)", 150)):
        net = NetworkBuilder("far", "torch", (3, 6, 6))
        for _ in range(depth if function == "relu" else 3):
            net.conv2d(8, 3, parse_initializer(init))
            net.activation(function)
        network = net.build()
        for batch in (
            load_batch("gaussian", (3, 6, 6), batch=2, seed=0),
            Batch(np.zeros((2, 3, 6, 6)), "drawn", False),
        ):
            assert not np.isnan(predict(network, batch).layers[0].backward.log_second_moment)


def test_fewer_inputs_than_modes_that_normalisation_looks_at():
    """Of white data the weights' length alone makes v: E[|w|^2 / v] / (E[|w|^2] E[1 / v]) = 1 - 2 / n."""
    for inputs in (3, 4, 6):
        samples = np.linalg.qr(np.random.default_rng(0).standard_normal((64, inputs + 1)))[0]
        data = np.linalg.qr(samples - samples.mean(axis=0))[0][:, :inputs]
        theory = predict(perceptron("relu", 1, inputs, norm=True), Batch(data * 8.0, "drawn", False))
        _, first, *_ = (layer.backward.second_moment for layer in theory.layers)
        step = theory.layers[0].backward.second_moment / first
        assert step == pytest.approx(64 * 2 / inputs * (1 - 2 / inputs), rel=2e-3)


def test_points_that_are_nearly_one_are_one():
    """On flat parts of photographs neighbours correlate but for 1e-10, where half-lines bend without end."""
    network = convolutions("relu", 2, 48, True, 16)
    batch = load_batch("photo", (3, 48, 48), batch=16, seed=0)
    theory, measured = (
        [layer.backward.second_moment for layer in report.layers[:2]]
        for report in (predict(network, batch), simulate(network, batch, trials=20, seed=0))
    )
    # As README has it of photographs.
    assert theory[0] / theory[1] == pytest.approx(measured[0] / measured[1], rel=0.1)


@pytest.mark.parametrize("function", ["tanh", "gelu", "relu"])
@pytest.mark.parametrize("depth", [1, 3])
def test_groups_are_narrow_networks_side_by_side(function, depth):
    """Behind a first layer whose channels are independent, groups never meet: each is a narrow network of its own."""
    batch = load_batch("gaussian", (3, 8, 8), batch=8, seed=0)
    he, count, found = parse_initializer("he_normal"), 8, []
    for groups in (1, count):
        net = NetworkBuilder("groups", "torch", (3, 8, 8))
        net.conv2d(2 * groups, 3, he)
        for _ in range(depth):
            net.activation(function)
            net.conv2d(2 * groups, 3, he, groups=groups)
        net.activation(function)
        net.flatten()
        net.linear(10, he)
        found.append(predict(net.build(), batch, remarks=False).layers)
    for one, other in zip(found[0][1:-1], found[1][1:-1], strict=True):
        assert other.forward.second_moment == pytest.approx(one.forward.second_moment, rel=QUADRATURE)
        # The head sees all groups, and its weights are the smaller.
        assert other.backward.second_moment * count == pytest.approx(one.backward.second_moment, rel=QUADRATURE)
