"""Sizes of single points in single draws, and lengths of weights: what both do to variances, against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory.duals import apply_activation
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.forward import lifted
from varprop.simulator.theory.maps import by_offset
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sample import Sample, activated, normalised
from varprop.simulator.theory.sampling import draw_strayed
from varprop.simulator.theory.variance_law import quadratic_form_law
from varprop.tests.naive_engine import draw, run
from varprop.tests.tolerances import BEYOND, LEVELS_AHEAD, LEVELS_POOLED, LEVELS_TOGETHER, LEVELS_WINDOWED


def weights(law, draws, count, rng):
    """Weights of variance one, and their excess kurtosis."""
    normal = rng.standard_normal((draws, count))
    if law == "sphere":
        return normal * math.sqrt(count) / np.linalg.norm(normal, axis=1, keepdims=True), -2.0
    if law == "uniform":
        return rng.uniform(-math.sqrt(3), math.sqrt(3), (draws, count)), -1.2
    heavy = normal * np.where(rng.random((draws, count)) < 0.5, math.sqrt(1.5), math.sqrt(0.5))
    return heavy, 3 * 0.25


@pytest.mark.parametrize("law", ["sphere", "uniform", "mixture"])
@pytest.mark.parametrize("eps", [0.0, 0.3])
@pytest.mark.parametrize("count", [12, 48])
def test_weights_that_are_not_normal(law, eps, count):
    """E[1 / (v + eps)] and E[|w|^2 / (v + eps)], their covariance having a few large modes in any direction.

    Theory's is right to first order in kurtosis / count, and for the sphere without eps exactly.
    """
    rng = np.random.default_rng(7)
    modes = 0.8 ** np.arange(count) + 0.1
    modes /= modes.sum()
    found = []
    for _ in range(60):
        w, kurtosis = weights(law, 4000, count, rng)
        rotated = w @ np.linalg.qr(rng.standard_normal((count, count)))[0]
        inverse = 1 / (rotated**2 @ modes + eps)
        found.append([inverse.mean(), np.mean(inverse * np.sum(w**2, axis=1)) / count])
    theory = quadratic_form_law(modes, 0.0, 0.0, count, eps, excess_kurtosis=kurtosis)
    error = np.std(found, axis=0) / math.sqrt(len(found))
    left = 0.0 if law == "sphere" and not eps else (kurtosis / count) ** 2
    gaps = np.abs(np.mean(found, axis=0) - [theory.inverse, theory.weighted_inverse])
    assert (gaps < BEYOND * error + left * np.mean(found, axis=0)).all()


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize("samples", [16, 64])
def test_parts_of_a_variance(samples, eps):
    """What single points of several levels have of a channel's variance; all shares sum to one, whatever that level."""
    levels, draws, rng = np.array([0.1, 1.0, 4.0, 0.3 * samples]), 40000, np.random.default_rng(1)
    shares = 0.9 ** np.arange(samples - 1) + 0.2
    shares *= (1 - 1 / samples) / shares.sum()
    law = quadratic_form_law(np.append(shares, 1 / samples), 0.0, 0.0, samples, eps, points=levels, each=1 / samples)
    squares = rng.standard_normal((draws, samples)) ** 2
    others = squares[:, 1:] @ shares
    for level, expected in zip(levels, law.parts.T, strict=True):
        own = level / samples
        part = own * squares[:, 0] / (own * squares[:, 0] + others * (1 - own) / (1 - 1 / samples) + eps)
        for power, value in enumerate(expected, 1):
            error = np.std(part**power) / math.sqrt(draws)
            # The others' sizes enter to first order.
            assert abs(np.mean(part**power) - value) < BEYOND * error + 0.1 * own * value


