"""What batch normalisation does beyond an infinite batch and width: theory against direct draws and Monte Carlo."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.compare import FORWARD_ACCURACY, compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Activation, BatchNorm, NetworkBuilder
from varprop.simulator.theory import predict
from varprop.simulator.theory.corrections import share_of_batch
from varprop.simulator.theory.duals import apply_activation
from varprop.simulator.theory.engine import _forward
from varprop.simulator.theory.levels import nodes
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.opposition import handed_on, projected, returned, together, unmoved
from varprop.simulator.theory.pairs import Layout, PairKernel
from varprop.simulator.theory.pairs import windows as under_windows
from varprop.simulator.theory.strays import NONE, Strays
from varprop.simulator.theory.variance_law import quadratic_form_law
from varprop.simulator.weight_law import WeightLaw
from varprop.tests.naive_engine import draw, run
from varprop.tests.tolerances import (
    BEYOND,
    CUBATURE,
    DEEP_LINEAR,
    LEADING,
    LEVELS,
    LEVELS_WALK,
    NARROW_STEP,
    NARROW_STRAYS,
    ORTHOGONAL_STEP,
    PAIRS_OF_PLACES,
    RANDOM_MATRIX,
    ROUNDING,
    SPHERE_STEP,
    STRAYED,
    STRAYS,
)


def on_sphere(samples, draws, seed=0):
    """Gaussian channels of independent samples, normalised: shape (draws, samples)."""
    z = np.random.default_rng(seed).standard_normal((draws, samples))
    z -= z.mean(axis=1, keepdims=True)
    return z / np.sqrt(np.mean(z**2, axis=1, keepdims=True))


@pytest.mark.parametrize("samples", [3, 4, 8, 33])
@pytest.mark.parametrize("function", ["tanh", "selu", "relu6", "relu", "linear"])
def test_duals_of_normalised_points(samples, function):
    """A normalised channel over B samples is uniform on a sphere of B - 1 dimensions, two samples at -1 / (B - 1)."""
    phi, draws = activation(function), 200_000
    layout = Layout.exchangeable(samples)
    kernel = PairKernel(layout, (1, 1), np.array([[[1.0]], [[-1 / (samples - 1)]]]))
    found = apply_activation(phi, kernel, samples - 1)
    u = on_sphere(samples, draws)[:, :2]
    value, slope = phi.value(u), phi.derivative(u)
    measured = {"mean": (np.array([found.mean[0, 0] * math.exp(found.kernel.log_scale / 2)]), value[:, :1])}
    for name, field in (("kernel", value), ("derivative", slope), ("tilted", u * slope)):
        pair = getattr(found, name)
        products = np.stack([field[:, 0] ** 2, field[:, 0] * field[:, 1]], axis=1)
        measured[name] = (pair.values[:, 0, 0] * math.exp(pair.log_scale), products)
    for name, (expected, drawn) in measured.items():
        error = drawn.std(axis=0) / math.sqrt(draws) + 1e-9
        assert np.all(np.abs(drawn.mean(axis=0) - expected) < BEYOND * error), name


def test_many_dimensions_are_gaussian():
    """Of d dimensions, averages differ from Gaussian ones as 1 / d."""
    phi = activation("tanh")
    kernel = PairKernel(Layout.all_pairs(2, 2), (1, 1), np.array([[[1.0]], [[1.0]], [[0.3]]]))
    gaussian = apply_activation(phi, kernel).kernel
    gaps = []
    for dimensions in (20, 80, 320):
        found = apply_activation(phi, kernel, dimensions).kernel
        gaps.append(np.abs(found.values[:, 0, 0] * math.exp(found.log_scale) - gaussian.values[:, 0, 0]))
    np.testing.assert_allclose(np.log2(np.array(gaps[:-1]) / np.array(gaps[1:])), 2.0, atol=0.15)


def steps(predicted, measured):
    """Relative error of every step of the gradient, beyond what its own standard errors explain."""
    found = [step.agreement for step in compare(predicted, measured).steps]
    return [max(abs(a.relative) * (1 - BEYOND / max(abs(a.z), BEYOND)), 0.0) for a in found]


@pytest.mark.parametrize("function", ["tanh", "selu"])
@pytest.mark.parametrize("samples", [8, 16])
def test_small_batches_bend_what_activations_see(function, samples):
    """Gaussian points instead would be off by 6% forward and 15% a step for tanh at eight samples."""
    network = build("mlp", depth=4, width=1024, activation=function, norm="batch")
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    predicted, measured = predict(network, batch), simulate(network, batch, trials=60, seed=1)
    forward = [row for row in compare(predicted, measured).forward if row.z is not None]
    assert all(abs(row.relative) < SPHERE_STEP or abs(row.z) < BEYOND for row in forward)
    assert max(steps(predicted, measured)) < SPHERE_STEP


def linear_net(samples, width, depth, rng):
    """Normalised outputs, deviations and weights of a deep linear net, in the basis of centred samples."""
    x, layers = rng.standard_normal((samples - 1, width)) / math.sqrt(width), []
    for _ in range(depth):
        weights = rng.standard_normal((len(x[0]), width))
        z = x @ weights
        deviation = np.sqrt(np.mean(z**2, axis=0))
        x = z / deviation / math.sqrt(width)
        layers.append((x, deviation, weights))
    return layers


def laws(samples, width, depth):
    """Theory of the same: the law at every normalisation."""
    directions, kernel = samples - 1, PairKernel(Layout.exchangeable(samples), (1, 1), np.zeros((2, 1, 1)))
    # The data are not normalised; a layer's worth of random channels all the same.
    strays, found = NONE.plus("input", 1 / width, kernel), []
    for depth_now in range(depth):
        before = strays
        strayed = before.variance, before.third
        law = quadratic_form_law(np.zeros(0), 1.0, 1 / directions, float(width), 0.0, strayed)
        strays = before.plus(f"linear{depth_now}", 1 / width, kernel)
        alone = np.ones((1, 1)), np.full((1, 1), 1 - 1 / directions)
        strays = strays.normalised(before.variance, law.strayed, 1 / directions, alone, 0.0, 0.0)
        found.append(law)
    return found


@pytest.mark.parametrize(("samples", "width", "depth"), [(64, 128, 16), (16, 64, 16), (8, 128, 12)])
def test_spectrum_of_deep_normalised_layers(samples, width, depth):
    """Layers spread a kernel's eigenvalues, normalising damps the largest: participation, third moment and E[1/v]."""
    rng, draws, directions = np.random.default_rng(0), 50, samples - 1
    measured = np.zeros((draws, depth, 3))
    for found in measured:
        x = rng.standard_normal((directions, width)) / math.sqrt(width)
        for layer in range(depth):
            values = np.linalg.eigvalsh(x @ x.T)
            z = x @ rng.standard_normal((width, width))
            v = np.mean(z**2, axis=0)
            share = values / values.sum()
            found[layer] = np.sum(share**2), np.sum(share**3), np.mean(1 / v) * values.sum() / directions
            x = z / np.sqrt(v * width)
    expected = np.array(
        [
            [*(law.modes.counts @ law.modes.shares**k for k in (2, 3)), law.inverse]
            for law in laws(samples, width, depth)
        ]
    )
    error = measured.std(axis=0) / math.sqrt(draws)
    gap = np.abs(measured.mean(axis=0) - expected) - BEYOND * error
    assert np.max(gap / expected) < RANDOM_MATRIX


