"""Depthwise layers on maps of which the inside is carried: what their edges are, and what they make of variances."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.depthwise import Edges, tap_covariance, windows_inside
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.tests.tolerances import BEYOND, ROUNDING, SAMPLED, SMOOTH_EDGES

SIZE = 30, 24
WINDOW = Window((3, 3), (1, 1), (1, 1, 1, 1))


def smooth_channels(channels, samples, rng):
    """Maps of stationary channels of several smoothnesses, with means of their own."""
    rows, cols = np.mgrid[: SIZE[0], : SIZE[1]]
    waves = rng.normal(size=(12, channels, samples, 2)) * rng.uniform(0.2, 1.5, size=(channels, 1, 1))
    phases = rng.uniform(size=(12, channels, samples, 1, 1)) * 2 * np.pi
    angles = waves[..., :1, None] * rows + waves[..., 1:, None] * cols + phases
    return rng.normal(size=(channels, 1, 1, 1)) + np.cos(angles).sum(axis=0) / np.sqrt(6)


def under(maps):
    """Values under each tap of every window, shape (channels, taps, samples, positions); zeros beyond the map."""
    padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
    shifted = [padded[:, :, i : i + SIZE[0], j : j + SIZE[1]] for i in range(3) for j in range(3)]
    return np.stack(shifted, axis=1).reshape(len(maps), 9, maps.shape[1], -1)


def test_edges_of_a_map_are_divided_by_each_channels_own_variance():
    """By explicit kernels on explicit maps: mean squares over those inside, and the taps' covariance over the map."""
    rng = np.random.default_rng(0)
    maps = smooth_channels(30, 200, rng)
    taps = under(maps)
    inside = np.pad(np.ones((28, 22), bool), 1).ravel()
    here = taps[..., inside].reshape(30, 9, -1)
    means = here.mean(axis=(1, 2))
    covariances = np.stack([np.cov(channel, bias=True) for channel in here])
    index = WINDOW.index(SIZE)
    live = (index >= 0).astype(float)
    edges = Edges(index, 0.0, live, live - live.mean(axis=1, keepdims=True))
    whole = edges.over_map(covariances, means**2)
    known = np.stack([np.cov(channel.reshape(9, -1), bias=True) for channel in taps])
    assert np.abs(whole - known).max() / np.abs(known).max() < SAMPLED
    weights = rng.normal(size=(30, 400, 9))
    v = np.einsum("cnk,ckl,cnl->cn", weights, whole, weights)
    products = np.einsum("cnk,cnl,cn->ckl", weights, weights, 1 / (v + 0.1)) / 400
    found = edges.by_position(covariances, means**2, products).reshape(SIZE)
    squares = np.zeros(SIZE[0] * SIZE[1])
    for channel, kernels in zip(taps, weights, strict=True):
        z = np.einsum("nk,ksp->nsp", kernels, channel)
        z -= z.mean(axis=(1, 2), keepdims=True)
        squares += np.mean(z**2 / (np.mean(z**2, axis=(1, 2), keepdims=True) + 0.1), axis=(0, 1))
    drawn = squares.reshape(SIZE) / squares[inside].mean()
    corners, sides = (0, 0, -1, -1), (0, -1, 0, -1)
    # Of deviations from the map's mean there is little more inside than of those from the inside's.
    found /= found[1, 1]
    np.testing.assert_allclose(found[1:-1, 1:-1], 1.0)
    assert found[corners, sides].mean() == pytest.approx(drawn[corners, sides].mean(), rel=SAMPLED)
    for one, other in ((found[0, 1:-1], drawn[0, 1:-1]), (found[1:-1, -1], drawn[1:-1, -1])):
        assert one.mean() == pytest.approx(other.mean(), rel=SAMPLED)
    # Without the division edges have six of nine taps.
    assert found[0, 1:-1].mean() > 1.0


def test_windows_inside_see_one_piece():
    layout = replace(Layout.all_pairs(3, 3), tile=(3, 4))
    kernel = PairKernel(layout, (6, 8), np.ones((6, 48, 48)))
    index = windows_inside(kernel, Window((3, 3), (2, 2), inside=True))
    centres = {(1, 1), (1, 2), (1, 5), (1, 6), (4, 1), (4, 2), (4, 5), (4, 6)}
    assert {divmod(int(where), 8) for where in index[4]} == centres
    assert index.shape == (9, len(centres))
    # Where no window sees one piece alone, all count.
    small = PairKernel(replace(layout, tile=(2, 2)), (6, 8), kernel.values)
    assert windows_inside(small, Window((3, 3), (1, 1), inside=True)).shape == (9, 48)


def test_taps_inside_have_the_variance_of_all_points():
    rng = np.random.default_rng(4)
    features = rng.normal(size=(3 * 48, 60)) * rng.uniform(0.2, 2.0, size=(3 * 48, 1)) + 0.3
    full = (features @ features.T / 60).reshape(3, 48, 3, 48)
    layout = replace(Layout.all_pairs(3, 3), tile=(3, 4))
    kernel = PairKernel(layout, (6, 8), full[layout.left, :, layout.right, :])
    window = Window((3, 3), (1, 1), inside=True)
    found = tap_covariance(kernel, window)
    assert np.trace(found) / 9 == pytest.approx(kernel.variance, rel=1e3 * ROUNDING)
    index = windows_inside(kernel, window)
    patches = features.reshape(3, 48, 60)[:, index]
    deviations = patches - patches.mean(axis=(0, 2), keepdims=True)
    known = np.einsum("skwf,slwf->kl", deviations, deviations) / (3 * index.shape[1] * 60)
    np.testing.assert_allclose(found, known * (np.trace(found) / np.trace(known)), rtol=1e-9)


@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_layers_on_large_maps_of_smooth_images(stride):
    """Second moments behind one, by Monte Carlo: zeros around a map take more from what edges have.

    A photograph's crops of 24 rows, twice as large: neighbours are alike. With edges as large as their taps alone would
    make them the last but one is 2.3% and 2.8% off.
    """
    he = parse_initializer("he_normal")
    net = NetworkBuilder("smooth", "torch", (3, 48, 48))
    net.conv2d(32, 3, he)
    net.batch_norm()
    net.activation("relu6")
    for step in (stride, 1):
        net.conv2d(32, 3, he, stride=step, groups=32)
        net.batch_norm()
        net.activation("relu6")
        net.conv2d(32, 1, he)
        net.batch_norm()
        net.activation("relu6")
    network = net.build()
    small = load_batch("photo", (3, 24, 24), 32, 0)
    batch = replace(small, data=small.data.repeat(2, axis=2).repeat(2, axis=3))
    compared = compare(predict(network, batch, remarks=False), simulate(network, batch, trials=150, seed=1))
    for node, row in zip(network.nodes, compared.forward, strict=True):
        if row.z is not None and abs(row.z) > BEYOND:
            assert abs(row.relative) < SMOOTH_EDGES, node.name
