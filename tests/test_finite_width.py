"""Spread of log second moments over weight draws: exact laws, rates in 1 / width, and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import digamma, polygamma

from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Network, NetworkBuilder
from varprop.simulator.quadrature import gaussian_dual
from varprop.simulator.report import Moments, Report
from varprop.simulator.theory import predict
from varprop.simulator.theory.fluctuations import Fluctuations
from varprop.simulator.theory.pair_series import mean_square_correlation, pair_mean, square_series
from varprop.simulator.theory.pairs import Layout, PairKernel

HE = parse_initializer("he_normal")
LECUN = parse_initializer("lecun_normal")
SIGMAS = 4.0
"""Deviations of the Monte Carlo that a comparison allows, as everywhere in these tests."""


def chain(widths: list[int], function: str, init: str = "he_normal") -> Network:
    net = NetworkBuilder("chain", "torch", (widths[0],))
    for width in widths[1:]:
        net.linear(width, parse_initializer(init))
        net.activation(function)
    return net.build()


def theory(network: Network, batch: int = 1) -> Report:
    return predict(network, load_batch("gaussian", network.nodes[0].shape, batch, 0, None))


def variance(moments: Moments) -> float:
    assert moments.log_second_moment_sd is not None
    return moments.log_second_moment_sd**2


def test_result_9_linear_layers_follow_the_exact_digamma_law() -> None:
    widths = [7, 20, 33, 5, 64]
    network = chain(widths, "linear")
    report = theory(network)
    for layer in range(1, len(widths)):
        row = report.layers[2 * layer]
        for moments, some in ((row.forward, widths[1 : layer + 1]), (row.backward, widths[layer:])):
            assert moments.log_second_moment_mean is not None
            shift = moments.log_second_moment_mean - moments.log_second_moment
            assert variance(moments) == pytest.approx(sum(float(polygamma(1, n / 2)) for n in some), rel=1e-12)
            assert shift == pytest.approx(sum(float(digamma(n / 2)) - math.log(n / 2) for n in some), rel=1e-11)


def test_result_9_relu_adds_five_over_width_a_layer() -> None:
    """Hanin & Nica 2020, theorem 1: Var log = 5 sum 1/n + O(sum 1/n^2), both ways."""
    depth = 6
    errors = []
    for width in (50, 100, 200, 400):
        report = theory(chain([width] * (depth + 1), "relu"))
        forward, backward = variance(report.layers[-1].forward), variance(report.layers[0].backward)
        # Backward starts with the cotangent, of 2 / n, and ends without a gate.
        errors.append((forward / (5 * depth / width) - 1, (backward - 2 / width) / (5 * depth / width) - 1))
    for gap in np.array(errors).T:
        slope = np.polyfit(np.log([50, 100, 200, 400]), np.log(np.abs(gap)), 1)[0]
        assert slope == pytest.approx(-1.0, abs=0.05)
        assert abs(gap[-1]) < 0.01


def test_rotations_keep_lengths() -> None:
    report = theory(chain([16, 16, 32], "linear", "orthogonal"))
    assert report.layers[2].forward.log_second_moment_sd == pytest.approx(0.0, abs=1e-7)
    assert report.layers[4].forward.log_second_moment_sd == pytest.approx(0.0, abs=1e-7)


@pytest.mark.parametrize("batch", [1, 2])
def test_branches_of_one_map_fluctuate_together(batch: int) -> None:
    """z + W z of Gaussian W: given z, the squared length is non-central chi-squared: 1.5 <c^2> / n."""
    width, blocks = 4096, 3
    net = NetworkBuilder("residual", "torch", (width,))
    for _ in range(blocks):
        last = net.last
        net.add([last, net.linear(width, LECUN, source=last)])
    network = net.build()
    data = load_batch("gaussian", (width,), batch, 0, None)
    report = predict(network, data)
    gram = data.data @ data.data.T
    shared = float(np.mean(gram**2)) / float(np.mean(np.diag(gram))) ** 2
    step = 1.5 * shared / width
    # Left out by the reference: what the correlation of samples strays in a block, of order 1 / n.
    assert variance(report.layers[-1].forward) == pytest.approx(blocks * step, rel=10 / width)
    cotangent = 2 / (batch * width)
    assert variance(report.layers[0].backward) == pytest.approx(
        cotangent + blocks * 1.5 / (batch * width), rel=10 / width
    )


@pytest.mark.parametrize("name", ["relu", "leaky_relu(0.2)", "tanh", "gelu", "selu", "relu6", "sigmoid"])
@pytest.mark.parametrize("q", [0.3, 1.0, 4.0])
def test_series_of_squares_match_quadrature(name: str, q: float) -> None:
    function = activation(name)
    # The grid of variances is 1 / 32 wide in log q: compare at its points.
    q = math.exp(round(32 * math.log(q)) / 32)
    kernel = PairKernel(Layout.exchangeable(1), (1, 1), np.full((1, 1, 1), q))
    squares = square_series(function, kernel)
    for c in (-0.7, 0.0, 0.4, 0.8):
        for what, series, slope in (
            (function.value, squares.series, squares.slope),
            (function.derivative, squares.gates, squares.gate_slope),
        ):
            apart, pair = (
                float(gaussian_dual(lambda z, what=what: what(z) ** 2, q, q, rho, function.kinks)) for rho in (0.0, c)
            )
            exact = pair / apart - 1
            found = float(np.polynomial.polynomial.polyval(c, series)) + 2 * slope**2 * c**2
            # What is left of a jump's series beyond the last power, at c = 0.8.
            assert found == pytest.approx(exact, abs=5e-5)
    step = 1e-4
    for moment, slope in (
        (function.second_moment, squares.slope),
        (function.derivative_second_moment, squares.gate_slope),
    ):
        rise = math.log(float(moment(q * math.exp(step)))) - math.log(float(moment(q * math.exp(-step))))
        assert slope == pytest.approx(rise / (2 * step), abs=1e-6)


def test_pair_means_match_plain_loops() -> None:
    rng = np.random.default_rng(0)
    samples, points = 4, 3
    factors = rng.standard_normal((2, samples * points, 9))
    full, other = (f @ f.T for f in factors)
    layout = Layout.all_pairs(samples, samples)

    def carried(matrix: np.ndarray) -> PairKernel:
        blocks = matrix.reshape(samples, points, samples, points)
        return PairKernel(layout, (1, points), blocks[layout.left, :, layout.right])

    series, square, spread = np.array([0.0, 0.7, 0.0, 0.2, 0.1]), 0.3, 0.05
    plain = gated = 0.0
    levels = np.diag(full) / np.diag(full).mean()
    for i in range(len(full)):
        for j in range(len(full)):
            c = full[i, j] / math.sqrt(full[i, i] * full[j, j])
            gamma = other[i, j] ** 2 / (other[i, i] * other[j, j])
            gamma = min(gamma + spread * (i != j), 1.0)
            value = float(np.polynomial.polynomial.polyval(c, series))
            weight = levels[i] * levels[j] / len(full) ** 2
            plain += weight * value
            gated += weight * (value + 2 * gamma * (value + square * c**2))
    # Blocks of two samples stand for themselves transposed as well.
    assert pair_mean(carried(full), series) == pytest.approx(plain, rel=1e-12)
    found = pair_mean(carried(full), series, gradient=carried(other), spread=spread, square=square)
    assert found == pytest.approx(gated, rel=1e-12)


def test_a_large_kernel_is_looked_at_in_part() -> None:
    """Rows of a stationary kernel are alike, and a mean of correlations that cancel stays what it is."""
    side = 24
    place = np.arange(side**2)
    near = np.exp(-np.abs(place[:, None] // side - place // side) - np.abs(place[:, None] % side - place % side))
    kernel = PairKernel(Layout.exchangeable(5), (side, side), np.stack([near, np.zeros_like(near)])).centred
    diagonal = kernel.diagonal / kernel.second_moment
    assert abs(pair_mean(kernel, np.array([0.0, 1.0]), level=np.ones_like(diagonal))) < 1e-4 * float(np.mean(near**2))
    square = pair_mean(kernel, np.array([0.0, 0.0, 1.0]))
    assert square == pytest.approx(kernel.pair_square_mean / kernel.second_moment**2, rel=0.1)


@pytest.mark.parametrize("power", [1, 3])
def test_odd_powers_of_correlations_that_cancel_are_summed_whole(power: int) -> None:
    """Of points of many sizes in samples that differ, a part of the pairs would say little of the sum."""
    samples, points = 12, 30
    factor = np.random.default_rng(2).standard_normal((samples, points, 3))
    factor += np.random.default_rng(3).standard_normal((samples, 1, 3))
    factor -= factor.mean(axis=(0, 1))
    layout = Layout.all_pairs(samples, samples)
    kernel = PairKernel(layout, (5, 6), factor[layout.left] @ factor[layout.right].transpose(0, 2, 1))
    flat = factor.reshape(-1, 3)
    size = np.sqrt(np.einsum("pd,pd->p", flat, flat))
    correlation = (flat @ flat.T) / np.outer(size, size)
    expected = np.outer(size**2, size**2) / np.mean(size**2) ** 2 * correlation**power
    series = np.zeros(5)
    series[power] = 1.0
    assert pair_mean(kernel, series) == pytest.approx(float(expected.mean()), rel=1e-9)


@pytest.mark.parametrize("inside", [1.0, 0.4])
def test_mean_square_correlation_is_the_pair_mean_of_squares(inside: float) -> None:
    """Of a map that is larger at its edges too, of which `pair_mean` sees every row if it is small."""
    factors = np.random.default_rng(1).standard_normal((2, 6, 9)) * np.linspace(1.0, 2.0, 6)[:, None]
    values = np.stack([factors[0] @ factors[0].T, factors[1] @ factors[1].T, factors[0] @ factors[1].T])
    kernel = PairKernel(Layout.all_pairs(2, 2), (2, 3), values)
    found = mean_square_correlation(kernel, inside)
    assert found == pytest.approx(pair_mean(kernel, np.array([0.0, 0.0, 1.0]), inside=inside), rel=1e-12)


@pytest.mark.parametrize("side", [12, 16])
def test_a_part_of_a_map_has_points_of_all_its_columns(side: int) -> None:
    """Correlations of the columns at the sides with their like count for as much as they are."""
    column = np.arange(side**2) % side
    like = np.where((column == 0) | (column == side - 1), 1.0, 0.1)
    values = np.outer(like, like) + np.diag(1.0 - like**2)
    kernel = PairKernel(Layout.exchangeable(1), (side, side), values[None])
    whole = float(np.mean(values**2))
    assert pair_mean(kernel, np.array([0.0, 0.0, 1.0])) == pytest.approx(whole, rel=0.5)


def test_collapsed_sources_match_the_full_linear_system() -> None:
    """Branches inside blocks, narrow nodes between them; the oracle keeps every source to the end."""
    net = NetworkBuilder("blocks", "torch", (4,))
    for _ in range(3):
        start = net.last
        first = net.activation("relu", source=start)
        second = net.activation("relu", source=first)
        other = net.activation("relu", source=start)
        net.add([second, first, other])
        net.activation("relu")
    network = net.build()
    count = len(network)
    rng = np.random.default_rng(1)
    own, own_back = rng.uniform(0.01, 0.1, (2, count))
    slope = rng.uniform(-1, 1, count)
    weights = [tuple(rng.uniform(0.2, 1, len(node.inputs))) for node in network.nodes]
    shares = [tuple(rng.uniform(0.2, 1, len(readers))) for readers in network.consumers]
    found = Fluctuations(network)
    for i in range(count):
        found.add(i, weights[i], own[i])
    for i in reversed(range(count)):
        found.add_back(i, shares[i], slope[i], own_back[i])
    signals, gradients = np.zeros((count, 2 * count)), np.zeros((count, 2 * count))
    for i, node in enumerate(network.nodes):
        signals[i, i] = math.sqrt(polygamma(1, 1 / own[i]))
        for w, j in zip(weights[i], node.inputs, strict=True):
            signals[i] += w * signals[j]
    for i in reversed(range(count)):
        gradients[i, count + i] = math.sqrt(polygamma(1, 1 / own_back[i]))
        gradients[i] += slope[i] * signals[i]
        for w, j in zip(shares[i], network.consumers[i], strict=True):
            gradients[i] += w * gradients[j]
    np.testing.assert_allclose([law.variance for law in found.forward], np.sum(signals**2, axis=1), rtol=1e-12)
    np.testing.assert_allclose([law.variance for law in found.backward], np.sum(gradients**2, axis=1), rtol=1e-12)


def check(network: Network, batch: int, trials: int, left_out: float, *, means: bool, backward: bool = True) -> None:
    """Compare every row with Monte Carlo; `left_out` is the relative size of the next order, depth / width."""
    data = load_batch("gaussian", network.nodes[0].shape, batch, 0, None)
    measured = simulate(network, data, trials=trials, seed=5)
    noise = SIGMAS / math.sqrt(2 * trials)
    for node, row, other in zip(network.nodes, predict(network, data).layers, measured.layers, strict=True):
        sides = [("forward", row.forward, other.forward)] * (node.kind != "input")
        sides += [("backward", row.backward, other.backward)] * backward
        for side, ours, theirs in sides:
            assert ours.log_second_moment_sd is not None
            assert ours.log_second_moment_mean is not None
            assert theirs.log_second_moment_sd is not None
            assert theirs.log_second_moment_mean is not None
            ratio = math.log(ours.log_second_moment_sd / theirs.log_second_moment_sd)
            assert abs(ratio) < noise + left_out, f"{node.name} {side}"
            if means:
                gap = abs(ours.log_second_moment_mean - theirs.log_second_moment_mean) / theirs.log_second_moment_sd
                assert gap < SIGMAS / math.sqrt(trials) + left_out, f"{node.name} {side}"


@pytest.mark.parametrize(("width", "depth", "trials"), [(64, 12, 600), (256, 12, 200)])
@pytest.mark.parametrize("batch", [1, 16])
@pytest.mark.parametrize("function", ["linear", "relu", "tanh"])
def test_mlp_against_monte_carlo(function: str, batch: int, width: int, depth: int, trials: int) -> None:
    # A saturating function's own second moment strays from the infinite-width one by order 1 / n, and its log with it.
    network = build("mlp", width=width, depth=depth, activation=function, init=HE)
    check(network, batch, trials, depth / width, means=function != "tanh")


def test_uniform_biases_spread_less_than_gaussian_ones() -> None:
    network = build("mlp", width=64, depth=10, activation="relu", init=parse_initializer("default"))
    check(network, 1, 800, 10 / 64, means=True)


def test_plain_convolution_against_monte_carlo() -> None:
    net = NetworkBuilder("plain", "torch", (3, 8, 8))
    for _ in range(5):
        net.conv2d(48, 3, HE)
        net.activation("relu")
    check(net.build(), 4, 200, 5 / 48, means=True, backward=False)


def test_normalisation_takes_the_fluctuation_of_lengths_away() -> None:
    network = build("mlp", width=64, depth=4, activation="relu", norm="batch", init=HE)
    report = theory(network, 16)
    kinds = [node.kind for node in network.nodes]
    for kind, before, row in zip(kinds[1:], report.layers, report.layers[1:], strict=False):
        if kind == "batch_norm":
            assert variance(row.forward) < 1e-6 * variance(before.forward)


def test_what_is_not_known_is_not_given() -> None:
    normalised = theory(build("mlp", width=16, depth=3, norm="batch", init=HE), 8)
    assert normalised.layers[0].backward.log_second_moment_sd is None
    assert normalised.layers[0].backward.log_second_moment_mean is None
    dead = theory(chain([8, 8], "relu", "zeros"))
    assert dead.layers[-1].forward.log_second_moment_mean is None
    assert dead.layers[0].backward.log_second_moment_mean is None
    net = NetworkBuilder("pooled", "torch", (3, 8, 8))
    net.conv2d(8, 3, HE)
    net.global_average_pool()
    assert theory(net.build(), 4).layers[-1].forward.log_second_moment_sd is None


def test_deep_nets_stay_finite() -> None:
    depth = 1000
    for init in ("he_normal", "random_normal"):
        network = build("mlp", width=64, depth=depth, activation="relu", init=parse_initializer(init))
        report = theory(network)
        assert variance(report.layers[-1].forward) == pytest.approx(variance(report.layers[0].backward), rel=0.01)
        assert all(
            m.log_second_moment_mean is not None and math.isfinite(m.log_second_moment_mean)
            for row in report.layers[1:]
            for m in (row.forward, row.backward)
        )
