"""Layers that act without weights have the law of layers with weights: forward, backward, and both together."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import special, stats

from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.montecarlo import simulate, simulate_trials
from varprop.simulator.montecarlo.draws import COTANGENT, Draws
from varprop.simulator.montecarlo.pool import Pool
from varprop.simulator.montecarlo.weightless import Unseen, factorize, in_span, unseen_layers
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Batch

HE = parse_initializer("he_normal")
FALSE_ALARM = 1e-5
"""Of one two-sample test; a few hundred run here."""


def gaussian(shape, batch, seed=0):
    return Batch(np.random.default_rng(seed).standard_normal((batch, *shape)), "gaussian", True)


def mlp(width, depth, function="relu", bias=None, norm=False):
    net = NetworkBuilder("mlp", "torch", (width,))
    for _ in range(depth):
        net.linear(width, HE, bias=None if bias is None else parse_initializer(bias))
        if norm:
            net.batch_norm()
        net.activation(function)
    return net.build()


def convolutions():
    """Strides, groups, padding, a bias and a residual sum; every fan_in is above the number of positions."""
    net = NetworkBuilder("convolutions", "torch", (12, 4, 4))
    net.conv2d(16, 3, HE, stride=2, bias=parse_initializer("normal(0.3)"))
    first = net.activation("relu")
    net.conv2d(24, 3, HE, groups=2)
    net.batch_norm()
    net.activation("relu")
    net.conv2d(16, (2, 3), HE, padding=(1, 0, 1, 1))
    net.add((first, net.last))
    net.conv2d(32, 1, HE, stride=2)
    net.flatten()
    net.linear(20, HE)
    net.activation("tanh")
    return net.build()


@pytest.fixture
def everywhere(monkeypatch):
    """Every layer of Gaussian weights acts without them, at whatever price."""
    for name in ("OVERHEAD", "PASSES", "SOLVING"):
        monkeypatch.setattr(f"varprop.simulator.montecarlo.weightless.{name}", 0)
    monkeypatch.setattr("varprop.simulator.montecarlo.weightless.NORMAL", 10**9)


def samples(network, batch, trials, weightless, seed):
    """Logs of second moments and root-mean-square means of all nodes, forward and backward: (trials, quantities)."""
    forward, backward = simulate_trials(network, batch, trials=trials, seed=seed, weightless=weightless)
    columns = []
    for side in (forward, backward):
        columns.append(side.log_second_moment)
        columns.append(side.mean / np.sqrt(side.second_moment))
        columns.append(side.variance / side.second_moment)
    return np.concatenate(columns, axis=1)


def assert_same_law(network, batch, trials):
    """Two-sample Kolmogorov-Smirnov tests of every quantity and of products of pairs, which see the joint law.

    With n trials a side a test at level 1e-5 finds, with probability above 99%, a difference of 0.1 between two
    distribution functions for n = 3000 (critical distance 2.47 sqrt(2 / n) = 0.064, noise 0.013 a side): a shift of a
    normal by a quarter of its deviation, or a deviation wrong by 30%.
    """
    drawn = samples(network, batch, trials, False, seed=1)
    unseen = samples(network, batch, trials, True, seed=2)
    varying = np.flatnonzero(drawn.std(axis=0) > 1e-5)  # what normalisation holds at 0 or 1 is rounding
    drawn, unseen = drawn[:, varying], unseen[:, varying]
    middle, spread = drawn.mean(axis=0), drawn.std(axis=0)
    drawn, unseen = (drawn - middle) / spread, (unseen - middle) / spread
    rng = np.random.default_rng(0)
    pairs = rng.integers(0, len(varying), (100, 2))
    for column in range(len(varying)):
        assert stats.ks_2samp(drawn[:, column], unseen[:, column]).pvalue > FALSE_ALARM, varying[column]
    for i, j in pairs:
        one, other = drawn[:, i] * drawn[:, j], unseen[:, i] * unseen[:, j]
        assert stats.ks_2samp(one, other).pvalue > FALSE_ALARM, (varying[i], varying[j])


@pytest.mark.usefixtures("everywhere")
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(
    "network",
    [mlp(24, 4), mlp(16, 3, "tanh", bias="normal(0.5)"), mlp(12, 3, "linear")],
    ids=["relu", "tanh with bias", "linear"],
)
def test_mlp_has_the_law_of_drawn_weights(network, batch):
    data = gaussian(network.nodes[0].shape, batch)
    assert len(unseen_layers(network, batch)) == sum(node.fan_in is not None for node in network.nodes)
    assert_same_law(network, data, 3000)


@pytest.mark.usefixtures("everywhere")
def test_normalised_mlp_has_the_law_of_drawn_weights():
    assert_same_law(mlp(16, 3, norm=True), gaussian((16,), 4), 3000)


@pytest.mark.usefixtures("everywhere")
def test_convolutions_have_the_law_of_drawn_weights():
    network = convolutions()
    assert len(unseen_layers(network, 2)) == 5
    assert_same_law(network, gaussian((12, 4, 4), 2), 3000)


def test_mobilenet_has_the_law_of_drawn_weights():
    network = build("mobilenet_v2", framework="torch")
    batch = gaussian(network.nodes[0].shape, 2)
    assert len(unseen_layers(network, 2)) > 10
    assert_same_law(network, batch, 150)  # finds differences of 0.45: critical distance 0.285, noise 0.06 a side


@pytest.mark.usefixtures("everywhere")
def test_dependent_samples_have_the_law_of_drawn_weights():
    """Two equal samples, one that is their multiple, and one of zeros: rank two in four."""
    rows = np.random.default_rng(0).standard_normal((2, 16))
    data = Batch(np.stack([rows[0], rows[1], rows[0], np.zeros(16), -2 * rows[0]]), "dependent", False)
    network = mlp(16, 2)
    forward, _ = simulate_trials(network, data, trials=1, seed=0)
    assert np.isfinite(forward.log_second_moment).all()
    assert_same_law(network, data, 3000)


def test_given_the_action_forward_the_gradient_is_that_of_one_matrix():
    """<D, W X> = <W^T D, X> for every W, so trial by trial: on the span of X nothing is drawn afresh."""
    batch = gaussian((40,), 6)
    for dtype, tolerance in ((np.float64, 1e-12), (np.float32, 3e-6)):
        draws, pool = Draws(0, 0, 3, dtype), Pool(dtype)
        unseen = Unseen(0.3, None, draws, 1, pool)
        x = np.ascontiguousarray(np.broadcast_to(batch.data.T.astype(dtype), (3, 40, 6)))
        z, d, back = (np.empty(shape, dtype) for shape in ((3, 30, 6), (3, 30, 6), (3, 40, 6)))
        unseen.product(x, z)
        draws.normals(5, COTANGENT, d)
        unseen.transposed_product(d, back, np.zeros(3, np.int64))
        one, other = (d.swapaxes(1, 2) @ z), (back.swapaxes(1, 2) @ x)
        np.testing.assert_allclose(one, other, atol=tolerance * np.abs(one).max())


@pytest.mark.parametrize("bias", [None, np.ones((3, 30), np.float32)], ids=["no bias", "bias"])
def test_a_single_vector_needs_its_product_up_to_a_power_of_two(bias):
    """As above, for a vector, where the product is only kept as the output: rescaled, or, with a bias, not at all."""
    draws, pool = Draws(0, 0, 3, np.float32), Pool(np.float32)
    unseen = Unseen(0.3, bias, draws, 1, pool)
    x, z, d, back = (np.empty((3, size, 1), np.float32) for size in (40, 30, 30, 40))
    draws.normals(4, COTANGENT, x)
    draws.normals(5, COTANGENT, d)
    unseen.product(x, z)
    product, shift = z.copy(), np.array([0, 3, -40])
    z[...] = np.ldexp(z, -shift[:, np.newaxis, np.newaxis]) if bias is None else 7.0
    unseen.transposed_product(d, back, shift)
    one, other = np.sum(d * product, axis=1), np.sum(back * x, axis=1)
    np.testing.assert_allclose(one, other, atol=3e-6 * np.abs(one).max())


def test_nearly_equal_samples_keep_their_distance():
    """Samples 1e-4 apart: the difference, 1e-8 of the Gram matrix, must come out with its own variance."""
    width, trials = 256, 400
    rng = np.random.default_rng(0)
    first, step = rng.standard_normal((2, width))
    data = Batch(np.stack([first, first + 1e-4 * step]), "close", False)
    net = NetworkBuilder("one", "torch", (width,))
    net.linear(width, HE)
    net.batch_norm(eps=0.0)
    network = net.build()
    assert unseen_layers(network, 2) == {1}
    forward, _ = simulate_trials(network, data, trials=trials, seed=0, dtype="float64")
    expected = (1e-4 * step) ** 2
    ratio = forward.variance[:, 1] * 4.0 ** forward.exponent[:, 1] / (2 * expected.sum() / width / 4)
    assert abs(ratio.mean() - 1) < 4.5 * ratio.std() / math.sqrt(trials)


def test_factor_of_a_gram_matrix():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((3, 20, 6))
    x[1, :, 3] = x[1, :, 0] - 2 * x[1, :, 5]
    x[2, :, 1:4] = 0
    gram = x.swapaxes(1, 2) @ x
    factor, pivots, rank = factorize(gram, 1e-13)
    np.testing.assert_allclose(factor.swapaxes(1, 2) @ factor, gram, atol=1e-13 * np.abs(gram).max())
    assert rank.tolist() == [6, 5, 3]
    v, known = rng.standard_normal((3, 20, 6)), rng.standard_normal((3, 6, 6))
    solution = x @ in_span(factor, pivots, rank, known, x.swapaxes(1, 2) @ v)
    for s in range(3):
        order = pivots[s, : rank[s]]
        q = np.linalg.solve(factor[s, : rank[s], order], x[s][:, order].T).T
        np.testing.assert_allclose(q.T @ q, np.eye(rank[s]), atol=1e-12)
        np.testing.assert_allclose(solution[s], q @ (known[s, : rank[s]] - q.T @ v[s]), atol=1e-11)


@pytest.mark.usefixtures("everywhere")
def test_linear_networks_have_the_exact_log_law():
    """|x_L|^2 / |x_0|^2 is a product of chi^2_n / n: log mean psi(n/2) + ln(2 / n) a layer, log variance psi_1(n/2).

    The same holds for gradients.
    """
    width, depth, trials = 20, 30, 2000
    net = NetworkBuilder("deep", "torch", (width,))
    for _ in range(depth):
        net.linear(width, parse_initializer("lecun_normal"))
    batch = gaussian((width,), 1)
    forward, backward = simulate_trials(net.build(), batch, trials=trials, seed=0)
    mean, variance = special.digamma(width / 2) + math.log(2 / width), special.polygamma(1, width / 2)
    excess = special.polygamma(3, width / 2) / variance**2
    for count in (1, 10, 30):
        sd = math.sqrt(count * variance)
        for logs in (
            forward.log_second_moment[:, count] - math.log((batch.data**2).mean()),
            backward.log_second_moment[:, depth - count] - backward.log_second_moment[:, depth],
        ):
            assert abs(logs.mean() - count * mean) < 4.5 * sd / math.sqrt(trials)
            assert abs(logs.std() / sd - 1) < 4.5 * math.sqrt((2 + excess / count) / (4 * trials))


@pytest.mark.usefixtures("everywhere")
def test_relu_fourth_moment_is_the_exact_finite_width_law():
    """E |x_L|^4 / |x_0|^4 = prod (1 + 5 / n) for Gaussian He weights and ReLU, after the first layer's input."""
    width, depth, trials = 32, 3, 20_000
    network, batch = mlp(width, depth), gaussian((width,), 1)
    forward, _ = simulate_trials(network, batch, trials=trials, seed=0)
    q = forward.second_moment * 4.0**forward.exponent
    squares = (q[:, -1] / q[:, 0]) ** 2
    z = (squares.mean() - (1 + 5 / width) ** depth) / (squares.std() / math.sqrt(trials))
    assert abs(z) < 4.5


