"""Theory's parts against plain loops, closed forms and direct draws."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import special

from varprop.simulator.activations import NAMES, activation
from varprop.simulator.quadrature import gaussian_dual
from varprop.simulator.theory.depthwise import tap_covariance
from varprop.simulator.theory.duals import apply_activation, on_distinct, polynomial, power_series
from varprop.simulator.theory.maps import Window
from varprop.simulator.theory.pairs import (
    Layout,
    PairKernel,
    grown,
    merged,
    plus,
    regridded,
    unmerged,
    windows,
    windows_transposed,
)
from varprop.simulator.theory.variance_law import quadratic_form_law
from varprop.tests.tolerances import BEYOND, INTERPOLATED, KINK, QUADRATURE, ROUNDING, SERIES
from varprop.tests.windows import WINDOWS

SIZE = (5, 6)


def random_kernel(samples=3, size=SIZE, batch=None, seed=0, features=7):
    """Second moments of random features at every point: all pairs of samples."""
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((samples, size[0] * size[1], features)) + 0.3
    layout = Layout.all_pairs(samples, batch or samples)
    values = np.einsum("bpf,bqf->bpq", z[layout.left], z[layout.right]) / features
    return PairKernel(layout, size, values)


def whole(kernel):
    """The kernel as one matrix over all points (samples, positions)."""
    layout, n = kernel.layout, kernel.values.shape[1]
    full = np.empty((layout.profiles * n, layout.profiles * n))
    for a, b, block in zip(layout.left, layout.right, kernel.values, strict=True):
        full[a * n : (a + 1) * n, b * n : (b + 1) * n] = block
        full[b * n : (b + 1) * n, a * n : (a + 1) * n] = block.T
    return full


def random_taps(window, seed=1):
    a = np.random.default_rng(seed).standard_normal((window.taps, window.taps))
    return a @ a.T / window.taps + 0.5


def even_taps(window):
    """Moments of weights of one variance that have nothing in common."""
    return 0.7 * np.eye(window.taps)


def reads(window, size):
    """For every output position the (tap, input position) pairs that it reads; zeros beyond the edges left out."""
    h, w = size
    top, bottom, left, right = window.padding
    rows = (h + top + bottom - window.kernel[0]) // window.stride[0] + 1
    cols = (w + left + right - window.kernel[1]) // window.stride[1] + 1
    found = []
    for i, j in itertools.product(range(rows), range(cols)):
        under = []
        for k, (di, dj) in enumerate(itertools.product(range(window.kernel[0]), range(window.kernel[1]))):
            r, c = i * window.stride[0] + di - top, j * window.stride[1] + dj - left
            if 0 <= r < h and 0 <= c < w:
                under.append((k, r * w + c))
        found.append(under)
    return found, (rows, cols)


@pytest.mark.parametrize("moments", [random_taps, even_taps])
@pytest.mark.parametrize("name", WINDOWS)
def test_windows_are_the_plain_loops(name, moments):
    window, kernel = WINDOWS[name], random_kernel()
    taps = moments(window)
    under, size = reads(window, kernel.size)
    expected = np.zeros((len(kernel.values), len(under), len(under)))
    for b, (p, here), (q, there) in itertools.product(range(len(expected)), enumerate(under), enumerate(under)):
        expected[b, p, q] = sum(taps[k, m] * kernel.values[b, x, y] for k, x in here for m, y in there)
    found = windows(kernel, taps, window)
    assert found.size == size
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("moments", [random_taps, even_taps])
@pytest.mark.parametrize("name", WINDOWS)
def test_transposed_windows_are_the_plain_loops(name, moments):
    window = WINDOWS[name]
    under, size = reads(window, SIZE)
    gradient, taps = random_kernel(size=size, seed=2), moments(window)
    n = SIZE[0] * SIZE[1]
    expected = np.zeros((len(gradient.values), n, n))
    for b, (p, here), (q, there) in itertools.product(range(len(expected)), enumerate(under), enumerate(under)):
        for (k, x), (m, y) in itertools.product(here, there):
            expected[b, x, y] += taps[k, m] * gradient.values[b, p, q]
    found = windows_transposed(gradient, taps, window, SIZE)
    assert found.size == SIZE
    np.testing.assert_allclose(found.values, expected, rtol=0, atol=ROUNDING * np.abs(expected).max())


@pytest.mark.parametrize("name", WINDOWS)
def test_forward_and_backward_are_adjoint(name):
    window, kernel = WINDOWS[name], random_kernel()
    taps = random_taps(window)
    gradient = random_kernel(size=window.out_size(SIZE), seed=3)
    forth = np.sum(windows(kernel, taps, window).values * gradient.values)
    back = np.sum(kernel.values * windows_transposed(gradient, taps, window, SIZE).values)
    assert forth == pytest.approx(back, rel=ROUNDING * 100)


def stationary(size, samples=1):
    """Kernel that depends on the offset of two positions alone, without symmetry between rows and columns."""
    rows, cols = np.divmod(np.arange(size[0] * size[1]), size[1])
    down, across = rows[:, None] - rows[None, :], cols[:, None] - cols[None, :]
    values = np.exp(-np.abs(down) / 2 - np.abs(across) / 3 - 0.2 * np.abs(down - across))
    return PairKernel(Layout.exchangeable(4), size, np.stack([values, 0.1 * values]))


def part(kernel, rows, cols):
    """Values on a block of rows and columns of the map."""
    return kernel.mapped()[:, rows, cols, rows, cols]


def test_deep_inside_a_map_windows_are_those_of_the_whole_map():
    taps = random_taps(WINDOWS["same"])
    big = windows(stationary((10, 10)), taps, WINDOWS["same"])
    cut = windows(stationary((6, 6)), taps, Window((3, 3), (1, 1), (1, 1, 1, 1), inside=True))
    assert cut.size == (6, 6)
    inner, same = slice(1, 5), slice(3, 7)
    np.testing.assert_allclose(part(cut, inner, inner), part(big, same, same), rtol=ROUNDING * 10)


@pytest.mark.parametrize("stride", [1, 2])
def test_deep_inside_a_map_gradients_keep_their_share(stride):
    """Every input is reached by taps / stride^2 taps: what a constant second moment becomes."""
    window = Window((3, 3), (stride, stride), (1, 1, 1, 1), inside=True)
    taps = np.diag(np.random.default_rng(0).uniform(1, 2, 9))
    gradient = stationary(window.out_size((6, 6)))
    back = windows_transposed(gradient, taps, window, (6, 6))
    assert back.size == (6, 6)
    inside = part(back, slice(2, 4), slice(2, 4)).reshape(2, 4, 4)[0]
    assert np.trace(inside) / 4 == pytest.approx(np.trace(taps) / stride**2, rel=ROUNDING)


def test_regridding_keeps_offsets():
    small, big = stationary((5, 5)), stationary((9, 9))
    np.testing.assert_allclose(regridded(small, (4, 4)).values, stationary((4, 4)).values, rtol=ROUNDING)
    grown = regridded(small, (9, 9))
    np.testing.assert_allclose(
        part(grown, slice(2, 7), slice(2, 7)), part(big, slice(2, 7), slice(2, 7)), rtol=ROUNDING
    )
    corner = grown.values[0][0, -1]  # beyond the largest offset known: that of the largest
    assert corner == pytest.approx(small.values[0][0, -1], rel=ROUNDING)


def test_merging_averages_over_samples():
    kernel = random_kernel(samples=4)
    same, cross = merged(kernel).values
    full = whole(kernel).reshape(4, 30, 4, 30)
    blocks = {(a, b): full[a, :, b, :] for a in range(4) for b in range(4)}
    np.testing.assert_allclose(same, np.mean([blocks[a, a] for a in range(4)], axis=0), atol=ROUNDING)
    pairs = [blocks[a, b] for a, b in blocks if a != b]
    np.testing.assert_allclose(cross, np.mean(pairs, axis=0), atol=ROUNDING)
    back = unmerged(merged(kernel), kernel.layout)
    np.testing.assert_array_equal(back.values[:4], np.broadcast_to(same, (4, 30, 30)))
    np.testing.assert_array_equal(back.values[4:], np.broadcast_to(cross, (6, 30, 30)))


def test_means_and_centring_are_those_of_the_whole_matrix():
    kernel = random_kernel()
    full, other = whole(kernel), random_kernel(seed=5)
    n = len(full)
    assert kernel.second_moment == pytest.approx(np.trace(full) / n, rel=ROUNDING)
    assert kernel.pair_mean == pytest.approx(full.mean(), rel=ROUNDING * 10)
    assert kernel.pair_square_mean == pytest.approx(np.mean(full**2), rel=ROUNDING * 10)
    assert kernel.pair_product_mean(other) == pytest.approx(np.mean(full * whole(other)), rel=ROUNDING * 10)
    np.testing.assert_allclose(kernel.row_mean().ravel(), full.mean(axis=1), atol=ROUNDING * 10)
    projector = np.eye(n) - 1 / n
    np.testing.assert_allclose(whole(kernel.centred), projector @ full @ projector, atol=ROUNDING * 10)


def test_one_profile_stands_for_many_samples():
    """Means over all pairs of an exchangeable batch are those of the same kernel written out."""
    small = stationary((3, 4))
    full = unmerged(small, Layout.all_pairs(4, 4))
    assert small.pair_mean == pytest.approx(full.pair_mean, rel=ROUNDING)
    assert small.pair_square_mean == pytest.approx(full.pair_square_mean, rel=ROUNDING)
    np.testing.assert_allclose(merged(full.centred).values, small.centred.values, atol=ROUNDING)


def test_a_few_samples_stand_for_a_batch():
    """Two samples' kernel for a batch of eight: 1/8 of all pairs are of a sample with itself."""
    kernel = random_kernel(samples=2, batch=8)
    full = whole(kernel).reshape(2, 30, 2, 30)
    own = (full[0, :, 0, :].mean() + full[1, :, 1, :].mean()) / 2
    assert kernel.pair_mean == pytest.approx(own / 8 + full[0, :, 1, :].mean() * 7 / 8, rel=ROUNDING * 10)


