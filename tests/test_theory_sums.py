"""Sums of branches on maps: their law differs from position to position, and what follows feels it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo.engine import simulate_trials
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.corrections import averages, correct, paired, shifted
from varprop.simulator.theory.drawn import Drawn, corrected, drawn, missed
from varprop.simulator.theory.duals import apply_activation
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sample import Sample, activated
from varprop.simulator.theory.sampling import draw, signs
from varprop.simulator.theory.signal import Signal
from varprop.simulator.theory.start import start
from varprop.simulator.theory.sums import edges_after_sum
from varprop.tests.tolerances import BEYOND, NEAR, ROUNDING

HE = parse_initializer("he_normal")
SIZE = (3, 4)


def test_sampled_averages_keep_the_profile_of_a_map():
    """A kernel of correlations that depend on the offset, at sizes that do not, is found again from its sample."""
    rng = np.random.default_rng(0)
    layout, points = Layout.all_pairs(2, 2), SIZE[0] * SIZE[1]
    size = rng.uniform(0.5, 2.0, points)
    rows, cols = np.divmod(np.arange(points), SIZE[1])
    apart = np.abs(rows[:, None] - rows) + np.abs(cols[:, None] - cols)
    unit = np.outer(size, size)
    truth = np.stack([unit * 0.8**apart, unit * 0.8**apart, unit * 0.3 * 0.8**apart])
    full = np.block([[truth[0], truth[2]], [truth[2], truth[1]]])
    white = np.linalg.qr(rng.standard_normal((4 * points, 2 * points)))[0] * np.sqrt(4 * points)
    sample = Sample((white @ np.linalg.cholesky(full).T).reshape(-1, 2, points).transpose(2, 1, 0))
    before = PairKernel(layout, SIZE, np.stack([unit * 0.5**apart, unit * 0.5**apart, unit * 0.1]))
    after = shifted(before, sample)
    np.testing.assert_allclose(after.values * np.exp(after.log_scale), truth, rtol=ROUNDING)


def test_no_point_is_left_with_a_negative_second_moment():
    """Of a point that channels happen to be large at, and hardly are behind an operation, more is taken than it has."""
    rng = np.random.default_rng(3)
    before = rng.standard_normal((2, 2, 64))
    before[0, 0] *= 3.0
    after = before.copy()
    after[0, 0] *= 0.01
    kernel = PairKernel(Layout.all_pairs(2, 2), (1, 2), np.stack([np.eye(2), np.eye(2), np.zeros((2, 2))]))
    found = paired(kernel, np.zeros((2, 2)), before, after)
    assert (found.diagonal > 0).all()
    assert found.diagonal[0, 0] * np.exp(found.log_scale) == pytest.approx(np.mean(after[0, 0] ** 2), rel=ROUNDING)


def test_a_piece_of_a_gradient_behind_a_stride_keeps_its_size():
    """Of its positions only some have a gradient, and these have all of the second moment that a piece has on average.

    It was lost where the others are: before a max pooling that a stride follows 2 in 3 of the gradient, on photographs.
    """
    values = np.zeros((6, 6, 2, 64))
    values[::2, ::2] = np.random.default_rng(4).standard_normal((3, 3, 2, 64))
    kernel = PairKernel(Layout.exchangeable(8), (4, 4), np.stack([0.25 * np.eye(16), np.zeros((16, 16))]))
    found = Drawn(values.reshape(36, 2, 64), 0.0).on(kernel, (6, 6))
    assert np.mean(found.values**2) == pytest.approx(0.25, rel=ROUNDING)


def test_what_a_sample_misses_of_far_positions_is_given_back():
    """Of Gaussian channels the answer is known: the mean product of all pairs has no bias, and a third of the noise."""
    phi, size, points = activation("tanh"), (6, 6), 36
    apart = np.abs(np.subtract.outer(np.arange(points), np.arange(points)))
    same = 0.5**apart + 0.02
    kernel = PairKernel(Layout.exchangeable(8), size, np.stack([same, np.full_like(same, 0.01)]))
    duals = apply_activation(phi, kernel)
    plain, given = [], []
    for key in range(40):
        before = draw(kernel, key)
        after = activated(before, phi)
        plain.append(shifted(duals.kernel, after).values[0].mean())
        given.append(correct(duals, after, kernel, np.zeros_like(duals.mean)).kernel.values[0].mean())
    deviation = np.std(given, ddof=1)
    assert deviation < np.std(plain, ddof=1) / 3
    assert abs(np.mean(given) - duals.kernel.values[0].mean()) < BEYOND * deviation / np.sqrt(len(given))


def test_far_positions_are_corrected_together():
    """Of a pair of corners there is one in a map: what a sample says of all far pairs has a third of its noise."""
    size, points = (8, 8), 64
    same = 0.98 * np.eye(points) + 0.02
    kernel = PairKernel(Layout.exchangeable(64), size, np.stack([same, np.zeros_like(same)]))
    samples = [draw(kernel, key) for key in range(40)]
    corners = np.array([shifted(kernel, sample).values[0][0, -1] for sample in samples])
    alone = np.array([np.mean(sample.values[0] * sample.values[-1]) for sample in samples])
    assert corners.std(ddof=1) < alone.std(ddof=1) / 3
    assert abs(corners.mean() - 0.02) < BEYOND * corners.std(ddof=1) / np.sqrt(len(corners))


def test_what_a_drawn_gradient_misses_is_given_back_behind_slopes():
    """Of slopes that know nothing of it the answer is known: the mean product has no bias, and a third of the noise."""
    points, size = 16, (4, 4)
    apart = np.abs(np.subtract.outer(np.arange(points), np.arange(points)))
    known, source = (
        PairKernel(Layout.exchangeable(64), size, np.stack([q * c**apart, np.full((points, points), 0.05 * q)]))
        for q, c in ((3.0, 0.7), (1.0, 0.3))
    )
    phi = activation("tanh")
    slopes = apply_activation(phi, source).derivative
    expected = replace(known, values=known.values * slopes.values, log_scale=slopes.log_scale)
    plain, given = [], []
    for key in range(40):
        before = drawn(known, key)
        behind = before.times(phi.derivative(draw(source, key + 1000).values))
        gaps = missed(known, before.part(*behind.values.shape[1:]))
        gaps = [gap * product for gap, product in zip(gaps, averages(slopes), strict=True)]
        for found, kernel in ((plain, corrected(expected, behind)), (given, corrected(expected, behind, gaps))):
            found.append(kernel.pair_mean * np.exp(kernel.log_scale))
    deviation = np.std(given, ddof=1)
    assert deviation < np.std(plain, ddof=1) / 3
    exact = expected.pair_mean * np.exp(expected.log_scale)
    assert abs(np.mean(given) - exact) < BEYOND * deviation / np.sqrt(len(given))


def test_a_gradient_that_some_positions_lack_keeps_its_size_behind_slopes():
    """A kernel deep inside a map has behind a stride what positions have on average, and a draw has it at a quarter."""
    size = (8, 8)
    known, source = (
        PairKernel(Layout.exchangeable(16), size, np.stack([q * (np.eye(64) + c), np.full((64, 64), q * c)]))
        for q, c in ((3.0, 0.1), (1.0, 0.3))
    )
    phi = activation("tanh")
    slopes = apply_activation(phi, source).derivative
    rows, cols = np.divmod(np.arange(64), 8)
    reached = (rows % 2 == 0) & (cols % 2 == 0)
    before = drawn(known, 0).times(np.where(reached, 2.0, 0.0)[:, None, None]).like(known)
    behind = before.times(phi.derivative(draw(source, 1).values))
    gaps = missed(known, before.part(*behind.values.shape[1:]))
    gaps = [gap * product for gap, product in zip(gaps, averages(slopes), strict=True)]
    expected = replace(known, values=known.values * slopes.values, log_scale=slopes.log_scale)
    kernel = corrected(expected, behind, gaps)
    found = kernel.second_moment * np.exp(kernel.log_scale)
    assert found == pytest.approx(np.mean(behind.values**2) * np.exp(behind.log_scale), rel=0.01)


@pytest.mark.parametrize("alike", [0.0, 0.9])
def test_gradients_of_signs_have_the_products_of_normal_ones_and_less_noise(alike):
    same = alike + (1 - alike) * np.eye(4)
    kernel = PairKernel(Layout.exchangeable(64), (2, 2), np.stack([same, 0.1 * same]))
    slope = np.random.default_rng(0).uniform(size=(4, 1, draw(kernel, 0).values.shape[2]))

    def products(noise):
        fields = (draw(kernel, key, noise).values * slope for key in range(100))
        return np.array([np.mean(field[0] * field[1]) for field in fields])

    normal, found = products(np.random.Generator.standard_normal), products(signs)
    error = np.sqrt((normal.var(ddof=1) + found.var(ddof=1)) / 100)
    assert abs(found.mean() - normal.mean()) < BEYOND * error
    assert found.std(ddof=1) < (0.6 if alike else 1.2) * normal.std(ddof=1)


@pytest.mark.parametrize(("side", "carried"), [(40, {40: 8, 20: 8, 10: 10}), (32, {32: 8, 16: 8, 8: 8})])
def test_maps_that_are_averaged_whole_are_carried_whole(side, carried):
    network = build("resnet", depth=3, size=side)
    layout = start(load_batch("gaussian", network.nodes[0].shape, 64, 0), network).layout
    assert {rows: layout.carried((1, rows, rows))[0] for rows in carried} == carried


@pytest.mark.parametrize("function", ["relu", "tanh"])
def test_edges_of_a_sum_are_those_of_its_terms(function):
    """At every position the moments are the plain averages over channels of terms of that position's sizes."""
    rng = np.random.default_rng(1)
    kernel = PairKernel(Layout.exchangeable(1), (2, 2), np.eye(4)[None])
    values = [rng.standard_normal((4, 1, 64)), np.abs(rng.standard_normal((4, 1, 64)))]
    fields = [np.array([[0.25, 1.0], [1.0, 1.44]]), np.array([[0.64, 0.81], [1.0, 1.0]])]
    terms = [
        Signal(kernel, np.zeros((1, 4)), 64, sample=lambda x=x: Sample(x), amplitude=field)
        for x, field in zip(values, fields, strict=True)
    ]
    phi = activation(function)
    second_moments, slopes, shifts = edges_after_sum(phi, terms)
    inside = values[0] + values[1]
    square, slope = np.mean(phi.value(inside) ** 2), np.mean(phi.derivative(inside) ** 2)
    for i, j in np.ndindex(2, 2):
        here = np.sqrt(fields[0][i, j]) * values[0] + np.sqrt(fields[1][i, j]) * values[1]
        assert second_moments[i, j] == pytest.approx(np.mean(phi.value(here) ** 2) / square, rel=ROUNDING)
        assert slopes[i, j] == pytest.approx(np.mean(phi.derivative(here) ** 2) / slope, rel=ROUNDING)
        shift = np.mean(phi.value(here)) - np.mean(phi.value(inside))
        assert shifts[i, j] == pytest.approx(shift / np.sqrt(square), rel=ROUNDING, abs=ROUNDING)
    alone = edges_after_sum(phi, [replace(terms[0], amplitude=None), terms[1]])[0]
    assert alone.shape == fields[1].shape


