"""What comes back of gradients that are alike at neighbouring positions, through weights that a normalisation knows."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.opposition import kept_of_smooth, returned
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.variance_law import quadratic_form_law
from varprop.tests.tolerances import BEYOND, SMOOTH_GRADIENTS

SIDE, SAMPLES, CHANNELS, DRAWS = 8, 4, 16, 20_000
TAPS = [(down, across) for down in (-1, 0, 1) for across in (-1, 0, 1)]


def smooth(count, width, rng):
    """Random fields on maps whose edges meet, shape (count, samples, side, side)."""
    frequency = np.fft.fftfreq(SIDE) * SIDE
    damping = np.exp(-width * (frequency[:, None] ** 2 + frequency**2))
    noise = rng.standard_normal((count, SAMPLES, SIDE, SIDE))
    return np.fft.ifft2(np.fft.fft2(noise) * damping).real


def autocorrelation(fields):
    """By shift around the map, one without: shape (..., side, side), averaged over samples."""
    products = np.fft.ifft2(np.abs(np.fft.fft2(fields)) ** 2).real.mean(axis=-3)
    return products / products[..., :1, :1]


@pytest.mark.parametrize("width", [0.05, 0.2])
@pytest.mark.parametrize("gradient_width", [0.1, 0.5])
def test_smooth_gradients_meet_the_modes_that_make_variances(width, gradient_width):
    """E[|w^T g|^2 / v] over that of weights that v does not know, against draws of the weights."""
    rng = np.random.default_rng(0)
    inputs = smooth(CHANNELS, width, rng)
    shifted = [np.roll(inputs, (-down, -across), (2, 3)) for down, across in TAPS]
    patches = np.stack(shifted, axis=1).reshape(CHANNELS * len(TAPS), -1)
    patches -= patches.mean(axis=1, keepdims=True)
    values, vectors = np.linalg.eigh(patches @ patches.T / patches.shape[1])
    keep = values > 1e-9 * values[-1]
    values, vectors = values[keep], vectors[:, keep]
    modes = quadratic_form_law(values, 0.0, 0.0, float(len(patches)), 0.0).modes
    assert modes is not None
    alike = autocorrelation((vectors.T @ patches).reshape(-1, SAMPLES, SIDE, SIDE))
    around = np.arange(1 - SIDE, SIDE) % SIDE
    # All modes are known: none of the others has any part in the variance.
    known = np.append(alike[:, around[:, None], around], np.zeros((1, 2 * SIDE - 1, 2 * SIDE - 1)), axis=0)
    gradient = autocorrelation(smooth(100, gradient_width, rng)).mean(axis=0)
    rows, cols = np.divmod(np.arange(SIDE * SIDE), SIDE)
    together = gradient[(rows[:, None] - rows) % SIDE, (cols[:, None] - cols) % SIDE]
    kernel = PairKernel(Layout.exchangeable(SAMPLES), (SIDE, SIDE), np.stack([together, 0 * together]))
    apart, _ = returned(modes, 0.0, CHANNELS)
    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    theory = apart * kept_of_smooth(replace(modes, fields=known[modes.which]), kernel, window)

    weights = rng.standard_normal((DRAWS, CHANNELS, len(TAPS)))
    of_taps = np.array([[gradient[one[0] - two[0], one[1] - two[1]] for two in TAPS] for one in TAPS])
    back = np.einsum("dct,ts,dcs->d", weights, of_taps, weights, optimize=True) / len(patches)
    inverse = 1.0 / ((weights.reshape(DRAWS, -1) @ vectors) ** 2 @ values)
    # Weights that v does not know bring back one on average.
    lost = (1.0 - back) * (inverse / np.mean(inverse) - 1.0)
    left, error = 1.0 - np.mean(lost), np.std(lost) / math.sqrt(DRAWS)
    assert abs(left - theory) < BEYOND * error + SMOOTH_GRADIENTS * (1 - left)
    assert abs(left - apart) > BEYOND * error + 2 * SMOOTH_GRADIENTS * (1 - left)
