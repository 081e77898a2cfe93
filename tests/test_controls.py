"""Control variates: their expectations, and that they make errors smaller and move no mean."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import integrate, special

from varprop.simulator.initializers import parse_initializer
from varprop.simulator.montecarlo import simulate_trials
from varprop.simulator.montecarlo.aggregate import summarize
from varprop.simulator.montecarlo.controls import COUNT, FOLDS, LEAST_TRIALS, OFFSETS, controlled, mean_inverse
from varprop.simulator.montecarlo.draws import COTANGENT, Draws
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Batch

FAR = 4.5
"""Deviations that a standard normal passes once in 150,000 times."""


def network(initializer="he_normal"):
    """Depthwise layers with kernels that meet the map in part, alone or with stride, and two outputs a channel."""
    law = parse_initializer(initializer)
    net = NetworkBuilder("depthwise", "torch", (6, 4, 4))
    net.conv2d(8, 1, law)
    net.batch_norm()
    net.activation("relu6")
    net.conv2d(16, 3, law, groups=8, stride=2)
    net.batch_norm()
    net.activation("relu6")
    net.conv2d(16, 5, law, groups=16, stride=2)
    net.batch_norm()
    net.flatten()
    net.linear(4, law)
    return net.build()


def batch(seed=0):
    return Batch(np.random.default_rng(seed).standard_normal((6, 6, 4, 4)), "gaussian", True)


@pytest.mark.parametrize("offset", OFFSETS)
def test_mean_inverse_of_one_weight_is_the_integral(offset):
    """Normal: sqrt(pi / (2 d)) exp(d / 2) erfc(sqrt(d / 2)); uniform: atan(sqrt(3 / d)) / sqrt(3 d)."""
    normal = math.sqrt(math.pi / (2 * offset)) * math.exp(offset / 2) * special.erfc(math.sqrt(offset / 2))
    assert mean_inverse("normal", 1, offset) == pytest.approx(normal, rel=1e-8)
    uniform = math.atan(math.sqrt(3 / offset)) / math.sqrt(3 * offset)
    assert mean_inverse("uniform", 1, offset) == pytest.approx(uniform, rel=1e-8)
    sd = 0.87962566103423978  # of a normal cut at two deviations
    density = integrate.quad(lambda w: math.exp(-w * w / 2), 0, 2)[0]
    cut = integrate.quad(lambda w: math.exp(-w * w / 2) / ((w / sd) ** 2 + offset), 0, 2, points=[0.01, 0.1])[0]
    assert mean_inverse("truncated_normal", 1, offset) == pytest.approx(cut / density, rel=1e-8)


@pytest.mark.parametrize("count", [2, 9, 25])
def test_mean_inverse_of_a_kernel_is_that_of_chi_squared(count):
    def integrand(s):
        return math.exp((count / 2 - 1) * math.log(s) - s / 2) / (s / count + 0.01)

    exact, _ = integrate.quad(integrand, 0, 200, points=[0.1, 1, 10], limit=200)
    exact /= 2 ** (count / 2) * math.gamma(count / 2)
    assert mean_inverse("normal", count, 0.01) == pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("initializer", ["he_normal", "uniform(0.3)", "truncated_normal(0.3)"])
def test_controls_have_expectation_zero(initializer):
    forward, _ = simulate_trials(network(initializer), batch(), trials=2000, seed=1, weightless=False)
    z = forward.controls.mean(axis=0) / (forward.controls.std(axis=0) / math.sqrt(2000))
    assert z.shape == (1 + 4 * COUNT,)
    assert np.abs(z).max() < FAR


def test_controls_are_what_they_are_said_to_be():
    """Plain sums over the weights that are drawn; of five by five taps two by two meet a 2x2 map."""
    net = network()
    forward, backward = simulate_trials(net, batch(), trials=3, seed=1, dtype="float64")
    layer = next(i for i, node in enumerate(net.nodes) if getattr(node.operation, "kernel", None) == (5, 5))
    weight = Draws(1, 0, 3, np.float64).parameters(layer, net.nodes[layer], "torch").weight
    kernels = weight.reshape(3, 16, 5, 5)[..., 2:, 2:][..., :2, :2].reshape(3, 16, 4) / math.sqrt(2 / 25)
    response = (kernels.sum(axis=2) ** 2 / 4 - 1).mean(axis=1)
    inverse = (1 / ((kernels**2).mean(axis=2) + OFFSETS[1]) - mean_inverse("normal", 4, OFFSETS[1])).mean(axis=1)
    (first,) = forward.columns[layer]
    assert backward.columns[layer] == (0, *range(first + 1, first + COUNT))
    np.testing.assert_allclose(forward.controls[:, first], response, rtol=1e-12)
    np.testing.assert_allclose(forward.controls[:, first + 2], inverse, rtol=1e-12)
    cotangent = np.empty((3, 4, 6))
    Draws(1, 0, 3, np.float64).normals(len(net) - 1, COTANGENT, cotangent)
    np.testing.assert_allclose(backward.controls[:, 0], (cotangent**2).mean(axis=(1, 2)) - 1, rtol=1e-12)


@pytest.mark.parametrize("initializer", ["orthogonal", "constant(0.2)"])
def test_other_weights_have_no_controls_of_their_own(initializer):
    forward, backward = simulate_trials(network(initializer), batch(), trials=2, seed=1)
    assert forward.controls.shape == (2, 1)
    assert set(forward.columns) == {()}
    assert set(backward.columns) == {(0,)}


def test_nothing_but_what_controls_explain_is_taken_off():
    """Over many runs of few trials: the mean stays, for quantities with and without a part that controls explain.

    Of the first one's variance, 9 + 2 + 1, the best coefficients leave 2, and those of 35 trials somewhat more.
    """
    rng = np.random.default_rng(0)
    runs, trials = 400, 40
    means, plain = [], []
    for _ in range(runs):
        control = rng.exponential(size=(trials, 2)) - 1
        noise = rng.standard_normal((trials, 2))
        values = np.stack([3 * control[:, 0] + control[:, 1] ** 2 / 2 + noise[:, 0], noise[:, 1]], axis=1)
        means.append(controlled(values, control).mean(axis=0))
        plain.append(values.mean(axis=0))
    means, plain = np.array(means), np.array(plain)
    z = (means.mean(axis=0) - [0.5, 0.0]) / (means.std(axis=0) / math.sqrt(runs))
    assert np.abs(z).max() < FAR
    assert means[:, 0].std() < 0.6 * plain[:, 0].std()
    assert means[:, 1].std() < 1.15 * plain[:, 1].std()


def test_controls_that_nearly_agree_do_no_harm():
    """Their difference is large in one trial of a thousand, where least squares alone would put its trust in it."""
    rng = np.random.default_rng(1)
    found, plain = [], []
    for _ in range(300):
        control, noise = rng.standard_normal((2, 100, 1))
        far = 1e-3 * (rng.random((100, 1)) < 1e-3) - 1e-6
        values = control + noise
        found.append(controlled(values, np.hstack([control, control + far])).mean())
        plain.append(values.mean())
    assert np.std(found) < 0.8 * np.std(plain)


def test_few_trials_use_the_first_controls_or_none():
    values, controls = np.random.default_rng(0).standard_normal((2, LEAST_TRIALS * 2 - 1, 2))
    assert (controlled(values, controls) == controlled(values, controls[:, :1])).all()
    np.testing.assert_array_equal(controlled(values[:8], controls[:8]), values[:8])
    assert LEAST_TRIALS > FOLDS


def test_errors_are_smaller_and_as_right_as_plain_ones():
    """Over independent runs estimates scatter as their standard errors say: the variance of their ratio is 1.

    Tails make it somewhat more, of plain means too; over 40 runs of 16 quantities its mean is known to about 0.1.
    """
    runs, trials, net = 40, 160, network()
    found = {kind: [] for kind in ("controlled", "plain")}
    for seed in range(runs):
        sides = simulate_trials(net, batch(), trials=trials, seed=seed, weightless=False)
        plain = [replace(side, columns=((),) * len(net)) for side in sides]
        for kind, moments in (("controlled", sides), ("plain", plain)):
            layers = [side for layer in summarize(*moments) for side in (layer.forward, layer.backward)]
            found[kind].append([(side.second_moment, side.standard_error) for side in layers])
        logs = [side.log_second_moment_mean for layer in summarize(*sides) for side in (layer.forward, layer.backward)]
        assert logs == [
            s.log_second_moment_mean for layer in summarize(*plain) for s in (layer.forward, layer.backward)
        ]
    values, errors = (np.array(found["controlled"])[:, 1:, part] for part in (0, 1))
    varying = errors.max(axis=0) > 1e-3 * values.mean(axis=0)  # normalisation holds the others fixed
    spread, error = {}, {}
    for kind, numbers in found.items():
        values, errors = (np.array(numbers)[:, 1:, part][:, varying] for part in (0, 1))
        spread[kind] = ((values - values.mean(axis=0)) / errors).var(axis=0, ddof=1)
        error[kind] = (errors**2).mean(axis=0)
    assert abs(spread["controlled"].mean() - spread["plain"].mean()) < 0.25
    assert 0.7 < spread["controlled"].mean() < 1.5
    gains = error["plain"] / error["controlled"]
    assert gains.max() > 2
    assert gains.min() > 0.85
