"""Numbers that derived results must give, from the literature or from code that shares nothing with them."""

import math

import mpmath
import numpy as np
import pytest
import sympy as sp
from scipy import integrate, special

from varprop.derivations import TOPICS, derivation
from varprop.derivations.checking import check
from varprop.simulator.activations import activation
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.network import NetworkBuilder


def value(topic, name, *arguments):
    """A result of a derivation as a number."""
    result = derivation(topic).results[name]
    return float(result.expression.subs(dict(zip(result.arguments, arguments, strict=True))).evalf(20))


def test_every_topic_goes_forward_and_backward():
    """A topic of one statement, or without the way back, is half a derivation."""
    for topic in TOPICS:
        theorem = derivation(topic)
        statements = [step.statement for step in theorem.steps]
        assert theorem.references, topic
        assert theorem.assumptions, topic
        for way in ("Forward", "Backward"):
            assert any(statement.startswith(way) for statement in statements), (topic, way)


def test_pure_decay_is_the_printed_ratio():
    """Nine epochs of 1563 steps at learning rate 0.1 with Keras's l2(0.001): .0599838 as far as ten digits go."""
    assert value("weight_decay", "kept", 0.1, 0.002, 9 * 1563) == pytest.approx(0.0599838, abs=5e-8)


def test_equilibrium_of_norm_and_angle_by_running_it():
    """Random gradients orthogonal to w, of norm G / |w|: the run forgets its start and turns by the derived angle."""
    random, n, eta, decay, mu, size = np.random.default_rng(3), 400, 0.05, 0.02, 0.6, 2.0
    w, v = random.normal(size=n), np.zeros(n)
    squares, cosines = [], []
    for t in range(12_000):
        g = random.normal(size=n)
        g -= w * (g @ w) / (w @ w)
        v = mu * v + size * g / np.linalg.norm(g) / np.linalg.norm(w) + decay * w
        before, w = w, w - eta * v
        if t >= 2_000:  # five relaxation times of 1 / (2 eta decay / (1 - mu)) = 200 steps
            squares.append(w @ w)
            cosines.append(w @ before / np.linalg.norm(w) / np.linalg.norm(before))
    norm = value("batch_norm_weight_decay", "equilibrium_norm", size, eta, decay, mu)
    angle = value("batch_norm_weight_decay", "angular_update", eta, decay, mu)
    # Relative fluctuations are of order 1/sqrt(n) a step; their means settle to a few 1e-3.
    assert math.sqrt(np.mean(squares)) == pytest.approx(norm, rel=5e-3)
    assert np.mean(np.arccos(cosines)) == pytest.approx(angle, rel=5e-3)
    assert angle == pytest.approx(math.sqrt(2 * eta * decay / (1 + mu)), rel=1e-3)


def test_mean_field_scales_of_tanh():
    """Schoenholz et al. at sigma_b2 = .05, sigma_w2 = 1: q* .193593, chi .759032, xi_q 1.7476, xi_c 3.6270."""
    tanh, q = activation("tanh"), 1.0
    for _ in range(200):
        q = value("mean_field", "second_moment", float(tanh.second_moment(q)), 1.0, 0.05)
    slope = float(tanh.derivative_second_moment(q))
    curved, _ = integrate.quad(
        lambda x: -2 * math.tanh(x) ** 2 * (1 - math.tanh(x) ** 2) * math.exp(-x * x / (2 * q)), -9, 9, epsabs=1e-13
    )
    curved /= math.sqrt(2 * math.pi * q)
    assert q == pytest.approx(0.193593, abs=5e-7)
    assert value("mean_field", "chi", 1.0, slope) == pytest.approx(0.759032, abs=5e-7)
    assert value("mean_field", "xi_q", 1.0, slope, curved) == pytest.approx(1.7476, abs=5e-5)
    assert value("mean_field", "xi_c", 1.0, slope) == pytest.approx(3.6270, abs=5e-5)