@pytest.mark.parametrize("size", [(3, 4), (9, 9)])  # dense and iterative eigensolver
def test_modes_are_those_of_the_whole_matrix(size):
    kernel = random_kernel(size=size, features=5)
    full = whole(kernel)
    values, vectors = kernel.modes(4)
    n = len(full)
    np.testing.assert_allclose(values, np.sort(np.linalg.eigvalsh(full / n))[::-1][:4], rtol=1e-3)  # eigsh's tolerance
    flat = vectors.reshape(4, n)
    np.testing.assert_allclose(np.mean(flat**2, axis=1), 1.0, rtol=ROUNDING * 100)
    np.testing.assert_allclose(full @ flat.T / n, flat.T * values, atol=1e-2 * values[0])
    assert kernel.modes(n)[0].sum() == pytest.approx(kernel.second_moment, rel=1e-6)


def test_sums_and_scales_beyond_float_range():
    first, second = random_kernel(seed=0), random_kernel(seed=1)
    total = plus(first.scaled(1.0, 2000.0), second.scaled(2.0, 2000.0))
    np.testing.assert_allclose(total.values * np.exp(total.log_scale - 2000.0), first.values + 2 * second.values)
    assert plus(first.scaled(1.0, -2000.0), second).values == pytest.approx(second.values)
    tiny = first.scaled(1e-300)
    assert tiny.second_moment * 1.0 == pytest.approx(first.second_moment / np.abs(first.values).max())
    assert tiny.log_scale == pytest.approx(math.log(1e-300) + math.log(np.abs(first.values).max()))


