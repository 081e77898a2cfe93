"""Mean field: published numbers, plain iteration of the two maps, and Monte Carlo."""

from __future__ import annotations

import math
import time

import numpy as np
import pytest

from varprop.simulator.activations import NAMES, activation
from varprop.simulator.errors import UserError
from varprop.simulator.mean_field import LARGEST, _moments, fixed_points, phase, phase_diagram
from varprop.simulator.quadrature import gaussian_mean
from varprop.tests import tolerances

NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(160)
WEIGHTS = WEIGHTS / WEIGHTS.sum()


def test_result_6_tanh() -> None:
    """Schoenholz 2017, sigma_b^2 = .05."""
    found = phase(activation("tanh"), 2.5, 0.05)
    assert found.q_star == pytest.approx(1.063958, abs=5e-7)
    assert found.c_star == pytest.approx(0.446804, abs=5e-7)
    assert found.chi == pytest.approx(1.133516, abs=5e-7)
    assert found.xi_q == pytest.approx(1.1799, abs=5e-5)
    assert found.xi_c == pytest.approx(11.7956, abs=5e-5)
    assert found.critical_sigma_w2 == pytest.approx(1.760955, abs=5e-7)
    assert found.trainable_depth == pytest.approx(6 * 11.7956, abs=3e-4)
    ordered = phase(activation("tanh"), 1.0, 0.05)
    assert ordered.q_star == pytest.approx(0.193593, abs=5e-7)
    assert ordered.c_star == 1.0
    assert phase(activation("tanh"), 2.0).c_star == 0.0
    assert ordered.chi == pytest.approx(0.759032, abs=5e-7)
    assert ordered.xi_q == pytest.approx(1.7476, abs=5e-5)
    assert ordered.xi_c == pytest.approx(3.6270, abs=5e-5)
    assert found.critical_sigma_w2 is not None
    critical = phase(activation("tanh"), found.critical_sigma_w2, 0.05)
    assert critical.q_star == pytest.approx(0.570048, abs=5e-7)
    assert critical.chi == pytest.approx(1.0, abs=1e-10)
    assert critical.verdict.startswith("edge of chaos")
    assert found.verdict.startswith("chaotic")
    assert ordered.verdict.startswith("ordered")


def layers(function, w: float, b: float, q: float, c: float, depth: int) -> tuple[list[float], list[float]]:
    """Iterate variance and correlation by plain Gauss-Hermite sums."""
    phi = activation(function).value
    x, y = NODES[:, None], NODES[None, :]
    variances, correlations = [q], [c]
    for _ in range(depth):
        first = phi(math.sqrt(q) * x)
        second = phi(math.sqrt(q) * (c * x + math.sqrt(max(1 - c * c, 0.0)) * y))
        product = float(WEIGHTS @ (first * second) @ WEIGHTS)
        square = float(WEIGHTS @ first[:, 0] ** 2)
        c = (w * product + b) / (w * square + b)
        q = w * square + b
        variances.append(q)
        correlations.append(c)
    return variances, correlations


@pytest.mark.parametrize(
    ("function", "w", "b"),
    [("tanh", 2.5, 0.05), ("tanh", 1.0, 0.05), ("erf", 1.5, 0.1), ("sigmoid", 8.0, 0.2), ("silu", 1.5, 0.3)],
)
def test_iteration_ends_where_it_should_and_as_fast(function: str, w: float, b: float) -> None:
    found = phase(activation(function), w, b)
    assert found.q_star is not None
    assert found.xi_q is not None
    assert found.xi_c is not None
    assert found.c_star is not None
    q, _ = layers(function, w, b, 1.0, 0.5, round(9 * found.xi_q) + 2)
    assert q[-1] == pytest.approx(found.q_star, rel=1e-3)
    rates = np.diff(np.log(np.abs(np.array(q) - found.q_star)))
    assert -1 / rates[-2:].mean() == pytest.approx(found.xi_q, rel=0.01)
    _, c = layers(function, w, b, found.q_star, 0.5, round(9 * found.xi_c) + 2)
    assert c[-1] == pytest.approx(found.c_star, abs=1e-3)
    rates = np.diff(np.log(np.abs(np.array(c) - found.c_star)))
    assert -1 / rates[-2:].mean() == pytest.approx(found.xi_c, rel=0.01)


