"""Weighted sums over windows against plain loops over channels, outputs and taps."""

import numpy as np
import pytest

from varprop.simulator.montecarlo.windows import Geometry, runs, weigh
from varprop.tests.tolerances import ROUNDING

CHANNELS, BATCH = 3, 5
GEOMETRIES = {
    "same": (Geometry((5, 6), (5, 6), (3, 3), (1, 1), (1, 1)), 1),
    "stride": (Geometry((5, 6), (3, 3), (3, 3), (2, 2), (1, 1)), 1),
    "two outputs a channel": (Geometry((7, 6), (3, 5), (3, 2), (2, 1), (0, 0)), 2),
    "five by five": (Geometry((9, 8), (9, 8), (5, 5), (1, 1), (2, 2)), 2),
    "whole map": (Geometry((4, 5), (1, 1), (4, 5), (1, 1), (0, 0)), 1),
    "a single position": (Geometry((1, 1), (1, 1), (3, 3), (1, 1), (1, 1)), 1),
    "padding beyond the kernel": (Geometry((3, 3), (8, 7), (1, 1), (1, 1), (2, 3)), 3),
    "stride beyond the kernel": (Geometry((7, 7), (3, 3), (1, 1), (3, 3), (0, 0)), 1),
}


def plain(x, weights, geometry, outputs):
    """Loop over everything."""
    (height, width), (rows, columns), (kh, kw), stride, corner = geometry
    out = np.zeros((outputs, rows, columns, BATCH))
    for o, row, column, i, j in np.ndindex(outputs, rows, columns, kh, kw):
        y, z = row * stride[0] + i - corner[0], column * stride[1] + j - corner[1]
        if 0 <= y < height and 0 <= z < width:
            out[o, row, column] += weights[o, i * kw + j] * x[o * len(x) // outputs, y, z]
    return out


def weighed(x, weights, table, shared, out):
    """Write to `out`, and compare the moments that come with it, of all channels as one trial's."""
    mean, variance, summary = np.empty((1, len(out))), np.empty((1, len(out))), np.empty((1, 3))
    weigh(x.reshape(-1), weights, table, shared, out.reshape(-1), mean, variance, summary)
    axes = (1, 2, 3)
    np.testing.assert_allclose(mean[0], out.mean(axis=axes), rtol=ROUNDING, atol=ROUNDING)
    np.testing.assert_allclose(variance[0], out.var(axis=axes), rtol=ROUNDING, atol=ROUNDING)
    averages = [out.mean(), (out**2).mean(), out.var(axis=axes).mean()]
    np.testing.assert_allclose(summary[0], averages, rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("name", GEOMETRIES)
def test_sums_over_windows_and_their_transpose(name):
    geometry, multiplier = GEOMETRIES[name]
    rng = np.random.default_rng(0)
    outputs = CHANNELS * multiplier
    x = rng.standard_normal((CHANNELS, *geometry.inputs, BATCH))
    weights = rng.standard_normal((outputs, geometry.kernel[0] * geometry.kernel[1]))
    out, back = np.full((outputs, *geometry.outputs, BATCH), np.nan), np.full(x.shape, np.nan)
    weighed(x, weights, runs(geometry, BATCH, False), (multiplier, 1), out)
    np.testing.assert_allclose(out, plain(x, weights, geometry, outputs), rtol=ROUNDING, atol=ROUNDING)
    gradient = rng.standard_normal(out.shape)
    weighed(gradient, weights, runs(geometry, BATCH, True), (1, multiplier), back)
    assert (back * x).sum() == pytest.approx((gradient * out).sum(), rel=ROUNDING)
    for channel in range(CHANNELS):  # one number of the input moves what the plain loops say
        probe = np.zeros(x.shape)
        probe[channel, 0, -1, 2] = 1
        expected = (plain(probe, weights, geometry, outputs) * gradient).sum()
        assert back[channel, 0, -1, 2] == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)


def test_rows_that_read_alike_are_one_run():
    table = runs(Geometry((4, 9), (4, 9), (3, 3), (1, 1), (1, 1)), BATCH, False)
    assert table.lengths.reshape(4, 3).tolist() == [[BATCH, 7 * BATCH, BATCH]] * 4
