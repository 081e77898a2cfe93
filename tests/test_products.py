"""Products of narrow matrices, a tile of sums in registers at a time, against numpy's in float64."""

import numpy as np
import pytest

from varprop.simulator.montecarlo import products
from varprop.simulator.montecarlo.products import WIDTH, Moments, product
from varprop.simulator.montecarlo.tile import ROWS
from varprop.tests.tolerances import ROUNDING

LANES = WIDTH // 8
SIZES = {  # rows, terms, columns
    "one tile": (ROWS, 1, LANES),
    "tiles over one another at both ends": (2 * ROWS + 3, 7, 3 * LANES + 5),
    "several panels": (ROWS + 1, 150, 1000),
    "many terms": (ROWS, 300, 2 * LANES),
}


def drawn(sizes, stack, dtype=np.float64):
    rows, terms, columns = sizes
    rng = np.random.default_rng(0)
    left = rng.standard_normal((stack, rows, terms)).astype(dtype)
    return (
        left,
        rng.standard_normal((stack, terms, columns)).astype(dtype),
        np.full((stack, rows, columns), np.nan, dtype),
    )


@pytest.fixture
def no_library(monkeypatch):
    """Let nothing be left to BLAS."""

    def refuse(*arguments, **options):
        raise AssertionError("not a product of tiles")

    monkeypatch.setattr(products.np, "matmul", refuse)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("transposed", [False, True])
def test_products_and_their_moments(name, transposed, no_library):
    left, right, out = drawn(SIZES[name], stack=6)
    expected = np.einsum("smk,skn->smn", left, right)
    weight = np.ascontiguousarray(left.swapaxes(1, 2)) if transposed else left
    channels = 3 * out.shape[1]  # three groups, two trials
    moments = Moments(np.empty((2, channels)), np.empty((2, channels)), np.empty((2, 3)))
    assert product(weight, right, out, transposed, moments)
    scale = ROUNDING * np.abs(expected).max()
    np.testing.assert_allclose(out, expected, rtol=ROUNDING, atol=scale)
    rows = expected.reshape(2, channels, -1)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=2), rtol=ROUNDING, atol=scale)
    np.testing.assert_allclose(moments.variance, rows.var(axis=2), rtol=ROUNDING)
    averages = [rows.mean(axis=(1, 2)), (rows**2).mean(axis=(1, 2)), rows.var(axis=2).mean(axis=1)]
    np.testing.assert_allclose(moments.summary, np.transpose(averages), rtol=ROUNDING, atol=scale)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_of_views_may_lie_apart(transposed, no_library):
    left, right, _ = drawn((ROWS + 2, 5, 3 * LANES), stack=1)
    expected = left @ right
    weight = np.ascontiguousarray(left.swapaxes(1, 2)) if transposed else left
    wide_right, wide_out = np.full((1, 5, 7 * LANES), np.nan), np.full((1, ROWS + 2, 7 * LANES), np.nan)
    inside = slice(LANES, 4 * LANES)
    wide_right[:, :, inside] = right
    product(weight, wide_right[:, :, inside], wide_out[:, :, inside], transposed)
    np.testing.assert_allclose(wide_out[:, :, inside], expected, rtol=ROUNDING, atol=ROUNDING)
    assert np.isnan(wide_out[:, :, :LANES]).all()
    assert np.isnan(wide_out[:, :, 4 * LANES :]).all()


@pytest.mark.parametrize("sizes", [(ROWS - 1, 5, 9 * LANES), (ROWS, 5, LANES - 1), (ROWS, 600, 2000), (1024, 1024, 64)])
def test_what_no_tile_fits_or_what_is_wide_goes_to_blas(sizes):
    left, right, out = drawn(sizes, stack=2)
    moments = Moments(np.empty((2, sizes[0])), np.empty((2, sizes[0])), np.full((2, 3), np.nan))
    assert not product(left, right, out, False, moments)
    np.testing.assert_array_equal(out, np.matmul(left, right))
    assert np.isnan(moments.summary).all()


def test_single_precision_rounds_no_more_than_sums_may(no_library):
    left, right, out = drawn((2 * ROWS, 160, 256), stack=2, dtype=np.float32)
    product(left, right, out, False)
    exact = left.astype(np.float64) @ right
    bound = np.abs(left).astype(np.float64) @ np.abs(right)
    # Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., eq. (3.5): n u / (1 - n u), u = 2^-24.
    assert (np.abs(out - exact) <= 160 * 2.0**-24 / (1 - 160 * 2.0**-24) * bound).all()


@pytest.mark.parametrize("power", [-70, 70])
def test_moments_near_the_ends_of_the_range(power):
    left, right, out = drawn((ROWS, 4, 300), stack=1, dtype=np.float32)
    left *= np.float32(2.0**power)
    moments = Moments(np.empty((1, ROWS)), np.empty((1, ROWS)), np.empty((1, 3)))
    assert product(left, right, out, False, moments)
    double = out[0].astype(np.float64)
    np.testing.assert_allclose(moments.variance[0], double.var(axis=1), rtol=ROUNDING)
    np.testing.assert_allclose(moments.summary[0, 1], (double**2).mean(), rtol=ROUNDING)


def test_a_number_does_not_depend_on_the_tile_it_is_made_in(no_library):
    left, right, whole = drawn((ROWS + 5, 9, 4 * LANES), stack=1, dtype=np.float32)
    product(left, right, whole, False)
    part = np.empty((1, ROWS, 2 * LANES + 3), np.float32)
    product(left[:, 4 : 4 + ROWS].copy(), right[:, :, 3 : 6 + 2 * LANES].copy(), part, False)
    np.testing.assert_array_equal(part, whole[:, 4 : 4 + ROWS, 3 : 6 + 2 * LANES])