@pytest.mark.parametrize(("samples", "width", "depth"), [(64, 128, 16), (8, 128, 8)])
def test_gradients_opposed_in_deep_normalised_layers(samples, width, depth):
    """Step by step back through a deep linear net, against backpropagation through draws."""
    rng, draws, directions = np.random.default_rng(1), 100, samples - 1
    sizes = np.zeros((draws, depth + 1))
    for found in sizes:
        g = rng.standard_normal((directions, width))
        found[0] = np.mean(g**2)
        for step, (x, deviation, weights) in enumerate(reversed(linear_net(samples, width, depth, rng))):
            y = x * math.sqrt(width)
            g = (g - y * np.mean(g * y, axis=0)) / deviation
            found[step + 1] = np.mean(g**2)
            g = g @ weights.T / math.sqrt(width)
    expected, opposition, left = [], 0.0, 1.0
    for law in reversed(laws(samples, width, depth)):
        expected.append(left * law.inverse * (1 - 1 / directions))
        opposition *= projected(law.modes, opposition, 1 / directions, width)
        left, opposition = returned(law.modes, opposition, width)
    mean = sizes.mean(axis=0)
    ratios = sizes[:, 1:] / mean[1:] - sizes[:, :-1] / mean[:-1]
    error = ratios.std(axis=0) / math.sqrt(draws)
    gap = np.abs(mean[1:] / mean[:-1] / np.array(expected) - 1) - BEYOND * error
    assert np.max(gap) < RANDOM_MATRIX


def test_small_opposition_adds_up():
    """To first order one normalised layer opposes by one, and hands on (d - 2) (d + 1) / (d (d + 2)) of what was there.

    That is exact for d equal modes: Gaussian averages over two channels' directions.
    """
    d, channels = 7, 10**6
    modes = quadratic_form_law(np.zeros(0), 1.0, 1 / d, float(channels), 0.0).modes
    small = 1e-4
    fresh = returned(modes, 0.0, channels)[1]
    handed = returned(modes, small * projected(modes, small, 1 / d, channels), channels)
    alone = returned(modes, 0.0, channels)
    assert (1 - alone[0]) * channels == pytest.approx(2.0, rel=1e-3)
    assert (alone[0] - handed[0]) * channels / (2 * small) == pytest.approx((d - 2) * (d + 1) / (d * (d + 2)), rel=1e-2)
    assert fresh * 2 / d / (1 + fresh * 2 / d) == pytest.approx(2 / d, rel=1e-3)


