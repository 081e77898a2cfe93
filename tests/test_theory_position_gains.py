"""Sizes at the positions of a map behind the normalisation of channels that differ in their own sizes there."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import engine, normalisation
from varprop.simulator.theory.depthwise import Taps, position_gains
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.stencils import moments
from varprop.simulator.theory.variance_law import VarianceLaw
from varprop.tests.tolerances import BEYOND, ROUNDING

HE = parse_initializer("he_normal")


def depthwise(size, channels):
    """A convolution, and a depthwise one behind an activation."""
    net = NetworkBuilder("depthwise", "torch", (3, size, size))
    net.conv2d(channels, 3, HE)
    net.batch_norm()
    net.activation("relu")
    net.conv2d(channels, 3, HE, groups=channels)
    net.batch_norm()
    return net.build()


@pytest.mark.parametrize(
    ("window", "size"),
    [
        (Window((3, 3), (1, 1), (1, 1, 1, 1)), (4, 5)),
        (Window((3, 3), (2, 2), (0, 1, 0, 1)), (4, 6)),
        (Window((5, 5), (1, 1), (2, 2, 2, 2)), (2, 3)),
        (Window((1, 2), (1, 1)), (1, 3)),
    ],
)
def test_gains_are_those_of_plain_loops(window, size):
    rng = np.random.default_rng(0)
    count, samples, share = 3, 4, 0.7
    values = rng.standard_normal((size[0] * size[1], samples, count)) + rng.standard_normal(count)
    root = rng.standard_normal((count, window.taps, window.taps))
    products = root @ root.transpose(0, 2, 1)
    network = depthwise(4, 8)
    law, shifted = weight_law(network.nodes[4], "torch"), moments(values, window, size).shifted
    taps = Taps(np.zeros((count, 1, 1)), law, window, Sample(values), shifted, size, share)
    found = position_gains(taps, VarianceLaw(1.0, 1.0, 1.0, 1.0, products=products), size)
    padded = np.concatenate([values, np.zeros((1, samples, count))])
    for output, where in enumerate(window.index(size).T):
        own = common = 0.0
        for c in range(count):
            means = padded[window.index(size), :, c].mean(axis=(1, 2))
            for s in range(samples):
                under = padded[where, s, c] - means
                own += under @ products[c] @ under
                common += under @ products.mean(axis=0) @ under
        assert found[output] == pytest.approx(1 + np.sqrt(share) * (own / common - 1), rel=ROUNDING)


def test_profile_behind_a_depthwise_layer(monkeypatch):
    """On photographs, over plain draws, along what channels' own sizes change; without that it is ten errors off."""
    size, channels, trials = 10, 32, 300
    network, batch = depthwise(size, channels), load_batch("photo", (3, size, size), 8, 0)

    def predicted():
        level = engine._forward(network, batch, None)[-1].kernel.diagonal.mean(axis=0)
        return level / level.mean()

    theory = predicted()
    monkeypatch.setattr(normalisation, "position_gains", lambda taps, law, size: np.ones(size[0] * size[1]))
    alike = predicted()

    def windows(maps):
        padded = np.pad(maps, ((0, 0), (0, 0), (1, 1), (1, 1)))
        return np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))

    def unit(maps):
        axes = (0, 2, 3)
        return (maps - maps.mean(axis=axes, keepdims=True)) / maps.std(axis=axes, keepdims=True)

    patches, rng = windows(batch.data), np.random.default_rng(1)
    direction = (theory - alike) / np.linalg.norm(theory - alike)
    along = []
    for _ in range(trials):
        first = np.einsum("bchwij,ocij->bohw", patches, rng.standard_normal((channels, 3, 3, 3)), optimize=True)
        weights = rng.standard_normal((channels, 3, 3))
        second = np.einsum("bchwij,cij->bchw", windows(np.maximum(unit(first), 0.0)), weights)
        along.append(direction @ (np.mean(unit(second) ** 2, axis=(0, 1)).ravel() - alike))
    error = np.std(along, ddof=1) / np.sqrt(trials)
    assert np.mean(along) > 2 * BEYOND * error
    assert abs(np.mean(along) - direction @ (theory - alike)) < BEYOND * error