def points(correlation, q1, q2):
    """Kernel of pairs of points: two samples, one position for each pair."""
    n = len(correlation)
    cross = np.diag(correlation * np.sqrt(q1 * q2))
    return PairKernel(Layout.all_pairs(2, 2), (1, n), np.stack([np.diag(q1), np.diag(q2), cross]))


def dual_errors(phi, q1, q2, c):
    """Largest error of each pair kernel that an activation gives, relative to second moments."""
    found = apply_activation(phi, points(c, q1, q2))

    def tilted(z):
        return z * phi.derivative(z)

    expected = {
        "kernel": (phi.dual(q1, q2, c), phi.second_moment),
        "derivative": (phi.derivative_dual(q1, q2, c), phi.derivative_second_moment),
        "tilted": (gaussian_dual(tilted, q1, q2, c, phi.kinks), lambda q: gaussian_dual(tilted, q, q, 1.0, phi.kinks)),
    }
    errors = {"mean": np.max(np.abs(found.mean[0] - phi.mean(q1)) / np.sqrt(phi.second_moment(q1)))}
    for name, (values, second_moment) in expected.items():
        kernel = getattr(found, name)
        same, _, cross = (np.diagonal(block) * math.exp(kernel.log_scale) for block in kernel.values)
        one, two = second_moment(q1), second_moment(q2)
        errors[name] = np.max(np.abs(cross - values) / np.sqrt(one * two))
        errors[f"{name}, same point"] = np.max(np.abs(same / one - 1))
    return errors