def test_threads_and_blocks_change_no_bit(monkeypatch):
    network, batch = mlp(256, 3), gaussian((256,), 2)
    assert unseen_layers(network, 2)
    runs = [simulate_trials(network, batch, trials=12, seed=3, threads=threads) for threads in (1, 2, 4)]
    monkeypatch.setattr("varprop.simulator.montecarlo.engine.MOST_TRIALS", 1)
    runs.append(simulate_trials(network, batch, trials=12, seed=3, threads=1))
    for run in runs[1:]:
        for one, other in zip(runs[0], run, strict=True):
            for field in ("mean", "second_moment", "variance", "exponent"):
                np.testing.assert_array_equal(getattr(one, field), getattr(other, field))


def test_layers_are_chosen_by_cost_and_law():
    wide, batch = mlp(512, 2), gaussian((512,), 4)
    assert unseen_layers(wide, 4) == {1, 3}
    assert not unseen_layers(wide, 512)
    assert not unseen_layers(mlp(8, 2), 1)
    report = simulate(wide, batch, trials=2, seed=0)
    assert [layer.weightless for layer in report.layers] == [False, True, False, True, False]
    drawn = simulate(wide, batch, trials=2, seed=0, weightless=False)
    assert not any(layer.weightless for layer in drawn.layers)
    net = NetworkBuilder("uniform", "torch", (512,))
    net.linear(512, parse_initializer("he_uniform"))
    net.linear(512, parse_initializer("orthogonal"))
    assert not unseen_layers(net.build(), 4)
    sizes = [len(unseen_layers(wide, batch)) for batch in (1, 8, 64, 512)]
    assert all(one >= other for one, other in pairwise(sizes))
