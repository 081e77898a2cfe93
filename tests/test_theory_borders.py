"""What lies beyond the border of a piece of an image."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.theory.borders import beyond
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pairs import Layout, PairKernel, grown
from varprop.simulator.theory.sampling import assemble
from varprop.tests.tolerances import ROUNDING

IMAGES = 3
PAIRS = Layout.all_pairs(IMAGES, IMAGES)


def kernel_of(features, size):
    """Products of features, shape (images, height, width, features), as mapped blocks of all pairs of images."""
    points = size[0] * size[1]
    flat = features.reshape(IMAGES, points, -1)
    return (flat[PAIRS.left] @ flat[PAIRS.right].transpose(0, 2, 1) / flat.shape[-1]).reshape(-1, *size, *size)


def rough(size, features=40, seed=1):
    return (
        np.random.default_rng(seed).normal(size=(IMAGES, *size, features))
        + np.arange(1, 1 + IMAGES)[:, None, None, None]
    )


def continued_by_loops(x, shares):
    """Features of a row before the first: those that are predicted, then those that the same misses of the first."""
    width = x.shape[1]
    row = []
    for col in range(width):
        near = [min(max(col + step, 0), width - 1) for step in (-1, 0, 1)]
        mean = (1 - shares.sum()) * x.mean(axis=(0, 1))
        told = mean + sum(share * x[0, at] for share, at in zip(shares, near, strict=True))
        missed = x[0, col] - mean - sum(share * x[1, at] for share, at in zip(shares, near, strict=True))
        row.append(np.concatenate([told, missed]))
    return np.stack(row)


def test_a_row_is_what_neighbours_predict_and_what_they_miss():
    """By loops over features, least squares by lstsq over all pixels that have a row behind them."""
    size = 4, 5
    x = rough(size)
    found = beyond(kernel_of(x, size), PAIRS.left, PAIRS.right, ((1, 0), (0, 0)))
    rows = []
    for image in x:
        apart = image - image.mean(axis=(0, 1))
        near = [np.clip(np.arange(5) + step, 0, 4) for step in (-1, 0, 1)]
        design = np.stack([apart[1:][:, at].ravel() for at in near], axis=1)
        shares = np.linalg.lstsq(design, apart[:-1].ravel())[0]
        row = continued_by_loops(image, shares)
        sizes = np.sqrt(np.sum(image[0] ** 2, axis=1) / np.sum(row**2, axis=1))
        rows.append(row * sizes[:, None])
    for block, (a, b) in zip(found, zip(PAIRS.left, PAIRS.right, strict=True), strict=True):
        # A copy has nothing in common with the image itself.
        assert block[0, :, 0] == pytest.approx(rows[a] @ rows[b].T / 40, rel=1e-9)
        assert block[0, :, 1:].reshape(5, -1) == pytest.approx(rows[a][:, :40] @ x[b].reshape(20, 40).T / 40, rel=1e-9)


@pytest.mark.parametrize("around", [((1, 1), (1, 1)), ((0, 2), (3, 0)), ((0, 0), (0, 1))])
def test_the_continuation_is_a_kernel_and_leaves_what_is_known(around):
    size = 4, 5
    values = kernel_of(rough(size, 12), size)
    found = beyond(values, PAIRS.left, PAIRS.right, around)
    (up, down), (before, behind) = around
    large = size[0] + up + down, size[1] + before + behind
    rows, cols = slice(up, up + size[0]), slice(before, before + size[1])
    assert found[:, rows, cols, rows, cols] == pytest.approx(values)
    points = large[0] * large[1]
    full = assemble(PairKernel(PAIRS, large, found.reshape(-1, points, points)))
    assert full == pytest.approx(full.T)
    assert np.linalg.eigvalsh(full).min() > -ROUNDING * np.trace(full)
    sizes = np.einsum("nyxyx->nyx", values[:IMAGES])
    assert np.einsum("nyxyx->nyx", found[:IMAGES]) == pytest.approx(np.pad(sizes, ((0, 0), *around), mode="edge"))


@pytest.mark.parametrize("size", [(4, 5), (1, 3), (1, 1)])
def test_an_image_of_one_colour_goes_on(size):
    colours = np.broadcast_to(rough((1, 1)), (IMAGES, *size, 40))
    around = (1, 2), (2, 1)
    found = beyond(kernel_of(colours, size), PAIRS.left, PAIRS.right, around)
    large = size[0] + 3, size[1] + 3
    assert found == pytest.approx(kernel_of(np.broadcast_to(colours[:, :1, :1], (IMAGES, *large, 40)), large))


def test_an_image_of_zeros_goes_on():
    found = beyond(np.zeros((len(PAIRS.left), 2, 3, 2, 3)), PAIRS.left, PAIRS.right, ((1, 1), (1, 1)))
    assert not found.any()


@pytest.mark.parametrize("reach", [1.5, 6.0])
def test_neighbours_beyond_the_border_are_as_alike_as_inside(reach):
    """A stationary law, known everywhere: a copied border is 3 to 20 times as far off in what neighbours differ by."""
    side, more = 6, 1
    rows, cols = np.divmod(np.arange((side + 2) ** 2), side + 2)
    distance = np.hypot(np.subtract.outer(rows, rows), np.subtract.outer(cols, cols))
    true = np.exp(-distance / reach).reshape(side + 2, side + 2, side + 2, side + 2)
    inner = slice(more, more + side)
    one = np.zeros(1, np.intp)
    found = beyond(true[None, inner, inner, inner, inner], one, one, ((more, more), (more, more)))[0]
    copied = np.pad(true[inner, inner, inner, inner], more, mode="edge")
    nearest = np.isclose(distance.reshape(true.shape), 1.0)
    beside = np.ones_like(nearest)
    beside[inner, inner, inner, inner] = False
    pairs = nearest & beside
    differ = 1.0 - true[pairs].mean()
    assert (1.0 - found[pairs].mean()) / differ == pytest.approx(1.0, abs=0.1)
    assert abs(copied[pairs].mean() - true[pairs].mean()) > 3 * abs(found[pairs].mean() - true[pairs].mean())


def test_a_window_that_is_no_square_reaches_further_one_way():
    layout = PAIRS
    values = kernel_of(rough((3, 4)), (3, 4))
    kernel = PairKernel(layout, (3, 4), values.reshape(-1, 12, 12), 0.7)
    found = grown(kernel, Window((3, 2), (1, 1), (1, 1, 0, 1), inside=True))
    assert found.size == (5, 5)
    assert found.log_scale == 0.7
    wanted = beyond(values, layout.left, layout.right, ((1, 1), (0, 1)))
    assert found.values == pytest.approx(wanted.reshape(-1, 25, 25))
