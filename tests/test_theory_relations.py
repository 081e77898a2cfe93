"""The way back through one channel around a depthwise layer: against the matrices written out, and against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.compare import compare
from varprop.simulator.initializers import WeightLaw, parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Batch
from varprop.simulator.theory import predict
from varprop.simulator.theory.depthwise import Taps
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.opposition import within
from varprop.simulator.theory.relations import _passed, _passed_alike, _Sent, _unchanged, relations
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.stencils import Stencils
from varprop.tests.tolerances import BEYOND, OPPOSED_WITHIN, ROUNDING, STEP_AT_POOLING

SIZE, WINDOW = (3, 2), Window((3, 3), (1, 1), (1, 1, 1, 1))
POINTS = SIZE[0] * SIZE[1]


def channel(samples, seed=0):
    """Weights, slopes of either sign and a normalised output of two channels: what every field here is made of."""
    rng = np.random.default_rng(seed)
    weights = rng.standard_normal((9, 2))
    slopes = tuple((rng.random((POINTS, samples, 2)) > 0.4).astype(float) for _ in range(2))
    y = rng.standard_normal((POINTS, samples, 2)) + slopes[0]
    y -= y.mean(axis=(0, 1))
    return weights, slopes, y / np.sqrt(np.mean(y**2, axis=(0, 1)))


def written_out(weights, slopes, y, between):
    """Diagonal of W' P D M D P W for one channel, shape (positions, samples); `between` is M."""
    samples, flat = y.shape[1], y.T.ravel()  # points in the order (sample, position)
    matrix = np.zeros((POINTS, POINTS))
    for tap, under in enumerate(WINDOW.index(SIZE)):
        for output, source in enumerate(under):
            if source >= 0:
                matrix[output, source] += weights[tap]
    whole = np.kron(np.eye(samples), matrix)
    projected = np.eye(len(flat)) - (np.ones((len(flat),) * 2) + np.outer(flat, flat)) / len(flat)
    found = np.zeros(len(flat))
    for s in slopes:
        way = whole.T @ projected @ np.diag(s.T.ravel())
        found += np.diag(way @ between @ way.T) / 2
    return found.reshape(samples, POINTS).T


def ways(samples):
    weights, slopes, y = channel(samples)
    square = (slopes[0] ** 2 + slopes[1] ** 2) / 2
    return weights, slopes, y, square, _Sent.by(Stencils(weights, WINDOW, SIZE).back, slopes, square, y)


@pytest.mark.parametrize("samples", [2, 5])
def test_gradients_alike_all_over_a_map(samples):
    """Of any number of samples, whatever the slopes and their means: with weights between, and without."""
    weights, slopes, y, square, sent = ways(samples)
    centred = (np.eye(samples) - 1 / samples) / (1 - 1 / samples)
    between = np.kron(centred, np.ones((POINTS, POINTS)))
    alone = np.zeros((9, 2))
    alone[4] = 1.0
    for kernel, way in ((weights, sent), (alone, _Sent.by(_unchanged, slopes, square, y))):
        found = _passed_alike(way, slopes, y, POINTS * samples)
        for c in range(2):
            expected = written_out(kernel[:, c], [s[..., c] for s in slopes], y[..., c], between)
            np.testing.assert_allclose(found[..., c], expected, atol=1e-12)


@pytest.mark.parametrize("samples", [2, 5])
def test_white_gradients(samples):
    """Without their mean over all points."""
    weights, slopes, y, square, sent = ways(samples)
    count = POINTS * samples
    found = _passed(sent, slopes, square, y, count)
    for c in range(2):
        expected = written_out(weights[:, c], [s[..., c] for s in slopes], y[..., c], np.eye(count) - 1 / count)
        np.testing.assert_allclose(found[..., c], expected, atol=1e-12)


@pytest.mark.parametrize("images", [False, True])
def test_what_positions_differ_by_relates_nothing(images):
    """Slopes of either side that are functions of the place alone: kernels multiply these place by place."""
    channels, samples, rng = 8, 4, np.random.default_rng(0)
    law = WeightLaw("normal", 0.0, 1 / 3, np.inf, 0.0, 9, 9)
    before, behind = (rng.uniform(0.5, 2.0, (POINTS, 1, 1)) for _ in range(2))
    source = Sample(
        rng.standard_normal((POINTS, samples, channels)), slopes=np.broadcast_to(before, (POINTS, samples, channels))
    )
    both = np.broadcast_to(behind, (POINTS, samples, 2 * channels))
    after = Sample(rng.standard_normal(both.shape), slopes=both)
    taps = Taps(np.broadcast_to(np.eye(9), (channels, 9, 9)), law, WINDOW, source, {}, SIZE)
    found = relations(taps, SIZE, after, POINTS * samples, None, images, 0.0, 0.0, 0.0)
    np.testing.assert_allclose((found.tilt, found.reweigh, found.gates), 1.0, rtol=ROUNDING)