def random_points(count):
    rng = np.random.default_rng(0)
    return np.exp(rng.uniform(-4, 3, count)), np.exp(rng.uniform(-4, 3, count)), rng.uniform(-0.5, 0.5, count)


@pytest.mark.parametrize("function", [*NAMES, "leaky_relu(0.2)"])
def test_duals_at_random_points(function):
    """E[phi phi], E[phi' phi'] and E[z phi' z phi'] of correlated pairs, against quadrature in the plane."""
    errors = dual_errors(activation(function), *random_points(40))
    bound = ROUNDING * 100 if activation(function).homogeneous else INTERPOLATED
    assert max(errors.values()) < bound, errors


def test_duals_of_smooth_functions_are_good_to_six_digits():
    for function in ("tanh", "gelu", "silu", "sigmoid"):
        errors = dual_errors(activation(function), *random_points(8))
        assert max(errors.values()) < SERIES, (function, errors)


@pytest.mark.parametrize("function", ["tanh", "gelu", "silu", "selu", "relu6"])
def test_duals_of_nearly_equal_points(function):
    """Where the series is at its worst: the terms that are left out, whose sign is wrong at negative correlation."""
    phi = activation(function)
    c = np.array([-0.99, 0.9, 0.99, 0.999])
    found = apply_activation(phi, points(c, np.full(4, 1.5), np.full(4, 1.5))).kernel
    got = np.diagonal(found.values[2]) * math.exp(found.log_scale)
    assert np.max(np.abs(got - phi.dual(1.5, 1.5, c))) < KINK * phi.second_moment(1.5)


@pytest.mark.parametrize("count", [3, 4, 10, 60])
def test_equal_modes_are_a_chi_square(count):
    """v = q chi^2_k / k: E[1/v] = k / (q (k - 2)), whether its modes are counted singly or as one gamma variable."""
    q = 1.7
    singly = quadratic_form_law(np.full(count, q / count), 0.0, 0.0, count, 0.0)
    together = quadratic_form_law(np.zeros(0), q, q * q / count, count, 0.0)
    for law in (singly, together):
        assert law.mean == pytest.approx(q, rel=ROUNDING)
        assert law.inverse == pytest.approx(count / (q * (count - 2)), rel=QUADRATURE)
        assert law.ratio == 1.0
    # xi_i^2 / v sum to one over v's own share, and |w|^2 / v of all k weights is k / q exactly.
    np.testing.assert_allclose(singly.damping[:-1], 1 / q, rtol=QUADRATURE)
    assert together.weighted_inverse == pytest.approx(1 / q, rel=QUADRATURE)


