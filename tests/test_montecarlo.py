import importlib.util
import math
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from varprop.simulator.activations import NAMES, activation
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.montecarlo import TrialMoments, schedule, simulate, simulate_trials
from varprop.simulator.montecarlo.aggregate import summarize
from varprop.simulator.montecarlo.pointwise import moments as row_moments
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    NetworkBuilder,
    ZeroPad,
)
from varprop.simulator.report import Batch

spec = importlib.util.spec_from_file_location("naive_engine", Path(__file__).with_name("naive_engine.py"))
naive = importlib.util.module_from_spec(spec)
spec.loader.exec_module(naive)

SAME_DRAWS = 1e-12  # two float64 engines that sum the same few hundred terms in different orders
FLOAT32 = 2e-5  # float32 rounding (6e-8) through a dozen layers, relative to a map's root mean square
WEIGHT = parse_initializer("normal(0.4)")
BIAS = parse_initializer("uniform(0.5)")


def gaussian(shape, batch, seed=0):
    return Batch(np.random.default_rng(seed).standard_normal((batch, *shape)), "gaussian", True)


def tail(net):
    """End a map in pooling and a linear layer with bias and normalisation, so that gradients differ by position."""
    net.global_average_pool()
    net.linear(5, WEIGHT, bias=BIAS)
    net.batch_norm()
    net.linear(3, WEIGHT)
    return net.build()


def convolutions():
    net = NetworkBuilder("convolutions", "torch", (4, 9, 8))
    net.conv2d(6, (3, 2), WEIGHT, stride=(2, 1), padding=(0, 2, 1, 0), bias=BIAS)
    net.conv2d(4, 3, WEIGHT, groups=2, padding=(1, 0, 2, 1))
    net.conv2d(8, 3, WEIGHT, groups=4, stride=2)  # depthwise, two outputs a channel
    net.conv2d(6, 1, WEIGHT)
    net.conv2d(6, 3, WEIGHT, groups=6, bias=BIAS)
    net.conv2d(4, 1, WEIGHT, stride=2)
    return net.build()


def single_channel():
    net = NetworkBuilder("single channel", "keras", (1, 6, 6))
    net.conv2d(3, 3, WEIGHT, stride=2)
    net.conv2d(1, (1, 3), WEIGHT, padding=(1, 1, 1, 1))  # pads more than the kernel reaches
    net.flatten()
    net.linear(2, WEIGHT)
    return net.build()


def pools():
    net = NetworkBuilder("pools", "torch", (3, 11, 10))
    net.zero_pad((1, 0, 2, 1))
    net.max_pool(3, stride=2)
    net.average_pool((2, 3), stride=(1, 2))
    net.max_pool(2, stride=1)
    return net.build()


def normalized():
    net = NetworkBuilder("normalized", "keras", (3, 6, 6))
    net.conv2d(4, 3, WEIGHT)
    net.batch_norm(eps=0.5)
    net.activation("relu6")
    net.conv2d(4, 3, WEIGHT, groups=4, stride=2)
    net.batch_norm()
    net.activation("tanh")
    return tail(net)


def chains():
    """Normalisations around windows: two kernels a channel, padding before the first link, averages, a plain link."""
    net = NetworkBuilder("chains", "keras", (3, 9, 8))
    net.zero_pad((1, 0, 2, 1))
    net.batch_norm(eps=0.3)
    net.conv2d(4, 1, WEIGHT)
    net.batch_norm()
    net.activation("gelu")
    net.conv2d(8, 3, WEIGHT, groups=4, stride=2)
    net.batch_norm(eps=0.1)
    net.activation("leaky_relu(0.2)")
    first = net.conv2d(5, 1, WEIGHT)
    net.batch_norm()
    net.conv2d(5, 3, WEIGHT, groups=5, padding=(1, 1, 1, 1))
    net.batch_norm()
    sum_ = net.add((net.last, first))
    net.batch_norm(source=sum_)
    net.activation("tanh")
    net.average_pool((2, 1))
    net.conv2d(5, 1, WEIGHT)
    net.batch_norm()
    net.activation("relu")
    return tail(net)


