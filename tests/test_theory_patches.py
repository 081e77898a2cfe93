"""What the first convolution sees of images: pieces with the statistics of the whole batch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import engine, predict
from varprop.simulator.theory.maps import Window, one_root
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.patches import (
    between,
    damped_taps,
    directions,
    divided,
    gathered,
    interior,
    levelled,
    matched,
    statistics,
)
from varprop.simulator.theory.sampling import linear
from varprop.simulator.theory.variance_law import VarianceLaw
from varprop.tests.tolerances import (
    BENT_STEP,
    BEYOND,
    DEEP_ROUNDING,
    EVENLY,
    NEAR,
    ROUNDING,
    STANDING_POOLED,
    WHOLE_MAP,
)


def plain_patches(maps, window):
    """Patches by explicit loops, shape (samples, channels * taps, outputs)."""
    top, bottom, left, right = window.padding
    padded = np.pad(maps, ((0, 0), (0, 0), (top, bottom), (left, right)))
    rows, cols = window.out_size(maps.shape[2:])
    found = []
    for i, j in np.ndindex(rows, cols):
        y, x = i * window.stride[0], j * window.stride[1]
        found.append(padded[:, :, y : y + window.kernel[0], x : x + window.kernel[1]].reshape(len(maps), -1))
    return np.stack(found, axis=2)


def test_statistics_are_those_of_all_patches():
    maps = np.random.default_rng(0).uniform(size=(5, 2, 6, 7))
    window = Window((3, 2), (2, 1), (1, 0, 1, 1))
    index, patches = window.index((6, 7)), plain_patches(maps, window)
    np.testing.assert_array_equal(gathered(maps, index, window), patches)
    flat = patches.transpose(1, 0, 2).reshape(12, -1)
    mean, covariance = statistics(maps, index, window)
    np.testing.assert_allclose(mean, flat.mean(axis=1), rtol=ROUNDING)
    np.testing.assert_allclose(covariance, np.cov(flat, bias=True), rtol=DEEP_ROUNDING, atol=ROUNDING)


def test_pieces_differ_in_their_mean_patch():
    """By loops over all places that a piece may be cut out of."""
    maps = np.random.default_rng(6).uniform(size=(5, 2, 6, 7))
    window, size, piece = Window((3, 2), (1, 2), (1, 1, 1, 0)), (6, 4), (3, 2)
    patches = plain_patches(maps, window).reshape(5, 12, *size)
    means = [
        patches[image, :, i : i + piece[0], j : j + piece[1]].mean(axis=(1, 2))
        for image in range(5)
        for i in range(size[0] - piece[0] + 1)
        for j in range(size[1] - piece[1] + 1)
    ]
    found = between(maps, window.index((6, 7)), window, size, piece)
    np.testing.assert_allclose(found, np.cov(np.transpose(means), bias=True), atol=ROUNDING)
    whole = between(maps, window.index((6, 7)), window, size, size)
    np.testing.assert_allclose(whole, np.cov(patches.mean(axis=(2, 3)).T, bias=True), atol=ROUNDING)


def spread(patches):
    """Covariance of all patches, of the shape (samples, entries, outputs)."""
    return np.cov(patches.transpose(1, 0, 2).reshape(patches.shape[1], -1), bias=True)


def test_matched_patches_have_the_statistics_and_the_least_change():
    """The smallest linear changes are symmetric and positive; of patches that match already there are none."""
    rng = np.random.default_rng(1)
    patches = rng.standard_normal((30, 4, 20)) + rng.standard_normal((30, 4, 1)) + np.arange(4.0)[:, None]
    root, part = rng.standard_normal((2, 4, 4))
    mean, pieces = rng.standard_normal(4), part @ part.T
    covariance = pieces + root @ root.T
    found = matched(patches, mean, covariance, pieces)
    np.testing.assert_allclose(found.mean(axis=(0, 2)), mean, rtol=DEEP_ROUNDING)
    np.testing.assert_allclose(
        np.cov(found.transpose(1, 0, 2).reshape(4, -1), bias=True), covariance, rtol=DEEP_ROUNDING
    )
    np.testing.assert_allclose(np.cov(found.mean(axis=2).T, bias=True), pieces, rtol=DEEP_ROUNDING)
    middles = [x.mean(axis=2, keepdims=True) for x in (patches, found)]
    rests = patches - middles[0], found - middles[1]
    for before, after in (middles, rests):
        flat, moved = (x.transpose(1, 0, 2).reshape(4, -1) for x in (before, after))
        flat, moved = (x - x.mean(axis=1, keepdims=True) for x in (flat, moved))
        change = np.linalg.lstsq(flat.T, moved.T, rcond=None)[0]
        np.testing.assert_allclose(change, change.T, atol=DEEP_ROUNDING)
        assert np.linalg.eigvalsh(change)[0] > 0
    again = matched(found, mean, covariance, pieces)
    np.testing.assert_allclose(again, found, rtol=DEEP_ROUNDING, atol=DEEP_ROUNDING)


def test_what_means_of_few_pieces_cannot_have_the_rest_has():
    """Three of them differ in two directions of four."""
    rng = np.random.default_rng(8)
    patches, root = rng.standard_normal((3, 4, 50)), rng.standard_normal((4, 4))
    covariance = root @ root.T
    found = matched(patches, np.zeros(4), covariance, covariance / 2)
    np.testing.assert_allclose(
        np.cov(found.transpose(1, 0, 2).reshape(4, -1), bias=True), covariance, rtol=DEEP_ROUNDING
    )
    left = covariance / 2 - np.cov(found.mean(axis=2).T, bias=True)
    assert np.sum(np.linalg.eigvalsh(left) > DEEP_ROUNDING) == 2
    assert np.linalg.eigvalsh(left)[0] > -DEEP_ROUNDING


def test_directions_in_which_patches_do_not_vary_are_left():
    """A black channel of the pieces, or of the batch, gives no noise."""
    patches = np.random.default_rng(2).standard_normal((2, 3, 30))
    patches[:, 2] = 0.0
    found = matched(patches, np.zeros(3), np.diag([4.0, 0.0, 0.0]), np.diag([1.0, 0.0, 0.0]))
    np.testing.assert_allclose(found[:, 1:], 0.0, atol=DEEP_ROUNDING)
    np.testing.assert_allclose(np.mean(found[:, 0] ** 2), 4.0, rtol=DEEP_ROUNDING)
    np.testing.assert_allclose(found[:, 0].mean(axis=1) ** 2, 1.0, rtol=DEEP_ROUNDING)


def test_taps_of_normalised_channels_are_those_of_drawn_weights():
    """E[w_k w_l / (v + eps)] by drawn weights; smooth images, so that neighbours in a window oppose one another."""
    rng = np.random.default_rng(0)
    maps, window, eps = np.cumsum(rng.standard_normal((6, 2, 8, 8)), axis=3), Window((1, 3), (1, 1), (0, 0, 1, 1)), 0.1
    flat = plain_patches(maps, window).transpose(1, 0, 2).reshape(6, -1)
    weights = rng.standard_normal((400_000, 6)) * np.sqrt(0.02)
    v = np.einsum("ni,ij,nj->n", weights, np.cov(flat, bias=True), weights)
    inverse = 1 / (v + eps)
    law = VarianceLaw(v.mean(), np.mean(v * inverse), inverse.mean(), 0.0)
    found = damped_taps(maps, window, 0.02, law)
    for k, m in np.ndindex(3, 3):
        drawn = (weights[:, k] * weights[:, m] + weights[:, 3 + k] * weights[:, 3 + m]) / 2 * inverse
        error = drawn.std() / np.sqrt(len(drawn))
        assert abs(drawn.mean() - found[k, m] * 0.02 * inverse.mean()) < BEYOND * error
    assert found[0, 1] < -0.05


def test_levelled_patches_have_the_mean_and_the_spread_at_each_output():
    rng = np.random.default_rng(4)
    patches, wanted = rng.standard_normal((3, 4, 5)), 1 + rng.standard_normal((20, 4, 5)) * np.arange(5.0)
    patches[:, :, 4] = 2.0  # nothing there to spread
    found = levelled(patches, wanted)
    np.testing.assert_allclose(found.mean(axis=0), wanted.mean(axis=0), rtol=DEEP_ROUNDING)
    spread = wanted.var(axis=0).mean(axis=0)
    np.testing.assert_allclose(found.var(axis=0).mean(axis=0), [*spread[:4], 0.0], atol=DEEP_ROUNDING)


@pytest.mark.parametrize("seed", [0, 3])
def test_images_that_stand_for_a_batch_differ_as_its_images_do(seed):
    """What is left of a normalised channel's mean over the map was off by 5% to 20%, as those images happened to be."""
    net = NetworkBuilder("standing", "torch", (3, 32, 32))
    net.conv2d(32, 3, parse_initializer("he_normal"), stride=2)
    net.batch_norm()
    net.global_average_pool()
    network = net.build()
    batch = load_batch("photo", (3, 32, 32), 32, seed)
    found = compare(predict(network, batch), simulate(network, batch, trials=200, seed=0)).forward[-1]
    assert found.relative is not None
    assert found.z is not None
    assert abs(found.z) < BEYOND
    assert abs(found.relative) < STANDING_POOLED


