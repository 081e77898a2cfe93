import math

import numpy as np
import pytest
from scipy import special, stats

from varprop.simulator import random
from varprop.simulator.initializers import bias_law, parse_initializer, weight_law
from varprop.simulator.montecarlo.draws import BIAS, INSIDE, WEIGHT, Draws
from varprop.simulator.network import NetworkBuilder

LAWS = [
    ("torch", "he_normal"),
    ("torch", "he_uniform"),
    ("keras", "he_normal"),  # truncated
    ("torch", "truncated_normal(0.1)"),
    ("torch", "truncated_normal(std=0.1, after=true)"),
    ("torch", "uniform(0.3)"),
]


def one_layer(initializer, n_in=100, n_out=80, framework="torch"):
    net = NetworkBuilder("one", framework, (n_in,))
    index = net.linear(n_out, parse_initializer(initializer), bias=parse_initializer("normal(0.5)"))
    return net.build().nodes[index]


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_philox_gives_the_known_answers_of_random123(counter, key, words):
    assert list(random.philox4x32(*counter, *key)) == words


def test_normal_quantile_is_the_inverse_of_the_normal_distribution():
    p = np.concatenate([np.linspace(1e-9, 1 - 1e-9, 2001), 2.0 ** -np.arange(1, 34), 1 - 2.0 ** -np.arange(1, 34)])
    p = p[p != 0.5]
    quantiles = np.array([random.normal_quantile(value) for value in p])
    np.testing.assert_allclose(quantiles, special.ndtri(p), rtol=1e-14)


def test_unit_interval_is_open_and_centred():
    assert 0 < random.unit_interval(0) < random.unit_interval(random.MASK) < 1
    assert random.unit_interval(0) + random.unit_interval(random.MASK) == 1


def test_compiled_draws_are_the_plain_functions():
    node = one_layer("normal(0.3)", 3, 5)
    seed, trial, index = 2**40 + 17, 4, 9
    drawn = Draws(seed, trial, 1, np.float64).parameters(index, node, "torch")
    for array, std, purpose in ((drawn.weight, 0.3, WEIGHT), (drawn.bias, 0.5, BIAS)):
        for position, value in enumerate(array.reshape(-1)):
            words = random.philox4x32(position % 256, index, trial, purpose, seed & random.MASK, seed >> 32)
            plain = std * random.normal_quantile(random.unit_interval((words[position // 256] + 2**31) & random.MASK))
            assert value == pytest.approx(plain, rel=1e-14)


@pytest.mark.parametrize("initializer", ["normal(0.1)", "truncated_normal(0.1)", "uniform(0.1)"])
def test_float32_draws_are_float64_draws_up_to_rounding(initializer):
    node = one_layer(initializer, 700, 700)  # half a million: normals of five deviations
    single, double = (Draws(1, 2, 1, dtype).parameters(3, node, "torch") for dtype in (np.float32, np.float64))
    assert single.weight.dtype == np.float32
    np.testing.assert_allclose(single.weight, double.weight, rtol=2e-6, atol=0)


@pytest.mark.parametrize("seed", [0, 1, 2**63])
@pytest.mark.parametrize(("framework", "initializer"), LAWS)
def test_moments_of_weights(framework, initializer, seed):
    node = one_layer(initializer, 400, 500, framework)
    law = weight_law(node, framework)
    weights = Draws(seed, 0, 1, np.float64).parameters(1, node, framework).weight.reshape(-1)
    assert np.abs(weights).max() <= law.limit
    n = weights.size
    fourth = (law.excess_kurtosis + 3) * law.variance**2
    assert abs(weights.mean()) < 4.5 * law.std / math.sqrt(n)
    assert abs((weights**2).mean() - law.variance) < 4.5 * math.sqrt((fourth - law.variance**2) / n)
    eighth = (weights**8).mean()
    assert abs((weights**4).mean() - fourth) < 4.5 * math.sqrt((eighth - fourth**2) / n)


@pytest.mark.parametrize("seed", [3, 4])
@pytest.mark.parametrize(
    ("initializer", "distribution"),
    [
        ("normal(0.3)", stats.norm(scale=0.3)),
        ("uniform(0.3)", stats.uniform(-0.3, 0.6)),
        ("truncated_normal(0.3)", stats.truncnorm(-2, 2, scale=0.3)),
    ],
)
def test_weights_follow_the_whole_distribution(initializer, distribution, seed):
    weights = Draws(seed, 0, 1, np.float64).parameters(1, one_layer(initializer, 200, 200), "torch").weight
    assert stats.kstest(weights.reshape(-1), distribution.cdf).pvalue > 1e-4


def test_probability_between_the_truncation_points():
    assert pytest.approx(1 - 2 * stats.norm.cdf(-2), rel=1e-14) == INSIDE


def test_streams_differ_and_are_uncorrelated():
    node = one_layer("normal(1)", 100, 100)
    streams = [
        Draws(seed, trial, 1, np.float64).parameters(index, node, "torch").weight.reshape(-1)
        for seed, trial, index in [(0, 0, 1), (1, 0, 1), (2**32, 0, 1), (0, 1, 1), (0, 0, 2), (0, 1, 0)]
    ]
    correlations = np.corrcoef(streams)[np.triu_indices(len(streams), 1)]
    assert np.abs(correlations).max() < 4.5 / math.sqrt(streams[0].size)


def test_neighbouring_numbers_are_uncorrelated():
    weights = Draws(5, 0, 1, np.float64).parameters(1, one_layer("normal(1)", 300, 300), "torch").weight.reshape(-1)
    for lag in (1, 2, 3, 4, 300):
        assert abs((weights[lag:] * weights[:-lag]).mean()) < 4.5 / math.sqrt(weights.size)


def test_constants_and_zero_biases():
    net = NetworkBuilder("constant", "torch", (3,))
    index = net.linear(2, parse_initializer("constant(5)"), bias=parse_initializer("zeros"))
    node = net.build().nodes[index]
    drawn = Draws(0, 0, 1, np.float32).parameters(index, node, "torch")
    np.testing.assert_array_equal(drawn.weight, np.full((1, 2, 3), 5.0))
    assert drawn.bias is None
    assert bias_law(node, "torch").second_moment == 0


def test_orthogonal_weights_depend_on_seed_trial_and_layer():
    node = one_layer("orthogonal", 6, 6)
    drawn = [
        Draws(seed, trial, 1, np.float64).parameters(index, node, "torch").weight
        for seed, trial, index in [(0, 0, 1), (0, 0, 1), (1, 0, 1), (0, 1, 1), (0, 0, 2)]
    ]
    for (weight,) in drawn:
        np.testing.assert_allclose(weight @ weight.T, np.eye(6), atol=1e-13)
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert all(not np.allclose(drawn[0], other) for other in drawn[2:])
