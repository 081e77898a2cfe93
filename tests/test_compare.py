"""Comparing reports: z-scores, steps, verdicts, on reports whose numbers are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.compare import (
    ROUNDING,
    Agreement,
    agreement,
    compare,
    end_to_end,
    merged_layers,
    summarise,
    weighted_layers,
)
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Moments


def _moments(q: float, se: float | None = None) -> Moments:
    return Moments(0.0, q, q, math.log(q) if q else -math.inf, None, None, se, None if se is None else 10)


def test_z_counts_standard_errors() -> None:
    found = agreement(_moments(2.0), _moments(2.3, 0.1))
    assert found.z == pytest.approx(3.0, rel=1e-6)
    assert found.relative == pytest.approx(0.15)


def test_z_is_standard_normal_under_the_null() -> None:
    """Mean of z^2 over many runs whose error is truly their standard error; its own standard error is sqrt(2/n)."""
    rng = np.random.default_rng(0)
    n, q, se = 4000, 1.7, 0.02
    scores = [agreement(_moments(q), _moments(float(q + se * noise), se)).z or 0.0 for noise in rng.standard_normal(n)]
    assert abs(np.mean(np.square(scores)) - 1) < 4 * math.sqrt(2 / n)


def test_deterministic_layer_within_rounding_is_no_disagreement() -> None:
    assert abs(agreement(_moments(1.0), _moments(1 + 2**-24, 0.0)).z or 9) < 1
    assert agreement(_moments(1.0), _moments(1.001, 0.0)).z == pytest.approx(0.001 / (ROUNDING * 1.001), rel=1e-9)


def test_exact_zeros() -> None:
    assert agreement(_moments(0.0), _moments(0.0, 0.0)) == Agreement(0.0, 0.0)
    wrong_theory = agreement(_moments(0.0), _moments(1.0, 0.01))
    assert wrong_theory.relative is None
    assert wrong_theory.fails(0.05)
    wrong_sample = agreement(_moments(1.0), _moments(0.0, 0.0))
    assert wrong_sample.relative == -1
    assert wrong_sample.fails(0.05)


def test_out_of_float_range_has_a_relative_difference_and_no_z(make_report, chain) -> None:
    theory = make_report(chain(1), [0.0, -5000.0], [5000.0, 0.0])
    sample = make_report(chain(1), [0.0, -5000.0 + math.log(1.5)], [5000.0, 0.0], 0.1)
    found = compare(theory, sample)
    assert found.forward[1].z is None
    assert found.forward[1].relative == pytest.approx(0.5)
    assert found.backward[0] == Agreement(0.0, None)


def test_failure_needs_both_significance_and_size() -> None:
    assert not Agreement(0.04, 50.0).fails(0.05)
    assert not Agreement(0.5, 3.9).fails(0.05)
    assert Agreement(-0.06, -4.1).fails(0.05)


def test_steps_multiply_to_the_accumulated_error(make_report, chain) -> None:
    network = chain(5)
    errors = np.array([0.0, 0.3, -0.1, 0.05, 0.2, 0.0])
    backward = np.linspace(3, 0, 6)
    found = compare(
        make_report(network, np.zeros(6), backward), make_report(network, np.zeros(6), backward + errors, 0.01)
    )
    logs = [math.log1p(step.agreement.relative or 0.0) for step in found.steps]
    assert [(step.to, step.source) for step in found.steps] == [(1, 2), (2, 3), (3, 4), (4, 5)]
    assert logs == pytest.approx(list(errors[1:5] - errors[2:6]))
    assert math.log1p(found.accumulated or 0.0) == pytest.approx(sum(logs))


def test_one_bad_layer_in_ten_disagrees_and_in_two_hundred_does_not(make_report, chain) -> None:
    for layers, verdict in ((10, False), (200, True)):
        sample = np.zeros(layers + 1)
        sample[3] = 0.5
        found = compare(
            make_report(chain(layers), np.zeros(layers + 1), np.zeros(layers + 1)),
            make_report(chain(layers), sample, np.zeros(layers + 1), 0.01),
        )
        assert found.failures == (1, 2 * layers)
        assert found.agrees is verdict


def test_summary_keeps_signs_and_ignores_what_is_unknown() -> None:
    found = summarise([Agreement(0.1, 1.0), Agreement(-0.3, -5.0), Agreement(None, None), Agreement(0.2, None)])
    assert (found.compared, found.beyond, found.largest_z, found.median, found.worst) == (2, 1, -5.0, 0.2, -0.3)


def test_end_to_end_and_weighted_layers(make_report, chain) -> None:
    theory = make_report(chain(2), [1.0, 2.0, 4.0], [7.0, 6.0, 2.0])
    assert end_to_end(theory) == (3.0, 5.0)
    assert weighted_layers(theory) == (1, 2)


def test_reports_of_different_networks_are_refused(make_report, chain) -> None:
    with pytest.raises(ValueError, match="different networks"):
        compare(make_report(chain(1), [0, 0], [0, 0]), make_report(chain(2), [0, 0, 0], [0, 0, 0], 0.1))


def test_layers_of_several_networks_in_one_order() -> None:
    networks = []
    for padded, layers in ((False, 3), (True, 2), (False, 1)):
        net = NetworkBuilder("net", "torch", (3, 8, 8))
        for number in range(layers):
            if padded and number == 1:
                net.zero_pad((0, 1, 0, 1), name="pad")
            net.activation("relu", name=f"act{number}")
        networks.append(net.build())
    assert merged_layers(networks) == ("input", "act0", "pad", "act1", "act2")
    assert merged_layers(networks[:1]) == ("input", "act0", "act1", "act2")
