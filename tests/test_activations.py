"""Moments against mpmath quadrature, derivatives against differences, facts against limits, and bad names."""

import math

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varprop.simulator.activations import NAMES, activation
from varprop.simulator.errors import UserError
from varprop.simulator.generated.activations import selu_value
from varprop.simulator.special import erfcx_tail

TEXTS = [*NAMES, "leaky_relu(0.2)", "elu(0.5)"]
QS = (1e-8, 1e-3, 0.3, 1.0, 7.0, 400.0, 1e8)
LAMBDA, ALPHA = mpmath.mpf("1.05070098735548049341933498529"), mpmath.mpf("1.67326324235437728481704296672")


def _sigmoid(z):
    return 1 / (1 + mpmath.exp(-z))


def _elu(alpha):
    return lambda z: z if z > 0 else alpha * mpmath.expm1(z)


# Written out anew, so that a slip in a derivation shows.
ORACLES = {
    "linear": (lambda z: z, lambda z: mpmath.mpf(1)),
    "relu": (lambda z: max(z, 0), lambda z: int(z > 0)),
    "leaky_relu": (lambda z: max(z, z / 100), lambda z: 1 if z > 0 else mpmath.mpf(1) / 100),
    "leaky_relu(0.2)": (lambda z: max(z, z / 5), lambda z: 1 if z > 0 else mpmath.mpf(1) / 5),
    "relu6": (lambda z: min(max(z, 0), 6), lambda z: int(0 < z < 6)),
    "elu": (_elu(1), lambda z: 1 if z > 0 else mpmath.exp(z)),
    "elu(0.5)": (_elu(mpmath.mpf("0.5")), lambda z: 1 if z > 0 else mpmath.exp(z) / 2),
    "selu": (lambda z: LAMBDA * _elu(ALPHA)(z), lambda z: LAMBDA * (1 if z > 0 else ALPHA * mpmath.exp(z))),
    "sigmoid": (_sigmoid, lambda z: _sigmoid(z) * _sigmoid(-z)),
    "tanh": (mpmath.tanh, lambda z: mpmath.sech(z) ** 2),
    "erf": (mpmath.erf, lambda z: 2 / mpmath.sqrt(mpmath.pi) * mpmath.exp(-z * z)),
    "gelu": (lambda z: z * mpmath.ncdf(z), lambda z: mpmath.ncdf(z) + z * mpmath.npdf(z)),
    "silu": (lambda z: z * _sigmoid(z), lambda z: _sigmoid(z) * (1 + z * _sigmoid(-z))),
    "hard_swish": (
        lambda z: z * min(max(z + 3, 0), 6) / 6,
        lambda z: 0 if z <= -3 else ((2 * z + 3) / mpmath.mpf(6) if z <= 3 else 1),
    ),
}


def _mean(function, q):
    """E[function(z)], z ~ N(0, q), to 20 digits, cut at kinks and at the function's own length."""
    with mpmath.workdps(30):
        scale = mpmath.sqrt(mpmath.mpf(q))
        inner = [s * mpmath.mpf(x) for x in (0.5, 3, 6, 20, 60) for s in (1, -1)]
        outer = [s * scale * x for x in (1, 4, 13) for s in (1, -1)]
        cuts = sorted({mpmath.mpf(0), *(cut for cut in (*inner, *outer) if abs(cut) <= 13 * scale)})
        weighted = mpmath.quad(lambda z: function(z) * mpmath.exp(-z * z / (2 * scale**2)), cuts)
        return weighted / (scale * mpmath.sqrt(2 * mpmath.pi))


def test_oracles_are_complete():
    assert set(ORACLES) == set(TEXTS)


@pytest.mark.parametrize("text", TEXTS)
def test_moments_against_quadrature(text):
    value, derivative = ORACLES[text]
    phi = activation(text)
    means, seconds, slopes = phi.mean(QS), phi.second_moment(QS), phi.derivative_second_moment(QS)
    for i, q in enumerate(QS):
        second = float(_mean(lambda z: value(z) ** 2, q))
        assert seconds[i] == pytest.approx(second, rel=1e-12), q
        assert slopes[i] == pytest.approx(float(_mean(lambda z: derivative(z) ** 2, q)), rel=1e-12), q
        # A mean may pass through 0 (SELU at q = 1): its scale is the root mean square.
        assert means[i] == pytest.approx(float(_mean(value, q)), rel=1e-12, abs=1e-12 * math.sqrt(second)), q


