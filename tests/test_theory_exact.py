"""Theory where the answer is known: exact recurrences, published constants, independent plain loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Batch
from varprop.simulator.theory import predict
from varprop.tests.tolerances import (
    BEYOND,
    CUBATURE,
    DEEP_ROUNDING,
    LIMIT,
    MEAN_SQUARE_Z,
    NEXT_ORDER,
    PRINTED,
    ROUNDING,
    SAMPLED,
    SHARE_BEYOND,
)

HE = parse_initializer("he_normal")
LECUN = parse_initializer("lecun_normal")
HOMOGENEOUS = ["linear", "relu", "leaky_relu(0.2)"]
SEEDS = range(10)


def signs(shape, batch=2, seed=0):
    """Data of second moment one at every position."""
    values = np.random.default_rng(seed).choice([-1.0, 1.0], size=(batch, *shape))
    return Batch(values, "signs", True)


def second_moments(report, kind):
    return [layer.forward.second_moment for layer in of_kind(report, kind)]


def of_kind(report, kind):
    return [layer for node, layer in zip(report.network.nodes, report.layers, strict=True) if node.kind == kind]


def assert_normal(scores):
    """At most 1% beyond four standard errors, and standard errors that are neither too large nor too small."""
    scores = np.array(scores)
    assert np.mean(np.abs(scores) > BEYOND) <= SHARE_BEYOND, scores[np.abs(scores) > BEYOND]
    assert MEAN_SQUARE_Z[0] < np.mean(scores**2) < MEAN_SQUARE_Z[1]


@pytest.mark.parametrize("function", HOMOGENEOUS)
def test_result_1_plain_mlp_is_exact_at_any_width(function):
    """He et al. 2015, eqs. 7 and 14, hold at any width.

    At width 64 and depth 10 one sample's log second moment has variance 5 * 10 / 64, so that its mean is e^0.4 times
    its median; over 16 samples and 150 draws the sample mean is close to normal. At depth 100 it would not be.
    """
    scores = []
    for seed in SEEDS:
        network = build("mlp", depth=10, width=64, activation=function)
        batch = load_batch("gaussian", (64,), 16, seed)
        found = compare(predict(network, batch), simulate(network, batch, trials=150, seed=seed))
        scores += [row.z for row in (*found.forward[1:], *found.backward[:-1])]
    assert len(scores) == 2 * 19 * len(SEEDS)
    assert_normal(scores)


@pytest.mark.parametrize(
    ("function", "source"),
    [
        ("linear", "gaussian"),
        ("linear", "photo"),
        ("relu", "gaussian"),
        ("relu", "photo"),
        ("leaky_relu(0.2)", "gaussian"),
    ],
)
def test_plain_convolutions_are_exact_forward(function, source):
    """Zero padding counted, conditioned on the batch: five 3x3 convolutions on an 8x8 map, pooling and classifier."""
    scores = []
    for seed in SEEDS:
        network = build("plain_conv", depth=5, width=32, activation=function, size=8)
        batch = load_batch(source, (3, 8, 8), 8, seed)
        found = compare(predict(network, batch), simulate(network, batch, trials=80, seed=seed))
        scores += [row.z for row in found.forward[1:]]
    assert len(scores) == 12 * len(SEEDS)
    assert_normal(scores)


@pytest.mark.parametrize(("function", "factor"), [("linear", 1 / 3), ("relu", 1 / 6)])
def test_result_1_default_linear_layers_of_torch(function, factor):
    """kaiming_uniform(a=sqrt 5) is U(+-1/sqrt n), variance 1/(3n): x1/3 a layer, x1/6 under ReLU, plus the bias's."""
    width = 50
    network = build("mlp", depth=8, width=width, activation=function, init=parse_initializer("default"))
    found = second_moments(predict(network, signs((width,))), "linear")
    q, bias = 1 / 3 + 1 / (3 * width), 1 / (3 * width)
    expected = [q]
    for _ in range(7):
        q = factor * q + bias
        expected.append(q)
    np.testing.assert_allclose(found, expected, rtol=ROUNDING)