def branches():
    """One node read three times, one sum reading a node twice, and a node that leads nowhere."""
    net = NetworkBuilder("branches", "torch", (4, 5, 5))
    stem = net.conv2d(4, 3, WEIGHT)
    left = net.activation("relu", source=stem)
    net.batch_norm(source=stem)
    right = net.conv2d(4, 3, WEIGHT)
    total = net.add((stem, left, right))
    net.add((total, total, stem))
    last = net.activation("gelu")
    net.conv2d(2, 3, WEIGHT, source=stem, name="nowhere")
    net.global_average_pool(source=last)
    net.linear(2, WEIGHT)
    return net.build()


def function(name):
    net = NetworkBuilder(name, "torch", (7,))
    net.linear(6, parse_initializer("normal(1)"), bias=BIAS)
    net.activation(name)
    net.linear(3, WEIGHT)
    return net.build()


NETWORKS = [convolutions(), single_channel(), pools(), normalized(), chains(), branches(), *map(function, NAMES)]
NETWORKS.append(function("leaky_relu(0.2)"))


def assert_same_moments(fast, arrays, trial, tolerance):
    """Compare one trial's row with arrays, relative to each map's second moment."""
    for index, array in enumerate(arrays):
        mean, second_moment, variance = naive.moments(array)
        unit = 2.0 ** fast.exponent[trial, index]
        assert fast.second_moment[trial, index] * unit**2 == pytest.approx(second_moment, rel=tolerance, abs=0), index
        assert abs(fast.mean[trial, index] * unit - mean) <= tolerance * math.sqrt(second_moment), index
        assert abs(fast.variance[trial, index] * unit**2 - variance) <= tolerance * second_moment, index


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_fast_engine_is_the_naive_engine(network):
    batch = gaussian(network.nodes[0].shape, 5)
    forward, backward = simulate_trials(network, batch, trials=2, seed=7, dtype="float64")
    for trial in range(2):
        outputs, gradients = naive.run(network, batch.data, *naive.draw(network, 7, trial, 5))
        assert_same_moments(forward, outputs, trial, SAME_DRAWS)
        assert_same_moments(backward, gradients, trial, SAME_DRAWS)


@pytest.mark.parametrize("name", NAMES)
def test_one_sample_of_flat_data_is_the_naive_engine(name):
    """Every channel is a single number then."""
    network, batch = function(name), gaussian((7,), 1)
    forward, backward = simulate_trials(network, batch, trials=2, seed=7, dtype="float64")
    for trial in range(2):
        outputs, gradients = naive.run(network, batch.data, *naive.draw(network, 7, trial, 1))
        assert_same_moments(forward, outputs, trial, SAME_DRAWS)
        assert_same_moments(backward, gradients, trial, SAME_DRAWS)


@pytest.mark.parametrize("network", NETWORKS[:5], ids=lambda network: network.name)
def test_float32_is_float64_up_to_rounding(network):
    batch = gaussian(network.nodes[0].shape, 5)
    forward, backward = simulate_trials(network, batch, trials=1, seed=7, dtype="float32")
    outputs, gradients = naive.run(network, batch.data, *naive.draw(network, 7, 0, 5))
    assert_same_moments(forward, outputs, 0, FLOAT32)
    assert_same_moments(backward, gradients, 0, FLOAT32)