@pytest.mark.parametrize("outside", [[0.4], [0.1, 0.3]])
def test_modes_that_inputs_do_not_have(outside):
    """What is lost along some modes of a layer's variance does not oppose its inputs, which have the others alone."""
    d, share, channels = 9, sum(outside), 10**6
    modes = quadratic_form_law(np.array(outside), 1 - share, (1 - share) ** 2 / d, float(channels), 0.0).modes
    left, opposition = returned(modes, 0.0, channels, np.array(outside))
    assert left == returned(modes, 0.0, channels)[0]
    kept = float(modes.passed[np.argmin(np.abs(modes.shares - (1 - share) / d))])
    assert 1 / (1 + 2 * opposition / d) == pytest.approx(kept, rel=1e-3)


@pytest.mark.parametrize("stride", [1, 2])
def test_zeros_around_a_map_let_its_mean_vary(stride):
    """Shares of the variance over positions and samples, against draws of weights for a constant map with noise.

    For Gaussian weights modes of shares s_i have a variance of sum_i s_i on the mean, and of 2 sum_i s_i^2 around that.
    """
    side, mean, samples, rng = 5, 0.7, 200, np.random.default_rng(4)
    window = Window((3, 3), (stride, stride), (1, 1, 1, 1))
    white = np.eye(side * side)
    source = PairKernel(
        Layout.exchangeable(10**9), (side, side), np.stack([mean**2 + white, np.full_like(white, mean**2)])
    )
    index, draws = window.index((side, side)), []
    for _ in range(2000):
        weights = rng.standard_normal(9)
        maps = np.append(rng.standard_normal((samples, side * side)), np.zeros((samples, 1)), axis=1)
        pattern = weights @ np.append(np.full(side * side, mean), 0.0)[index]
        draws.append([pattern.var(), (pattern + np.einsum("k,skp->sp", weights, maps[:, index])).var()])
    found, error = np.mean(draws, axis=0), np.std(draws, axis=0) / math.sqrt(len(draws))
    expected = unmoved(source, under_windows(source, np.eye(9), window), window)
    assert abs(found[0] / found[1] - expected.sum()) < BEYOND * float(error @ [1, expected.sum()]) / found[1]
    patterns = np.array(draws)[:, 0] / found[1]
    squares = (patterns - patterns.mean()) ** 2
    assert abs(squares.mean() - 2 * expected @ expected) < BEYOND * squares.std() / math.sqrt(len(draws))


@pytest.mark.parametrize(("function", "side"), [("sigmoid", 4), ("sigmoid", 8), ("relu", 4)])
def test_gradients_at_the_data_of_small_maps(function, side):
    """What zeros around a map take from a mean makes most of the next layer's variance, and opposes nothing."""
    net, init = NetworkBuilder("padded", "torch", (3, side, side)), parse_initializer("he_normal")
    for _ in range(5):
        net.conv2d(64, 3, init)
        net.batch_norm()
        net.activation(function)
    net.flatten()
    net.linear(10, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, 16, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=300, seed=2))
    assert abs(found.backward[0].relative) < NARROW_STEP + BEYOND * abs(
        found.backward[0].relative / found.backward[0].z
    )


def test_taps_that_see_no_data_bring_no_gradient_back():
    """On maps of one position a 3x3 kernel is a 1x1 kernel: its weights that see padding alone are not damped."""
    found = []
    for kernel in (1, 3):
        net, init = NetworkBuilder("alone", "torch", (3, 1, 1)), parse_initializer("he_normal")
        for _ in range(2):
            net.conv2d(64, kernel, init)
            net.batch_norm(eps=0.0)
            net.activation("relu")
        net.flatten()
        net.linear(10, init)
        network = net.build()
        layers = predict(network, load_batch("gaussian", (3, 1, 1), 32, 0)).layers
        found.append(layers[0].backward.second_moment)
    assert found[1] == pytest.approx(found[0], rel=0.02)


@pytest.mark.parametrize(("samples", "width", "depth"), [(64, 128, 14), (8, 512, 14)])
def test_deep_linear_nets_with_normalisation(samples, width, depth):
    network = build("mlp", depth=depth, width=width, activation="linear", norm="batch")
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    predicted, measured = predict(network, batch), simulate(network, batch, trials=150, seed=1)
    assert max(steps(predicted, measured)) < DEEP_LINEAR
    accumulated = [
        theory.backward.log_second_moment - found.backward.log_second_moment
        for theory, found in zip(predicted.layers, measured.layers, strict=True)
    ]
    assert max(map(abs, accumulated)) < 0.1