def test_drawn_levels_keep_the_kernel():
    """A point's fourth moment grows by the levels' variance; what two positions have in common stays as it was."""
    side, levels = 4, 0.4
    rows, cols = np.divmod(np.arange(side * side), side)
    distance = np.hypot(rows[:, None] - rows, cols[:, None] - cols)
    same, spots = np.exp(-distance / 3), np.exp(-distance / 2)
    kernel = PairKernel(Layout.exchangeable(64), (side, side), np.stack([same, np.zeros_like(same)]))
    drawn = [
        draw_strayed(kernel, key, levels, by_offset(spots, kernel.size)).values.reshape(side * side, -1)
        for key in range(60)
    ]
    products = np.array([z @ z.T / z.shape[1] for z in drawn])
    error = products.std(axis=0) / math.sqrt(len(drawn))
    # Every draw is brought to the size of its kernel.
    assert (np.abs(products.mean(axis=0) - same) < BEYOND * error + 1e-3).all()
    fourth = np.array([np.mean(z**4) for z in drawn])
    assert abs(fourth.mean() - 3 * (1 + levels)) < BEYOND * fourth.std() / math.sqrt(len(drawn))


@pytest.mark.parametrize("function", ["relu", "relu6", "selu", "tanh"])
def test_duals_of_points_with_levels(function):
    """What two points of correlation c, and of levels that go together, have in common behind an activation."""
    phi, levels, own, other, together = activation(function), 0.4, 0.6, 0.1, 0.7
    layout, size = Layout.exchangeable(2), (1, 2)
    values = np.array([[[1.0, own], [own, 1.0]], [[other, other], [other, other]]])
    spots = np.array([[together, 1.0, together]])
    found = apply_activation(phi, PairKernel(layout, size, values), strayed=levels, spots=spots)
    kernel, slopes = (part.values[:, 0, 1] * math.exp(part.log_scale) for part in (found.kernel, found.derivative))
    rng, draws = np.random.default_rng(2), []
    for _ in range(100):
        rows = []
        for c, shared in ((own, together), (other, other**2)):
            total, part = math.log1p(levels), math.log1p(levels * shared)
            logs = rng.multivariate_normal([-total / 2] * 2, [[total, part], [part, total]], 20000)
            within = c / math.exp((part - total) / 4)
            normal = rng.multivariate_normal([0.0, 0.0], [[1.0, within], [within, 1.0]], 20000)
            z = np.exp(logs / 2) * normal
            z = np.concatenate([z, -z])
            rows += [np.mean(f(z[:, 0]) * f(z[:, 1])) for f in (phi.value, phi.derivative)]
        draws.append(rows)
    wanted, error = np.mean(draws, axis=0), np.std(draws, axis=0) / math.sqrt(len(draws))
    gaps = np.abs(np.array([kernel[0], slopes[0], kernel[1], slopes[1]]) - wanted)
    assert (gaps < BEYOND * error + LEVELS_TOGETHER * np.abs(wanted)).all()


def test_means_of_channels_lift_levels():
    """Behind a single weight ReLU makes more of a larger point's level: both its value and its mean were larger."""
    rng = np.random.default_rng(4)
    h = np.maximum(rng.standard_normal((1, 4000, 300)), 0.0)
    weighted = Sample(rng.standard_normal(300) * h)
    relu, step = activation("relu"), 1e-4
    sample = activated(normalised(weighted, 0.0, 1.0, 1.0), relu)
    middle, root = weighted.values.mean(axis=(0, 1)), np.sqrt(np.var(weighted.values, axis=(0, 1)))
    mean, found = sample.values.mean(axis=(0, 1)), []
    for level in (1 - step, 1 + step):
        y = (math.sqrt(level) * weighted.values - middle) / root
        found.append(np.mean((relu.value(y) - mean) ** 2))
    slope = (math.log(found[1]) - math.log(found[0])) / (2 * step)
    assert 1.0 + lifted(sample) == pytest.approx(slope, rel=1e-3)
    assert slope > 1.05


def mobile(blocks, size):
    """Depthwise layers between dense ones, with shortcuts."""
    net, init = NetworkBuilder("mobile", "torch", (3, size, size)), parse_initializer("he_normal")
    net.conv2d(16, 3, init)
    net.batch_norm()
    for _ in range(blocks):
        start = net.last
        net.conv2d(64, 1, init)
        net.batch_norm()
        net.activation("relu")
        net.conv2d(64, 3, init, groups=64)
        net.batch_norm()
        net.activation("relu")
        net.conv2d(16, 1, init)
        net.batch_norm()
        net.add([start, net.last])
    return net.build()


