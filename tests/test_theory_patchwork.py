"""Larger maps of images out of the pieces that strides leave."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import engine, predict
from varprop.simulator.theory.convolution import regrown
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pairs import Layout, PairKernel, merged
from varprop.simulator.theory.patchwork import (
    Far,
    apart,
    arranged,
    continued,
    image_mean,
    laid_out,
    passed,
    thinned,
    torn_alike,
)
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.sampling import assemble, draw
from varprop.tests.tolerances import BEYOND, ONE_ROOT, PIECES_POOLED, POOLED_IMAGES, ROUNDING, SEAMS

BATCH = 40
FAR = np.random.default_rng(3).uniform(-0.2, 0.4, size=(7, 9))  # of offsets up to 3 and 4
FAR = Far((FAR + FAR[::-1, ::-1]) / 2, np.random.default_rng(6).uniform(size=(4, 5)))


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


def test_points_of_a_piece_and_of_different_images_are_known_pairs():
    """By loops: tiles side by side, all pieces about as often, and one factor for the second moment.

    No two maps have points of one image.
    """
    (h, w), size = (2, 3), (5, 7)
    kernel = pieces_of_images(4, (h, w))
    found, full = laid_out(kernel, FAR, size), assemble(kernel)
    layout = found.layout
    assert (layout.paired, layout.whole, layout.cut, layout.pieces, layout.tile) == (4, 7, 7, True, (h, w))
    assert found.second_moment * np.exp(found.log_scale - kernel.log_scale) == pytest.approx(kernel.second_moment)
    used = np.zeros(4, int)
    chosen = []
    for image in range(layout.profiles):
        row = []
        for i, j in product(range(size[0]), range(size[1])):
            turn = 9 * image + 3 * (i // h) + j // w
            piece = (turn + turn // 4) % 4
            used[piece] += i % h == 0 and j % w == 0
            row.append((piece, (i % h) * w + j % w))
        chosen.append(row)
    assert np.ptp(used) <= layout.profiles
    factor = found.values[0, 0, 0] / full[chosen[0][0][0] * 6, chosen[0][0][0] * 6]
    for a, b, block in zip(layout.left, layout.right, found.values, strict=True):
        for p, q in product(range(35), repeat=2):
            (one, here), (other, there) = chosen[a][p], chosen[b][q]
            tiles = [(k // 7 // h, k % 7 // w) for k in (p, q)]
            if a != b or tiles[0] == tiles[1]:
                other = (other + 1) % 4 if a != b and one == other else other
                assert block[p, q] == pytest.approx(factor * full[one * 6 + here, other * 6 + there])


def test_points_of_one_image_go_together_by_offset():
    """Across seams: products of two images, and more as points of a piece have, or as is known of far ones.

    Over root mean squares, so that products have the mean that those of points of one image have.
    """
    (h, w), size = (2, 3), (4, 4)
    kernel = pieces_of_images(4, (h, w))
    found, full = laid_out(kernel, FAR, size), assemble(kernel)
    root = np.sqrt(kernel.diagonal)
    pieces, places = arranged(4, 4, (h, w), size)
    sizes = root[pieces[0], places]
    correlations = found.values[0] / np.sqrt(np.outer(found.diagonal[0], found.diagonal[0]))
    for one, other in product(product(range(4), repeat=2), repeat=2):
        if (one[0] // h, one[1] // w) == (other[0] // h, other[1] // w):
            continue
        down, across = other[0] - one[0], other[1] - one[1]
        pairs = [
            (i * w + j, (i + down) * w + j + across)
            for i, j in product(range(h), range(w))
            if 0 <= i + down < h and 0 <= j + across < w
        ]
        known = np.mean([kernel.values[:4, p, q].mean() for p, q in pairs]) if pairs else 0.0
        beyond = kernel.pair_mean + kernel.variance * FAR.apart[down + 3, across + 4]
        p, q = one[0] * 4 + one[1], other[0] * 4 + other[1]
        second = (pieces[0, q] + (pieces[0, p] == pieces[0, q])) % 4
        images = full[pieces[0, p] * 6 + places[p], second * 6 + places[q]] / (sizes[p] * sizes[q])
        more = (known if pairs else beyond) - kernel.values[4:].mean()
        assert correlations[p, q] == pytest.approx(images + more / root.mean() ** 2)


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
        beyond = kernel.pair_mean + (block == 0) * kernel.variance * FAR.apart[down + 3, across + 4]
        wanted = np.mean(known) if known else beyond
        assert found.values[block, one[0] * 4 + one[1], other[0] * 4 + other[1]] == pytest.approx(wanted)


def test_sampled_pieces_are_laid_out_side_by_side():
    """By loops: beyond a piece of one sample comes that of the next, so that far positions have no more in common."""
    rng = np.random.default_rng(5)
    values, slopes = rng.standard_normal((2, 6, 4, 2))
    found = regrown(Sample(values, slopes=slopes), (2, 3), (3, 4), 3)
    assert found.values.shape[1] == 3
    for sample, i, j in product(range(3), range(3), range(4)):
        turn = 4 * sample + 2 * (i // 2) + j // 3
        source = (turn + turn // 4) % 4, i % 2 * 3 + j % 3
        for new, old in ((found.values, values), (found.slopes, slopes)):
            np.testing.assert_array_equal(new[i * 4 + j, sample], old[source[1], source[0]])
    mirrored = regrown(Sample(values, slopes=slopes), (2, 3), (4, 4), None)
    for i, j in product(range(4), range(4)):
        source = min(i, 3 - i) * 3 + min(j, 5 - j)
        for new, old in ((mirrored.values, values), (mirrored.slopes, slopes)):
            np.testing.assert_array_equal(new[i * 4 + j], old[source])


def test_drawn_neighbours_go_together_as_in_their_piece():
    """Maps laid out of pieces are no covariance: neighbours of what is nearest to one went together 7% less.

    A piece's own covariance is one but for a few percent.
    """
    he, size = parse_initializer("he_normal"), 36
    net = NetworkBuilder("laid", "torch", (3, size, size))
    net.conv2d(32, 3, he)
    net.batch_norm()
    net.activation("relu")
    net.max_pool(2, stride=2)
    net.conv2d(32, 3, he)
    net.batch_norm()
    signal = engine._forward(net.build(), load_batch("photo", (3, size, size), 16, 0), None)[-1]
    kernel, (rows, cols) = signal.kernel, signal.kernel.size
    assert kernel.layout.tile is not None
    place = np.arange(rows * cols).reshape(rows, cols)
    near, tiles = ~kernel.layout.torn(kernel.size), kernel.layout.tile_of(kernel.size)
    one, other = np.concatenate([(place[:, :-1], place[:, 1:]), (place[:-1].T, place[1:].T)], axis=2).reshape(2, -1)
    one, other = one[near[one, other]], other[near[one, other]]
    own = kernel.values[: kernel.layout.profiles].copy()
    for points in (np.flatnonzero(tiles == tile) for tile in np.unique(tiles)):
        values, vectors = np.linalg.eigh(own[np.ix_(range(len(own)), points, points)])
        nearest = (vectors * np.maximum(values, 0.0)[:, None]) @ vectors.transpose(0, 2, 1)
        own[np.ix_(range(len(own)), points, points)] = nearest
    wanted = own[:, one, other].mean() / own[:, one, one].mean()
    drawn = [draw(kernel, key).values for key in range(8)]
    found = [np.mean(values[one] * values[other]) / np.mean(values[one] ** 2) for values in drawn]
    assert abs(np.mean(found) - wanted) < SEAMS * wanted


def test_mean_over_a_map_of_images_beyond_the_pieces():
    """By loops over all pairs of positions: two images have in common what their pieces have, and one what is known."""
    kernel, (h, w), size = pieces_of_images(3, (2, 3)), (2, 3), (4, 5)
    total, known = np.zeros(len(kernel.values)), 0.0
    positions = list(product(range(size[0]), range(size[1])))
    for one, other in product(positions, repeat=2):
        down, across = other[0] - one[0], other[1] - one[1]
        near = [
            kernel.values[:, i * w + j, (i + down) * w + j + across]
            for i, j in product(range(h), range(w))
            if 0 <= i + down < h and 0 <= j + across < w
        ]
        total += np.mean(near, axis=0) - kernel.pair_mean if near else 0.0
        known += kernel.variance * FAR.apart[down + 3, across + 4]
    total[:3] += known - total[:3].mean()
    wanted = kernel.pair_mean + total / len(positions) ** 2 * FAR.kept.mean()
    np.testing.assert_allclose(image_mean(kernel, FAR), wanted, rtol=1e3 * ROUNDING)


@pytest.mark.parametrize("strides", [(1, 1, 1), (2, 1)])
def test_far_positions_meet_under_one_tap(strides):
    """All pairs of positions, by loops over taps: zeros around the map under one of two leave nothing."""
    far, pairs = Far.of(np.ones((1, 1, 12, 10))), np.ones((12, 10, 12, 10))
    for layer, step in enumerate(strides):
        window = Window((3, 3), (step, step), (1, 1, 1, 1))
        size = window.out_size(pairs.shape[:2])
        padded, total = np.pad(pairs, 1), np.zeros(2 * size)
        for i, j in product(range(3), repeat=2):
            rows, cols = (slice(t, t + step * n, step) for t, n in zip((i, j), size, strict=True))
            total += padded[rows, cols, rows, cols] / 9
        far, pairs = far.weighed(window), total
        assert far.apart.shape == (2 * size[0] - 1, 2 * size[1] - 1)
        np.testing.assert_allclose(far.kept, pairs.mean(axis=(2, 3)), atol=ONE_ROOT if layer else ROUNDING)
    assert pairs.mean() < 0.7


def test_far_positions_of_sums_poolings_and_activations():
    window = Window((2, 2), (2, 2))
    root = FAR.kept / np.sqrt(FAR.kept.mean())
    pooled = root[:, :4].reshape(2, 2, 2, 2).mean(axis=(1, 3))
    np.testing.assert_allclose(FAR.pooled(window).kept, pooled * pooled.mean())
    np.testing.assert_array_equal(FAR.pooled(window).apart, FAR.apart[1::2, ::2])
    slopes = np.random.default_rng(8).uniform(size=(4, 5))
    bent, left = FAR.bent(0.5, slopes), root * np.sqrt(slopes)
    np.testing.assert_allclose(bent.kept, left * left.mean())
    np.testing.assert_array_equal(bent.apart, 0.5 * FAR.apart)
    assert FAR.bent(0.5, None).kept is FAR.kept
    padded = FAR.padded(((1, 0), (0, 2))).kept
    np.testing.assert_allclose(padded[1:, :5], FAR.kept * (20 / 35))
    assert padded.shape == (5, 7)
    assert not padded[0].any()
    assert not padded[:, 5:].any()
    whole = Far.together([FAR, bent], [1.0, 3.0])
    np.testing.assert_allclose(whole.apart, 0.625 * FAR.apart)
    np.testing.assert_allclose(whole.kept, (FAR.kept + 3.0 * bent.kept) / 4.0)


def test_images_differ_in_what_their_far_positions_have_in_common():
    """Behind ReLU: the arc-cosine kernel of each image, averaged. Of the mean correlation it were a quarter less."""
    size, alike = (4, 4), np.array([-0.3, 0.9, 0.1, 0.0])
    layout = Layout.all_pairs(4, BATCH)
    values = np.zeros((10, 16, 16))
    values[:4] = alike[:, None, None]
    values[:4, range(16), range(16)] = 1.0

    def activated(c):
        return (np.sqrt(1 - c**2) + (np.pi - np.arccos(c)) * c) / (2 * np.pi)

    layout = replace(layout, pieces=True)
    before, after = PairKernel(layout, size, values), PairKernel(layout, size, activated(values))
    apart, own = activated(0.0), activated(alike)
    wanted = own.mean() - after.pair_mean
    found = passed(before, after) * (alike.mean() - before.pair_mean) / before.variance
    assert found * after.variance == pytest.approx(wanted)
    of_mean = activated(alike.mean()) - after.pair_mean
    assert of_mean < 0.9 * wanted
    assert apart < after.pair_mean


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


def least_squares_of_the_furthest(before, after, tile):
    """Slope of mean correlations over offsets of more than half a tile, by loops over pairs of positions of 4 x 4."""
    pairs = {}
    for p, q in product(range(16), repeat=2):
        (i, j), (k, m) = divmod(p, 4), divmod(q, 4)
        within = (i // tile[0], j // tile[1]) == (k // tile[0], m // tile[1])
        if within and (2 * abs(i - k) >= tile[0] or 2 * abs(j - m) >= tile[1]):
            pairs.setdefault((k - i, m - j), []).append((p, q))
    found = [[], []]
    for places in pairs.values():
        for one, means in zip((before, after), found, strict=True):
            own = np.mean([one.values[:3, p, q] for p, q in places]) - one.pair_mean
            means += [own / (one.second_moment - one.pair_mean)] * len(places)
    first, second = np.array(found)
    return float(first @ second / (first @ first))


def test_what_a_division_leaves_of_far_positions():
    """Each offset is counted as often as it occurs."""
    kernel = pieces_of_images(3, (4, 4))
    before, after = kernel.centred, replace(kernel, values=kernel.values**2)
    assert passed(before, after) == pytest.approx(least_squares_of_the_furthest(before, after, (4, 4)))


def test_operations_take_across_seams_what_they_take_within_pieces():
    """By loops over pairs of positions of a map of 4 x 4 that is laid out of pieces of 3 x 2.

    Of what is more than two images have in common.
    """
    kernel = pieces_of_images(3, (4, 4)).centred
    kernel = replace(kernel, layout=replace(kernel.layout, tile=(3, 2)))
    values = kernel.values.copy()
    for p, q in product(range(16), repeat=2):
        (i, j), (k, m) = divmod(p, 4), divmod(q, 4)
        torn = (i // 3, j // 2) != (k // 3, m // 2)
        values[:, p, q] *= 1.0 if torn or not (2 * abs(i - k) >= 3 or 2 * abs(j - m) >= 2) else 0.3
    after = PairKernel(kernel.layout, (4, 4), 5.0 * values, 2.0)
    factor = least_squares_of_the_furthest(kernel, after, (3, 2)) * after.variance / kernel.variance
    found = torn_alike(kernel, after)
    for p, q in product(range(16), repeat=2):
        (i, j), (k, m) = divmod(p, 4), divmod(q, 4)
        torn = (i // 3, j // 2) != (k // 3, m // 2)
        more = factor * (kernel.values[:3, p, q] - kernel.values[3:].mean())
        wanted = after.values[3:].mean() + more if torn else after.values[:3, p, q]
        np.testing.assert_allclose(found.values[:3, p, q], wanted, rtol=1e3 * ROUNDING)
    np.testing.assert_array_equal(found.values[3:], after.values[3:])
    whole = PairKernel(replace(kernel.layout, tile=None), (4, 4), kernel.values)
    assert torn_alike(whole, after) is after


def test_strides_take_from_the_pieces_of_a_map():
    layout = replace(Layout.all_pairs(3, BATCH), tile=(6, 5))
    assert layout.strided((2, 2)).tile == (3, 3)
    assert layout.strided((1, 1)) is layout
    assert not Layout.all_pairs(3, BATCH).torn((4, 4)).any()
    torn = replace(layout, tile=(2, 3)).torn((3, 4))
    for p, q in product(range(12), repeat=2):
        assert torn[p, q] == ((p // 4 // 2, p % 4 // 3) != (q // 4 // 2, q % 4 // 3))


def test_frameworks_pad_maps_of_pieces():
    """Keras pads before a stride by nodes of their own, below and to the right alone (such networks broke off)."""
    network = build("mobilenet_v2", depth=2, size=64, framework="keras")
    layers = predict(network, load_batch("photo", (3, 64, 64), 16, 0)).layers
    assert all(0 < layer.forward.second_moment < 10 for layer in layers)


@pytest.mark.parametrize("shortcut", ["average_pool", "max_pool", "stride"])
@pytest.mark.parametrize("branch", ["convolution", "depthwise"])
def test_branches_that_pool_and_that_stride_meet(shortcut, branch):
    """Pieces laid out anew behind both, as the same maps (such networks broke off)."""
    he = parse_initializer("he_normal")
    net = NetworkBuilder("branches", "torch", (3, 32, 32))
    net.conv2d(16, 3, he)
    net.batch_norm()
    source = net.activation("tanh")
    net.conv2d(16, 3, he, stride=2, groups=16 if branch == "depthwise" else 1)
    first = net.batch_norm()
    if shortcut == "stride":
        net.conv2d(16, 1, he, stride=2, source=source)
        net.batch_norm()
    else:
        getattr(net, shortcut)(2, stride=2, source=source)
    net.add((first, net.last))
    net.conv2d(16, 3, he)
    network, batch = net.build(), load_batch("photo", (3, 32, 32), 64, 0)
    compared = compare(predict(network, batch, remarks=False), simulate(network, batch, trials=60, seed=1))
    for node, row in zip(network.nodes, compared.forward, strict=True):
        if row.z is not None and abs(row.z) > BEYOND:
            assert abs(row.relative) < PIECES_POOLED, node.name


def test_gradient_between_poolings_of_pieces():
    """Directions of the data go on through poolings: where they were forgotten the step was 18% to 23% off."""
    he = parse_initializer("he_normal")
    for function in ("relu", "tanh"):
        net = NetworkBuilder("pooled", "torch", (3, 32, 32))
        for pooled in (True, False, True, False):
            net.conv2d(32, 3, he)
            net.batch_norm()
            net.activation(function)
            if pooled:
                net.max_pool(2, stride=2)
        net.global_average_pool()
        network, batch = net.build(), load_batch("photo", (3, 32, 32), 64, 0)
        found = compare(predict(network, batch, remarks=False), simulate(network, batch, trials=100, seed=1))
        for step in found.steps:
            if abs(step.agreement.z) > BEYOND:
                assert abs(step.agreement.relative) < PIECES_POOLED, (function, network.nodes[step.to].name)


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
    """Far positions of an image stay as alike behind poolings and depthwise layers (it was 28% of theory's).

    Behind a sigmoid edges keep what they have in common with the inside (without it 17%).
    """
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