def test_convolutions_in_pieces_are_convolutions_whole(monkeypatch):
    network, batch = convolutions(), gaussian((4, 9, 8), 3)
    whole = simulate_trials(network, batch, trials=1, seed=0, dtype="float64")
    monkeypatch.setattr("varprop.simulator.montecarlo.convolution.COLUMNS_SIZE", 1)
    pieces = simulate_trials(network, batch, trials=1, seed=0, dtype="float64")
    for one, other in zip(whole, pieces, strict=True):
        np.testing.assert_allclose(one.log_second_moment, other.log_second_moment, atol=SAME_DRAWS)


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_naive_gradient_is_a_finite_difference(network):
    """The slope of the cotangent's loss along a random direction of the input, by central differences."""
    data = gaussian(network.nodes[0].shape, 4, seed=3).data
    parameters, cotangent = naive.draw(network, 11, 0, 4)
    direction = np.random.default_rng(5).standard_normal(data.shape)
    step = 1e-6  # error about step^2 from curvature, 1e-16 / step from rounding; kinks are missed

    def loss(shift):
        return (naive.run(network, data + shift * direction, parameters, cotangent)[0][-1] * cotangent).sum()

    slope = (loss(step) - loss(-step)) / (2 * step)
    gradient = naive.run(network, data, parameters, cotangent)[1][0]
    assert slope == pytest.approx((gradient * direction).sum(), rel=1e-6, abs=1e-6)


def torch_outputs(torch, network, data, parameters):
    """Run a network with torch's own operations, in float64, keeping every node's gradient."""
    F = torch.nn.functional
    functions = {
        "linear": lambda z: z * 1,
        "relu": F.relu,
        "leaky_relu": F.leaky_relu,
        "leaky_relu(0.2)": lambda z: F.leaky_relu(z, 0.2),
        "relu6": F.relu6,
        "elu": F.elu,
        "selu": F.selu,
        "sigmoid": torch.sigmoid,
        "tanh": torch.tanh,
        "erf": torch.erf,
        "gelu": F.gelu,
        "silu": F.silu,
        "hard_swish": F.hardswish,
    }
    outputs = [torch.tensor(data, requires_grad=True)]
    for node, drawn in zip(network.nodes[1:], parameters[1:], strict=True):
        x = [outputs[index] for index in node.inputs]
        operation = node.operation
        if drawn is not None:
            weight = torch.tensor(drawn.weight)
            bias = None if drawn.bias is None else torch.tensor(drawn.bias)
        match operation:
            case Linear():
                y = F.linear(x[0], weight, bias)
            case Conv2d(stride=stride, padding=(top, bottom, left, right), groups=groups):
                y = F.conv2d(F.pad(x[0], (left, right, top, bottom)), weight, bias, stride, groups=groups)
            case BatchNorm(eps=eps):
                y = F.batch_norm(x[0], None, None, training=True, eps=eps)
            case Activation(function=name):
                y = functions[name](x[0])
            case Add():
                y = sum(x)
            case AveragePool(kernel=kernel, stride=stride):
                y = F.avg_pool2d(x[0], kernel, stride)
            case MaxPool(kernel=kernel, stride=stride):
                y = F.max_pool2d(x[0], kernel, stride)
            case GlobalAveragePool():
                y = x[0].mean((2, 3))
            case Flatten():
                y = x[0].flatten(1)
            case ZeroPad(padding=(top, bottom, left, right)):
                y = F.pad(x[0], (left, right, top, bottom))
        y.retain_grad()
        outputs.append(y)
    return outputs


@pytest.mark.parametrize("network", NETWORKS, ids=lambda network: network.name)
def test_naive_engine_is_torch(network):
    torch = pytest.importorskip("torch")
    batch = gaussian(network.nodes[0].shape, 4)
    parameters, cotangent = naive.draw(network, 2, 0, 4)
    outputs, gradients = naive.run(network, batch.data, parameters, cotangent)
    expected = torch_outputs(torch, network, batch.data, parameters)
    expected[-1].backward(torch.tensor(cotangent.copy()))
    for index, (output, gradient) in enumerate(zip(outputs, gradients, strict=True)):
        np.testing.assert_allclose(output, expected[index].detach().numpy(), rtol=1e-10, atol=1e-11)
        wanted = np.zeros_like(gradient) if expected[index].grad is None else expected[index].grad.numpy()
        np.testing.assert_allclose(gradient, wanted, rtol=1e-10, atol=1e-11)


