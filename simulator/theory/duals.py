"""Activations acting on pair kernels: E[phi(z) phi(z')], and the same of phi' and of z phi'(z).

Points of a normalised channel lie on a sphere: z = sigma sqrt(d) e with e uniform on the unit sphere of d dimensions,
and Gaussian as d grows. There Gegenbauer polynomials P_k of d dimensions, P_k(1) = 1, do what Hermite polynomials and
powers do for Gaussian points: with coefficients a_k of phi in sqrt(N_k) P_k, orthonormal as there are N_k harmonics of
degree k, E[phi(z) phi(z')] = sum_k a_k a'_k P_k(c) for points of correlation c (Funk and Hecke; Atkinson & Han,
"Spherical Harmonics and Approximations on the Unit Sphere", 2012, theorems 2.9 and 2.22).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import product

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, half_lines
from varprop.simulator.errors import UserError
from varprop.simulator.interpolation import cubic_rows
from varprop.simulator.theory.levels import UNSTRAYED, Levels, after, nodes
from varprop.simulator.theory.maps import Size, offsets, pair_of_offset
from varprop.simulator.theory.pairs import PairKernel

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
ORDER = 32
MOMENTS = 15  # of one expansion
_STEP = 0.025  # of log sigma between tabulated expansions
_AT_ONCE = 64  # expansions
_IN_CACHE = 2**15  # entries of a kernel worked on at a time
_STRIDE = 8  # powers of a polynomial that are formed one by one
_TILE = 64  # points on a side of what is worked on of a larger one
_LEAST = 1.0 + 1e-6  # dimensions of a sphere: a single point of one is plus or minus a number
_NOTHING = 1e-30  # length of a panel beyond the poles
_LEGENDRE = np.polynomial.legendre.leggauss(40)
_ROUNDING = 1e-7  # of a power of the correlation that is left out; expansions are known to 1e-6
GAUSSIAN_FROM = 1e5  # dimensions of a sphere whose points count as Gaussian
FAR = 250.0  # log of the second moment up to which an activation is evaluated as it is


@dataclass(frozen=True)
class Duals:
    """What one activation does to the pair kernel of Gaussian points, or of points on a sphere.

    Attributes
    ----------
    mean
        E phi(z) at each point, shape (profiles, positions), in units of ``exp(kernel.log_scale / 2)``.
    kernel, derivative, tilted
        Pair kernels of phi(z), phi'(z) and z phi'(z), on the blocks of the input kernel; the last is None where it was
        not asked for.
    linear
        (E phi')^2 / E phi'^2, averaged over points: share of the slopes' second moment that a linear function has.
    levels
        What the activation makes of points whose second moments stray.
    """

    mean: Array
    kernel: PairKernel
    derivative: PairKernel
    tilted: PairKernel | None
    linear: float
    levels: Levels = UNSTRAYED


def hermite_expansion(function: ActivationFunction, sigma: Array, dimensions: float = math.inf) -> tuple[Array, Array]:
    """Hermite expansions of phi(sigma u), phi'(sigma u) and sigma u phi'(sigma u); on a sphere Gegenbauer expansions.

    Returns
    -------
    coefficients
        Orthonormal coefficients, shape (3, n, ORDER + 1), for n deviations.
    moments
        Exact second moments; then E phi^3 and E phi^4, the means of phi and phi^2 with the weights phi'^2, E[sigma u
        phi' phi], the mean of phi^2 with the weights (sigma u phi')^2, and E[sigma u phi' phi^3], all over the powers
        of E phi^2 that make them numbers; so are E[sigma u phi' u^2], E[sigma u phi' phi u^2], and the means of u^2
        with the weights (sigma u phi')^2, and of u with phi'^2 and with phi^2: shape (15, n).
    """
    # Rows on a grid of log sigma that all layers share, and cubic interpolation between them: relative error 1e-6.
    needed, back, weights = cubic_rows(np.log(np.maximum(sigma, 1e-150)) / _STEP)
    rows = np.concatenate(_rows(function, needed, dimensions)).reshape(len(needed), -1)
    found = (weights[:, None, :] @ rows[back])[:, 0]
    coefficients, moments = found[:, : 3 * (ORDER + 1)].reshape(-1, 3, ORDER + 1).swapaxes(0, 1), found[:, -MOMENTS:].T
    nothing = sigma == 0.0
    if nothing.any():
        at_zero = np.array([float(function.value(0.0)), float(function.derivative(0.0)), 0.0])
        coefficients[:, nothing] = 0.0
        coefficients[:, nothing, 0] = at_zero[:, None]
        moments[:3, nothing] = at_zero[:, None] ** 2
    return coefficients, moments


def _rows(function: ActivationFunction, steps: list[int], dimensions: float) -> list[Array]:
    """Coefficients, 3 (ORDER + 1), and then MOMENTS moments, at some deviations, of which new ones are worked out."""
    known = _known(function, dimensions)
    new = [step for step in steps if step not in known]
    for start in range(0, len(new), _AT_ONCE):
        some = new[start : start + _AT_ONCE]
        u, mass, first = _quadrature(function, some, dimensions)
        counts = np.diff(first, append=len(u))
        scaled = np.repeat(np.exp(np.array(some) * _STEP), counts) * u
        slope = function.derivative(scaled)
        table = np.stack([function.value(scaled), slope, scaled * slope])
        squares = np.add.reduceat(table * table * mass, first, axis=1)
        sizes = np.repeat(np.sqrt(np.where(squares > 0, squares, 1.0)), counts, axis=1)
        unit, gate, turned = table / sizes
        gate, turned, along = gate**2, turned**2, table[2] / sizes[0]
        powers = [unit**3, unit**4, gate * unit, gate * unit**2, along * unit, turned * unit**2, along * unit**3]
        powers += [along * u**2, along * unit * u**2, turned * u**2, gate * u, unit**2 * u]
        moments = np.concatenate([squares, np.add.reduceat(np.stack(powers) * mass, first, axis=1)])
        basis, weighted = _orthonormal(ORDER, u, dimensions), table * mass
        for step, begin, count, row in zip(some, first, counts, moments.T, strict=True):
            part = slice(begin, begin + count)
            known[step] = np.append(weighted[:, part] @ basis[:, part].T, row)
    return [known[step] for step in steps]


@lru_cache(maxsize=1024)
def _known(function: ActivationFunction, dimensions: float) -> dict[int, Array]:
    """Rows by step that were worked out before."""
    return {}


def _quadrature(function: ActivationFunction, steps: list[int], dimensions: float) -> tuple[Array, Array, Ints]:
    """Nodes and weights of the expansions at some deviations, split at the kinks, and where those of each begin."""
    edges = []
    for s in np.exp(np.array(steps) * _STEP).tolist():
        function.require_moments(s * s)
        # Panels end at kinks, and shrink around zero where sigma stretches a function that bends on the scale 1.
        bends = {b for b in function.kinks if abs(b) < 11.0 * s}
        if s > 2.0:
            bends |= {b for b in (-40.0, -8.0, -2.0, 2.0, 8.0, 40.0) if abs(b) < 11.0 * s}
        edges.append(sorted({-11.0, -3.0, 0.0, 3.0, 11.0} | {b / s for b in bends}))
    low, high = (np.array([edge for some in edges for edge in some[part]]) for part in (slice(-1), slice(1, None)))
    reach = math.sqrt(dimensions)
    if reach < math.inf:  # u = reach sin(angle)
        low, high = (np.arcsin(np.clip(ends / reach, -1.0, 1.0)) for ends in (low, high))
    nodes, weights = _LEGENDRE
    u = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * nodes
    mass = (high - low)[:, None] / 2 * weights
    if dimensions < 2.0:
        u, mass = _to_the_poles(u, mass, low[:, None], high[:, None], dimensions)
    u, mass = u.ravel(), mass.ravel()
    first = np.cumsum([0, *(len(some) - 1 for some in edges[:-1])]) * len(nodes)
    if reach == math.inf:
        return u, mass * np.exp(-u * u / 2) / np.sqrt(2 * np.pi), first
    mass = mass * np.cos(u) ** (dimensions - 2) if dimensions >= 2.0 else mass
    whole = np.add.reduceat(mass, first)
    return reach * np.sin(u), mass / np.repeat(whole, np.diff(first, append=len(u))), first


def _to_the_poles(u: Array, mass: Array, low: Array, high: Array, dimensions: float) -> tuple[Array, Array]:
    """Return angles and masses, the density cos(u)^(d - 2) included, where that has no bounds towards +-pi / 2.

    On panels from `low` to `high` that end there the angle left is s = S x^p, S being their length and p = 1 / (d - 1),
    of which s^(d - 2) ds = p S^(d - 1) dx: at d = 1 all mass is at the end.
    """
    power, left, span = dimensions - 1.0, math.pi / 2 - np.abs(u), np.maximum(high - low, _NOTHING)
    ends = np.maximum(np.abs(low), np.abs(high)) >= math.pi / 2
    rest = np.where(ends, span * (left / span) ** (1 / power), left)
    with np.errstate(divide="ignore"):
        density = np.where(ends, span ** (power - 1.0) / power * np.sinc(rest / math.pi) ** (power - 1.0), 0.0)
        density += np.where(ends, 0.0, np.sin(rest) ** (power - 1.0))
    return np.sign(u) * (math.pi / 2 - rest), mass * density


def hermite(order: int, u: Array) -> Array:
    """Return the orthonormal probabilists' Hermite polynomials up to an order >= 1, shape (order + 1, u.size)."""
    basis = np.empty((order + 1, u.size))
    basis[0], basis[1] = 1.0, u
    for k in range(1, order):
        basis[k + 1] = (u * basis[k] - np.sqrt(k) * basis[k - 1]) / np.sqrt(k + 1)
    return basis


def _orthonormal(order: int, u: Array, dimensions: float) -> Array:
    """Return `hermite`, or sqrt(N_k) P_k(u / sqrt(d)) on a sphere of d >= 2 dimensions."""
    if dimensions == math.inf:
        return hermite(order, u)
    d = dimensions
    basis = np.empty((order + 1, u.size))
    basis[0], basis[1] = 1.0, u
    more = d  # N_k / N_(k - 1)
    for k in range(1, order):
        last, more = more, (2 * k + d) * (k + d - 2) / ((2 * k + d - 2) * (k + 1))
        slope = math.sqrt(more / d) * (2 * k + d - 2)
        basis[k + 1] = (slope * u * basis[k] - math.sqrt(more * last) * k * basis[k - 1]) / (k + d - 2)
    return basis


def apply_activation(
    function: ActivationFunction,
    kernel: PairKernel,
    dimensions: float = math.inf,
    tilted: bool = True,
    own: float | None = None,
    strayed: float | None = None,
    spots: Array | None = None,
) -> Duals:
    """Push the pair kernel of Gaussian points, or of points on a sphere of so many dimensions, through an activation.

    In a draw a channel's points may be on a sphere of fewer dimensions, `own`, and their second moments l stray by a
    relative variance `strayed`: that decides the coefficients. What two points have in common, averaged over draws, is
    as with the polynomials of the sphere of `dimensions`, of a correlation c' in the draw. As E[sqrt(l l')] c' is the
    kernel's, c' is the larger the less their levels have in common: of two positions of a sample the share `spots`,
    by offset, of two samples that of the products of Gaussian channels, c^2.

    Positively homogeneous functions use their closed forms; the others series, whose truncated tail is put on the next
    polynomial of the correlation so that the diagonal stays exact.
    """
    function, kernel, extra = _within_range(function, kernel)
    dimensions = rounded(dimensions, 4)
    own = dimensions if own is None else rounded(own, 3, _LEAST)
    levels, weights = (np.ones(1), np.ones(1)) if strayed is None else nodes(strayed)
    if function.homogeneous:
        closed = _closed_form(function, kernel, dimensions, own, strayed or 0.0, spots)
        return closed if strayed is None else replace(closed, levels=_levels_after(function, 1.0, own, strayed))
    sigma = np.sqrt(np.maximum(kernel.diagonal, 0.0)) * np.exp(kernel.log_scale / 2)
    deviations, where = np.unique(sigma.ravel(), return_inverse=True)
    spread = np.outer(deviations, np.sqrt(levels))
    coefficients, moments = hermite_expansion(function, spread.ravel(), own)
    coefficients, moments = (table.reshape(len(table), *spread.shape, -1) for table in (coefficients, moments))
    moments = moments[..., 0]
    tails = np.sqrt(np.maximum(moments[:3] - np.sum(coefficients**2, axis=-1), 0.0))
    table = np.concatenate([coefficients, tails[..., None]], axis=-1)
    coefficients = np.einsum("acln,l->acn", table, weights)[:, where]
    seconds = (moments[:3] @ weights)[:, where]
    layout, blocks = kernel.layout, kernel.values.shape
    scale = np.exp(kernel.log_scale)
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = np.where(sigma > 0, 1.0 / sigma, 0.0)
    correlation = kernel.values * scale * inverse[layout.left][:, :, None] * inverse[layout.right][:, None, :]
    np.clip(correlation, -1.0, 1.0, out=correlation)
    shared = None if strayed is None else _shared(correlation, kernel, spots)
    if shared is not None:
        assert strayed is not None
        correlation *= _roots_apart(shared, strayed)
        np.clip(correlation, -1.0, 1.0, out=correlation)
    points = np.arange(blocks[1])
    correlation[: layout.profiles, points, points] = 0.0  # known exactly, below
    asked = 3 if tilted else 2
    series = coefficients[:asked].reshape(asked, *sigma.shape, -1)
    if dimensions == math.inf and len(deviations) == 1:
        forms = (partial(polynomial, series=table[0, 0] ** 2) for table in series)
        found = np.stack([on_distinct(form, correlation, kernel.size) for form in forms])
    else:
        series = np.ascontiguousarray(series.swapaxes(2, 3))
        found = power_series(correlation, layout.left, layout.right, series, dimensions)
    if shared is not None and blocks[1] > 1:
        # To first order in what their logarithms have in common, for positions of one sample.
        log = np.log(levels)
        along = weights * (log - float(weights @ log)) / math.sqrt(float(weights @ (log - float(weights @ log)) ** 2))
        series = np.einsum("acln,l->acn", table[:asked], along)[:, where].reshape(asked, *sigma.shape, -1)
        same, profiles = np.arange(layout.profiles), slice(layout.profiles)
        series = np.ascontiguousarray(series.swapaxes(2, 3))
        found[:, profiles] += shared[profiles] * power_series(correlation[profiles], same, same, series, dimensions)
    found[:, : layout.profiles, points, points] = seconds[:asked].reshape(asked, *sigma.shape)
    results = [PairKernel(layout, kernel.size, values).scaled(1.0) for values in found]
    mean = coefficients[0][:, 0].reshape(sigma.shape)
    out, derivative, *more = results
    slopes = coefficients[1][:, 0]
    linear = float(np.sum(slopes**2) / np.sum(seconds[1])) if seconds[1].any() else 0.0
    third = more[0].scaled(1.0, extra) if more else None
    duals = Duals(mean * out.unit(0.0), out, derivative.scaled(1.0, extra), third, linear)
    typical = float(np.sqrt(np.mean(sigma**2)))
    if strayed is None or typical == 0.0:
        return duals
    return replace(duals, levels=_levels_after(function, typical, own, strayed))


def _levels_after(function: ActivationFunction, sigma: float, dimensions: float, strayed: float) -> Levels:
    """Return what the activation makes of levels around sigma^2."""
    deviations = sigma * np.sqrt(nodes(strayed)[0])
    coefficients, moments = hermite_expansion(function, deviations, dimensions)
    second, slopes, tilted, third, fourth, first, square, along, _, _, cubed, cubes, spread, skew, leant = moments
    powers = np.stack([coefficients[0, :, 0], second, third * second**1.5, fourth * second**2])
    squares = slopes * np.stack([np.ones_like(second), first * second**0.5, square * second])
    root, tilted = second**0.5, tilted / deviations**2
    turned = np.stack([coefficients[1, :, 1] * deviations, along * second, cubed * root, cubes * second]) / deviations
    odd = np.stack([skew * slopes, coefficients[0, :, 1], leant * second])
    return after(strayed, dimensions, powers, squares, turned, np.stack([tilted, tilted * spread]), odd)


def rounded(dimensions: float, digits: int, least: float = 2.0) -> float:
    """Return a few digits, so that layers share a table; below two dimensions polynomials of any correlation diverge.

    A single point needs no more than `_LEAST`, where it is plus or minus a number.
    """
    return max(float(f"{dimensions:.{digits}g}"), least) if dimensions < GAUSSIAN_FROM else math.inf


def _shared(correlation: Array, kernel: PairKernel, spots: Array | None) -> Array:
    """Return the correlation of two points' levels, given that of the points."""
    shared = correlation**2
    if spots is not None:
        shared[: kernel.layout.profiles] = np.maximum(np.take(spots, offsets(kernel.size)), 0.0)
    return np.asarray(shared)


def _roots_apart(shared: Array, strayed: float) -> Array:
    """Return 1 / E sqrt(l l') for log-normal levels of mean one that have a part of their variance in common."""
    return np.asarray(np.sqrt(np.sqrt((1.0 + strayed) / (1.0 + strayed * shared))))


def _closed_form(
    function: ActivationFunction, kernel: PairKernel, dimensions: float, own: float, strayed: float, spots: Array | None
) -> Duals:
    """Return the duals of a positively homogeneous function, for which a sphere's differ in the mean only."""
    q = np.maximum(kernel.diagonal, 0.0)
    layout = kernel.layout
    q1, q2 = q[layout.left][:, :, None], q[layout.right][:, None, :]
    scale = np.sqrt(q1 * q2)
    correlation = np.divide(kernel.values, scale, out=np.zeros_like(kernel.values), where=scale > 0)
    np.clip(correlation, -1.0, 1.0, out=correlation)
    points = np.arange(q.shape[1])
    correlation[: layout.profiles, points, points] = 1.0
    roots = _roots_apart(_shared(correlation, kernel, spots), strayed) if strayed else np.ones_like(correlation)
    correlation = np.clip(correlation * roots, -1.0, 1.0)
    correlation[: layout.profiles, points, points] = 1.0
    forms: list[Callable[..., Array]] = [function.dual, function.derivative_dual]
    if (q == q[0, 0]).all():
        dual, slopes = (on_distinct(partial(form, q[0, 0], q[0, 0]), correlation, kernel.size) for form in forms)
    else:
        dual, slopes = (form(q1, q2, correlation) for form in forms)
    slopes = np.broadcast_to(slopes, correlation.shape)
    mean = function.mean(q)
    longer = _longer(own)
    exact = dual[: layout.profiles, points, points]
    more = (longer**2 - _longer(dimensions) ** 2) * (1 - correlation**2)
    dual = (dual + mean[layout.left][:, :, None] * mean[layout.right][:, None, :] * more) / roots
    dual[: layout.profiles, points, points] = exact
    values = replace(kernel, values=dual)
    if not q.all():
        # At a point where z is exactly zero the slope is phi'(0), whatever it is on either side.
        expected = (function.germ_zero[1] + function.germ_zero[2]) / 2
        slope = np.where(q > 0, expected, float(function.derivative(0.0)))
        fixed = slope[layout.left][:, :, None] * slope[layout.right][:, None, :]
        slopes = np.where(scale > 0, slopes, fixed)
    derivative = replace(kernel, values=slopes, log_scale=0.0)
    # z phi'(z) = phi(z) for a positively homogeneous phi.
    _, left, right = function.germ_zero
    linear = (left + right) ** 2 / (2 * (left**2 + right**2)) if left or right else 0.0
    return Duals(mean * longer / (1.0 + strayed) ** 0.125, values, derivative, values, linear)


def _longer(dimensions: float) -> float:
    """Return sqrt(d) / E[chi], chi the length of d standard normal numbers."""
    half = dimensions / 2
    return 1.0 if half == math.inf else math.sqrt(half) * math.exp(math.lgamma(half) - math.lgamma(half + 0.5))


def _within_range(function: ActivationFunction, kernel: PairKernel) -> tuple[ActivationFunction, PairKernel, float]:
    """Replace a function far from its own scale by its germ, or a saturated one by itself at a safe scale.

    Returns the function, the kernel, and the log of the factor of the derivative's second moment that the change of
    scale leaves out: E phi'^2 of a saturating function falls as 1 / sigma.
    """
    if function.homogeneous or -FAR < kernel.log_scale < FAR:
        return function, kernel, 0.0
    if kernel.log_scale < 0:
        value, left, right = function.germ_zero
        if value != 0.0:
            return function, replace(kernel, log_scale=-FAR), 0.0
        has_germ = left != 0.0 or right != 0.0
    else:
        (left, _), (right, _) = function.germ_infinity
        if left == right == 0.0:
            return function, replace(kernel, log_scale=FAR), -(kernel.log_scale - FAR) / 2
        has_germ = True
    if not (has_germ and math.isfinite(left) and math.isfinite(right)):
        raise UserError(
            f"theory, activation {function.name}",
            f"a signal of second moment 1e{kernel.log_scale / math.log(10):.0f}",
            f"one within 1e+-{FAR / math.log(10):.0f}, as the function has no slope beyond",
            "scale the weights, normalise, or use fewer layers",
        )
    return half_lines(left, right), kernel, 0.0


def power_series(correlation: Array, left: Ints, right: Ints, series: Array, dimensions: float = math.inf) -> Array:
    """Return sum_k series[left, k, i] series[right, k, j] P_k(c[b, i, j]), by Clenshaw's rule; of several series each.

    P_k(c) = c^k for Gaussian points. Terms that are lost in rounding are left out. Some blocks, or a tile of a large
    one, are taken at a time, so that what is worked on stays in the processor's cache. A block of one profile is
    symmetric.
    """
    blocks, points, _ = correlation.shape
    out = np.empty((*series.shape[:-3], *correlation.shape))
    if points <= 2 * _TILE:
        some = max(1, _IN_CACHE // points**2)
        for start in range(0, blocks, some):
            part = slice(start, start + some)
            first, second = series[..., left[part], :, :], series[..., right[part], :, :]
            out[..., part, :, :] = _clenshaw(correlation[part], first, second, dimensions)
        return out
    tiles = [slice(start, start + _TILE) for start in range(0, points, _TILE)]
    for block, (one, other) in enumerate(zip(left, right, strict=True)):
        for rows, cols in product(tiles, tiles):
            if one == other and rows.start > cols.start:
                out[..., block, rows, cols] = out[..., block, cols, rows].swapaxes(-1, -2)
            else:
                first, second = series[..., one, :, rows], series[..., other, :, cols]
                out[..., block, rows, cols] = _clenshaw(correlation[block, rows, cols], first, second, dimensions)
    return out


def _clenshaw(c: Array, first: Array, second: Array, dimensions: float) -> Array:
    """Return what `power_series` does, of entries `c` of shape (..., i, j) and series of shape (..., k, i or j).

    The series may have more axes than the entries.
    """
    d, sphere = dimensions, dimensions < math.inf
    order = first.shape[-2]
    # |P_k(c)| is at most about the k-th power of the larger of c and sqrt(k / d).
    largest = max(float(c.max()), -float(c.min()), math.sqrt(order / d))
    if largest < 1.0:
        order = min(order, 1 + math.ceil(math.log(_ROUNDING) / math.log(max(largest, _ROUNDING))))
    shape = *first.shape[:-2], *c.shape[-2:]
    row, before = np.zeros(shape), np.zeros(shape)
    for k in range(order - 1, -1, -1):
        if sphere:
            # P_(k+1) = (2k + d - 2) / (k + d - 2) c P_k - k / (k + d - 2) P_(k-1)
            last, row = row, row * c
            row *= (2 * k + d - 2) / (k + d - 2) if k else 1.0
            before *= (k + 1) / (k + d - 1)
            row -= before
            before = last
        else:
            row *= c
        row += first[..., k, :, None] * second[..., k, None, :]
    return row


def on_distinct(function: Callable[[Array], Array], c: Array, size: Size) -> Array:
    """Apply a function to entries of shape (blocks, points, points), once an offset if they depend on nothing else."""
    numbers, place = offsets(size), pair_of_offset(size)
    distinct = c.reshape(len(c), -1)[:, place]
    if not np.array_equal(np.take(distinct, numbers, axis=1), c):
        return function(c)
    return np.take(function(distinct), numbers, axis=1)


def polynomial(c: Array, series: Array) -> Array:
    """Return sum_k series[k] c^k, by Horner's rule in c^8 of polynomials of degree 7, some entries at a time."""
    parts = np.zeros((-(-len(series) // _STRIDE), _STRIDE))
    parts.flat[: len(series)] = series
    flat, out = c.ravel(), np.empty(c.size)
    powers = np.ones((_STRIDE, min(flat.size, _TILE**2)))
    for start in range(0, flat.size, _TILE**2):
        some = flat[start : start + _TILE**2]
        part = powers[:, : some.size]
        for k in range(1, _STRIDE):
            np.multiply(part[k - 1], some, out=part[k])
        high, (*low, total) = part[-1] * some, parts @ part
        for row in low[::-1]:
            total *= high
            total += row
        out[start : start + _TILE**2] = total
    return out.reshape(c.shape)