@pytest.mark.parametrize("activation", ["relu", "tanh"])
def test_few_larger_images_are_carried_whole(activation):
    """The mean over the map: of pieces of 16 rows theory had a fifth of it under tanh, 6% too little under ReLU."""
    network = build("plain_conv", depth=2, width=32, norm="batch", size=20, activation=activation)
    batch = load_batch("photo", (3, 20, 20), 3, 0)
    theory, drawn = predict(network, batch), simulate(network, batch, trials=150, seed=0)
    pool = [node.name for node in network.nodes].index("head.pool")
    found = compare(theory, drawn).forward[pool]
    assert found.relative is not None
    assert abs(found.relative) < WHOLE_MAP


def test_channels_linear_in_the_data_have_their_kernel():
    """Products of the batch's points and the quantiles of a channel's variance, which come evenly."""
    rng = np.random.default_rng(5)
    features = rng.standard_normal((6, 8, 10)) * np.array([4.0, 2.0, *[1.0] * 6])[:, None]
    layout = Layout.all_pairs(6, 6)
    gram = np.einsum("sep,tfq,ef->stpq", features, features, np.eye(8))
    kernel = PairKernel(layout, (1, 10), gram[layout.left, layout.right])
    values = linear(features, kernel, 0).values
    found = np.einsum("psc,qtc->stpq", values, values) / values.shape[2]
    np.testing.assert_allclose(found, gram, atol=DEEP_ROUNDING * gram.max())
    covariance = np.cov(features.transpose(1, 0, 2).reshape(8, -1), bias=True)
    draws = rng.standard_normal((50_000, 8))
    v = np.einsum("ce,ce->c", draws @ covariance, draws)
    # Evenly taken quantiles leave much less noise than as many draws would.
    own, count = values.var(axis=(0, 1)), values.shape[2] // 2
    assert abs(np.mean(1 / own) - np.mean(1 / v)) < np.std(1 / v) / np.sqrt(count)