DEPTHWISE = [
    ("torch", "default", lambda c: 1 / 3),
    ("torch", "he_normal", lambda c: 2.0),
    ("torch", "kaiming_normal(mode=fan_out)", lambda c: 2 / c),
    ("torch", "glorot_normal", lambda c: 2 / (c + 1)),
    ("torch", "orthogonal", lambda c: 9 / c),
    ("keras", "he_normal", lambda c: 2 / c),
    ("keras", "glorot_normal", lambda c: 2 / (c + 1)),
    ("keras", "glorot_uniform", lambda c: 2 / (c + 1)),
    ("keras", "lecun_normal", lambda c: 1 / c),
    ("keras", "orthogonal", lambda c: 1 / c),
]


@pytest.mark.parametrize("channels", [12, 96])
@pytest.mark.parametrize(
    ("framework", "init", "factor"), DEPTHWISE, ids=lambda value: value if isinstance(value, str) else ""
)
def test_result_3_depthwise_factor(framework, init, factor, channels):
    """What one 3x3 depthwise layer without padding does to the second moment, forward and back.

    Back, an input position is reached by (outputs * 9) / inputs weights on average: 36 outputs from 64 inputs.
    """
    net = NetworkBuilder("depthwise", framework, (channels, 8, 8))
    net.conv2d(channels, 3, parse_initializer(init), groups=channels, padding="valid")
    layers = predict(net.build(), signs((channels, 8, 8))).layers
    assert layers[1].forward.second_moment == pytest.approx(factor(channels), rel=ROUNDING)
    assert layers[0].backward.second_moment == pytest.approx(factor(channels) * 36 / 64, rel=ROUNDING)


@pytest.mark.parametrize(
    ("init", "channels", "printed"),
    [
        ("glorot_uniform", 96, 0.8655),
        ("glorot_normal", 96, 0.858),
        ("glorot_uniform", 192, 0.766),
        ("glorot_normal", 192, 0.757),
    ],
)
def test_result_12_normalisation_of_small_depthwise_outputs(init, channels, printed):
    """E[v / (v + eps)] for Keras's depthwise kernels and eps 1e-3, behind a normalised ReLU6, positions i.i.d.

    Every channel's variance is v = s sum of nine squared weights, with s the variance of relu6(N(0, 1)) up to the
    mean that all positions share; here by direct draws of the nine weights.
    """
    net = NetworkBuilder("depthwise", "keras", (channels, 16, 16))
    net.batch_norm(eps=0.0)
    net.activation("relu6")
    net.conv2d(channels, 3, parse_initializer(init), groups=channels, padding="valid")
    normalised = net.batch_norm()
    network = net.build()
    found = predict(network, load_batch("gaussian", (channels, 16, 16), 64, 0)).layers[normalised].forward
    rng, draws = np.random.default_rng(0), 200_000
    law = weight_law(network.nodes[3], "keras")
    weights = rng.uniform(-law.limit, law.limit, (draws, 9))
    if init == "glorot_normal":
        z = rng.standard_normal((draws * 10, 1))
        weights = (z[np.abs(z) < 2][: draws * 9] * law.limit / 2).reshape(draws, 9)
    phi = activation("relu6")
    v = (float(phi.second_moment(1.0)) - float(phi.mean(1.0)) ** 2) * np.sum(weights**2, axis=1)
    ratio = v / (v + 1e-3)
    assert ratio.mean() == pytest.approx(printed, abs=PRINTED)
    assert found.second_moment == pytest.approx(ratio.mean(), abs=CUBATURE)


def padded_field(size, layers):
    """Second moment at every position after each of some He convolutions with zero padding, by plain loops."""
    field, fields = np.ones((size, size)), []
    for _ in range(layers):
        padded = np.pad(field, 1)
        field = sum(padded[i : i + size, j : j + size] for i in range(3) for j in range(3)) / 9
        fields.append(field)
    return fields


