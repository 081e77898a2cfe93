"""What entries of a kernel stray by on maps of few positions: against all pairs of positions, and against draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.bands import BAND, log_quantile
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo.engine import simulate_trials
from varprop.simulator.network import Add, NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.place_pairs import averaged, by_shift, padded, products, root, total, windowed
from varprop.simulator.theory.strays import NONE, together
from varprop.tests.tolerances import BANDS, BEYOND, RANDOM_MATRIX

WINDOWS = [
    ((4, 4), Window((3, 3), (1, 1), (1, 1, 1, 1))),
    ((4, 3), Window((3, 3), (2, 2), (1, 1, 1, 1))),
    ((5, 5), Window((3, 3), (2, 2))),
    ((3, 3), Window((2, 3), (1, 2), (0, 1, 1, 1))),
    ((3, 4), Window((3, 4), (1, 1))),
]


def covariance(size, seed=0):
    """Return some covariance of a channel's values at the positions of a map."""
    z = np.random.default_rng(seed).standard_normal((size[0] * size[1], 40))
    return z @ z.T / 40


def of_all(r):
    """Covariance of the entries of any two pairs of positions, for products of Gaussian channels."""
    return np.einsum("pq,rs->prqs", r, r)


def under(window, size):
    """Matrix of a window on entries: (outputs, outputs, inputs, inputs)."""
    index, points = window.index(size), size[0] * size[1]
    found = np.zeros((index.shape[1], index.shape[1], points, points))
    for tap in index:
        for (one, first), (other, second) in itertools.product(enumerate(tap), repeat=2):
            if first >= 0 and second >= 0:
                found[one, other, first, second] += 1.0
    return found


def variance(every):
    return float(np.mean(np.einsum("prpr->pr", every)))


@pytest.mark.parametrize("size", [(3, 4), (2, 2), (1, 3)])
def test_covariances_by_shift(size):
    """Of the entries of two pairs of positions, the one shifted against the other."""
    every, points = of_all(covariance(size)), list(itertools.product(*map(range, size)))
    found = by_shift(products(covariance(size), size), size)
    for shift in itertools.product(*(range(1 - side, side) for side in size)):
        there = {
            n: points.index(p) for n, q in enumerate(points) if (p := (q[0] + shift[0], q[1] + shift[1])) in points
        }
        expected = np.mean([every[p, q, there[p], there[q]] for p in there for q in there])
        assert found[shift[0] + size[0] - 1, shift[1] + size[1] - 1] == pytest.approx(expected)


@pytest.mark.parametrize(("size", "window"), WINDOWS)
def test_windows(size, window):
    """Variance behind a window, and behind another of one position on its outputs, of entries of all pairs."""
    r, matrix = covariance(size), under(window, size)
    field = root(products(r, size))
    assert np.vdot(field, field) == pytest.approx(variance(of_all(r)), rel=1e-9)
    behind = np.einsum("abpr,prqs,cdqs->abcd", matrix, of_all(r), matrix, optimize=True)
    found = windowed(field, window, size)
    assert np.vdot(found, found) == pytest.approx(variance(behind), rel=1e-9)
    out = window.out_size(size)
    again = Window((2, 2), (1, 1), (1, 0, 0, 1))
    matrix = under(again, out)
    behind = np.einsum("abpr,prqs,cdqs->abcd", matrix, behind, matrix, optimize=True)
    found = windowed(found, again, out)
    assert np.vdot(found, found) == pytest.approx(variance(behind), rel=1e-9)


@pytest.mark.parametrize(("size", "window"), WINDOWS[:1])
def test_shortcuts(size, window):
    """A map and what a window makes of it, added: all entries of one pair of positions in both."""
    r, matrix = covariance(size), under(window, size)
    points = size[0] * size[1]
    both = 0.6 * np.einsum("ap,br->abpr", np.eye(points), np.eye(points)) + 0.4 * matrix
    field = root(products(r, size))
    found = 0.6 * field + 0.4 * windowed(field, window, size)
    behind = np.einsum("abpr,prqs,cdqs->abcd", both, of_all(r), both, optimize=True)
    assert np.vdot(found, found) == pytest.approx(variance(behind), rel=1e-9)


def test_padding():
    """Zeros around a map, and a window over both, are a window with zero padding."""
    size, window = (2, 3), Window((3, 3), (2, 2), (0, 1, 0, 1))
    field = root(products(covariance(size), size))
    whole = windowed(padded(field, (0, 1, 0, 1), size), Window((3, 3), (2, 2)), (3, 4))
    once = windowed(field, window, size)
    np.testing.assert_allclose(total([whole]), total([once]), atol=1e-9)


def test_averages_of_a_channels_positions():
    """What entries of one offset add behind averages of either position alone."""
    size, window = (3, 4), Window((2, 2), (1, 2))
    r, matrix = covariance(size), window.averaging(size)
    found = averaged(total([root(products(r, size))]), matrix, size)
    rows, cols = np.divmod(np.arange(12), 4)
    apart = [(rows[None, :] - rows[:, None]), (cols[None, :] - cols[:, None])]
    same = np.all([d[:, :, None, None] == d[None, None, :, :] for d in apart], axis=0)
    expected = np.einsum("ap,br,prqs,aq,bs->ab", matrix, matrix, of_all(r) * same, matrix, matrix, optimize=True)
    assert found == pytest.approx(float(expected.mean()), rel=1e-9)