@pytest.mark.parametrize(
    ("function", "w", "b"),
    [("elu", 1.5, 0.1), ("selu", 1.2, 0.0), ("relu6", 2.3, 0.1), ("tanh", 3.0, 0.0), ("leaky_relu(0.3)", 1.5, 0.1)],
)
def test_fixed_points_by_monte_carlo(function: str, w: float, b: float) -> None:
    phi = activation(function)
    found = phase(phi, w, b)
    assert found.q_star is not None
    assert found.c_star is not None
    rng = np.random.default_rng(1)
    x, y = rng.standard_normal((2, 1_000_000))
    scale, c = math.sqrt(found.q_star), found.c_star
    first, second = scale * x, scale * (c * x + math.sqrt(1 - c * c) * y)
    for sample, expected in (
        (w * phi.value(first) ** 2 + b, found.q_star),
        (w * phi.value(first) * phi.value(second) + b, found.q_star * c),
        (w * phi.derivative(first) ** 2, found.chi),
    ):
        error = sample.std() / math.sqrt(sample.size)
        assert abs(sample.mean() - expected) < tolerances.BEYOND * error + tolerances.SERIES
    if found.xi_c is not None:
        slopes = w * phi.derivative(first) * phi.derivative(second)
        error = slopes.std() / math.sqrt(slopes.size)
        assert abs(slopes.mean() - math.exp(-1 / found.xi_c)) < tolerances.BEYOND * error


@pytest.mark.parametrize(
    ("function", "w", "b", "q", "c", "chi", "words"),
    [
        ("relu", 2.0, 0.0, None, 1.0, 1.0, "edge of chaos: every variance"),
        ("relu", 1.5, 0.1, 0.4, 1.0, 0.75, "ordered"),
        ("relu", 1.5, 0.0, 0.0, 1.0, 0.75, "ordered: the signal vanishes"),
        ("relu", 3.0, 0.0, None, 1.0, 1.5, "diverges"),
        ("relu", 2.0, 0.1, None, 1.0, 1.0, "diverges"),
        ("linear", 1.0, 0.0, None, None, 1.0, "edge of chaos: every variance"),
        ("linear", 0.5, 0.1, 0.2, 1.0, 0.5, "ordered"),
        ("linear", 2.0, 0.1, None, None, 2.0, "diverges"),
        ("tanh", 0.5, 0.0, 0.0, None, 0.5, "ordered: the signal vanishes"),
        ("selu", 1.0, 0.0, 1.0, 0.0, 1.071575, "chaotic"),
        ("selu", 0.5625, 0.0, 0.023034, None, 1.00367, "chaotic"),
        ("selu", 1.9, 0.0, None, 1.0, 1.9 * 1.0507009873554805**2 / 2, "diverges"),
    ],
)
def test_half_lines_and_limits(function, w, b, q, c, chi, words) -> None:
    found = phase(activation(function), w, b)
    assert (found.q_star is None) == (q is None)
    if q is not None:
        assert found.q_star == pytest.approx(q, abs=5e-7)
    if c is not None:
        assert found.c_star == pytest.approx(c, abs=1e-9)
    assert found.chi == pytest.approx(chi, abs=5e-6)
    assert found.verdict.startswith(words)