def test_ties_go_to_the_first_place():
    """All equal, padded at the top left: the first place of every window but one lies in the padding."""
    net = NetworkBuilder("ties", "torch", (2, 3, 3))
    net.zero_pad((1, 0, 1, 0))
    net.max_pool(2)
    network, batch = net.build(), Batch(np.zeros((3, 2, 3, 3)), "zeros", False)
    _, backward = simulate_trials(network, batch, trials=1, seed=0, dtype="float64")
    _, cotangent = naive.draw(network, 0, 0, 3)
    expected = (cotangent[:, :, 1, 1] ** 2).sum() / batch.data.size
    assert backward.second_moment[0, 0] == pytest.approx(expected, rel=SAME_DRAWS)


def test_relu_at_exactly_zero_sends_nothing_back():
    net = NetworkBuilder("zeros", "torch", (4,))
    net.linear(3, WEIGHT)
    net.activation("relu")
    layers = simulate(net.build(), Batch(np.zeros((3, 4)), "zeros", False), trials=2, seed=0).layers
    assert layers[2].backward.second_moment > 0
    assert layers[1].backward.second_moment == 0
    assert layers[1].backward.log_second_moment == -math.inf
    assert layers[1].backward.log_second_moment_mean is None


def test_zero_weights_give_exactly_zero():
    net = NetworkBuilder("zero", "torch", (3, 8, 8))
    net.conv2d(3, 3, parse_initializer("zeros"))
    net.batch_norm()
    net.activation("relu")
    layers = simulate(net.build(), gaussian((3, 8, 8), 1), trials=2, seed=0).layers
    assert [layer.forward.second_moment for layer in layers[1:]] == [0, 0, 0]
    assert [layer.backward.second_moment for layer in layers[:3]] == [0, 0, 0]


@pytest.mark.parametrize("network", [normalized(), chains(), branches()], ids=lambda network: network.name)
def test_threads_change_no_bit(network):
    batch = gaussian(network.nodes[0].shape, 6)
    runs = [simulate_trials(network, batch, trials=12, seed=3, threads=threads) for threads in (1, 2, 4)]
    for forward, backward in runs[1:]:
        for one, other in ((runs[0][0], forward), (runs[0][1], backward)):
            for field in ("mean", "second_moment", "variance", "exponent"):
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_seeds_differ_and_trials_extend():
    network = function("relu")
    batch = gaussian((7,), 4)
    short = simulate_trials(network, batch, trials=3, seed=1)[1].second_moment
    long = simulate_trials(network, batch, trials=5, seed=1)[1].second_moment
    other = simulate_trials(network, batch, trials=3, seed=2)[1].second_moment
    np.testing.assert_array_equal(short, long[:3])
    assert len(np.unique(np.concatenate([long[:, 0], other[:, 0]]))) == 8


def mlp(activations, width, depth, initializer, n_in=None):
    net = NetworkBuilder("mlp", "torch", (n_in or width,))
    for _ in range(depth):
        net.linear(width, parse_initializer(initializer))
        net.activation(activations)
    return net.build()


@pytest.mark.parametrize(("name", "slope"), [("linear", 1.0), ("relu", 0.0), ("leaky_relu(0.2)", 0.2)])
def test_means_are_the_exact_recurrence(name, slope):
    """Weights of variance v from n: q -> n v q, then (1 + slope^2) / 2; gradients alike with n outputs; exact at any n.

    He et al. 2015, eqs. 7 and 13. z-scores are pooled over seeds: their mean square is 1 if the standard errors are
    right (heavy tails and shared draws leave it within a factor of two).
    """
    width, depth, std, batch = 24, 4, 0.3, 3
    gains = [width * std**2, (1 + slope**2) / 2] * depth
    network = mlp(name, width, depth, f"normal({std})")
    scores = []
    for seed in range(12):
        data = gaussian((width,), batch, seed)
        layers = simulate(network, data, trials=150, seed=seed).layers
        forward = (data.data**2).mean() * np.cumprod([1.0, *gains])
        backward = np.cumprod([1.0, *gains[::-1]])[::-1]
        for layer, q, g in zip(layers, forward, backward, strict=True):
            for moments, exact in ((layer.forward, q), (layer.backward, g)):
                if moments.standard_error:
                    scores.append((moments.second_moment - exact) / moments.standard_error)
    scores = np.array(scores)
    assert len(scores) == 12 * 17
    assert np.mean(np.abs(scores) > 4) <= 0.01
    assert 0.5 < np.mean(scores**2) < 2