@pytest.mark.parametrize(
    ("side", "windows", "bound"), [(1, 4, ROUNDING), (2, 4, ROUNDING), (4, 3, ROUNDING), (8, 4, PAIRS_OF_PLACES)]
)
def test_windows_average_what_strays(side, windows, bound):
    """Against the covariance of all pairs of positions under 3x3 windows with zero padding, row by row.

    White noise stays white but for its size near the edges; on maps of few positions theory follows all pairs.
    """

    def kernel(level):
        white = np.diag(np.outer(level, level).ravel())
        return PairKernel(Layout.exchangeable(10**12), (side, side), np.stack([white, np.zeros_like(white)]))

    window = Window((3, 3), (1, 1), (1, 1, 1, 1))
    averaged, level = np.eye(side**2), np.ones(side)
    found, now = NONE.plus("input", 1.0, kernel(level)), kernel(level)
    step = np.zeros((side, side, side, side))
    for row in range(side):
        for other in range(side):
            for tap in (-1, 0, 1):
                if 0 <= row + tap < side and 0 <= other + tap < side:
                    step[row, other, row + tap, other + tap] = 1 / 3
    step = step.reshape(side**2, side**2)
    taken = sum(np.eye(side, k=k) for k in (-1, 0, 1)) / 3
    for layer in range(windows):
        before, level = now, taken @ level
        now = kernel(level)
        found = found.averaged(f"conv{layer}", window, before, now)
        averaged = step @ averaged
        rows = np.sum(averaged**2) / side**2 / level.mean() ** 2
        assert found.variance == pytest.approx(rows**2, rel=max(bound, 1e-9))


def test_opposition_under_windows():
    """Two 3x3 layers: pairs of taps as far apart as those they came through; strides leave every other one."""
    field, loads = np.ones((1, 1)), np.full((3, 3), 1 / 9)
    assert together(field, loads, (1, 1)) == 1.0
    first = handed_on(field, loads, (1, 1), (8, 8))
    assert first.sum() == pytest.approx(1.0)
    # 1 + 4 + 9 + 4 + 1 pairs of taps in a row, by offset, met as often again.
    assert together(first, loads, (1, 1)) == pytest.approx((19 / 27) ** 2)
    assert handed_on(first, loads, (1, 1), (8, 8)).sum() == pytest.approx(1.0)
    assert together(first, loads, (2, 2)) == pytest.approx(((3 * 3 + 2 * 1 * 2) / 27) ** 2)
    # One live tap, as on a map of one position.
    middle = np.zeros((3, 3))
    middle[1, 1] = 1.0
    assert together(first, middle, (1, 1)) == first[2, 2]


@pytest.mark.parametrize(("side", "width", "groups"), [(1, 64, 1), (6, 16, 1), (6, 16, 4)])
def test_narrow_convolutions(side, width, groups):
    """Each output sees one draw of few inputs, taps meet at one position, and dead taps tell nothing."""
    net = NetworkBuilder("narrow", "torch", (width, side, side))
    init = parse_initializer("lecun_normal")
    for layer in range(5):
        net.conv2d(width, 3 if layer % 2 == 0 else 1, init, groups=groups if layer == 2 else 1)
        net.batch_norm()
        net.activation("selu")
    net.conv2d(16, 1, init)
    network, samples = net.build(), 64 if side == 1 else 16
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    assert max(steps(predict(network, batch), simulate(network, batch, trials=400, seed=1))) < NARROW_STEP


def test_zeros_around_a_mean_do_not_stray():
    """Sigmoid's mean next to zero padding is most of what varies under a window, and the same in every draw."""
    net = NetworkBuilder("padded", "torch", (16, 6, 6))
    init = parse_initializer("lecun_normal")
    for _ in range(3):
        net.conv2d(16, 3, init)
        net.batch_norm()
        net.activation("sigmoid")
    net.conv2d(16, 1, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, 8, 0)
    assert max(steps(predict(network, batch), simulate(network, batch, trials=400, seed=1))) < NARROW_STEP / 2


def drawn_spectra(leading, channels, draws=400, equal=60, seed=5):
    """Covariances of a few normalised channels whose own kernel has leading modes and equal ones.

    Returns
    -------
    The spectra, and the mean kernel's modes.
    """
    scales = np.sqrt(np.append(leading, np.full(equal, (1 - sum(leading)) / equal)))
    fields = np.random.default_rng(seed).standard_normal((draws, channels, len(scales))) * scales
    fields /= np.linalg.norm(fields, axis=2, keepdims=True)
    return np.linalg.eigvalsh(fields @ fields.transpose(0, 2, 1) / channels), np.mean(fields**2, axis=(0, 1))


@pytest.mark.parametrize("channels", [16, 48])
@pytest.mark.parametrize("leading", [[], [0.3], [0.15, 0.06, 0.05, 0.05], [0.24, 0.16, 0.12, 0.1]])
def test_layers_before_make_leading_modes_stray(leading, channels):
    """E[1 / v] where a few normalised channels made the kernel, against their covariances.

    Had the rest all that the kernel strays by, it would be 3% more with the last modes and 16 channels; had leading
    modes one size in all draws, and the rest no more for it, 4% less.
    """
    spectra, modes = drawn_spectra(leading, channels)
    square, cube = (float(np.mean(np.sum(spectra**n, axis=1))) for n in (2, 3))
    plain, third = float(np.sum(modes**2)), float(np.sum(modes**3))
    strayed = square - plain, cube - third - 3 * (square - plain) * plain
    found = [quadratic_form_law(spectrum, 0.0, 0.0, 200, 0.0).inverse for spectrum in np.maximum(spectra, 0.0)]
    known, rest = modes[: len(leading)], modes[len(leading) :]
    law = quadratic_form_law(known, float(rest.sum()), float(np.sum(rest**2)), 200, 0.0, strayed)
    assert law.modes is not None
    assert float(law.modes.counts @ law.modes.shares**2) == pytest.approx(square, rel=ROUNDING)
    error = np.std(found) / math.sqrt(len(found))
    assert abs(np.mean(found) - law.inverse) < BEYOND * error + LEADING * law.inverse