def test_depthwise_layers_behind_global_pooling():
    """Gradients of few samples, alike at all positions: without their mean the other normalisations leave them."""
    net = NetworkBuilder("pooled", "torch", (32, 3, 3))
    init = parse_initializer("he_normal")
    for _ in range(2):
        net.conv2d(96, 1, init)
        net.batch_norm()
        net.activation("relu6")
        net.conv2d(96, 3, init, groups=96)
        net.batch_norm()
        net.activation("relu6")
        net.conv2d(64, 1, init)
        net.batch_norm()
    net.conv2d(256, 1, init)
    net.batch_norm()
    net.activation("relu6")
    net.global_average_pool()
    net.linear(16, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, 8, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=300, seed=1)).steps
    gaps = [abs(row.relative) * (1 - BEYOND / max(abs(row.z), BEYOND)) for row in (s.agreement for s in found)]
    assert max(gaps) < STEP_AT_POOLING


@pytest.mark.parametrize("stride", [1, 2])
def test_zero_padding_behind_a_depthwise_normalisation(stride):
    """ReLU's mean is missing at a map's edges: what is left there once a channel's mean is gone, by place.

    On a map of more positions than kernels are carried on, and on one of fewer that comes from such a map.
    """
    side, samples, channels = 20, 16, 256
    net = NetworkBuilder("padded", "torch", (16, side, side))
    init = parse_initializer("he_normal")
    net.conv2d(channels, 1, init)
    net.batch_norm()
    net.activation("relu")
    net.conv2d(channels, 3, init, stride=stride, groups=channels)
    net.batch_norm()
    net.conv2d(16, 1, init)
    network = net.build()
    rng = np.random.default_rng(1)
    # Signs, whose second moment is one at every position.
    signs = rng.choice([-1.0, 1.0], (samples, *network.nodes[0].shape))
    signal = _forward(network, Batch(signs, "signs", True), None)[5]
    assert (signal.amplitude is None) == (stride == 2)
    level = signal.kernel.diagonal[0].reshape(signal.kernel.size) if signal.amplitude is None else signal.amplitude
    level = level / level.mean()
    x = np.maximum(rng.standard_normal((samples, channels, side + 2, side + 2)), 0.0)
    for edge in (x[:, :, 0], x[:, :, -1], x[..., 0], x[..., -1]):
        edge[:] = 0.0
    w = rng.standard_normal((9, 1, channels, 1, 1))
    z = sum(w[3 * i + j] * x[:, :, i : i + side, j : j + side] for i in range(3) for j in range(3))
    z = z[:, :, ::stride, ::stride]
    z -= z.mean(axis=(0, 2, 3), keepdims=True)
    square = np.mean(z**2, axis=0)
    square /= square.mean(axis=(1, 2), keepdims=True)
    for where in ((0, slice(1, -1)), (0, 0), (slice(2, -2), slice(2, -2))):
        found = square[(slice(None), *where)].reshape(channels, -1).mean(axis=1)
        error = found.std() / math.sqrt(channels)
        assert abs(found.mean() - level[where].mean()) < BEYOND * error


@pytest.mark.parametrize("opposition", [0.5, 2.5])
def test_gradients_opposed_within_a_channel(opposition):
    """Channels that vary more have a smaller gradient: the diagonal of (1 + w S)^-1 by the channels' variances.

    Without the other channels it would fall off by 14% too much with the larger opposition.
    """
    rng, channels, points, draws = np.random.default_rng(2), 32, 24, 300
    sizes = np.exp(0.4 * rng.standard_normal((draws, channels, 1)))
    fields = np.sqrt(sizes / points) * rng.standard_normal((draws, channels, points))
    covariance = fields @ fields.transpose(0, 2, 1)
    covariance *= channels / np.trace(covariance, axis1=1, axis2=2)[:, None, None]
    v = np.diagonal(covariance, axis1=1, axis2=2)
    squares = np.sum(covariance**2, axis=(1, 2)) - np.sum(v**2, axis=1)
    alike = float(squares.mean()) / (channels * (channels - 1))
    t = np.linalg.inv(np.eye(channels) + 2 * opposition / channels * covariance)
    met = np.diagonal(t, axis1=1, axis2=2)
    taken = 1.0 / (1.0 + opposition * within(opposition, channels, alike) * v)
    slopes = [np.mean((v - 1) * (field / field.mean() - 1), axis=1) for field in (met, taken)]
    error = slopes[0].std() / math.sqrt(draws)
    assert abs(slopes[0].mean() - slopes[1].mean()) < BEYOND * error + OPPOSED_WITHIN * abs(slopes[0].mean())
