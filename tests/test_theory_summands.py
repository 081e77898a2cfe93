"""Channels that are sums of few: how skew they are over the data, and what activations make of that."""

from __future__ import annotations

import numpy as np

from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import engine, signal
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.summands import Summand, summed
from varprop.tests.tolerances import BEYOND

HE = parse_initializer("he_normal")


def test_skewness_of_sums_of_independent_channels():
    """Of n exponential channels, of third cumulant 2, the mean squared skewness is 15 * 2^2 / n^2.

    Each half of the data has noise of its own, which a product of the two has not.
    """
    width, points, runs = 24, 4096, 30
    kernel = PairKernel(Layout.all_pairs(2, 2), (1, 1), np.ones((3, 1, 1)))
    found = []
    for key in range(runs):
        values = np.random.default_rng(key).exponential(size=(1, points, 512)) - 1.0
        half = summed([Summand(lambda values=values: Sample(values), width)], kernel, key).values[0, :, :256]
        thirds = np.mean(half.reshape(2, -1, 256) ** 3, axis=1) / np.mean(half**2, axis=0) ** 1.5
        found.append(np.mean(thirds[0] * thirds[1]))
    expected, error = 15 * 2**2 / width**2, np.std(found, ddof=1) / np.sqrt(runs)
    assert error < 0.03 * expected
    # Squares of normal weights differ from sum to sum, which changes the mean ratio in the next order of 1 / n.
    expected *= width**2 / ((width + 2) * (width + 4))
    assert abs(np.mean(found) - expected) < BEYOND * error


def test_two_terms_keep_their_shares():
    """A sum of two kinds has the variance of each that it is told, whatever their own sizes and means."""
    rng = np.random.default_rng(0)
    kernel = PairKernel(Layout.all_pairs(2, 2), (1, 1), np.ones((3, 1, 1)))
    first, second = np.zeros((2, 1, 400, 512))
    first[:, :200], second[:, 200:] = 3.0 * rng.standard_normal((200, 512)), 5.0 + rng.standard_normal((200, 512))
    second[:, :200] = 5.0
    parts = [Summand(lambda: Sample(first), 16, 0.25), Summand(lambda: Sample(second), 48, 0.75)]
    found = summed(parts, kernel, 1).values[0]
    sizes = np.var(found[:200], axis=0), np.var(found[200:], axis=0)
    deviation = np.std(sizes[0] / np.mean(sizes[0]) - sizes[1] / np.mean(sizes[1])) / np.sqrt(256)
    assert abs(np.mean(sizes[0]) / np.mean(sizes[1]) * 3.0 - 1.0) < BEYOND * deviation


CHANNELS = (12, 8, 64)


def stacked(name):
    """Twelve channels behind an activation, eight sums of them, normalised, and 64 sums of those."""
    first, middle, last = CHANNELS
    net = NetworkBuilder(name, "torch", (3, 12, 12))
    net.conv2d(first, 3, HE, name=name)
    net.batch_norm()
    net.activation("relu")
    net.conv2d(middle, 1, HE, name=f"{name}.middle")
    net.batch_norm()
    net.conv2d(last, 1, HE, name=f"{name}.last")
    net.batch_norm()
    net.activation("relu")
    return net.build()


def unevenness(values):
    """Relative variance over channels, the last axis, of their variance over the data."""
    v = values.reshape(-1, values.shape[-1]).var(axis=0)
    return float(v.var() / v.mean() ** 2)


def drawn(patches, rng):
    """One draw of `stacked`: the variances of its last channels."""

    def layer(x, width):
        z = x @ rng.standard_normal((x.shape[1], width))
        return (z - z.mean(axis=0)) / z.std(axis=0)

    first, middle, last = CHANNELS
    return np.maximum(layer(layer(np.maximum(layer(patches, first), 0.0), middle), last), 0.0)


def test_sums_of_sums_stay_uneven(monkeypatch):
    """Behind two dense layers channels' variances differ as in plain draws; of Gaussian channels by half of that."""
    batch, rng = load_batch("photo", (3, 12, 12), 6, 0), np.random.default_rng(3)
    padded = np.pad(batch.data, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    patches = windows.transpose(0, 2, 3, 1, 4, 5).reshape(6 * 144, 27)
    measured = [unevenness(drawn(patches, rng)) for _ in range(120)]

    def predicted():
        found = []
        for number in range(6):  # each with draws of its own
            network = stacked(f"draw{number}")
            found.append(unevenness(engine._forward(network, batch, None)[-1].draw().values))
        return np.mean(found), np.var(found, ddof=1) / len(found)

    theory, noise = predicted()
    error = np.sqrt(noise + np.var(measured, ddof=1) / len(measured))
    assert error < 0.1 * theory
    assert abs(theory - np.mean(measured)) < BEYOND * error
    monkeypatch.setattr(signal, "few", lambda parts: False)
    assert predicted()[0] < np.mean(measured) - 2 * BEYOND * error
