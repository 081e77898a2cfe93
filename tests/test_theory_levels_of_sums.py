"""Levels of a shortcut and of the branch beside it, and what gradients through both know of them, against draws."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.maps import Window, by_offset, seen_by_offset
from varprop.simulator.theory.strays import in_step
from varprop.tests.naive_engine import draw, run
from varprop.tests.tolerances import BEYOND, LEVELS_MEET, RESIDUAL

SAMPLES = 16


def residual(function, width, blocks):
    """Return a network of residual blocks of one width, and its batch."""
    net, init = NetworkBuilder("residual", "torch", (3, 8, 8)), parse_initializer("he_normal")
    net.conv2d(width, 3, init)
    net.batch_norm()
    net.activation(function)
    for _ in range(blocks):
        shortcut = net.last
        for layer in range(2):
            net.conv2d(width, 3, init)
            net.batch_norm()
            if layer == 0:
                net.activation(function)
        net.add((net.last, shortcut))
        net.activation(function)
    net.global_average_pool()
    net.linear(10, init)
    network = net.build()
    return network, load_batch("gaussian", network.nodes[0].shape, SAMPLES, 0)


def levels(values):
    """Return the second moments of single points less those of their positions, in units of these."""
    squares = np.mean((values - values.mean(axis=(0, 2, 3), keepdims=True)) ** 2, axis=1)
    mean = squares.mean(axis=0)
    return (squares - mean) / math.sqrt(np.mean(mean**2))


@pytest.mark.parametrize("function", ["hard_swish", "relu"])
def test_levels_of_shortcut_and_branch_meet(function):
    """Two windows come back to a point more often than each of them stays there."""
    draws, (network, batch) = 150, residual(function, 16, 1)
    signals = _forward(network, batch, None)
    (place,) = (index for index, node in enumerate(network.nodes) if node.kind == "add")
    branch, shortcut = network.nodes[place].inputs
    found = np.zeros((draws, 2))
    for trial, row in enumerate(found):
        values = run(network, batch.data, *draw(network, 3, trial, SAMPLES))[0]
        one, other, both = (levels(values[index]) for index in (shortcut, branch, place))
        row[:] = np.array([np.mean(one * other), np.mean(both**2)]) * SAMPLES / (SAMPLES - 1)
    met = in_step(signals[shortcut].strays, signals[branch].strays)
    error = found.std(axis=0) / math.sqrt(draws)
    gaps = np.abs(found.mean(axis=0) - [met, signals[place].strays.levels])
    assert np.all(gaps < BEYOND * error + LEVELS_MEET * found.mean(axis=0))
    assert met > 10 * error[0]


@pytest.mark.parametrize(("stride", "taps"), [((1, 1), (3, 3)), ((2, 2), (3, 3)), ((2, 1), (2, 5))])
def test_fields_by_offset_under_a_window(stride, taps):
    """Covariances with a source of white noise follow windows as their matrices do, inside a map."""
    before, window = (24, 24), Window(taps, stride, (0, 0, 0, 0), inside=True)
    size, (rows, cols) = window.out_size(before), np.divmod(np.arange(24 * 24), 24)
    known = np.exp(-np.hypot(rows[:, None] - rows, cols[:, None] - cols))
    middle = np.arange(0, 24, stride[0])[:, None] * 24 + np.arange(0, 24, stride[1])
    seen = window.averaging(before) @ known[:, middle.ravel()]
    found = seen_by_offset(by_offset(known, before)[None], window, size)[0]
    # From a point in the middle of the map, as far as neither window nor source come near its edges.
    here = size[0] // 2 * size[1] + size[1] // 2
    for down, across in [(0, 0), (1, 0), (0, -1), (-2, 1), (2, 2)]:
        expected = seen[here, here + down * size[1] + across]
        assert found[size[0] - 1 + down, size[1] - 1 + across] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("function", "width"), [("hard_swish", 32), ("silu", 32)])
def test_gradients_through_shortcuts_and_branches(function, width):
    """Slopes behind a sum know the branch by the shortcut, and what comes through weights knows levels."""
    network, batch = residual(function, width, 3)
    found = compare(predict(network, batch), simulate(network, batch, trials=4000 // width, seed=1))
    first = found.backward[found.steps[0].to]
    assert abs(first.relative) < RESIDUAL + BEYOND / 2 * abs(first.relative / first.z)