@pytest.mark.parametrize(
    ("function", "size", "layers"),
    [("linear", 4, 60), ("relu", 4, 60), ("relu", 8, 60), ("linear", 16, 150), ("relu", 32, 300)],
)
def test_result_10_zero_padding(function, size, layers):
    """Every layer against plain loops; at last the slowest mode, ((1 + 2 cos(pi / (n + 1))) / 3)^2 a layer.

    32 is beyond the size of map on which kernels are carried whole. Of a uniform start the second slowest mode,
    3 pi / (n + 1) along one axis, is 2e-6 of the ratio at most after so many layers, and below 1e-5 at size 32.
    """
    net = NetworkBuilder("padded", "torch", (4, size, size))
    for _ in range(layers):
        net.conv2d(4, 3, HE if function == "relu" else LECUN)
        net.activation(function)
    report = predict(net.build(), signs((4, size, size)))
    found = second_moments(report, "conv2d")
    start = found[0] / padded_field(size, 1)[0].mean()
    expected = [start * field.mean() for field in padded_field(size, layers)]
    np.testing.assert_allclose(found, expected, rtol=DEEP_ROUNDING)
    slowest = ((1 + 2 * math.cos(math.pi / (size + 1))) / 3) ** 2
    assert found[-1] / found[-2] == pytest.approx(slowest, rel=1e-5)
    if size == 8:
        assert report.layers[20].forward.second_moment == pytest.approx(0.35303, abs=5e-6)


def test_result_7_relu_correlation_map():
    """f(c) = (sqrt(1 - c^2) + c (pi - arccos c)) / pi, layer by layer, and 1 - c_l -> (9 pi^2 / 2) / l^2.

    1 / sqrt(1 - c_l) grows by sqrt(2) / (3 pi) a layer in the end; ln l drops out of two differences.
    """
    layers = 2000
    net = NetworkBuilder("pair", "torch", (64,))
    for _ in range(layers):
        net.linear(64, HE)
        net.activation("relu")
    data = np.zeros((2, 64))
    data[0, :32] = data[1, 32:] = 1.0
    activations = of_kind(predict(net.build(), Batch(data, "orthogonal", False)), "activation")
    # Over two samples BN's variance is q (1 - c) / 2.
    found = np.array([2 * layer.forward.variance / layer.forward.second_moment for layer in activations])
    c, expected = 0.0, []
    for _ in range(layers):
        c = (math.sqrt(max(1 - c * c, 0.0)) + c * (math.pi - math.acos(c))) / math.pi
        expected.append(1 - c)
    np.testing.assert_allclose(found, expected, rtol=1e-6)  # 1 - c is 1e-5 of what it is the difference of
    root = found**-0.5
    early, late = (root[999] - root[499]) / 500, (root[1999] - root[999]) / 1000
    assert (2 * late - early) ** -2 == pytest.approx(9 * math.pi**2 / 2, rel=LIMIT)


def normalised_factor(function, batch, width=8192):
    """Ratio of the gradient's second moments from one layer to the one before, in a wide plain net with BN."""
    net = NetworkBuilder("normalised", "torch", (width,))
    for _ in range(5):
        net.linear(width, LECUN)
        net.batch_norm(eps=1e-12)
        net.activation(function)
    layers = of_kind(predict(net.build(), load_batch("gaussian", (width,), batch, 0)), "linear")
    return layers[1].backward.second_moment / layers[2].backward.second_moment


@pytest.mark.parametrize("batch", [8, 16, 64])
def test_result_8_normalised_linear_layers(batch):
    """(B - 2) / (B - 3) a layer (Yang et al. 2019), for B much smaller than the width."""
    assert normalised_factor("linear", batch) == pytest.approx((batch - 2) / (batch - 3), rel=batch / 8192)


@pytest.mark.parametrize(
    ("function", "limit"),
    [("relu", math.pi / (math.pi - 1)), ("tanh", 1.177807), ("selu", 1.071575)],
)
def test_result_8_normalised_layers_of_large_batches(function, limit):
    """E[phi'^2] / Var[phi] (Yang et al. 2019); the batch's own part of it falls as 1 / B and is extrapolated away.

    Width adds c depth / width of its own, with a c of order one, at either batch.
    """
    small, large = normalised_factor(function, 64), normalised_factor(function, 256)
    assert abs(large / limit - 1) < 4 / 256
    assert (4 * large - small) / 3 == pytest.approx(limit, rel=NEXT_ORDER + 5 / 8192)


