"""Kernels of batches whose pairs are all told apart, from sampled channels."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.corrections import paired
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sample import mirrored
from varprop.simulator.theory.sampling import draw
from varprop.tests.tolerances import DRAWN_NEIGHBOURS, SMOOTH_POOLED, SMOOTH_STEP

HE = parse_initializer("he_normal")
SAMPLES, SIDE = 3, 2


def smooth_kernel():
    """Covariance of points that have much in common, of two sizes, as blocks of a layout, and whole."""
    rng = np.random.default_rng(0)
    size = SAMPLES * SIDE**2
    root = rng.standard_normal((size, 3)) * [1.0, 0.3, 0.1]
    root *= rng.uniform(0.5, 1.5, (size, 1)) / np.linalg.norm(root, axis=1, keepdims=True)
    whole = (root @ root.T + 0.01 * np.eye(size)).reshape(SAMPLES, SIDE**2, SAMPLES, SIDE**2)
    layout = Layout.all_pairs(SAMPLES, SAMPLES)
    blocks = np.stack([whole[a, :, b] for a, b in zip(layout.left, layout.right, strict=True)])
    return PairKernel(layout, (SIDE, SIDE), blocks), whole


def expected_products(kernel, function):
    """E[f(x) f(y)] of every pair of points, by quadrature in two dimensions."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    weights = weights / weights.sum()
    found = np.empty_like(kernel.values)
    diagonal = kernel.diagonal
    for block, (a, b) in enumerate(zip(kernel.layout.left, kernel.layout.right, strict=True)):
        for i, j in np.ndindex(found[block].shape):
            first, second = np.sqrt(diagonal[a, i]), np.sqrt(diagonal[b, j])
            c = np.clip(kernel.values[block, i, j] / (first * second), -1.0, 1.0)
            x = first * nodes[:, None]
            y = second * (c * nodes[:, None] + np.sqrt(1 - c**2) * nodes[None, :])
            found[block, i, j] = weights @ (function(x) * function(y)) @ weights
    return found


@pytest.mark.parametrize(("rough", "reach"), [(0.0, 2.0), (0.3, 4.0)])
def test_drawn_neighbours_go_together_as_in_the_kernel(rough, reach):
    """Of 500 points, of which not all directions are drawn: leading ones at the points' size gave 20% to 30% more."""
    side, samples = 10, 5
    rows, cols = np.divmod(np.arange(side**2), side)
    distance = np.hypot(rows[:, None] - rows, cols[:, None] - cols)
    own = (1.0 - rough) * np.exp(-distance / reach) + rough * (distance == 0)
    layout = Layout.all_pairs(samples, samples)
    values = np.where((layout.left == layout.right)[:, None, None], own, 0.0)
    drawn = draw(PairKernel(layout, (side, side), values), 1).values
    found = np.einsum("psc,qsc->pq", drawn, drawn) / drawn[0].size
    near = distance == 1.0
    assert np.trace(found) == pytest.approx(np.trace(own), rel=DRAWN_NEIGHBOURS)
    assert found[near].mean() == pytest.approx(own[near].mean(), rel=DRAWN_NEIGHBOURS)


def test_of_the_channels_themselves_their_kernel_is_left():
    kernel, _ = smooth_kernel()
    before = mirrored(draw(kernel, 1)).values
    found = paired(kernel, np.zeros((SAMPLES, SIDE**2)), before, before)
    assert np.exp(found.log_scale) * found.values == pytest.approx(kernel.values, abs=1e-12)


def test_known_means_are_no_noise():
    kernel, _ = smooth_kernel()
    mean = np.linspace(-1.0, 2.0, SAMPLES * SIDE**2).reshape(SAMPLES, -1)
    before = mirrored(draw(kernel, 1)).values + mean.T[:, :, None]
    left, right = mean[kernel.layout.left], mean[kernel.layout.right]
    shifted = PairKernel(kernel.layout, kernel.size, kernel.values + left[:, :, None] * right[:, None, :])
    found = paired(shifted, mean, before, before)
    assert np.exp(found.log_scale) * found.values == pytest.approx(shifted.values, abs=1e-12)


def test_an_activation_leaves_little_noise_and_no_bias():
    """The mean over draws is that of quadrature, and one draw strays a third less than its sample alone."""
    kernel, _ = smooth_kernel()
    exact = expected_products(kernel, np.tanh)
    errors, alone = [], []
    for key in range(40):
        before = mirrored(draw(kernel, key)).values
        after = np.tanh(before)
        found = paired(kernel, np.zeros((SAMPLES, SIDE**2)), before, after)
        errors.append(np.exp(found.log_scale) * found.values - exact)
        field = after.transpose(1, 0, 2)
        plain = field[kernel.layout.left] @ field[kernel.layout.right].transpose(0, 2, 1) / after.shape[2]
        alone.append(plain - exact)
    noise = np.std(errors, axis=0) / np.sqrt(len(errors))
    assert np.all(np.abs(np.mean(errors, axis=0)) < 4.5 * noise + 1e-9)
    assert np.sqrt(np.mean(np.square(errors))) < 2 / 3 * np.sqrt(np.mean(np.square(alone)))


@pytest.mark.parametrize("pooled", [False, True])
def test_saturating_layers_on_smooth_images(pooled):
    """What a mean over positions keeps of crops of a photograph, four normalised layers on (it was half too small)."""
    net = NetworkBuilder("smooth", "torch", (3, 12, 12))
    for layer in range(4):
        net.conv2d(32, 3, HE)
        net.batch_norm()
        net.activation("tanh")
        if pooled and layer == 1:
            net.max_pool(2, stride=2)
    net.global_average_pool()
    net.linear(10, HE)
    network = net.build()
    batch = load_batch("photo", (3, 12, 12), 6, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=300, seed=1))
    assert found.agrees
    mean = found.forward[-2]
    assert mean.relative is not None
    assert abs(mean.relative) < SMOOTH_POOLED
    assert max(abs(step.agreement.relative or 0.0) for step in found.steps) < SMOOTH_STEP