def test_logs_of_a_linear_network_are_the_exact_law():
    """|x_L|^2 / |x_0|^2 is a product of chi^2_n: log mean psi(n/2) + ln(2 v) a layer, log variance psi_1(n/2)."""
    width, depth, std, trials = 20, 30, 0.1, 400
    network = mlp("linear", width, depth, f"normal({std})")
    batch = gaussian((width,), 1)
    layers = simulate(network, batch, trials=trials, seed=0).layers
    for count in (1, 10, 30):
        mean = math.log((batch.data**2).mean()) + count * (special.digamma(width / 2) + math.log(2 * std**2))
        sd = math.sqrt(count * special.polygamma(1, width / 2))
        moments = layers[2 * count].forward
        assert abs(moments.log_second_moment_mean - mean) < 4 * sd / math.sqrt(trials)
        assert abs(moments.log_second_moment_sd / sd - 1) < 4 / math.sqrt(2 * trials)


def test_error_falls_as_one_over_root_trials():
    network = mlp("relu", 8, 1, "normal(0.5)")
    batch = gaussian((8,), 2)
    values = simulate_trials(network, batch, trials=6144, seed=1)[0].second_moment[:, -1]
    exact = (batch.data**2).mean() * 8 * 0.25 / 2
    counts = np.array([4, 8, 16, 32, 64])
    errors = [math.sqrt(((values.reshape(-1, n).mean(axis=1) - exact) ** 2).mean()) for n in counts]
    slope = np.polyfit(np.log(counts), np.log(errors), 1)[0]
    # 6144 / n blocks know their deviation to 1 / sqrt(2 * 6144 / n), at most 7%: over ln 16 that is .025 of slope.
    assert abs(slope + 0.5) < 4 * 0.025
    assert simulate(network, batch, trials=64, seed=1).layers[-1].forward.standard_error == pytest.approx(
        values[:64].std(ddof=1) / 8, rel=1e-12
    )


@pytest.mark.parametrize("std", [0.05, 1.5])
@pytest.mark.parametrize(("name", "half", "spread"), [("linear", 1.0, 2.0), ("relu", 0.5, 5.0)])
def test_depth_1000_stays_finite(name, half, spread, std):
    """One sample's log second moment is normal: variance `spread` / n a layer, mean half of that below the mean's log.

    (Hanin and Nica 2019 for ReLU; to first order in 1/n, and the next order is a few units here against a deviation
    of 5 to 7 over the mean of three trials.)
    """
    width, depth, trials = 32, 1000, 3
    batch = gaussian((width,), 1)
    layers = simulate(mlp(name, width, depth, f"normal({std})"), batch, trials=trials, seed=0).layers
    last = layers[-1].forward
    typical = math.log((batch.data**2).mean()) + depth * (math.log(half * width * std**2) - spread / (2 * width))
    sd = math.sqrt(depth * spread / width / trials)
    assert abs(last.log_second_moment_mean - typical) < 4.5 * sd
    assert math.isfinite(last.log_second_moment)
    assert all(math.isfinite(layer.backward.log_second_moment_mean) for layer in layers)
    assert (last.second_moment == 0) if std == 0.05 else (last.second_moment == math.inf)