@pytest.mark.parametrize("shared", [0.0, 3.0])
@pytest.mark.parametrize("fixed", [False, True])
def test_share_of_a_batch_in_what_channels_differ_by(shared, fixed):
    """Channels' means over 6 of 64 samples spread more than over all, by what is theirs alone and not known.

    Samples that are other ones in all channels, and numbers that go with what normalisation fixes, add nothing.
    """
    rng, batch, samples, channels, draws = np.random.default_rng(3), 64, 6, 200, 200
    excess = []
    for _ in range(draws):
        values = 0.5 * rng.standard_normal(channels) + rng.standard_normal((batch, channels))
        wanted = float(values.mean(axis=0).var())
        known = rng.standard_normal((samples, channels))
        seen = values[:samples] + shared * rng.standard_normal((samples, 1))
        seen = seen + fixed * 2.0 * (known - known.mean(axis=0))
        share = share_of_batch(seen[:, :, None], (known,) if fixed else (), batch)
        excess.append(share * float(seen.mean(axis=0).var()) - wanted)
    assert abs(np.mean(excess)) < BEYOND * np.std(excess) / math.sqrt(draws)


def windows(x):
    """Values under 3x3 windows, zeros around the map: shape (channels, taps, samples, height, width)."""
    side = x.shape[2]
    padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
    return np.stack([padded[..., i : i + side, j : j + side] for i in range(3) for j in range(3)], axis=1)


def test_neighbours_of_a_channel_are_as_alike_as_its_draw_has_them():
    """Variances behind depthwise kernels: those of white channels would have a mean 1 / v that is 2% less.

    Kernels of a draw have entries of different samples that neighbours share, of 27 inputs and of 32 channels, and a
    channel's correlation of neighbours keeps a part of that over any number of samples.
    """
    side, samples, channels, draws = 8, 24, 128, 30
    net, init = NetworkBuilder("alike", "torch", (3, side, side)), parse_initializer("lecun_normal")
    for width, kernel, groups in ((32, 3, 1), (channels, 1, 1), (channels, 3, channels)):
        net.conv2d(width, kernel, init, groups=groups)
        net.batch_norm()
        net.activation("selu")
    net.flatten()
    net.linear(4, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    law = _forward(network, batch, None)[8].law
    rng, data = np.random.default_rng(1), windows(batch.data.swapaxes(0, 1)).reshape(27, -1)
    phi = activation("selu")

    def normalised(z):
        z = z - z.mean(axis=1, keepdims=True)
        return z / np.sqrt(np.mean(z**2, axis=1, keepdims=True) + 1e-5)

    found = np.zeros(draws)
    for number in range(draws):
        x = phi.value(normalised(rng.standard_normal((32, 27)) @ data / np.sqrt(27)))
        x = phi.value(normalised(rng.standard_normal((channels, 32)) @ x / np.sqrt(32)))
        under = windows(x.reshape(channels, samples, side, side)).reshape(channels, 9, -1)
        under -= under.mean(axis=2, keepdims=True)
        covariances = under @ under.transpose(0, 2, 1) / under.shape[2]
        w = rng.standard_normal((channels, 64, 9)) / 3
        found[number] = np.mean(1 / np.sum(w * (w @ covariances), axis=2))
    error = found.std() / math.sqrt(draws)
    assert abs(found.mean() - law.inverse) < BEYOND * error + CUBATURE * law.inverse


def mean_square(values):
    """E tr S^2 / (E tr S)^2 of channels' covariances S over the data, and its error; (draws, channels, points)."""
    values = values - values.mean(axis=2, keepdims=True)
    squares = np.sum((values @ values.transpose(0, 2, 1) / values.shape[2]) ** 2, axis=(1, 2))
    size = float(np.mean(np.sum(values**2, axis=(1, 2)))) / values.shape[2]
    return float(squares.mean()) / size**2, float(squares.std()) / math.sqrt(len(values)) / size**2


def test_kernels_of_images_stray_as_those_of_draws_do():
    """Behind a first convolution of images, its normalisation, and a depthwise layer's, whose channels are not alike.

    A plain mean over n channels of one size would stray by a fifth too little behind the last activation.
    """
    net = NetworkBuilder("stem", "torch", (3, 12, 12))
    init = parse_initializer("he_normal")
    net.conv2d(32, 3, init)
    net.batch_norm()
    net.activation("relu6")
    net.conv2d(32, 3, init, groups=32)
    net.batch_norm()
    net.activation("relu6")
    net.conv2d(16, 1, init)
    network = net.build()
    batch = load_batch("photo", network.nodes[0].shape, 12, 0)
    signals = _forward(network, batch, None)
    outputs = [run(network, batch.data, *draw(network, 1, trial, 12))[0] for trial in range(150)]
    for index in (2, 3, 6):
        values = np.stack([np.moveaxis(found[index], 1, 0).reshape(32, -1) for found in outputs])
        wanted, error = mean_square(values)
        centred = signals[index].kernel.centred
        plain = centred.pair_square_mean / centred.second_moment**2
        assert abs(plain + signals[index].strays.variance - wanted) < BEYOND * error + STRAYS * wanted


def test_deviations_pass_activations_behind_single_weights():
    """SELU of a normalised SELU, its sign drawn, is no Gaussian's: what strays passes it almost whole.

    Slopes averaged as of Gaussian channels would lose a fifth of it, 2% of the step through the next normalisation.
    """
    net = NetworkBuilder("twice", "torch", (64, 1, 1))
    init = parse_initializer("lecun_normal")
    for _ in range(4):
        net.conv2d(48, 1, init)
        net.batch_norm()
    net.activation("selu")
    net.conv2d(48, 3, init, groups=48)
    net.batch_norm()
    net.activation("selu")
    net.conv2d(48, 1, init)
    net.batch_norm()
    net.conv2d(16, 1, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, 64, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=1000, seed=1)).steps[-1]
    assert found.source == len(network) - 1
    assert abs(found.agreement.relative) < RANDOM_MATRIX