@pytest.mark.parametrize("eps", [1e-5, 1e-2, 1.0, 50.0])
def test_one_mode_has_a_closed_form(eps):
    """E[1 / (l xi^2 + eps)] = sqrt(pi / (2 l eps)) erfcx(sqrt(eps / (2 l)))."""
    mode = 0.8
    law = quadratic_form_law(np.array([mode]), 0.0, 0.0, 1, eps)
    expected = math.sqrt(math.pi / (2 * mode * eps)) * special.erfcx(math.sqrt(eps / (2 * mode)))
    assert law.inverse == pytest.approx(expected, rel=QUADRATURE)
    assert law.ratio == pytest.approx(1 - eps * expected, rel=QUADRATURE)
    assert law.damping[0] == pytest.approx((1 - eps * expected) / mode, rel=QUADRATURE)


def test_parts_of_two_modes_in_a_variance():
    """By draws of the modes: E[lambda_i xi_i^2 lambda_j xi_j^2 / (v + eps)^2]."""
    leading, rest, eps = np.array([0.5, 0.2]), 0.3, 0.05
    law = quadratic_form_law(leading, rest, rest**2 / 6, 8, eps)
    assert law.modes is not None
    xi = np.random.default_rng(5).normal(size=(200_000, 8)) ** 2
    parts = xi * np.append(leading, np.full(6, rest / 6))
    parts = parts[:, :2] / (parts.sum(axis=1, keepdims=True) + eps)
    products = parts[:, :, None] * parts[:, None, :]
    error = products.std(axis=0) / np.sqrt(len(products))
    assert np.abs((products.mean(axis=0) - law.modes.both) / error).max() < BEYOND


@pytest.mark.parametrize("eps", [0.0, 1e-3, 0.3])
def test_quadratic_forms_against_direct_draws(eps):
    """Three large modes, eight equal ones and four weights that do not count."""
    leading, rest, dimensions, draws = np.array([0.9, 0.5, 0.3]), 0.4, 15, 400_000
    law = quadratic_form_law(leading, rest, rest**2 / 8, dimensions, eps)
    modes = np.array([*leading, *np.full(8, rest / 8), *np.zeros(4)])
    squares = np.random.default_rng(0).standard_normal((draws, dimensions)) ** 2
    v = squares @ modes
    expected = {
        "mean": (law.mean, v),
        "ratio": (law.ratio, v / (v + eps)),
        "inverse": (law.inverse, 1 / (v + eps)),
        "weighted": (law.weighted_inverse, squares.mean(axis=1) / (v + eps)),
        "first": (law.damping[0], squares[:, 0] / (v + eps)),
        "third": (law.damping[2], squares[:, 2] / (v + eps)),
        "rest": (law.damping[3], squares[:, 3] / (v + eps)),
    }
    for name, (found, values) in expected.items():
        error = values.std() / math.sqrt(draws) + 1e-12
        assert abs(values.mean() - found) < BEYOND * error, name


def test_a_variance_of_zero():
    law = quadratic_form_law(np.zeros(2), 0.0, 0.0, 5, 1e-3)
    assert (law.mean, law.ratio, law.inverse) == (0.0, 0.0, 1e3)
    assert quadratic_form_law(np.zeros(0), 0.0, 0.0, 5, 0.0).inverse == math.inf


SERIES_ROUNDING = 1e-10  # terms below 1e-12 are left out, and twenty are added
INSIDE = [
    Window((3, 3), (1, 1), inside=True),
    Window((3, 2), (2, 1), inside=True),
    Window((5, 5), (2, 2), inside=True),
]