@pytest.mark.parametrize("scale", ["1e-13", "1e13"])
@pytest.mark.parametrize("name", ["gelu", "tanh", "relu"])
def test_powers_of_two_pass_through_every_operation(name, scale):
    """Beyond float32's range, in float32, against float64 with the same draws: means of maps of 1e-52 and 1e52."""
    net = NetworkBuilder("scales", "keras", (6, 4, 4))
    tiny = [net.conv2d(6, 1, parse_initializer(f"normal({scale})")) for _ in range(4)]
    net.activation(name)
    sums = [net.add((net.last, tiny[0], tiny[3])), net.add((tiny[3], net.last))]
    net.batch_norm(source=sums[0])
    net.conv2d(6, 1, WEIGHT, bias=parse_initializer(f"normal({scale})"), source=sums[1])
    net.max_pool(2)
    net.average_pool(2)
    net.batch_norm()
    net.flatten()
    net.linear(3, WEIGHT, bias=BIAS)
    network, batch = net.build(), gaussian((6, 4, 4), 5)
    forward, backward = simulate_trials(network, batch, trials=1, seed=0, dtype="float32")
    outputs, gradients = naive.run(network, batch.data, *naive.draw(network, 0, 0, 5))
    assert not 1e-45 < np.sqrt(naive.moments(outputs[tiny[3]])[1]) < 1e45
    assert_same_moments(forward, outputs, 0, FLOAT32)
    assert_same_moments(backward, gradients, 0, FLOAT32)


@pytest.mark.parametrize("name", ["gelu", "tanh", "relu", "log(1 + x**2)"])
@pytest.mark.parametrize("scale", ["1e-16", "1e16"])
def test_normalised_far_from_one(name, scale):
    """An eps that dwarfs the variance leaves a small map behind a power of two, which few activations can take."""
    net = NetworkBuilder("small", "torch", (5, 4, 4))
    net.conv2d(6, 1, parse_initializer(f"normal({scale})"))
    net.batch_norm(eps=1e-8)
    net.activation(name)
    net.conv2d(4, 3, WEIGHT)
    net.batch_norm(eps=0.0)
    net.batch_norm()
    net.activation("relu")
    network, batch = net.build(), gaussian((5, 4, 4), 4)
    forward, backward = simulate_trials(network, batch, trials=2, seed=0)
    for trial in range(2):
        outputs, gradients = naive.run(network, batch.data, *naive.draw(network, 0, trial, 4))
        assert_same_moments(forward, outputs, trial, FLOAT32)
        assert_same_moments(backward, gradients, trial, FLOAT32)


@pytest.mark.parametrize("scale", [1.0, 1e-25, 1e-12, 1e12, 1e30])
def test_moments_of_rows_at_every_scale(scale):
    """Rows of several pieces in float32: far from zero mean, squares outside float32's range, and constant."""
    rows = np.random.default_rng(0).standard_normal((2, 4, 1300)) * scale
    rows[:, 1] += 1000 * scale
    rows[:, 2] = 3 * scale
    rows = rows.astype(np.float32)
    mean, variance, summary = np.empty((2, 4)), np.empty((2, 4)), np.empty((2, 3))
    row_moments(rows.reshape(-1), 2, 4, mean, variance, summary)
    exact = rows.astype(np.float64)
    np.testing.assert_allclose(mean, exact.mean(axis=2), rtol=1e-6, atol=1e-6 * scale)
    np.testing.assert_allclose(variance, exact.var(axis=2), rtol=1e-5)
    assert (variance[:, 2] == 0).all()
    np.testing.assert_allclose(summary[:, 1], (exact**2).mean(axis=(1, 2)), rtol=1e-6)
    nothing = np.empty((0, 0))
    row_moments(rows.reshape(-1), 2, rows[0].size, nothing, nothing, summary)
    np.testing.assert_allclose(summary[:, 1], (exact**2).mean(axis=(1, 2)), rtol=1e-6)
    assert (summary[:, 2] == 0).all()


@pytest.mark.parametrize(
    ("name", "std", "start", "same_as", "log_factor"),
    [
        ("gelu", "0.01", 1e-9, "linear", -2 * math.log(2)),
        ("tanh", "0.01", 1e-9, "linear", 0.0),
        ("selu", "0.01", 1e-9, "leaky_relu(1.6732632423543772)", 2 * math.log(1.0507009873554805)),
        ("gelu", "100", 1e9, "relu", 0.0),
    ],
)
def test_activations_far_from_one_are_half_lines(name, std, start, same_as, log_factor):
    """From float64's range to far outside it, in float32, with the draws of the network of half-lines."""
    width, depth = 16, 500
    data = Batch(gaussian((width,), 3).data * start, "scaled", False)
    activations = [
        simulate_trials(mlp(function, width, depth, f"normal({std})"), data, trials=1, seed=0)
        for function in (name, same_as)
    ]
    count = np.arange(2 * depth + 1) // 2  # activations before each node, and after it
    forward, backward = (
        one.log_second_moment[0] - other.log_second_moment[0] for one, other in zip(*activations, strict=True)
    )
    np.testing.assert_allclose(forward, log_factor * count, atol=2e-3)
    np.testing.assert_allclose(backward, log_factor * (depth - count), atol=2e-3)
    assert np.abs(activations[0][0].log_second_moment).max() > 2 * 709