def test_channels_that_are_small_stay_so_where_the_weights_covariance_is_exact():
    """E[1 / v] of few directions that rule: rid of one another in the order of taps its noise was .41 of draws."""
    rng, variances = np.random.default_rng(6), np.array([8.0, 1.5, 1.2, 0.5, *[0.1] * 23])
    rotation, _ = np.linalg.qr(rng.standard_normal((27, 27)))
    features = (rng.standard_normal((6, 40, 27)) * np.sqrt(variances) @ rotation).transpose(0, 2, 1)
    gram = np.einsum("sep,teq->stpq", features, features)
    layout = Layout.all_pairs(6, 6)
    kernel = PairKernel(layout, (1, 40), gram[layout.left, layout.right])
    covariance = np.cov(features.transpose(1, 0, 2).reshape(27, -1), bias=True)
    draws = rng.standard_normal((100_000, 27))
    inverse = 1 / np.einsum("ce,ce->c", draws @ covariance, draws)
    found = np.array([np.mean(1 / linear(features, kernel, key).values.var(axis=(0, 1))) for key in range(16)])
    count = linear(features, kernel, 0).values.shape[2]
    assert np.sqrt(np.mean((found - inverse.mean()) ** 2)) < EVENLY * inverse.std() / np.sqrt(count)


def test_channels_on_images_that_are_all_carried_are_linear_in_them():
    """Drawn from the kernel of all points instead, they left a step at the stem 3% off: 1 / v and gains go together."""
    network, batch = build("mobilenet_v2", framework="torch"), load_batch("photo", (3, 32, 32), 12, 0)
    signal = engine._forward(network, batch, None)[2]
    patches = plain_patches(batch.data, Window((3, 3), (2, 2), (1, 1, 1, 1)))
    flat = patches.transpose(1, 0, 2).reshape(27, -1)
    flat -= flat.mean(axis=1, keepdims=True)
    z = signal.draw().values.transpose(1, 0, 2).reshape(flat.shape[1], -1)
    left = z - flat.T @ np.linalg.lstsq(flat.T, z, rcond=None)[0]
    np.testing.assert_allclose(left, 0.0, atol=DEEP_ROUNDING * float(np.abs(z).max()))