@pytest.mark.parametrize("window", INSIDE, ids=str)
def test_deep_inside_a_map_windows_act_on_offsets(window):
    """As they do, without padding, on the kernel's own continuation."""
    rng = np.random.default_rng(2)
    z = rng.standard_normal((2, 30, 30))
    kernel = PairKernel(Layout.exchangeable(4), SIZE, np.stack([z[0] @ z[0].T, (z[1] + z[1].T) / 9]))
    taps = rng.uniform(0.5, 1.0, (window.taps, window.taps))
    larger, plain = grown(kernel, window), Window(window.kernel, window.stride)
    found, expected = windows(kernel, taps + taps.T, window), windows(larger, taps + taps.T, plain)
    assert found.size == expected.size
    scale = np.abs(expected.values).max()
    assert found.values == pytest.approx(expected.values, rel=ROUNDING, abs=ROUNDING * scale)
    assert tap_covariance(kernel, window) == pytest.approx(
        tap_covariance(larger, plain), rel=ROUNDING, abs=ROUNDING * 9
    )


@pytest.mark.parametrize("dimensions", [math.inf, 40.0])
@pytest.mark.parametrize("points", [5, 150])
def test_power_series_of_blocks_and_of_their_tiles(points, dimensions):
    """Against sums over terms, P_k from Gegenbauer polynomials of scipy."""
    rng = np.random.default_rng(3)
    z = rng.standard_normal((2 * points, 12))
    z /= np.linalg.norm(z, axis=1, keepdims=True)
    c = (z @ z.T).reshape(2, points, 2, points)
    correlation = np.stack([c[0, :, 0], c[1, :, 1], c[0, :, 1]])
    left, right, series = np.array([0, 1, 0]), np.array([0, 1, 1]), rng.standard_normal((2, 20, points))
    expected = np.zeros_like(correlation)
    for k in range(20):
        term = correlation**k
        if dimensions < math.inf:
            alpha = dimensions / 2 - 1
            term = special.eval_gegenbauer(k, alpha, correlation) / special.eval_gegenbauer(k, alpha, 1.0)
        expected += term * series[left, k, :, None] * series[right, k, None, :]
    found = power_series(correlation, left, right, series, dimensions)
    assert found == pytest.approx(expected, rel=SERIES_ROUNDING, abs=SERIES_ROUNDING)


@pytest.mark.parametrize("points", [5, 150])
def test_several_power_series_at_once_are_those_of_each(points):
    rng = np.random.default_rng(5)
    correlation = rng.uniform(-1, 1, (3, points, points))
    correlation[:2] = (correlation[:2] + correlation[:2].transpose(0, 2, 1)) / 2
    left, right, series = np.array([0, 1, 0]), np.array([0, 1, 1]), rng.standard_normal((3, 2, 20, points))
    found = power_series(correlation, left, right, series, 40.0)
    for one, alone in zip(found, series, strict=True):
        np.testing.assert_array_equal(one, power_series(correlation, left, right, alone, 40.0))


def test_polynomials_by_parts_and_of_distinct_entries():
    rng = np.random.default_rng(4)
    series, entries = rng.standard_normal(21), rng.uniform(-1, 1, (3, 71, 71))
    expected = np.polynomial.polynomial.polyval(entries, series)
    assert polynomial(entries, series) == pytest.approx(expected, rel=ROUNDING * 10, abs=ROUNDING * 10)
    size, seen = (3, 4), []
    place = np.arange(12)
    apart = np.abs(place[:, None] // 4 - place // 4) + 0.1 * (place[:, None] % 4 - place % 4)
    for values, count in ((apart, 5 * 7), (apart + np.eye(12) * place, 144)):
        found = on_distinct(lambda c: seen.append(c.size) or np.exp(c), values[None], size)
        assert seen.pop() == count
        assert found[0] == pytest.approx(np.exp(values), rel=ROUNDING)