def test_critical_weight_variances() -> None:
    assert phase(activation("relu"), 1.0).critical_sigma_w2 == 2.0
    assert phase(activation("leaky_relu(0.5)"), 1.0).critical_sigma_w2 == pytest.approx(2 / 1.25, rel=1e-12)
    assert phase(activation("linear"), 1.0, 0.3).critical_sigma_w2 == 1.0
    assert phase(activation("tanh"), 1.0).critical_sigma_w2 == pytest.approx(1.0, rel=1e-9)
    for name in ("erf", "elu", "hard_swish", "selu", "silu", "sigmoid", "relu6"):
        critical = phase(activation(name), 1.0, 0.2).critical_sigma_w2
        assert critical is not None
        assert phase(activation(name), critical * (1 - 1e-6), 0.2).chi < 1
        assert phase(activation(name), critical * (1 + 1e-6), 0.2).chi > 1
    # GELU without bias jumps from a vanishing signal to one without bound where V(1) = 1.
    gelu = activation("gelu")
    assert phase(gelu, 1.0).critical_sigma_w2 == pytest.approx(1 / float(gelu.second_moment(1.0)), rel=1e-8)


def test_several_fixed_points_are_told_apart() -> None:
    below, above = fixed_points(activation("silu"), 2.0, 0.1)
    assert below.slope < 1 < above.slope
    found = phase(activation("silu"), 2.0, 0.1)
    assert found.q_star == pytest.approx(below.q)
    assert found.fixed_points == (below, above)
    for point in (below, above):
        assert 2 * float(activation("silu").second_moment(point.q)) + 0.1 == pytest.approx(point.q, rel=1e-8)
    assert fixed_points(activation("relu"), 2.0, 0.1) == ()
    assert fixed_points(activation("relu6"), 2.0) == ()


@pytest.mark.parametrize("name", NAMES)
def test_tabulated_moments(name: str) -> None:
    function = activation(name)
    table = _moments(function)
    between = table.log_q[:-1] + np.diff(table.log_q) / 2
    q = np.exp(between)
    np.testing.assert_allclose(table.second(between), function.second_moment(q), rtol=5e-9)
    np.testing.assert_allclose(table.derivative(between), function.derivative_second_moment(q), rtol=5e-9)
    some = q[(q > 1e-6) & (q < 1e3)][::40]
    slope = gaussian_mean(lambda z: function.value(z) ** 2 * (z * z / some[:, None] - 1), some, function.kinks)
    np.testing.assert_allclose(table.slope(np.log(some)), slope / (2 * some), rtol=1e-5)


@pytest.mark.parametrize("name", ["tanh", "relu", "erf", "silu", "selu", "relu6"])
def test_diagram_is_the_single_points(name: str) -> None:
    function = activation(name)
    series = function.kinks != () and not function.closed_dual
    bounds = {"q_star": 1e-12, "chi": 1e-12, "xi_q": 1e-9}
    bounds |= {"c_star": 1e-3, "xi_c": 0.05} if series else {"c_star": 1e-4, "xi_c": 5e-3}
    w, b = np.array([0.4, 1.2, 1.7, 2.5, 4.0]), np.array([0.0, 0.05, 0.4])
    diagram = phase_diagram(function, w, b)
    for i, j in np.ndindex(5, 3):
        point = phase(function, w[i], b[j])
        for what, close in bounds.items():
            one, other = getattr(diagram, what)[i, j], getattr(point, what)
            assert np.isfinite(one) == (other is not None), (what, w[i], b[j])
            if other is not None and not (series and what == "xi_c" and other > 50):
                assert one == pytest.approx(other, rel=close, abs=1e-9), (what, w[i], b[j])
        assert diagram.critical_sigma_w2[j] == pytest.approx(point.critical_sigma_w2, rel=1e-9)


def test_a_diagram_of_200_by_200_takes_seconds() -> None:
    start = time.process_time()
    phase_diagram(activation("tanh"), np.linspace(0.5, 4, 200), np.linspace(0, 0.5, 200))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(("w", "b"), [(0.0, 0.1), (-1.0, 0.0), (math.nan, 0.0), (1.0, -0.1), (1.0, 2 * LARGEST)])
def test_variances_out_of_range(w: float, b: float) -> None:
    with pytest.raises(UserError, match="sigma_"):
        phase(activation("tanh"), w, b)
