"""Larger maps of images out of the pieces that strides leave."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.convolution import regrown
from varprop.simulator.theory.pairs import Layout, PairKernel, merged
from varprop.simulator.theory.patchwork import apart, continued, image_mean, laid_out, passed, thinned
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.sampling import assemble
from varprop.tests.tolerances import BEYOND, PIECES_POOLED, POOLED_IMAGES, ROUNDING

BATCH = 40
FAR = np.random.default_rng(3).uniform(-0.2, 0.4, size=(7, 9))  # of offsets up to 3 and 4
FAR = (FAR + FAR[::-1, ::-1]) / 2


def pieces_of_images(count, size):
    """Kernel of points that differ in size, all pairs of them known."""
    rng = np.random.default_rng(2)
    points = size[0] * size[1]
    features = rng.standard_normal((count * points, 200)) + 0.5
    features *= rng.uniform(0.3, 2.0, size=(len(features), 1))
    full = (features @ features.T / 200).reshape(count, points, count, points)
    layout = Layout.all_pairs(count, BATCH)
    values = full[layout.left, :, layout.right, :]
    return PairKernel(Layout(layout.left, layout.right, count, BATCH, count, 7, 7, pieces=True), size, values, 0.5)


def test_points_of_different_images_are_known_pairs():
    """By loops: tiles side by side, all pieces about as often, and one factor for the second moment."""
    (h, w), size = (2, 3), (5, 7)
    kernel = pieces_of_images(4, (h, w))
    found, full = laid_out(kernel, FAR, size), assemble(kernel)
    layout = found.layout
    assert (layout.paired, layout.whole, layout.cut, layout.pieces) == (BATCH, 7, 7, True)
    assert found.second_moment * np.exp(found.log_scale - kernel.log_scale) == pytest.approx(kernel.second_moment)
    used = np.zeros(4, int)
    chosen = []
    for image in range(layout.profiles):
        row = []
        for i, j in product(range(size[0]), range(size[1])):
            turn = 9 * image + 3 * (i // h) + j // w
            piece = (turn + turn // 4) % 4
            used[piece] += i % h == 0 and j % w == 0
            row.append(piece * h * w + (i % h) * w + j % w)
        chosen.append(row)
    assert np.ptp(used) <= layout.profiles
    expected = np.stack([full[np.ix_(chosen[a], chosen[b])] for a, b in zip(layout.left, layout.right, strict=True)])
    between, levels = slice(layout.profiles, None), np.arange(35)
    factor = found.values[0, 0, 0] / expected[0, 0, 0]
    np.testing.assert_allclose(found.values[between], factor * expected[between], rtol=ROUNDING)
    np.testing.assert_allclose(found.diagonal, factor * expected[: layout.profiles, levels, levels], rtol=ROUNDING)


def test_points_of_one_image_go_together_by_offset():
    """Correlations of two points of a piece, and beyond its reach of any two points and what is known of far ones."""
    (h, w), size = (2, 3), (4, 4)
    kernel = pieces_of_images(4, (h, w))
    found = laid_out(kernel, FAR, size)
    root = np.sqrt(kernel.diagonal)
    correlations = found.values[0] / np.sqrt(np.outer(found.diagonal[0], found.diagonal[0]))
    for one, other in product(product(range(4), repeat=2), repeat=2):
        down, across = other[0] - one[0], other[1] - one[1]
        pairs = [
            (i * w + j, (i + down) * w + j + across)
            for i, j in product(range(h), range(w))
            if 0 <= i + down < h and 0 <= j + across < w
        ]
        products = sum(kernel.values[:4, p, q].sum() for p, q in pairs)
        sizes = sum((root[:, p] * root[:, q]).sum() for p, q in pairs)
        beyond = kernel.pair_mean + kernel.variance * FAR[down + 3, across + 4]
        wanted = products / sizes if pairs else beyond / root.mean() ** 2
        assert correlations[one[0] * 4 + one[1], other[0] * 4 + other[1]] == pytest.approx(wanted)


def test_pieces_of_one_law_are_continued_by_offset():
    """Products of two positions of a piece, and beyond its reach of any two points and what is known of far ones."""
    (h, w), size = (2, 3), (4, 4)
    kernel = merged(pieces_of_images(4, (h, w)))
    found = continued(kernel, FAR, size)
    for block, (one, other) in product(range(2), product(product(range(4), repeat=2), repeat=2)):
        down, across = other[0] - one[0], other[1] - one[1]
        known = [
            kernel.values[block, i * w + j, (i + down) * w + j + across]
            for i, j in product(range(h), range(w))
            if 0 <= i + down < h and 0 <= j + across < w
        ]
        beyond = kernel.pair_mean + (block == 0) * kernel.variance * FAR[down + 3, across + 4]
        wanted = np.mean(known) if known else beyond
        assert found.values[block, one[0] * 4 + one[1], other[0] * 4 + other[1]] == pytest.approx(wanted)


def test_sampled_pieces_are_laid_out_side_by_side():
    """By loops: beyond a piece of one sample comes that of the next, so that far positions have no more in common."""
    rng = np.random.default_rng(5)
    values, slopes = rng.standard_normal((2, 6, 4, 2))
    found = regrown(Sample(values, slopes=slopes), (2, 3), (3, 4), True)
    for sample, i, j in product(range(4), range(3), range(4)):
        source = (sample + 2 * (i // 2) + j // 3) % 4, i % 2 * 3 + j % 3
        for new, old in ((found.values, values), (found.slopes, slopes)):
            np.testing.assert_array_equal(new[i * 4 + j, sample], old[source[1], source[0]])
    mirrored = regrown(Sample(values, slopes=slopes), (2, 3), (4, 4), False)
    for i, j in product(range(4), range(4)):
        source = min(i, 3 - i) * 3 + min(j, 5 - j)
        for new, old in ((mirrored.values, values), (mirrored.slopes, slopes)):
            np.testing.assert_array_equal(new[i * 4 + j], old[source])


def test_mean_over_a_map_of_images_beyond_the_pieces():
    """By loops over all pairs of positions; two images have in common what their pieces have."""
    kernel, (h, w), size = pieces_of_images(3, (2, 3)), (2, 3), (4, 5)
    own = np.arange(len(kernel.values)) < 3
    total = np.zeros(len(kernel.values))
    positions = list(product(range(size[0]), range(size[1])))
    for one, other in product(positions, repeat=2):
        down, across = other[0] - one[0], other[1] - one[1]
        known = [
            kernel.values[:, i * w + j, (i + down) * w + j + across]
            for i, j in product(range(h), range(w))
            if 0 <= i + down < h and 0 <= j + across < w
        ]
        beyond = kernel.pair_mean + own * kernel.variance * FAR[down + 3, across + 4]
        total += np.mean(known, axis=0) if known else beyond
    np.testing.assert_allclose(image_mean(kernel, FAR, size), total / len(positions) ** 2, rtol=1e3 * ROUNDING)


def test_images_have_far_positions_in_common():
    """By loops; behind a stride of every second row and column."""
    maps = np.random.default_rng(4).uniform(size=(5, 2, 4, 3))
    common = sum(maps[:, channel].mean() ** 2 for channel in range(2)) / 2
    found = apart(maps)
    for down, across in product(range(-3, 4), range(-2, 3)):
        products = [
            np.mean(maps[:, :, i, j] * maps[:, :, i + down, j + across])
            for i, j in product(range(4), range(3))
            if 0 <= i + down < 4 and 0 <= j + across < 3
        ]
        wanted = (np.mean(products) - common) / (np.mean(maps**2) - common)
        assert found[down + 3, across + 2] == pytest.approx(wanted)
    behind = thinned(found, (2, 2))
    np.testing.assert_array_equal(behind, found[1::2, ::2])
    assert behind[1, 1] == found[3, 2]


def test_what_a_division_leaves_of_far_positions():
    kernel = pieces_of_images(3, (4, 4)).centred
    rows, cols = np.divmod(np.arange(16), 4)
    near = (abs(rows[:, None] - rows) < 2) & (abs(cols[:, None] - cols) < 2)
    values = kernel.values * np.where(near, 1.0, 0.3)
    assert passed(kernel, PairKernel(kernel.layout, (4, 4), 5.0 * values, 2.0)) == pytest.approx(0.3)


def test_channels_of_images_behind_strides():
    """Variances of channels and their mean over the last map, where points of images differ in size.

    If they were alike the variances would be 3% and more too small behind sums, 8 standard errors.
    """
    network = build("resnet", depth=6)
    batch, trials = load_batch("photo", (3, 32, 32), 64, 0), 80
    predicted, measured = predict(network, batch), simulate(network, batch, trials=trials, seed=1)
    for node, theory, sample in zip(network.nodes, predicted.layers, measured.layers, strict=True):
        if node.kind in ("activation", "global_average_pool"):
            error = sample.forward.standard_error / sample.forward.second_moment
            gap = sample.forward.second_moment / theory.forward.second_moment - 1
            assert abs(gap) < max(BEYOND * error, POOLED_IMAGES), node.name
        if node.kind == "activation" and node.shape[1] < 32:
            assert sample.forward.variance == pytest.approx(theory.forward.variance, rel=POOLED_IMAGES), node.name


@pytest.mark.parametrize("depthwise", [False, True])
def test_mean_over_a_map_behind_a_stride_within_channels(depthwise):
    """Far positions of an image stay as alike behind poolings and depthwise layers (it was 28% of theory's)."""
    size, he = 32 if depthwise else 36, parse_initializer("he_normal")
    net = NetworkBuilder("strided", "torch", (3, size, size))
    net.conv2d(32, 3, he)
    net.batch_norm()
    net.activation("sigmoid" if depthwise else "tanh")
    if depthwise:
        net.conv2d(32, 3, he, stride=2, groups=32)
        net.batch_norm()
        net.activation("sigmoid")
    else:
        net.max_pool(2, stride=2)
    net.conv2d(32, 1 if depthwise else 3, he)
    net.batch_norm()
    net.global_average_pool()
    network, batch = net.build(), load_batch("photo", (3, size, size), 32, 2)
    found = compare(predict(network, batch), simulate(network, batch, trials=60, seed=1)).forward[-1]
    assert found.relative is not None
    assert abs(found.relative) < PIECES_POOLED
