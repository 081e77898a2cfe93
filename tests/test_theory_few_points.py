"""Batch normalisation over a handful of values, held against direct draws, quadrature and Monte Carlo."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import erfcx

from varprop.simulator.activations import activation
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.duals import hermite_expansion
from varprop.simulator.theory.few_points import Given, gaussian
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sampling import assemble
from varprop.tests.tolerances import BEYOND, CUBATURE, FEW_POINTS, INTERPOLATED, NARROW_STEP, WIDTH_128

EPS = 1e-5
HE = parse_initializer("he_normal")


def kernel_of(points, seed):
    """Kernel of a batch of single values, from a few random features."""
    values = np.random.default_rng(seed).standard_normal((points, 2 * points)) + 0.5
    layout = Layout.all_pairs(points, points)
    full = values @ values.T / (2 * points)
    return PairKernel(layout, (1, 1), full[layout.left, layout.right][:, None, None])


def agree(predicted, drawn):
    """Tell whether numbers are within the standard errors of draws along the last axis, or the nodes' own errors."""
    mean, error = drawn.mean(axis=-1), drawn.std(axis=-1) / np.sqrt(drawn.shape[-1])
    size = np.abs(mean).max()
    assert np.all(np.abs(predicted - mean) < BEYOND * error + FEW_POINTS * size)


@pytest.mark.parametrize(("points", "function"), [*itertools.product([2, 3, 4, 5], [None, "tanh", "gelu"]), (6, None)])
def test_nodes_are_the_law_of_a_channel(points, function):
    """Kernels behind the normalisation, of an activation before it too, and what its projections leave."""
    kernel = kernel_of(points, points) if function else kernel_of(points, points).centred
    nodes = gaussian(kernel, EPS, 0.0)
    values, vectors = np.linalg.eigh(assemble(kernel))
    root = vectors * np.sqrt(np.maximum(values, 0.0))
    z = root @ np.random.default_rng(1).standard_normal((points, 400_000))
    if function is not None:
        nodes, z = nodes.activated(activation(function)), activation(function).value(z)
    eps = 0.1  # at which the law of v matters everywhere, and has no tail that few draws see
    nodes = nodes.normalised(eps)
    z = z - z.mean(axis=0)
    inverse = 1.0 / (np.mean(z**2, axis=0) + eps)
    y = z * np.sqrt(inverse)
    agree(nodes.inverse @ nodes.weights, inverse)
    agree((nodes.values * nodes.weights) @ nodes.values.T, y[:, None] * y)
    # The Jacobian, written out, of every draw.
    inside = np.eye(points)[:, :, None] - 1.0 / points - y[:, None] * y / points
    covariance = assemble(kernel_of(points, 10))
    back = np.einsum("ijk,jl,mlk->imk", inside, covariance, inside) * inverse
    found = Given(covariance[:, :, None], nodes).back()
    agree(found.covariance @ nodes.weights, back)


def test_two_values_leave_a_gradient_where_eps_is_felt():
    """E 1 / (v + eps) of v = s xi^2, and its eps^2 / (v + eps)^3, though few draws in a thousand have it all."""
    kernel = kernel_of(2, 0)
    nodes = gaussian(kernel.centred, EPS, 0.0).normalised(EPS)
    s = kernel.centred.second_moment * float(np.exp(kernel.log_scale))
    expected = np.sqrt(np.pi / (2 * s * EPS)) * erfcx(np.sqrt(EPS / (2 * s)))
    assert nodes.inverse @ nodes.weights == pytest.approx(expected, rel=CUBATURE)
    tail, _ = quad(lambda x: 2 * EPS**2 / (s * x * x + EPS) ** 3 * np.exp(-x * x / 2), 0, 1, points=[1e-3, 1e-2, 0.1])
    back = Given(np.eye(2)[:, :, None], nodes).back().covariance @ nodes.weights
    assert np.allclose(back, tail / np.sqrt(2 * np.pi) * np.array([[0.5, -0.5], [-0.5, 0.5]]), rtol=CUBATURE)