def test_averages_over_trials_with_different_powers_of_two():
    """Against averages of the plain numbers; a common power far outside float64 moves nothing but the logs."""
    rng = np.random.default_rng(0)
    mean, variance = rng.standard_normal((9, 2)), rng.uniform(0.5, 2, (9, 2))
    exponent = rng.integers(-6, 7, (9, 2))
    plain = (mean**2 + variance) * 4.0**exponent
    none = np.empty((9, 0)), ((), ())
    moments = TrialMoments(mean, mean**2 + variance, variance, exponent, *none)
    far = TrialMoments(mean, mean**2 + variance, variance, exponent + 5000, *none)
    for node, layer in enumerate(summarize(moments, far)):
        near, log_power = layer.forward, 10_000 * math.log(2)
        assert near.mean == pytest.approx((mean * 2.0**exponent)[:, node].mean(), rel=1e-12)
        assert near.second_moment == pytest.approx(plain[:, node].mean(), rel=1e-12)
        assert near.variance == pytest.approx((variance * 4.0**exponent)[:, node].mean(), rel=1e-12)
        assert near.standard_error == pytest.approx(plain[:, node].std(ddof=1) / 3, rel=1e-12)
        assert near.log_second_moment == pytest.approx(math.log(plain[:, node].mean()), rel=1e-12)
        assert near.log_second_moment_mean == pytest.approx(np.log(plain[:, node]).mean(), rel=1e-12)
        assert near.log_second_moment_sd == pytest.approx(np.log(plain[:, node]).std(ddof=1), rel=1e-12)
        assert layer.backward.second_moment == math.inf
        assert layer.backward.log_second_moment == pytest.approx(near.log_second_moment + log_power, rel=1e-12)
        assert layer.backward.log_second_moment_sd == pytest.approx(near.log_second_moment_sd, rel=1e-9)


def test_progress_and_settings():
    seen = []
    network = function("relu")
    report = simulate(
        network, gaussian((7,), 4), trials=5, seed=9, threads=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(done, 5) for done in range(1, 6)]
    assert report.engine == "monte-carlo"
    assert report.settings["seed"] == 9
    assert report.layers[0].forward.standard_error == 0
    assert report.layers[1].forward.trials == 5
    assert simulate(network, gaussian((7,), 4), trials=1, seed=0).layers[1].forward.standard_error is None


def test_an_interrupt_ends_the_run():
    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(function("relu"), gaussian((7,), 4), trials=10_000, seed=0, progress=stop)


def test_an_interrupt_while_blocks_are_handed_out_leaves_them_undone(monkeypatch):
    submit, handed, ran = ThreadPoolExecutor.submit, [], []

    def interrupted(self, block, *arguments):
        if len(handed) == 20:
            raise KeyboardInterrupt
        handed.append(arguments)
        return submit(self, block, *arguments)

    def slow(*arguments):
        ran.append(arguments)
        time.sleep(0.1)

    monkeypatch.setattr(ThreadPoolExecutor, "submit", interrupted)
    monkeypatch.setattr(schedule, "run_trials", slow)
    with pytest.raises(KeyboardInterrupt):
        simulate(function("relu"), gaussian((7,), 4), trials=10**6, seed=0, threads=1)
    assert len(ran) < len(handed)


def interrupt_after(trials):
    def stop(done, total):
        if done >= trials:
            raise KeyboardInterrupt

    return stop