def test_gradient_at_normalised_images():
    """Behind a global pooling, where taps that oppose one another take away 15%, and bent slopes bring back some."""
    net, he = NetworkBuilder("images", "torch", (3, 12, 12)), parse_initializer("he_normal")
    net.conv2d(64, 3, he)
    net.batch_norm()
    net.activation("relu")
    net.global_average_pool()
    net.linear(10, he)
    network, steps = net.build(), []
    batch = load_batch("photo", (3, 12, 12), batch=16, seed=0)
    theory = predict(network, batch)
    for seed in range(6):
        logs = [
            run.layers[0].backward.log_second_moment - run.layers[1].backward.log_second_moment
            for run in (simulate(network, batch, trials=40, seed=seed), theory)
        ]
        steps.append(logs[0] - logs[1])
    error = float(np.std(steps, ddof=1)) / np.sqrt(len(steps))
    assert BEYOND * error < 0.08
    assert abs(np.mean(steps)) < BEYOND * error + BENT_STEP


def test_first_channels_depend_on_the_whole_batch():
    """Behind the stem's depthwise layer 1 / v depends on all images: of five alone it was 5% less."""
    network, batch = build("mobilenet_v2", framework="torch"), load_batch("photo", (3, 32, 32), 64, 0)
    names = [node.name for node in network.nodes]
    law = engine._forward(network, batch, None)[names.index("stem.depthwise.bn")].law
    first, rng = plain_patches(batch.data, Window((3, 3), (2, 2), (1, 1, 1, 1))), np.random.default_rng(6)
    under, found = Window((3, 3), (1, 1), (1, 1, 1, 1)), []
    for _ in range(400):
        z = np.einsum("e,sep->sp", rng.standard_normal(27), first).reshape(64, 1, 16, 16)
        a = np.clip((z - z.mean()) / z.std(), 0.0, 6.0)
        taps = gathered(a, under.index((16, 16)), under).transpose(1, 0, 2).reshape(9, -1)
        weights = rng.standard_normal((64, 9)) * np.sqrt(2 / 9)
        found.append(np.mean(1 / (np.einsum("wk,kl,wl->w", weights, np.cov(taps, bias=True), weights) + 1e-5)))
    assert abs(law.inverse - np.mean(found)) < BEYOND * np.std(found) / np.sqrt(len(found)) + NEAR * law.inverse


def test_channels_of_the_first_convolution_vary_as_on_the_whole_batch():
    """The law of a channel's variance over 64 images of 32 x 32, against drawn weights on all of their patches.

    Ten images at random places instead, or more of smaller pieces, are off by 5% to 10% in E[1 / v].
    """
    net = NetworkBuilder("stem", "torch", (3, 32, 32))
    net.conv2d(16, 3, parse_initializer("he_normal"))
    net.batch_norm()
    net.global_average_pool()
    network, batch = net.build(), load_batch("photo", (3, 32, 32), 64, 0)
    law = engine._forward(network, batch, None)[2].law
    flat = plain_patches(batch.data, Window((3, 3), (1, 1), (1, 1, 1, 1))).transpose(1, 0, 2).reshape(27, -1)
    weights = np.random.default_rng(3).standard_normal((20_000, 27)) * np.sqrt(2 / 27)
    v = np.einsum("ck,ck->c", weights @ np.cov(flat, bias=True), weights)
    for found, drawn in ((law.mean, v), (law.inverse, 1 / (v + 1e-5))):
        assert abs(found - drawn.mean()) < BEYOND * drawn.std() / np.sqrt(len(drawn))


def test_normalised_channels_of_images_are_not_gaussian():
    """SELU behind a first normalisation, over drawn weights: 2% less than of points on a sphere."""
    net = NetworkBuilder("stem", "torch", (3, 16, 16))
    net.conv2d(16, 3, parse_initializer("he_normal"))
    net.batch_norm()
    net.activation("selu")
    network, batch, trials = net.build(), load_batch("photo", (3, 16, 16), 8, 0), 150
    found = predict(network, batch).layers[3].forward.second_moment
    measured = simulate(network, batch, trials=trials, seed=0).layers[3].forward
    assert abs(found - measured.second_moment) < BEYOND * measured.standard_error + NEAR * found