def residual(size, blocks, channels):
    net = NetworkBuilder("residual", "torch", (3, size, size))
    net.conv2d(channels, 3, HE)
    net.batch_norm()
    net.activation("relu")
    for _ in range(blocks):
        source = net.last
        net.conv2d(channels, 3, HE)
        branch = net.batch_norm()
        net.add((source, branch))
        net.activation("relu")
    net.conv2d(channels, 3, HE, name="probe")
    net.batch_norm()
    net.global_average_pool()
    return net.build()


@pytest.mark.parametrize(("size", "trials"), [(6, 300), (20, 100)])
def test_residual_sums_of_ones_branches(size, trials):
    """Forward through two sums, on a map that is carried whole and on a larger one, over all pairs of positions.

    Taken as alike at all positions, sums are off by ten standard errors of this run: 1% after each of the larger map,
    2% where a convolution of the smaller one looks at the centre more often than at the border. Variances over the data
    are off by 2% to 3% if what two positions have in common falls off at the edges as their deviations do.
    """
    network = residual(size, 2, 32)
    batch = load_batch("gaussian", (3, size, size), 16, 0)
    predicted = [layer.forward for layer in predict(network, batch).layers]
    measured, _ = simulate_trials(network, batch, trials=trials, seed=1)
    looked = [i for i, node in enumerate(network.nodes) if node.kind in ("add", "activation", "conv2d")]
    assert len(looked) == 9
    for index in looked:
        for field in ("second_moment", "variance"):
            values = np.ldexp(getattr(measured, field)[:, index], 2 * measured.exponent[:, index])
            error = values.mean() - getattr(predicted[index], field)
            deviation = values.std(ddof=1) / np.sqrt(trials)
            assert abs(error) < BEYOND * deviation + NEAR * values.mean(), (network.nodes[index].name, field)