def test_result_4_selu_jacobian_is_klambauers():
    steps = {step.name: step for step in derivation("selu").steps}
    constants = derivation("selu").constants
    found = [float(steps[name].equation.rhs.subs(constants)) for name in ("mean_slope", "variance_slope")]
    assert found == pytest.approx([0.088835, 0.782648], abs=5e-7)


def test_result_9_finite_width_by_simulation():
    """Mean and variance of log|W x|^2 and E|x|^4 of one layer, from draws that use no formula of ours."""
    n, draws = 6, 200_000
    z = np.random.default_rng(7).normal(size=(draws, n))
    logs = np.log((z**2).mean(axis=1))
    assert abs(logs.mean() - value("finite_width_linear", "log_mean", n)) < 4 * logs.std() / math.sqrt(draws)
    spread = (logs - logs.mean()) ** 2
    expected = value("finite_width_linear", "log_variance", n)
    assert abs(spread.mean() - expected) < 4 * spread.std() / math.sqrt(draws)
    squares = (2 * (np.maximum(z, 0) ** 2).mean(axis=1)) ** 2
    assert abs(squares.mean() - value("finite_width_relu", "fourth", n)) < 4 * squares.std() / math.sqrt(draws)


@pytest.mark.parametrize(
    ("framework", "init", "topic", "factor"),
    [
        ("torch", "default", "torch_default", 1 / 3),
        ("torch", "he_normal", "torch_he_fan_in", 2),
        ("torch", "kaiming_normal(mode=fan_out)", "torch_he_fan_out", 2 / 32),
        ("torch", "glorot_normal", "glorot", 2 / 33),
        ("keras", "glorot_uniform", "glorot", 2 / 33),
        ("keras", "he_normal", "keras_he", 2 / 32),
        ("keras", "lecun_normal", "keras_lecun", 1 / 32),
        ("torch", "orthogonal", "torch_orthogonal", 9 / 32),
        ("keras", "orthogonal", "keras_orthogonal", 1 / 32),
    ],
)
def test_depthwise_fans_are_what_the_simulator_draws(framework, init, topic, factor):
    channels, taps = 32, 3
    assert value("depthwise_fans", topic, taps, channels) == pytest.approx(factor, rel=1e-14)
    builder = NetworkBuilder("one", framework, (channels, 8, 8))
    builder.conv2d(channels, taps, parse_initializer(init), groups=channels)
    law = weight_law(builder.build().nodes[-1], framework)
    assert taps**2 * (law.variance + law.mean**2) == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("sizes", [((3, 3), (2, 2)), ((3, 4), (2, 3)), ((2, 2), (2, 2))])
def test_image_and_kernel_written_out(sizes):
    """Every output and gradient against loops over arrays."""
    (height, width), (rows, columns) = sizes
    theorem = derivation(f"image_kernel({height}x{width},{rows}x{columns})")
    assert all(found.holds for found in check(theorem))
    random = np.random.default_rng(1)
    x, k = random.normal(size=(height, width)), random.normal(size=(rows, columns))
    delta = random.normal(size=(height - rows + 1, width - columns + 1))
    arrays = {"x": x, "k": k, "delta": delta}
    expected = {}
    for i, j in np.ndindex(delta.shape):
        expected[f"output_{i + 1}_{j + 1}"] = np.sum(k * x[i : i + rows, j : j + columns])
    for a, b in np.ndindex(k.shape):
        window = x[a : a + delta.shape[0], b : b + delta.shape[1]]
        expected[f"kernel_gradient_{a + 1}_{b + 1}"] = np.sum(delta * window)
    back = np.zeros_like(x)
    for i, j in np.ndindex(delta.shape):
        back[i : i + rows, j : j + columns] += delta[i, j] * k
    expected |= {f"input_gradient_{i + 1}_{j + 1}": back[i, j] for i, j in np.ndindex(x.shape)}
    steps = {step.name: step.equation.rhs for step in theorem.steps}
    for name, number in expected.items():
        elements = {
            element: arrays[str(element.base)][tuple(int(index) - 1 for index in element.indices)]
            for element in steps[name].atoms(sp.Indexed)
        }
        assert float(steps[name].subs(elements)) == pytest.approx(number, rel=1e-12), name
    assert len(expected) == sum(name.startswith(("output_", "kernel_gradient_", "input_gradient_")) for name in steps)