def spread_of_levels(values):
    """Variance of the mean square over channels at a point, over that of its means at positions; (draws, C, B, P)."""
    values = values - values.mean(axis=(2, 3), keepdims=True)
    levels = np.mean(values**2, axis=1)
    mean = levels.mean(axis=(0, 1))
    return np.mean((levels - mean) ** 2, axis=(1, 2)) / np.mean(mean**2)


@pytest.mark.parametrize("size", [4, 2])
def test_levels_go_through_depthwise_layers_and_shortcuts(size):
    """A sample that is large in one draw is so all over its map, and in branch and shortcut alike."""
    network, samples = mobile(3, size), 160
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    signals = _forward(network, batch, None)
    outputs = [run(network, batch.data, *draw(network, 1, trial, samples))[0] for trial in range(10)]
    for index, node in enumerate(network.nodes):
        if node.kind not in ("batch_norm", "add"):
            continue
        values = np.stack([np.moveaxis(out[index].reshape(samples, node.shape[0], -1), 1, 0) for out in outputs])
        found = spread_of_levels(values)
        gap = abs(signals[index].strays.levels - found.mean())
        assert gap < BEYOND * found.std() / math.sqrt(len(found)) + LEVELS_AHEAD * found.mean()


def residual(blocks, size):
    """Dense layers with shortcuts, and activations behind the sums."""
    net, init = NetworkBuilder("residual", "torch", (3, size, size)), parse_initializer("he_normal")
    net.conv2d(16, 1, init)
    net.batch_norm()
    net.activation("relu")
    for _ in range(blocks):
        start = net.last
        net.conv2d(16, 1, init)
        net.batch_norm()
        net.add([start, net.last])
        net.activation("relu")
    return net.build()


def test_levels_behind_activations_of_sums():
    """Channels of a sum have a mean: as if they had none, levels would be twice as large behind three sums."""
    network, samples = residual(3, 4), 120
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    signals = _forward(network, batch, None)
    outputs = [run(network, batch.data, *draw(network, 1, trial, samples))[0] for trial in range(30)]
    for index, node in enumerate(network.nodes):
        if node.kind == "activation" and network.nodes[node.inputs[0]].kind == "add":
            values = np.stack([np.moveaxis(out[index].reshape(samples, 16, -1), 1, 0) for out in outputs])
            found = spread_of_levels(values)
            gap = abs(signals[index].strays.levels - found.mean())
            assert gap < BEYOND * found.std() / math.sqrt(len(found)) + LEVELS_AHEAD * found.mean(), node.name


@pytest.mark.parametrize("size", [4, 8])
def test_levels_near_zero_padding(size):
    """Near the edges windows average over fewer points, but what comes there is small: it counts by its square."""
    net, init = NetworkBuilder("padded", "torch", (3, size, size)), parse_initializer("he_normal")
    net.conv2d(32, 3, init)
    net.batch_norm()
    last = net.activation("silu")
    network, samples = net.build(), 80
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    outputs = [run(network, batch.data, *draw(network, 1, trial, samples))[0][last] for trial in range(60)]
    values = np.stack([np.moveaxis(out.reshape(samples, 32, -1), 1, 0) for out in outputs])
    found = spread_of_levels(values)
    gap = abs(_forward(network, batch, None)[last].strays.levels - found.mean())
    assert gap < BEYOND * found.std() / math.sqrt(len(found)) + LEVELS_WINDOWED * found.mean()


@pytest.mark.parametrize("pool", ["average_pool", "max_pool"])
def test_levels_behind_poolings(pool):
    """What channels have in common is averaged there, their own squares are not."""
    net, init = NetworkBuilder("pooled", "torch", (3, 8, 8)), parse_initializer("he_normal")
    net.conv2d(16, 3, init)
    net.batch_norm()
    net.activation("silu")
    last = getattr(net, pool)(2, stride=2)
    network, samples = net.build(), 80
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    outputs = [run(network, batch.data, *draw(network, 1, trial, samples))[0][last] for trial in range(40)]
    values = np.stack([np.moveaxis(out.reshape(samples, 16, -1), 1, 0) for out in outputs])
    found, strays = spread_of_levels(values), _forward(network, batch, None)[last].strays
    gap = abs(strays.levels - found.mean())
    assert gap < BEYOND * found.std() / math.sqrt(len(found)) + LEVELS_POOLED * found.mean()