@pytest.mark.parametrize("text", TEXTS)
def test_value_and_derivative_against_definition(text):
    value, derivative = ORACLES[text]
    phi = activation(text)
    z = np.concatenate([np.linspace(-30, 30, 121), [-1e-9, 1e-9, 2.9999, 6.0001]])
    for found, oracle in ((phi.value(z), value), (phi.derivative(z), derivative)):
        with mpmath.workdps(30):
            expected = [float(oracle(mpmath.mpf(float(x)))) for x in z]
        # One rounding of the argument moves exp(-z^2) by 2 z^2 = 1800 of its last digits at |z| = 30.
        np.testing.assert_allclose(found, expected, rtol=1800 * np.finfo(float).eps, atol=1e-300)


@pytest.mark.parametrize("text", TEXTS)
def test_derivative_against_differences(text):
    phi = activation(text)
    z = np.linspace(-9.03, 9.05, 200)
    z = z[np.min(np.abs(z[:, None] - np.array([*phi.kinks, 1e9])), axis=1) > 1e-3]
    step = 1e-5
    differences = (phi.value(z + step) - phi.value(z - step)) / (2 * step)
    np.testing.assert_allclose(phi.derivative(z), differences, rtol=0, atol=1e-9)


@pytest.mark.parametrize("text", TEXTS)
def test_derivative_at_kinks_is_the_left_one(text):
    phi = activation(text)
    kinks = np.array(phi.kinks)
    if text == "relu6":
        assert phi.derivative(kinks).tolist() == [0.0, 0.0]  # both kinks count as saturated
    else:
        np.testing.assert_allclose(phi.derivative(kinks), phi.derivative(kinks - 1e-12), atol=1e-10)


@pytest.mark.parametrize("text", TEXTS)
def test_germs(text):
    phi = activation(text)
    zero, left, right = phi.germ_zero
    tiny = 1e-9
    assert phi.value(0.0) == zero
    assert (phi.value(tiny) - zero) / tiny == pytest.approx(right, abs=1e-6)
    assert (zero - phi.value(-tiny)) / tiny == pytest.approx(left, abs=1e-6)
    for sign, (slope, intercept) in zip((-1, 1), phi.germ_infinity, strict=True):
        for far in (500.0, 700.0):
            assert phi.value(sign * far) == pytest.approx(slope * sign * far + intercept, abs=1e-10)
        assert phi.derivative(sign * 500.0) == pytest.approx(slope, abs=1e-100)


@pytest.mark.parametrize("text", TEXTS)
def test_homogeneous_is_what_it_says(text):
    phi = activation(text)
    z = np.array([-2.0, -0.5, 0.7, 3.0])
    scaled = bool(np.allclose(phi.value(7 * z), 7 * phi.value(z), rtol=1e-14))
    assert scaled == phi.homogeneous


def test_relu_correlation_map():
    """Cho & Saul 2009: f(c) = (sqrt(1 - c^2) + c (pi - arccos c)) / pi, and l^2 (1 - c_l) -> 9 pi^2 / 2."""
    relu = activation("relu")
    c = np.linspace(-1, 1, 41)
    expected = (np.sqrt(1 - c * c) + c * (np.pi - np.arccos(c))) / np.pi
    np.testing.assert_allclose(2 * relu.dual(1.0, 1.0, c), expected, atol=1e-15)
    # 1/sqrt(1 - c_l) grows by sqrt(2)/(3 pi) a layer, up to a relative (1 + o(1))/l from the next order of f at c = 1.
    correlation, depth, roots = 0.3, 5_000, []
    for layer in range(1, 2 * depth + 1):
        correlation = float(2 * relu.dual(1.0, 1.0, correlation))
        if layer in (depth, 2 * depth):
            roots.append(1 / math.sqrt(1 - correlation))
    assert ((roots[1] - roots[0]) / depth) ** -2 == pytest.approx(9 * math.pi**2 / 2, rel=4 / depth)


@pytest.mark.parametrize("text", TEXTS)
def test_duals_at_the_ends(text):
    """c = 1 gives the second moments, c = 0 the product of the means."""
    phi = activation(text)
    for q in (0.2, 1.0, 9.0):
        assert phi.dual(q, q, 1.0) == pytest.approx(float(phi.second_moment(q)), rel=1e-8)
        assert phi.derivative_dual(q, q, 1.0) == pytest.approx(float(phi.derivative_second_moment(q)), rel=1e-7)
        expected = float(phi.mean(q)) * float(phi.mean(2.0))
        assert phi.dual(q, 2.0, 0.0) == pytest.approx(expected, abs=1e-9 * float(phi.second_moment(q)))