@pytest.mark.parametrize(
    "text",
    ["image_kernel(3x3)", "image_kernel(3x3,4x1)", "image_kernel(999x999,9x9)", "image_kernel(3x3,2x2", "relu(2)"],
)
def test_sizes_that_are_no_sizes(text):
    with pytest.raises(ValueError, match=r"\w"):
        derivation(text)


def _inner(family, mean, variance):
    """E[phi(mean + sqrt(variance) y)] for y ~ N(0, 1): textbook forms."""
    s = np.sqrt(variance)
    if family == "relu":
        return mean * special.ndtr(mean / s) + s * np.exp(-(mean**2) / (2 * variance)) / math.sqrt(2 * math.pi)
    if family == "erf":
        return special.erf(mean / np.sqrt(1 + 2 * variance))
    u = np.sqrt(1 + variance)
    return mean * special.ndtr(mean / u) + variance / u * np.exp(-(mean**2) / (2 * u**2)) / math.sqrt(2 * math.pi)


@pytest.mark.parametrize("family", ["relu", "erf", "gelu"])
@pytest.mark.parametrize("q", [1e-8, 1.0, 1e4, 1e8])
def test_duals_against_one_quadrature(family, q):
    """The mean over z2 given z1 has a closed form of its own; what is left is one Gauss-Legendre rule."""
    phi = activation(family)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for c in (-0.6, 0.3, 0.9, 0.999):
        # The integrand's lengths: the Gaussian's, phi's own, and where the inner mean turns.
        turn = math.sqrt(1 - c * c) / abs(c)
        lengths = [12.0, *(length * 2.0**k for k in range(-8, 6) for length in (1.0, turn, 1 / math.sqrt(q)))]
        edges = np.unique([0.0, *(sign * length for length in lengths if length <= 12 for sign in (-1, 1))])
        half, middle = np.diff(edges)[:, None] / 2, (edges[1:] + edges[:-1])[:, None] / 2
        x = (middle + half * nodes).ravel()
        w = (half * weights).ravel() * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
        z = math.sqrt(q) * x
        expected = np.sum(w * phi.value(z) * _inner(family, c * z, q * (1 - c * c)))
        size = float(phi.second_moment(q))
        assert float(phi.dual(q, q, c)) == pytest.approx(expected, rel=1e-12, abs=1e-13 * size), c


def test_rate_of_the_quadrature_is_the_derived_one():
    """Each further point gains a factor rho^2 at least, and at the twelve that are run nothing is left."""
    strip, half, centre = math.pi / 3, 0.5, 0.7
    rho = strip / half + math.sqrt(1 + (strip / half) ** 2)

    def integrand(x):
        return mpmath.tanh(x) ** 2 * mpmath.npdf(x)

    with mpmath.workdps(40):
        exact = mpmath.quad(integrand, [centre - half, centre, centre + half])
        logs = []
        for n in range(3, 13):
            nodes, weights = np.polynomial.legendre.leggauss(n)
            # Nodes in double precision: below 1e-15 their rounding shows, so the slope is taken up to 8 points.
            rule = half * sum(w * integrand(centre + half * x) for x, w in zip(nodes, weights, strict=True))
            logs.append(float(mpmath.log(abs(rule - exact))))
    slope = np.polyfit(range(3, 9), logs[:6], 1)[0]
    assert slope < -2 * math.log(rho)
    assert logs[-1] < math.log(1e-15)


def test_rate_of_tanh_far_out():
    """What the upper bound leaves is the next order, q^(-5/2): the one after it is a tenth at q = 100."""
    bound = next(step for step in derivation("tanh").steps if step.name == "large_above").equation.rhs
    (q,) = bound.free_symbols
    at = np.array([1e2, 1e3])
    gaps = [float(bound.subs(q, value).evalf(30)) - float(activation("tanh").second_moment(value)) for value in at]
    assert np.diff(np.log(gaps))[0] / math.log(10) == pytest.approx(-2.5, abs=0.05)