def narrow_layers(function, samples, width, depth):
    """A net of narrow normalised layers, its signals, and nodes' outputs, shape (draws, samples, channels)."""
    net = NetworkBuilder("narrow", "torch", (64,))
    for _ in range(depth):
        net.linear(width, parse_initializer("he_normal"))
        net.batch_norm()
        net.activation(function)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    outputs = [run(network, batch.data, *draw(network, 1, trial, samples))[0] for trial in range(400)]
    return network, _forward(network, batch, None), [np.stack(found) for found in zip(*outputs, strict=True)]


@pytest.mark.parametrize("function", ["tanh", "selu", "sigmoid"])
def test_kernels_of_narrow_layers_stray_as_those_of_draws_do(function):
    """Six layers of 16 channels and 32 samples: what strays passes them almost whole, as its points lie on a sphere.

    By the slope of Gaussian points, with the fourth cumulants of the sphere to first order, tanh's last would stray by
    an eighth too little.
    """
    network, signals, outputs = narrow_layers(function, 32, 16, 6)
    for node, signal, values in zip(network.nodes, signals, outputs, strict=True):
        if isinstance(node.operation, Activation):
            wanted, error = mean_square(values.transpose(0, 2, 1))
            centred = signal.kernel.centred
            plain = centred.pair_square_mean / centred.second_moment**2
            assert abs(plain + signal.strays.variance - wanted) < BEYOND * error + NARROW_STRAYS * wanted


@pytest.mark.parametrize("function", ["linear", "tanh", "relu"])
def test_variances_of_narrow_layers_and_small_batches(function):
    """E 1 / (v + eps) behind layers of 16 channels and eight samples, of which one in eight pairs is a point's own.

    Had levels all that a point's own entries stray by, as if others did not, half of it counted twice: 8% too much.
    """
    network, signals, outputs = narrow_layers(function, 8, 16, 6)
    for node, signal in zip(network.nodes, signals, strict=True):
        if isinstance(node.operation, BatchNorm):
            found = np.mean(1 / (outputs[node.inputs[0]].var(axis=1) + node.operation.eps), axis=1)
            error = found.std() / math.sqrt(len(found))
            assert abs(found.mean() - signal.law.inverse) < BEYOND * error + NARROW_STRAYS * signal.law.inverse


def test_pooling_meets_deviations_that_windows_made_alike():
    """A mean over all pairs of two samples' positions, counted pair by pair, of deviations alike where both shift."""
    side = 3
    points = [(row, col) for row in range(side) for col in range(side)]
    white = np.stack([np.eye(side**2), np.zeros((side**2, side**2))])
    kernel = PairKernel(Layout.exchangeable(1000), (side, side), white)
    alike = np.ones((2 * side - 1, 2 * side - 1))
    strays = Strays({"before": 1.0}, places=alike)
    pairs = 0
    for one, other, third in itertools.product(points, repeat=3):
        shifted = other[0] + third[0] - one[0], other[1] + third[1] - one[1]
        pairs += shifted in points
    # Of P^2 pairs, over the squared mean of white noise, 1 / P.
    assert strays.pooled(Window((side, side), (1, 1)), kernel).variance == pytest.approx(pairs / side**4, rel=1e-2)
    fresh = NONE.plus("input", 1.0, kernel)
    assert fresh.pooled(Window((side, side), (1, 1)), kernel).variance == pytest.approx(1.0)