def test_result_11_residual_sums_double():
    net = NetworkBuilder("residual", "torch", (256,))
    total = 0
    for _ in range(8):
        branch = net.linear(256, LECUN, source=total)
        total = net.add((total, branch))
    layers = of_kind(predict(net.build(), signs((256,))), "add")
    np.testing.assert_allclose([layer.forward.second_moment for layer in layers], 2.0 ** np.arange(1, 9), rtol=ROUNDING)
    np.testing.assert_allclose(
        [layer.backward.second_moment for layer in layers], 2.0 ** np.arange(7, -1, -1), rtol=ROUNDING
    )


def test_result_11_residual_branches_of_one_over_root_depth():
    depth, width = 20, 64
    net = NetworkBuilder("residual", "torch", (width,))
    total = 0
    for _ in range(depth):
        branch = net.linear(width, parse_initializer(f"normal({math.sqrt(1 / (width * depth))!r})"), source=total)
        total = net.add((total, branch))
    layers = predict(net.build(), signs((width,))).layers
    assert layers[-1].forward.second_moment == pytest.approx((1 + 1 / depth) ** depth, rel=ROUNDING)
    assert layers[0].backward.second_moment == pytest.approx((1 + 1 / depth) ** depth, rel=ROUNDING)


@pytest.mark.parametrize("layers", [2, 3, 4])
def test_result_11_fixup_keeps_the_step_of_all_branches(layers):
    """Zhang et al. 2019: branches of m layers, the last zero, the others at L^(-1 / (2 m - 2)).

    A step of gradient descent moves the output by the sum over branches of the last layers' squared gradients,
    L a^(2 m - 2) for a factor a on the others' weights: the same at any depth.
    """
    width = 32
    for depth in (4, 25, 81):
        net = NetworkBuilder("fixup", "torch", (width,))
        scale = depth ** (-1 / (2 * layers - 2)) / math.sqrt(width)
        last = []
        for _ in range(depth):
            start = net.last
            for _ in range(layers - 1):
                net.linear(width, parse_initializer(f"normal({scale!r})"))
            last.append(net.linear(width, parse_initializer("zeros")))
            net.add((start, net.last))
        rows = predict(net.build(), signs((width,))).layers
        step = sum(rows[index - 1].forward.second_moment * rows[index].backward.second_moment for index in last)
        assert step == pytest.approx(1.0, rel=DEEP_ROUNDING)


def test_result_11_normalised_residual_branches_add_one_each():
    net = NetworkBuilder("residual", "torch", (64, 16, 16))
    net.conv2d(64, 1, HE)
    total = net.batch_norm(eps=0.0)
    for _ in range(5):
        net.conv2d(64, 1, HE, source=total)
        branch = net.batch_norm(eps=0.0)
        total = net.add((total, branch))
    report = predict(net.build(), load_batch("gaussian", (64, 16, 16), 8, 0))
    np.testing.assert_allclose(second_moments(report, "add"), np.arange(2, 7), rtol=ROUNDING)


def test_result_14_maximum_of_four_normals():
    """Mean 1.0293754 and variance 0.4917152 (order statistics of N(0, 1))."""
    data = np.random.default_rng(0).standard_normal((32, 64, 8, 8))
    net = NetworkBuilder("pooled", "torch", (64, 8, 8))
    net.max_pool(2)
    layers = predict(net.build(), Batch(data / np.sqrt(np.mean(data**2)), "gaussian", True)).layers
    pooled = layers[1].forward
    assert pooled.mean == pytest.approx(1.0293754, abs=SAMPLED)
    assert pooled.second_moment == pytest.approx(1.0293754**2 + 0.4917152, abs=2 * SAMPLED)
    assert layers[0].backward.second_moment == pytest.approx(1 / 4, rel=ROUNDING)
