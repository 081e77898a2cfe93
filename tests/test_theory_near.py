"""Neighbours at the edges of large maps: what they have in common, and what poolings make of that."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view

from varprop.simulator.activations import activation
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Initializer, NetworkBuilder
from varprop.simulator.theory import engine, predict
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.near import Near, of_data, of_sum
from varprop.tests.tolerances import KINK, ROUNDING, SAMPLED

OFFSETS = [(0, 0), (0, 1), (1, 0), (1, -1), (-1, 2), (2, 2), (0, -3)]
HE = Initializer("he_normal")


def naive(maps, offset):
    """Mean product with the value at an offset, position by position."""
    found = np.zeros(maps.shape[-2:])
    for i, j in np.ndindex(found.shape):
        y, x = i + offset[0], j + offset[1]
        if 0 <= y < found.shape[0] and 0 <= x < found.shape[1]:
            found[i, j] = np.mean(maps[..., i, j] * maps[..., y, x])
    return found


def maps_of(shape, seed=0):
    """Maps whose neighbours are alike and whose mean is not zero."""
    drawn = np.random.default_rng(seed).normal(size=shape)
    return 0.5 + drawn + np.roll(drawn, 1, axis=-1) + np.roll(drawn, 1, axis=-2)


@pytest.mark.parametrize(
    "window",
    [Window((3, 3), (1, 1), (1, 1, 1, 1)), Window((3, 2), (2, 2), (0, 1, 1, 0)), Window((1, 3), (1, 2))],
    ids=["padded", "strided", "flat"],
)
def test_taps_of_a_convolution_bring_neighbours_what_theirs_have_in_common(window):
    maps = maps_of((2, 3, 8, 7))
    near = of_data(maps).weighed(window)
    (top, bottom, left, right), (rows, cols) = window.padding, window.kernel
    padded = np.pad(maps, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = window.out_size((8, 7))
    taps = np.stack(  # weights of one tap each: a mean over them is that over all weights
        [
            padded[..., i : i + window.stride[0] * height : window.stride[0], j : j + window.stride[1] * width :]
            [..., : window.stride[1] * width : window.stride[1]]
            for i in range(rows)
            for j in range(cols)
        ]
    )  # fmt: skip
    for offset in OFFSETS:
        assert near.products(offset) == pytest.approx(naive(taps[..., :height, :width], offset), rel=1e-12, abs=1e-12)


def test_what_is_centred_has_the_products_of_deviations():
    """Of channels that all have a mean of their own over data and positions, and the map's edges theirs."""
    maps = maps_of((400, 4, 6, 6)) + np.arange(4)[:, None, None] * np.linspace(0.5, 1, 6)
    inside = float(np.mean(maps**2))
    amplitude = naive(maps, (0, 0)) / inside
    averages = maps.mean(axis=0)
    pair_mean = float(np.mean(averages.mean(axis=(1, 2)) ** 2))
    common = np.mean(averages * averages.mean(axis=(1, 2), keepdims=True), axis=0) / pair_mean
    found = of_data(maps).centred(amplitude, inside, pair_mean, common)
    deviations = maps - maps.mean(axis=(0, 2, 3), keepdims=True)
    for offset in OFFSETS:
        assert found.products(offset) == pytest.approx(naive(deviations, offset), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("name", ["relu", "tanh", "selu"])
def test_behind_an_activation_neighbours_have_its_dual_in_common(name):
    """Gaussian positions of one variance: the dual's own closed form or quadrature, to the length of the series."""
    function, q, even = activation(name), 1.7, np.ones((5, 6))
    correlations = {(0, 0): 1.0, (0, 1): 0.8, (1, 0): -0.3, (1, 1): 0.1}
    near = Near(lambda offset: np.full((5, 6), correlations[offset]))
    found = near.activated(function, even, even, q)
    for offset, c in correlations.items():
        wanted = float(function.dual(q, q, c) / function.second_moment(q))
        there = tuple(slice(None, size - step) for size, step in zip(even.shape, offset, strict=True))
        assert found.products(offset)[there] == pytest.approx(wanted, abs=KINK)
        assert found.under is not None
        assert found.under(offset)[there] == pytest.approx(q * c)


def test_means_under_a_window_have_the_second_moments_that_its_values_say():
    maps = maps_of((3, 5, 8, 8))
    window = Window((2, 2), (2, 2))
    means = maps.reshape(3, 5, 4, 2, 4, 2).mean(axis=(3, 5))
    near, before = of_data(maps), naive(maps, (0, 0))
    after = naive(means, (0, 0))
    assert near.averaged(window, before) == pytest.approx(after, rel=1e-12)
    pooled = near.pooled(window, before, after)
    for offset in OFFSETS:
        assert pooled.products(offset) == pytest.approx(naive(means, offset), rel=1e-10, abs=1e-12)


def relu_of_the_larger(c):
    """E max(x, y, 0)^2 of two standard normals of correlation c, by the angle in the plane of two independent ones."""
    angles = (np.arange(200_000) + 0.5) / 200_000 * 2 * math.pi
    x, y = np.cos(angles), np.cos(angles - math.acos(c))
    return 2.0 * float(np.mean(np.maximum(np.maximum(x, y), 0.0) ** 2))  # E r^2 = 2


def test_the_larger_of_two_is_the_larger_the_less_alike_they_are():
    """Ratios, which is what is asked of the draws: all windows have the same ones."""
    correlation = np.array([[1.0, 0.9, 0.6, 0.2, -0.3]])

    def under(offset):
        return np.repeat(correlation, 2, axis=0) if offset != (0, 0) else np.ones((2, 5))

    near = Near(under, 1, 0, activation("relu"), under)
    (found,), (slopes,) = near.largest(Window((2, 1), (1, 1)), np.ones((2, 5)))
    wanted = np.array([relu_of_the_larger(c) for c in correlation[0]])
    assert found / found[0] == pytest.approx(wanted / wanted[0], rel=SAMPLED)
    # Both are negative, and the slope is zero, in pi - arccos(c) of the plane's 2 pi.
    assert slopes == pytest.approx(0.5 + np.arccos(correlation[0]) / (2 * math.pi), rel=SAMPLED)


def test_gradients_choose_open_gates_more_often_at_edges():
    """At one node's input and output around ReLU before a maximum, in one run: 4% without what edges have."""
    net = NetworkBuilder("pooled", "torch", (3, 32, 32))
    for _ in range(2):
        net.conv2d(32, 3, HE)
        net.activation("relu")
    net.max_pool(2)
    net.conv2d(32, 3, HE)
    net = net.build()
    batch = load_batch("photo", (3, 32, 32), 16, 0)
    reports = predict(net, batch), simulate(net, batch, trials=60, seed=1)
    steps = [r.layers[3].backward.second_moment / r.layers[4].backward.second_moment for r in reports]
    assert steps[0] == pytest.approx(steps[1], rel=0.025)


def test_a_sum_has_what_its_terms_have():
    one, other = maps_of((2, 4, 6, 6)), 3.0 * maps_of((2, 4, 6, 6), 1)
    sizes = [float(np.mean(maps**2)) for maps in (one, other)]
    amplitudes = [naive(maps, (0, 0)) / size for maps, size in zip((one, other), sizes, strict=True)]
    found = of_sum([of_data(one), of_data(other)], amplitudes, sizes)
    for offset in OFFSETS:
        wanted = (naive(one, offset) + naive(other, offset)) / sum(sizes)
        assert found.products(offset) == pytest.approx(wanted, rel=1e-10, abs=1e-12)


def test_neighbours_of_one_mean_are_less_alike_at_an_edge_by_the_root_of_two_thirds():
    near = Near(lambda offset: np.pad(np.ones((8 - offset[0], 8)), ((0, offset[0]), (0, 0))))
    found = near.weighed(Window((3, 3), (1, 1), (1, 1, 1, 1)))
    whole = found.sized(np.ones((8, 8)))((1, 0))
    assert whole[0, 3] == pytest.approx(math.sqrt(2 / 3))
    assert whole[3, 3] == pytest.approx(1.0)


def test_each_offset_of_the_data_is_looked_at_once():
    asked = Counter()

    def products(offset):
        asked[offset] += 1
        return np.ones((9, 9))

    near = Near(products).sized(np.ones((9, 9)))
    for offset in (*OFFSETS, *OFFSETS):
        near(offset)
    assert max(count for offset, count in asked.items() if offset != (0, 0)) == 1


@pytest.mark.parametrize(
    ("pool", "norm", "most"), [("max_pool", False, 0.015), ("average_pool", False, 0.01), ("max_pool", True, 0.03)]
)
def test_poolings_of_images_see_that_edges_are_less_alike(pool, norm, most):
    """Steps into poolings of maps of which pieces of the inside are carried: with edges as inside 1.5% to 11% off.

    In one draw a pooling's second moment goes with that before it: 60 draws leave .5% of noise in the step.
    """
    net = NetworkBuilder("pooled", "torch", (3, 32, 32))
    for width in (32, 32, None, 32, 32, None):
        if width is None:
            getattr(net, pool)(2)
        else:
            net.conv2d(width, 3, HE)
            if norm:
                net.batch_norm()
            net.activation("relu")
    net = net.build()
    batch = load_batch("photo", (3, 32, 32), 16, 0)
    reports = predict(net, batch), simulate(net, batch, trials=60, seed=1)
    first = [node.name for node in net.nodes].index(f"{pool.replace('_', '').replace('average', 'avg')}1")
    steps = [r.layers[first].forward.second_moment / r.layers[first - 1].forward.second_moment for r in reports]
    assert steps[0] == pytest.approx(steps[1], rel=most)


def test_edges_behind_a_second_division():
    """By draws of 10,000 channels: a direction that only edges have has little part in what they are divided by.

    Edges beside corners; were it divided as the inside is, they would be 9% too small.
    """
    size, width, trials = 24, 32, 320
    net = NetworkBuilder("divided", "torch", (3, size, size))
    for _ in range(2):
        net.conv2d(width, 3, HE)
        net.batch_norm()
        net.activation("relu")
    batch = load_batch("photo", (3, size, size), 16, 0)
    amplitude = engine._forward(net.build(), batch, None)[-2].amplitude

    def edges(field):
        sides = field[0, 2:-2], field[-1, 2:-2], field[2:-2, 0], field[2:-2, -1]
        return np.mean(sides) / field[4:-4, 4:-4].mean()

    rng, drawn = np.random.default_rng(0), []
    for _ in range(trials):
        x = batch.data.astype(np.float32)
        for _ in range(2):
            weights = rng.normal(size=(width, x.shape[1], 3, 3)).astype(np.float32)
            windows = sliding_window_view(np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1))), (3, 3), axis=(2, 3))
            z = np.einsum("schwij,fcij->sfhw", windows, weights, optimize=True)
            z = (z - z.mean((0, 2, 3), keepdims=True)) / z.std((0, 2, 3), keepdims=True)
            x = np.maximum(z, 0)
        drawn.append(edges(np.mean(z**2, axis=(0, 1))))
    error = np.std(drawn) / np.sqrt(trials)
    assert error < 0.01
    assert edges(amplitude) == pytest.approx(np.mean(drawn), rel=0.05)


@pytest.mark.parametrize(("pool", "share"), [("max_pool", 1 / 4), ("average_pool", 1 / 16)])
@pytest.mark.parametrize("source", ["photo", "gaussian"])
def test_windows_that_do_not_meet_hand_on_all_of_the_gradient(pool, share, source):
    """To one of four positions, or a quarter to each, in whatever draw."""
    net = NetworkBuilder("pooled", "torch", (3, 32, 32))
    net.conv2d(8, 3, HE)
    net.activation("relu")
    getattr(net, pool)(2)
    net.conv2d(8, 3, HE)
    net = net.build()
    report = predict(net, load_batch(source, (3, 32, 32), 16, 0))
    before, behind = (report.layers[index].backward.second_moment for index in (2, 3))
    assert before == pytest.approx(share * behind, rel=ROUNDING)
