"""Depthwise kernels on sampled fields against plain loops over outputs and taps."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.stencils import Stencils, moments
from varprop.tests.tolerances import ROUNDING
from varprop.tests.windows import WINDOWS as WHOLE

SIZE, SAMPLES, CHANNELS = (5, 6), 2, 4
WINDOWS = WHOLE | {
    "larger than the map": Window((7, 7), (2, 2), (3, 3, 3, 3)),
    "inside": Window((3, 3), (1, 1), inside=True),
}


def under_taps(field, window):
    """What each tap shows to each output, one by one: shape (taps, outputs, samples, channels)."""
    h, w = SIZE
    maps = field.reshape(h, w, SAMPLES, CHANNELS)
    out, seen = window.out_size(SIZE), []
    top, left = (1, 1) if window.inside else (window.padding[0], window.padding[2])
    for i in range(window.kernel[0]):
        for j in range(window.kernel[1]):
            places = []
            for a in range(out[0]):
                for b in range(out[1]):
                    row, col = a * window.stride[0] + i - top, b * window.stride[1] + j - left
                    if window.inside:
                        row, col = min(max(row, 0), h - 1), min(max(col, 0), w - 1)
                    within = 0 <= row < h and 0 <= col < w
                    places.append(maps[row, col] if within else np.zeros((SAMPLES, CHANNELS)))
            seen.append(places)
    return np.array(seen)


def field_and_weights(window):
    """Random numbers."""
    rng = np.random.default_rng(3)
    field = rng.standard_normal((SIZE[0] * SIZE[1], SAMPLES, CHANNELS))
    return field, rng.standard_normal((window.taps, CHANNELS))


@pytest.mark.parametrize("name", WINDOWS)
def test_convolution_is_the_weighted_sum_under_the_taps(name):
    window = WINDOWS[name]
    field, weights = field_and_weights(window)
    expected = np.einsum("tc,tosc->osc", weights, under_taps(field, window))
    assert Stencils(weights, window, SIZE).forward(field) == pytest.approx(expected, rel=ROUNDING, abs=ROUNDING)


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("name", [name for name in WINDOWS if name != "inside"])
def test_going_back_is_the_transpose(name, power):
    window = WINDOWS[name]
    field, weights = field_and_weights(window)
    out = window.out_size(SIZE)
    gradient = np.random.default_rng(4).standard_normal((out[0] * out[1], SAMPLES, CHANNELS))
    forward = Stencils(weights**power, window, SIZE).forward(field)
    back = Stencils(weights, window, SIZE).back(gradient, power)
    assert float(np.sum(back * field)) == pytest.approx(float(np.sum(gradient * forward)), rel=ROUNDING)


@pytest.mark.parametrize("name", WINDOWS)
def test_moments_under_the_taps_are_those_of_all_outputs(name):
    window = WINDOWS[name]
    field, _ = field_and_weights(window)
    under = under_taps(field, window)
    points = under.shape[1] * under.shape[2]
    found = moments(field, window, SIZE)
    assert found.mean == pytest.approx(under.sum(axis=(1, 2)).T / points, rel=ROUNDING, abs=ROUNDING)
    products = np.einsum("tosc,uosc->ctu", under, under) / points
    assert found.products == pytest.approx(products, rel=ROUNDING, abs=ROUNDING)