def test_an_interrupted_run_keeps_its_trials():
    network, batch = function("relu"), gaussian((7,), 4)
    report = simulate(
        network, batch, trials=10_000, seed=0, threads=1, progress=interrupt_after(100), keep_interrupted=True
    )
    done = report.settings["trials"]
    assert report.settings["interrupted"]
    assert 100 <= done < 10_000
    assert report.layers == simulate(network, batch, trials=done, seed=0).layers


def test_runs_until_precise_whatever_the_threads():
    network, batch = function("relu"), gaussian((7,), 4)
    seen = []
    reports = [
        simulate(
            network,
            batch,
            trials=100_000,
            seed=2,
            threads=threads,
            precision=0.02,
            progress=lambda done, expected: seen.append((done, expected)),
        )
        for threads in (1, 2, 4)
    ]
    first = reports[0]
    assert [report.layers for report in reports[1:]] == [first.layers] * 2
    errors = [
        moments.standard_error / moments.second_moment
        for layer in first.layers
        for moments in (layer.forward, layer.backward)
    ]
    assert max(errors) == pytest.approx(first.settings["relative_error"], rel=1e-9)
    assert 0.01 < max(errors) <= 0.02
    fewer = simulate(network, batch, trials=first.settings["trials"] * 4 // 5, seed=2)
    assert fewer.settings["relative_error"] > 0.02
    done, expected = zip(*seen, strict=True)
    assert all(one <= other for one, other in zip(done, expected, strict=True))
    assert expected[len(seen) // 6] < 2 * first.settings["trials"]


def test_precision_is_bounded_by_trials():
    report = simulate(function("relu"), gaussian((7,), 4), trials=40, seed=0, precision=1e-4)
    assert report.settings["trials"] == 40
    assert report.settings["relative_error"] > 1e-4
    assert not report.settings["interrupted"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": 0}, "trials: got 0"),
        ({"seed": -1}, "seed: got -1"),
        ({"seed": 2**64}, "seed"),
        ({"threads": 0}, "threads: got 0"),
    ],
)
def test_counts_out_of_range(change, message):
    with pytest.raises(UserError, match=message):
        simulate(function("relu"), gaussian((7,), 4), **({"trials": 2, "seed": 0} | change))


def test_batches_that_do_not_fit():
    with pytest.raises(UserError, match=r"batch shape: got \(4, 6\), expected \(batch, 7\)"):
        simulate(function("relu"), gaussian((6,), 4), trials=1, seed=0)
    with pytest.raises(UserError, match="NaN or infinity"):
        simulate(function("relu"), Batch(np.full((2, 7), np.nan), "broken", False), trials=1, seed=0)
    with pytest.raises(UserError, match="a single value per channel"):
        simulate(normalized(), gaussian((3, 6, 6), 1), trials=1, seed=0)


def test_compilation_is_announced_when_the_cache_is_cold(tmp_path):
    program = (
        "from varprop.simulator.initializers import parse_initializer\n"
        "from varprop.simulator.montecarlo import compile_kernels\n"
        "from varprop.simulator.network import NetworkBuilder\n"
        "net = NetworkBuilder('n', 'torch', (4,))\n"
        "net.linear(3, parse_initializer('he_normal'))\n"
        "compile_kernels(net.build(), announce=lambda: print('compiling'))\n"
    )
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    said = [
        subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
        for _ in range(2)
    ]
    assert [run.stdout for run in said] == ["compiling\n", ""]


def test_derivatives_at_kinks_are_the_left_ones():
    for name, places in (("relu", [0.0]), ("leaky_relu(0.2)", [0.0]), ("relu6", [0.0, 6.0])):
        for place in places:
            net = NetworkBuilder("kink", "torch", (4,))
            net.activation(name)
            batch = Batch(np.full((3, 4), place), "kink", False)
            layers = simulate(net.build(), batch, trials=1, seed=0, dtype="float64").layers
            slope = activation(name).derivative(place)
            assert layers[0].backward.second_moment == pytest.approx(
                float(slope**2) * layers[1].backward.second_moment, rel=1e-14
            )
