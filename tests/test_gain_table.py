"""Which initializer for which activation: against known conditions, laws of the weights, and Monte Carlo."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.gain_table import choices, gain_rows
from varprop.simulator.mean_field import phase
from varprop.simulator.tails import tail
from varprop.simulator.weight_law import TRUNCATION_FACTOR, TRUNCATION_POINT
from varprop.tests.tolerances import BEYOND


def test_known_conditions() -> None:
    for row in gain_rows(["relu"], ["he_normal"]):
        assert (row.forward, row.backward, row.chi) == pytest.approx((1, 1, 1), rel=1e-12)
        assert row.q_star is None
        assert row.verdict == "edge of chaos: every variance is kept"
    for row in gain_rows(["selu"], ["lecun_normal"]):
        assert (row.forward, row.q_star, row.chi) == pytest.approx((1, 1, 1.071575), abs=5e-7)
    dense, conv = gain_rows(["relu"], ["default"], ["torch"])
    assert dense.backward == pytest.approx(1 / 6)
    assert dense.forward == pytest.approx(1 / 6 + 1 / (3 * 256))
    assert conv.forward == pytest.approx(1 / 6 + 1 / (3 * 9 * 256))


def test_a_fixed_deviation_is_too_small_or_too_large() -> None:
    small = gain_rows(["sigmoid"], ["random_normal"], ["torch"], width=64)[0]
    assert small.sigma_w2 == pytest.approx(0.05**2 * 64)
    assert "acts as a line" in small.verdict
    assert small.chi < 0.02
    large = gain_rows(["tanh", "sigmoid"], ["random_normal(std=1.0)"], ["torch"])
    for row in large[::2]:
        assert "of units saturated" in row.verdict
        assert row.saturated_share > 0.7
    # A Gaussian unit's slope 1 / cosh^2 is below a tenth beyond |z| = arccosh(sqrt(10)).
    beyond = math.erfc(math.acosh(math.sqrt(10)) / math.sqrt(2 * large[0].q_star))
    assert large[0].saturated_share == pytest.approx(beyond, abs=0.003)


def test_linear_share_by_monte_carlo() -> None:
    row = gain_rows(["gelu"], ["he_normal"], ["torch"])[0]
    z = np.random.default_rng(0).standard_normal(1_000_000)
    share = float(np.corrcoef(z, activation("gelu").value(z))[0, 1]) ** 2
    assert row.linear_share == pytest.approx(share, abs=BEYOND * 1e-3)


def test_rows_are_the_phase_of_their_layer() -> None:
    for row in gain_rows(["tanh", "elu", "sigmoid"], ["he_uniform", "orthogonal(2)", "default"], ["torch"], width=32):
        found = phase(activation(row.activation), row.sigma_w2, row.sigma_b2)
        assert row.chi == pytest.approx(found.chi, rel=1e-8)
        assert (row.q_star is None) == (found.q_star is None)
        if row.q_star is not None:
            assert row.q_star == pytest.approx(found.q_star, rel=1e-8)
        assert row.sigma_w2 == pytest.approx(row.fan_in * row.weight_variance)


def test_choices_follow_from_the_table() -> None:
    found = {one.activation: one for one in choices(gain_rows())}
    assert found["relu"].initializers == ("he_normal",)
    assert found["relu"].critical_gain == pytest.approx(math.sqrt(2))
    assert found["leaky_relu(0.2)"].initializers == ("he_normal",)
    assert "lecun_normal" in found["selu"].initializers
    assert "glorot_normal" in found["tanh"].initializers
    assert found["tanh"].critical_gain == pytest.approx(1)
    assert not any("random" in name for one in found.values() for name in one.initializers)
    assert choices(gain_rows(["relu"], ["random_normal"])) == []


def test_factors_without_end_are_none() -> None:
    row = gain_rows(["x*x"], ["random_normal(std=1.0)"], ["torch"])[0]
    assert row.q_star is None
    assert row.chi is None
    assert choices(gain_rows(["x*x"], ["he_normal(gain=9)"]))[0].chi is None


@pytest.mark.parametrize("distribution", ["normal", "truncated_normal", "uniform"])
@pytest.mark.parametrize("fan", [2, 9])
def test_tails_by_monte_carlo(distribution: str, fan: int) -> None:
    rng = np.random.default_rng(3)
    shape = (1_000_000, fan)
    if distribution == "normal":
        weights = rng.standard_normal(shape)
    elif distribution == "uniform":
        weights = rng.uniform(-math.sqrt(3), math.sqrt(3), shape)
    else:
        weights = rng.standard_normal(shape)
        while (outside := np.abs(weights) > TRUNCATION_POINT).any():
            weights[outside] = rng.standard_normal(np.count_nonzero(outside))
        weights /= TRUNCATION_FACTOR
    share = float(np.mean(np.abs(weights.sum(axis=1)) > 2 * math.sqrt(fan)))
    expected = tail(distribution, fan)
    assert abs(share - expected) < BEYOND * math.sqrt(expected * (1 - expected) / len(weights))


def test_truncation_matters_less_the_larger_the_fan() -> None:
    """The tail's change is the excess kurtosis / fan to leading order (Edgeworth): it falls as 1 / fan."""
    exact = math.erfc(math.sqrt(2))
    gaps = [exact - tail("truncated_normal", fan) for fan in (16, 64, 256)]
    assert tail("normal", 9) == pytest.approx(exact, abs=1e-9)
    assert np.diff(np.log(gaps)) / math.log(4) == pytest.approx([-1, -1], abs=0.05)