@pytest.mark.parametrize(("samples", "function"), [(16, "selu"), (8, "tanh")])
def test_normalisation_behind_global_pooling(samples, function):
    """Left alone by pooling, what strays would be short of 10% of the step through the normalisation."""
    net = NetworkBuilder("pooled", "torch", (16, 4, 4))
    init = parse_initializer("lecun_normal")
    for _ in range(4):
        net.conv2d(16, 3, init)
        net.batch_norm()
        net.activation(function)
    net.global_average_pool()
    net.linear(64, init)
    net.batch_norm()
    net.linear(16, init)
    network = net.build()
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    assert steps(predict(network, batch), simulate(network, batch, trials=1000, seed=1))[-1] < NARROW_STEP / 2


@pytest.mark.parametrize("rows", [16, 64])
def test_products_of_orthogonal_rows(rows):
    """Their mean for two unlike inputs varies as that of a projection; a whole basis keeps every product."""
    size, draws = 64, 4000
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.standard_normal((draws, size, rows)))[0]
    found = np.var(np.sum(basis[:, 0] * basis[:, 1], axis=1)) * (size / rows) ** 2
    law = WeightLaw("orthogonal", 0.0, 1 / math.sqrt(size), 1.0, 0.0, size, rows, matrix=(rows, size))
    assert found == pytest.approx(law.fresh(rows, size), rel=BEYOND * math.sqrt(2 / draws) + 1 / size, abs=ROUNDING)


def test_orthogonal_weights_with_normalisation():
    """Rows of one length and at right angles: nothing explodes, where independent weights gain a tenth a layer."""
    network = build("mlp", depth=6, width=64, activation="linear", norm="batch", init="orthogonal")
    batch = load_batch("gaussian", network.nodes[0].shape, 32, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=100, seed=3))
    assert len(found.steps) == 5
    for step in found.steps:
        noise = abs(step.agreement.relative / step.agreement.z)
        assert abs(step.agreement.relative) < ORTHOGONAL_STEP + BEYOND * noise


@pytest.mark.parametrize("function", ["relu", "gelu", "tanh", "selu"])
def test_levels_behind_an_activation(function):
    """Centred squares at points of log-normal levels, slopes and products of both, against draws."""
    phi, variance, points, channels, rng = activation(function), 0.2, 1000, 2000, np.random.default_rng(0)
    levels, weights = nodes(variance)
    assert weights @ levels == pytest.approx(1.0, rel=1e-4)
    assert weights @ levels**2 == pytest.approx(1 + variance, rel=1e-4)
    kernel = PairKernel(Layout.exchangeable(10**9), (1, 1), np.array([[[1.0]], [[0.0]]]))
    found = apply_activation(phi, kernel, strayed=variance).levels
    measured = []
    for _ in range(12):
        q = np.exp(math.sqrt(math.log1p(variance)) * rng.standard_normal(points) - math.log1p(variance) / 2)
        z = np.sqrt(q)[:, None] * rng.standard_normal((points, channels))
        x, slopes = phi.value(z), phi.derivative(z) ** 2
        centred = (x - x.mean()) ** 2
        square, whole = centred.mean(axis=1), centred.mean()
        noise = centred.var(axis=1).mean() / whole**2
        spread = square.var() / whole**2 - noise / channels
        lead = x.mean(axis=1).var() / whole - (1 - x.mean(axis=1).var() / whole) / channels
        gate = np.mean(slopes * centred) / whole
        u, root = z / np.sqrt(q)[:, None], math.sqrt(slopes.mean() * whole)
        along = [np.mean(u**k * phi.derivative(z) * (x - x.mean())) / root for k in (1, 3)]
        powers = [np.mean(u**k * slopes) / slopes.mean() for k in (2, 4)]
        measured.append([spread / q.var(), noise, lead, gate, *along, *powers, np.mean(z**2 * slopes)])
    mean, error = np.mean(measured, axis=0), np.std(measured, axis=0) / math.sqrt(len(measured) - 1)
    gates, tilted = weights @ found.gates, weights @ found.tilted
    expected = np.array([found.gain, found.noise, found.lead, gates, *found.along, *found.powers, tilted])
    assert np.all(np.abs(mean - expected) < BEYOND * error + LEVELS * np.abs(expected)), (mean, expected, error)


def deep_kernels(function, samples, width, depth, draws, seed):
    """Of a deep normalised net, layer by layer: sum of squared eigenvalue shares, variance of levels, E v E[1/v]."""
    phi, rng = activation(function), np.random.default_rng(seed)
    found = np.zeros((draws, depth, 3))
    for net in found:
        x = rng.standard_normal((width, samples))
        for row in net:
            x -= x.mean(axis=1, keepdims=True)
            kernel = x.T @ x
            kernel *= samples / np.trace(kernel)
            z = rng.standard_normal((width, width)) @ x
            v = np.mean(z**2, axis=1)
            expected = np.sum(x**2) / samples
            row[:] = np.sum(kernel**2) / samples**2, np.var(np.diag(kernel)), np.mean(expected / v)
            x = phi.value(z / np.sqrt(v)[:, None])
    return found