def sums_of_sums(size, channels):
    """Build a trunk that two branches are added to, one after the other, behind an activation that has a mean."""
    net = NetworkBuilder("sums", "torch", (3, size, size))
    net.conv2d(channels, 3, HE)
    net.batch_norm()
    trunk = net.activation("sigmoid")
    for _ in range(2):
        net.conv2d(channels, 3, HE, source=trunk)
        trunk = net.add((trunk, net.batch_norm()))
    net.activation("sigmoid", name="seen")
    return net.build()


def test_edges_of_sums_of_sums_are_those_of_all_terms():
    """What edges have more is the branches' and not the trunk's, whose mean has no edges.

    A first sum that is taken for one term, larger at the edges as a whole, leaves 1.6% of the last second moment.
    """
    network, trials = sums_of_sums(20, 32), 200
    batch = load_batch("gaussian", (3, 20, 20), 16, 0)
    predicted = predict(network, batch).layers[-1].forward
    measured, _ = simulate_trials(network, batch, trials=trials, seed=1)
    values = np.ldexp(measured.second_moment[:, -1], 2 * measured.exponent[:, -1])
    assert network.nodes[-1].name == "seen"
    assert abs(values.mean() - predicted.second_moment) < NEAR * values.mean()


def test_a_chain_of_many_sums_is_told_apart_by_all_its_terms():
    """Twelve terms of their own sizes at every position are more than an integer can number at once."""
    rng = np.random.default_rng(2)
    kernel = PairKernel(Layout.exchangeable(1), (1, 1), np.ones((1, 1, 1)))
    values, fields = rng.standard_normal((12, 1, 1, 64)), rng.uniform(0.5, 40.0, (12, 3, 3))
    terms = [
        Signal(kernel, np.zeros((1, 1)), 64, sample=lambda x=x: Sample(x), amplitude=field)
        for x, field in zip(values, fields, strict=True)
    ]
    found, *_ = edges_after_sum(activation("relu"), terms)
    inside = np.mean(np.maximum(values.sum(axis=0), 0.0) ** 2)
    for i, j in np.ndindex(3, 3):
        here = np.tensordot(np.sqrt(fields[:, i, j]), values, 1)
        assert found[i, j] == pytest.approx(np.mean(np.maximum(here, 0.0) ** 2) / inside, rel=0.02)