def test_directions_of_the_whole_are_those_of_its_covariance():
    """What pieces vary by, taken apart along them, is what they vary by, and shares are of all patches."""
    rng = np.random.default_rng(5)
    patches, covariance = rng.normal(size=(3, 6, 20)), np.cov(rng.normal(size=(6, 50)))
    shares, parts = directions(patches, covariance)
    assert np.all(np.diff(shares) <= 0)
    assert shares.sum() == pytest.approx(1.0)
    vectors = np.linalg.eigh(covariance)[1][:, ::-1]
    apart = patches - patches.mean(axis=(0, 2))[:, None]
    for k, vector in enumerate(vectors.T):
        along = np.einsum("e,sep->sp", vector, apart) / np.sqrt(np.mean(np.sum(apart**2, axis=1)))
        np.testing.assert_allclose(abs(parts[k]), abs(along), atol=1e3 * ROUNDING)


def test_channels_of_pieces_are_divided_by_what_they_vary_over_the_map():
    """By loops: the variance of every channel, whose weights the values give back, over all patches and over these."""
    rng = np.random.default_rng(2)
    features, whole = rng.normal(size=(5, 4, 9)), np.cov(rng.normal(size=(4, 40)))
    layout = Layout.all_pairs(5, 8)
    kernel = PairKernel(layout, (3, 3), np.ones((len(layout.left), 9, 9)))
    sample = linear(features, kernel, 7, whole)
    flat = features.transpose(1, 0, 2).reshape(4, -1)
    weights = np.linalg.lstsq(flat.T, sample.values.transpose(1, 0, 2).reshape(45, -1), rcond=None)[0]
    assert sample.over_map is not None
    for own, ratio in zip(weights.T[:20], sample.over_map, strict=False):
        assert ratio == pytest.approx((own @ whole @ own) / np.var(own @ flat))


def test_edges_lack_what_small_channels_do_not_see_inside():
    """By explicit channels: where a smooth image's window lacks taps, filters that see differences see the image."""
    rng = np.random.default_rng(3)
    rows, cols = np.mgrid[:9, :8]
    maps = (
        1.0
        + np.sin(rows / 4 + rng.uniform(size=(4, 2, 1, 1)) * 6) * np.cos(cols / 5)
        + 0.1 * rng.normal(size=(4, 2, 9, 8))
    )
    window, eps, variance = Window((3, 3), (1, 1), (1, 1, 1, 1)), 0.05, 0.3
    patches = plain_patches(maps, window)
    squares, products, far = [], [], []
    for _ in range(40):
        weights = rng.normal(size=(250, 18)) * np.sqrt(variance)
        z = np.einsum("fi,sip->fsp", weights, patches)
        z = (z - z.mean(axis=(1, 2), keepdims=True)) / np.sqrt(z.var(axis=(1, 2), keepdims=True) + eps)
        squares.append(np.mean(z**2, axis=(0, 1)))
        inner = z.reshape(250, 4, 9, 8)[:, :, 1:-1, 1:-1]
        products.append(np.einsum("csp,ctq->sptq", z, inner.reshape(250, 4, -1)) / 250)
        common = np.mean(inner.mean(axis=(1, 2, 3)) ** 2)
        far.append((np.mean(inner[:, :, :3] * inner[:, :, 4:]) - common) / (np.mean(inner**2) - common))
    drawn, error = np.mean(squares, axis=0), np.std(squares, axis=0) / np.sqrt(len(squares))
    index = window.index((9, 8))
    found = divided(maps, window, interior(index, (9, 8)), statistics(maps, index, window), variance, eps)
    field = found.amplitude
    assert abs(found.far.apart[8 - 4, 7] - np.mean(far)) < BEYOND * np.std(far) / np.sqrt(len(far))
    kept, inner = one_root(found.far.kept).reshape(9, 8) ** 2, slice(1, -1)
    # Independent channels' products, so that their errors do not add up.
    shared = np.array([np.mean(a * b, axis=(0, 2, 3)) for a, b in itertools.pairwise(products)]).reshape(-1, 9, 8)
    for (i, j), (rows, cols) in {(0, 0): (0, 0), (0, 3): (0, inner), (4, 7): (inner, 7)}.items():
        gaps = [np.mean(one[rows, cols]) - kept[i, j] / kept[4, 4] * np.mean(one[inner, inner]) for one in shared]
        # Neighbours have a set of channels in common.
        assert abs(np.mean(gaps)) < BEYOND * np.sqrt(2.0) * np.std(gaps) / np.sqrt(len(gaps))
    undivided = np.mean((patches - patches.mean(axis=(0, 2))[:, None]) ** 2, axis=(0, 1))
    right, wrong = (
        np.abs(drawn - one * (drawn.mean() / one.mean())).max() / error.max() for one in (field.ravel(), undivided)
    )
    assert right < BEYOND
    assert wrong > 2 * BEYOND