@pytest.mark.parametrize(("function", "samples", "width"), [("relu", 32, 128), ("tanh", 32, 128), ("relu", 64, 64)])
def test_kernels_of_deep_nets_with_batches_as_large_as_layers_are_wide(function, samples, width):
    """Levels walk behind ReLU, and what they have in common becomes the largest mode; tanh keeps deviations."""
    depth = 16
    measured = deep_kernels(function, samples, width, depth, 80, 3)
    network = build("mlp", depth=depth + 1, width=width, activation=function, norm="batch")
    signals = _forward(network, load_batch("gaussian", network.nodes[0].shape, samples, 0), None)
    laws = [s.law for node, s in zip(network.nodes, signals, strict=True) if node.kind == "batch_norm"]
    expected = np.array([[law.modes.counts @ law.modes.shares**2, law.levels, law.inverse * law.mean] for law in laws])
    half = slice(depth // 2, depth)
    mean, error = measured[:, half].mean(axis=(0, 1)), measured[:, half].mean(axis=1).std(axis=0) / math.sqrt(80)
    gap = np.abs(mean - expected[half].mean(axis=0)) - BEYOND * error
    assert np.all(gap < np.array([STRAYED, 1.0, RANDOM_MATRIX]) * mean * np.array([1.0, LEVELS_WALK, 1.0]))


@pytest.mark.parametrize(
    ("function", "samples", "width", "depth"),
    [
        ("relu", 128, 128, 20),
        ("tanh", 64, 64, 12),
        ("sigmoid", 128, 128, 12),
        ("selu", 32, 128, 12),
        ("gelu", 64, 128, 16),
        ("silu", 64, 128, 16),
    ],
)
def test_gradients_of_batches_as_large_as_layers_are_wide(function, samples, width, depth):
    network = build("mlp", depth=depth, width=width, activation=function, norm="batch")
    batch = load_batch("gaussian", network.nodes[0].shape, samples, 0)
    trials = 60 * (128 // width) ** 2  # draws of narrow layers differ more
    predicted, measured = predict(network, batch), simulate(network, batch, trials=trials, seed=1)
    found = sorted(abs(step.agreement.relative) for step in compare(predicted, measured).steps)
    assert found[len(found) // 2] < 0.01
    assert max(steps(predicted, measured)) < 0.02
    pairs = list(zip(predicted.layers, measured.layers, strict=True))
    error = max(m.backward.standard_error / m.backward.second_moment for _, m in pairs)
    gaps = [abs(p.backward.log_second_moment - m.backward.log_second_moment) for p, m in pairs]
    assert max(gaps) < 0.05 + BEYOND / 2 * error


def test_slopes_know_a_channel_through_the_next_ones():
    """The gradient's square against a channel's own slopes, one layer of tanh further on, against draws."""
    phi, n, samples, draws, rng = activation("tanh"), 64, 64, 1500, np.random.default_rng(2)
    kernel = PairKernel(Layout.exchangeable(10**9), (1, 1), np.array([[[1.0]], [[0.0]]]))
    duals = apply_activation(phi, kernel, strayed=0.0)
    own = duals.levels.known(0.0)
    root = math.sqrt(duals.kernel.second_moment * math.exp(duals.kernel.log_scale))
    measured = np.zeros((draws, 2))
    for row in measured:
        y = rng.standard_normal((n, samples))
        x = phi.value(y)
        w = rng.standard_normal((n, n)) / math.sqrt(n)
        g = w.T @ (phi.derivative(w @ x / root) * rng.standard_normal((n, samples)))
        squares, slopes = g**2, phi.derivative(y) ** 2
        row[:] = np.mean(squares * slopes), np.mean(squares)
    slope = math.exp(duals.derivative.log_scale) * duals.derivative.second_moment
    factor, known, *_ = duals.levels.passed(own, 3.0 * own, 0.0, n)
    expected = factor * known
    ratio = measured[:, 0] / (slope * measured[:, 1].mean()) - expected * measured[:, 1] / measured[:, 1].mean()
    assert expected > 1.01
    assert abs(ratio.mean()) < BEYOND * ratio.std() / math.sqrt(draws) + 0.1 * (expected - 1)


@pytest.mark.parametrize("source", ["gaussian", "photo"])
def test_two_values_that_are_normalised_exclude_one_another(source):
    """They are 1 and -1 then, and a half-line opens for one alone: forward as drawn, and every number finite."""
    network = build("resnet", depth=3, size=4)
    batch = load_batch(source, network.nodes[0].shape, 2, 0)
    predicted, measured = predict(network, batch), simulate(network, batch, trials=200, seed=1)
    assert not any(agreement.fails(FORWARD_ACCURACY) for agreement in compare(predicted, measured).forward)
    for layer in predicted.layers:
        assert math.isfinite(layer.forward.second_moment)
        assert math.isfinite(layer.backward.second_moment)