def test_sums_of_sources():
    """Branches of one source add up entry by entry, others their variances."""
    white = np.stack([np.eye(4), np.zeros((4, 4))])
    kernel = PairKernel(Layout.exchangeable(10**9), (2, 2), white)
    one, other = NONE.plus("one", 0.3, kernel), NONE.plus("other", 0.2, kernel)
    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    # On 2 x 2 every output of the window sees the whole map: a quarter of it is the same position.
    blurred = one.averaged("window", window, kernel, kernel)
    assert together([0.5, 0.5], [one, other], kernel).variance == pytest.approx(0.25 * 0.5, rel=1e-6)
    crossed = together([1.0, 1.0], [one, blurred], kernel).variance - one.variance - blurred.variance
    assert crossed == pytest.approx(2 * 0.3 / 4, rel=1e-6)


def test_sources_of_one_name():
    """A second source of a name adds its own covariance, and the first keeps what windows made alike."""
    white = np.stack([np.eye(4), np.zeros((4, 4))])
    kernel = PairKernel(Layout.exchangeable(10**9), (2, 2), white)
    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    blurred = NONE.plus("one", 0.3, kernel).averaged("window", window, kernel, kernel)
    same, other = (blurred.plus(name, 0.2, kernel) for name in ("one", "other"))
    assert same.variance == pytest.approx(blurred.variance + 0.2)
    again = [strays.averaged("window", window, kernel, kernel).variance for strays in (same, other)]
    assert again[0] == pytest.approx(again[1], rel=1e-6)


def blocks(width, count):
    """Residual blocks of pointwise and depthwise layers on a map of four positions."""
    net = NetworkBuilder("blocks", "torch", (width, 2, 2))
    init = parse_initializer("lecun_normal")
    net.conv2d(width, 1, init)
    net.batch_norm()
    for _ in range(count):
        shortcut = net.last
        net.conv2d(4 * width, 1, init)
        net.batch_norm()
        net.activation("selu")
        net.conv2d(4 * width, 3, init, groups=4 * width)
        net.batch_norm()
        net.activation("selu")
        net.conv2d(width, 1, init)
        net.batch_norm()
        net.add((shortcut, net.last))
    net.conv2d(16, 1, init)
    return net.build()


def normalised(z):
    z = z - z.mean(axis=(0, 1))
    return z / np.sqrt(np.mean(z**2, axis=(0, 1)))


def participation(h):
    """tr K^2 / (tr K)^2 of the channels' kernel over samples and positions, shape (samples, positions, channels)."""
    flat = (h - h.mean(axis=(0, 1))).reshape(-1, h.shape[2])
    kernel = flat.T @ flat if flat.shape[1] < len(flat) else flat @ flat.T
    return float(np.sum(kernel**2) / np.trace(kernel) ** 2)


def drawn_blocks(x, width, count, rng):
    """Participation behind every block of one draw; `x` has shape (samples, 4, channels)."""
    selu, offset = activation("selu").value, np.subtract.outer(np.arange(2), np.arange(2)) + 1
    taps = (3 * offset[:, None, :, None] + offset[None, :, None, :]).reshape(4, 4)
    h, found = normalised(x @ rng.standard_normal((width, width))), []
    for _ in range(count):
        wide = selu(normalised(h @ rng.standard_normal((width, 4 * width))))
        kernels = rng.standard_normal((9, 4 * width))[taps]
        wide = selu(normalised(np.einsum("opc,bpc->boc", kernels, wide)))
        h = h + normalised(wide @ rng.standard_normal((4 * width, width)))
        found.append(participation(h))
    return found


def test_what_blocks_stray_by():
    """Entries at one position stay together; as one with all others they would leave the last block 4% short."""
    width, count, draws = 32, 6, 240
    network = blocks(width, count)
    batch = load_batch("gaussian", network.nodes[0].shape, 32, 0)
    x, rng = batch.data.reshape(32, width, 4).transpose(0, 2, 1), np.random.default_rng(0)
    measured = np.array([drawn_blocks(x, width, count, rng) for _ in range(draws)])
    signals = _forward(network, batch, None)
    expected = []
    for node, signal in zip(network.nodes, signals, strict=True):
        if isinstance(node.operation, Add):
            centred = signal.kernel.centred
            expected.append(centred.pair_square_mean / centred.second_moment**2 + signal.strays.variance)
    error = measured.std(axis=0) / math.sqrt(draws)
    assert np.all(np.abs(measured.mean(axis=0) - expected) < BEYOND * error + RANDOM_MATRIX * np.array(expected))


def test_bands_behind_blocks():
    """Share of draws between the predicted quantiles of late sums: 74% where branches were taken to stray alike."""
    network = blocks(32, 12)
    batch = load_batch("gaussian", network.nodes[0].shape, 32, 0)
    predicted, draws = predict(network, batch), 300
    forward, _ = simulate_trials(network, batch, trials=draws, seed=1)
    shares = []
    for node, layer, logs in zip(network.nodes, predicted.layers, forward.log_second_moment.T, strict=True):
        if isinstance(node.operation, Add):
            low, high = (log_quantile(layer.forward, probability) for probability in BAND)
            shares.append(float(np.mean((low <= logs) & (logs <= high))))
    assert abs(np.mean(shares[6:]) - (BAND[1] - BAND[0])) < BANDS
