"""Gains and fixed points against published numbers and an independent iteration."""

import math

import mpmath
import pytest

from varprop.simulator.activations import NAMES, activation
from varprop.simulator.errors import UserError
from varprop.simulator.gain import gain
from varprop.simulator.mean_field import fixed_points


@pytest.mark.parametrize(
    ("text", "expected", "digits"), [("relu", 1.7128586, 5e-8), ("tanh", 1.5925374, 5e-8), ("sigmoid", 4.8013134, 5e-8)]
)
def test_result_5_unit_variance_gains(text, expected, digits):
    assert gain(activation(text)).gain_variance == pytest.approx(expected, abs=digits)


def test_relu_is_he():
    found = gain(activation("relu"), 3.0)
    assert found.gain_second_moment**2 * 3.0 == pytest.approx(2, rel=1e-14)
    assert found.closed_form is not None
    assert found.closed_form["second_moment"] == "q/2"
    assert found.method == "closed form"
    assert found.fixed_points == ()


@pytest.mark.parametrize(
    ("text", "factor", "q", "chi"),
    [("selu", 0.75, 0.023034, 1.00367), ("tanh", 5 / 3, 1.178480, None), ("selu", 1.0, 1.0, 1.071575)],
)
def test_results_4_and_5_fixed_points_of_hard_coded_gains(text, factor, q, chi):
    (point,) = fixed_points(activation(text), factor**2)
    assert point.q == pytest.approx(q, abs=5e-7)
    if chi is not None:
        assert point.chi == pytest.approx(chi, abs=5e-6)
    assert point.slope < 1


def test_selu_slope_is_klambauers_jacobian():
    (point,) = fixed_points(activation("selu"), 1.0)
    assert point.slope == pytest.approx(0.782648, abs=5e-7)


def test_stable_fixed_point_is_where_iteration_ends():
    tanh = activation("tanh")
    q = 50.0
    for _ in range(200):
        q = (5 / 3) ** 2 * float(tanh.second_moment(q))
    (point,) = fixed_points(tanh, 25 / 9)
    assert point.q == pytest.approx(q, rel=1e-10)
    assert fixed_points(tanh, 0.81) == ()


def test_gelu_has_an_unstable_fixed_point_at_its_own_gain():
    phi = activation("gelu")
    (point,) = gain(phi).fixed_points
    assert point.q == pytest.approx(1, rel=1e-9)
    assert point.slope > 1
    factor = gain(phi).gain_second_moment
    for start, grows in ((1.01, True), (0.99, False)):
        assert (factor**2 * float(phi.second_moment(start)) > start) == grows


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("q", [1e-3, 1.0, 40.0])
def test_consistency(name, q):
    found = gain(activation(name), q)
    assert found.variance == pytest.approx(found.second_moment - found.mean**2, rel=1e-9, abs=1e-13)
    assert found.gain_second_moment == pytest.approx(1 / math.sqrt(found.second_moment))
    assert (found.closed_form is None) == (found.method == "quadrature") == (name in ("sigmoid", "tanh", "silu"))


@pytest.mark.parametrize("q", [0.0, -1.0, math.nan, math.inf, 1e-320])
def test_bad_variance(q):
    with pytest.raises(UserError, match="above 0"):
        gain(activation("relu"), q)


def test_an_activation_without_variance_is_refused():
    with pytest.raises(UserError, match="varies"):
        gain(activation("sigmoid"), 1e-60)


@pytest.mark.parametrize("name", ["elu", "selu", "relu6", "gelu", "hard_swish", "erf", "leaky_relu"])
def test_closed_form_text_says_what_ran(name):
    """The printed formula, read back by mpmath names, gives the number beside it."""
    phi = activation(name)
    found = gain(phi, 2.0)
    assert found.closed_form is not None
    names = {key: getattr(mpmath, key) for key in ("sqrt", "exp", "erf", "erfc", "atan", "pi")}
    for key, text in found.closed_form.items():
        value = eval(text, {"__builtins__": {}}, {**names, "q": mpmath.mpf(2), "a": mpmath.mpf(phi.parameter)})  # noqa: S307 - our own text
        assert float(value) == pytest.approx(getattr(found, key), rel=1e-12)