@pytest.mark.parametrize("dimensions", [1.0 + 1e-6, 1.2, 1.7, 1.999])
@pytest.mark.parametrize("function", ["tanh", "gelu", "relu"])
def test_expansions_on_spheres_of_less_than_two_dimensions(dimensions, function):
    """A coordinate x of the unit sphere has x^2 of a beta law; on that of one dimension it is 1 or -1."""
    rng, phi = np.random.default_rng(0), activation(function)
    u = np.sqrt(dimensions * rng.beta(0.5, (dimensions - 1) / 2, 400_000)) * rng.choice([-1.0, 1.0], 400_000)
    coefficients, moments = hermite_expansion(phi, np.array([1.3]), dimensions)
    value, slope = phi.value(1.3 * u), phi.derivative(1.3 * u)
    for found, drawn in (
        (coefficients[0, 0, 0], value),
        (coefficients[0, 0, 1], value * u),
        (moments[0, 0], value**2),
        (moments[1, 0], slope**2),
    ):
        assert abs(found - drawn.mean()) < BEYOND * drawn.std() / np.sqrt(drawn.size) + INTERPOLATED


@pytest.mark.parametrize("function", ["tanh", "gelu"])
def test_two_samples_by_quadrature(function):
    """A wide net of three normalised layers on a batch of two, of which all averages are integrals over one number."""
    width, depth, phi = 8192, 3, activation(function)
    net = NetworkBuilder("two", "torch", (64,))
    for _ in range(depth):
        net.linear(width, HE)
        net.batch_norm()
        net.activation(function)
    net.linear(width, HE)
    network = net.build()
    batch = load_batch("gaussian", (64,), batch=2, seed=0)
    layers = predict(network, batch, remarks=False).layers

    def mean(of, s):
        """Average over x of a function of y and v = s x^2; y = sqrt(v / (v + eps)), and -y at the other sample."""

        def integrand(x):
            v = s * x * x
            y = np.sqrt(v / (v + EPS))
            return (of(y, v) + of(-y, v)) * np.exp(-x * x / 2) / np.sqrt(2 * np.pi)

        unit = np.sqrt(EPS / s)
        return sum(quad(integrand, *ends, limit=200)[0] for ends in ((0, unit), (unit, 30 * unit), (30 * unit, 10)))

    def at(of):
        return lambda y, v: of(y)

    sizes, found = [np.mean((batch.data[0] - batch.data[1]) ** 2) / 2], []
    for _ in range(depth):
        own = mean(at(lambda y: phi.value(y) ** 2), sizes[-1])
        cross = mean(at(lambda y: phi.value(y) * phi.value(-y)), sizes[-1])
        found.append(own)
        sizes.append(own - cross)
    own, cross, gradients = 2.0, 0.0, []
    for s in reversed(sizes[:-1]):

        def left(y, v, own=own, cross=cross):
            slopes = phi.derivative(y), phi.derivative(-y)
            apart = (own * (slopes[0] ** 2 + slopes[1] ** 2) - 2 * cross * slopes[0] * slopes[1]) / 4
            return apart * EPS**2 / (v + EPS) ** 3

        before = mean(left, s)
        gradients.append(before)
        own, cross = 2 * before, -2 * before
    for layer in range(depth):
        weighted, act = layers[3 * layer + 1], layers[3 * layer + 3]
        assert act.forward.second_moment == pytest.approx(found[layer], rel=CUBATURE)
        steps = 3 * (depth - layer)  # of width: weights know of the variance that they made
        bound = CUBATURE * steps
        assert weighted.backward.second_moment == pytest.approx(gradients[depth - 1 - layer], rel=bound)


@pytest.mark.parametrize("order", ["bn act", "act bn", "bn act act", "bn"])
@pytest.mark.parametrize("function", ["tanh", "gelu"])
def test_six_samples_against_monte_carlo(order, function):
    """Dense layers of width 128; of fewer samples squares of gradients have no variance."""
    net = NetworkBuilder("six", "torch", (128,))
    for _ in range(2):
        net.linear(128, HE)
        for part in order.split():
            net.batch_norm() if part == "bn" else net.activation(function)
    net.linear(10, HE)
    network = net.build()
    batch = load_batch("gaussian", (128,), batch=6, seed=0)
    found = compare(predict(network, batch, remarks=False), simulate(network, batch, trials=1500, seed=0))
    assert not any(row.fails(WIDTH_128) for row in found.forward if row.z is not None)
    assert not any(row.fails(NARROW_STEP) for row in found.backward if row.z is not None)