@pytest.mark.parametrize("text", TEXTS)
def test_derivative_dual_is_the_derivative_of_the_dual(text):
    """Price's theorem: two quadratures, or closed forms, that share nothing."""
    phi = activation(text)
    q1, q2, step = 0.7, 3.0, 1e-4
    for c in (-0.6, 0.1, 0.8):
        slope = float(phi.dual(q1, q2, c + step) - phi.dual(q1, q2, c - step)) / (2 * step)
        assert slope == pytest.approx(math.sqrt(q1 * q2) * float(phi.derivative_dual(q1, q2, c)), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("text", ["relu", "leaky_relu(0.2)", "relu6", "selu", "tanh", "erf", "gelu", "hard_swish"])
def test_duals_by_simulation(text):
    phi = activation(text)
    x, y = np.random.default_rng(17).standard_normal((2, 200_000))
    for q1, q2, c in ((1.0, 1.0, 0.95), (0.5, 4.0, -0.7), (30.0, 10.0, 0.4)):
        z1, z2 = math.sqrt(q1) * x, math.sqrt(q2) * (c * x + math.sqrt(1 - c * c) * y)
        for found, function in ((phi.dual(q1, q2, c), phi.value), (phi.derivative_dual(q1, q2, c), phi.derivative)):
            products = function(z1) * function(z2)
            assert abs(products.mean() - float(found)) < 4.5 * products.std() / math.sqrt(products.size)


@pytest.mark.parametrize("text", ["elu", "tanh", "relu6"])
def test_duals_are_vectorised(text):
    phi = activation(text)
    c = np.array([[-0.9, 0.0, 0.4], [0.99, 0.9999, 1.0]])
    q1 = np.array([0.5, 1.0, 2.0])
    found = phi.dual(q1, 1.5, c)
    assert found.shape == c.shape
    np.testing.assert_allclose(found, [[phi.dual(a, 1.5, b) for a, b in zip(q1, row, strict=True)] for row in c])


@pytest.mark.parametrize("text", TEXTS)
def test_at_zero_variance(text):
    phi = activation(text)
    zero = phi.germ_zero[0]
    assert phi.mean(0.0) == pytest.approx(zero, abs=1e-300)
    assert phi.second_moment(0.0) == pytest.approx(zero**2, abs=1e-300)
    assert np.isfinite(phi.derivative_second_moment([0.0, 1e-300])).all()


@settings(max_examples=40, deadline=None, derandomize=True)
@given(scale=st.floats(1e-4, 1e4), q=st.floats(1e-4, 1e4), slope=st.floats(-1, 1))
def test_homogeneous_moments_scale(scale, q, slope):
    phi = activation(f"leaky_relu({slope!r})")
    assert float(phi.second_moment(scale * q)) == pytest.approx(scale * float(phi.second_moment(q)), rel=1e-12)
    assert float(phi.mean(scale**2 * q)) == pytest.approx(scale * float(phi.mean(q)), rel=1e-12)


def test_selu_fixed_point():
    selu = activation("selu")
    assert selu.mean(1.0) == pytest.approx(0, abs=1e-15)
    assert selu.second_moment(1.0) == pytest.approx(1, rel=1e-15)
    assert selu.derivative_second_moment(1.0) == pytest.approx(1.071575, abs=5e-7)
    assert selu_value(-1e3, 0.0) == pytest.approx(-1.7580993408473766, rel=1e-15)


def test_erfcx_tail():
    for x in (1e-9, 1e-3, 0.4, 0.999999, 1.0, 3.0, 1e3):
        with mpmath.workdps(60):
            m = mpmath.mpf(x)
            exact = mpmath.exp(m * m) * mpmath.erfc(m) - 1 + 2 * m / mpmath.sqrt(mpmath.pi)
        assert float(erfcx_tail(x)) == pytest.approx(float(exact), rel=4e-15)


@pytest.mark.parametrize("text", TEXTS)
def test_canonical_name_round_trip(text):
    assert activation(activation(text).name) == activation(text)


def test_spellings():
    assert activation(" leaky_relu( slope = 0.2 ) ") == activation("leaky_relu(0.2)")
    assert activation("leaky_relu(0.01)").name == "leaky_relu"
    assert activation("elu(alpha=1e-1)").parameter == 0.1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("rleu", "did you mean 'relu'"),
        ("", "a name"),
        ("relu(", "a name"),
        ("relu(0.2)", "no parameter"),
        ("leaky_relu()", "finite number"),
        ("leaky_relu(nan)", "finite number"),
        ("leaky_relu(inf)", "finite number"),
        ("leaky_relu(1e999)", "finite number"),
        ("leaky_relu(alpha=0.2)", "slope"),
        ("elu(two)", "finite number"),
        ("__import__('os')", "expected one of"),
    ],
)
def test_bad_activations(text, said):
    with pytest.raises(UserError, match=r"(?i)" + said.replace("(", r"\(")):
        activation(text)
