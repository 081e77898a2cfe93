"""Activations acting on pair kernels: E[phi(z) phi(z')], and the same of phi' and of z phi'(z)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.theory.pairs import PairKernel

Array = NDArray[np.float64]
Ints = NDArray[np.intp]
ORDER = 40
_TABLE = 65
_SAFE = 250.0  # log of the second moment up to which an activation is evaluated as it is

jit_parallel = numba.njit(parallel=True, cache=True)


@dataclass(frozen=True)
class Duals:
    """What one activation does to a Gaussian pair kernel.

    Attributes
    ----------
    mean
        E phi(z) at each point, shape (profiles, positions).
    kernel, derivative, tilted
        Pair kernels of phi(z), phi'(z) and z phi'(z), on the blocks of the input kernel.
    """

    mean: Array
    kernel: PairKernel
    derivative: PairKernel
    tilted: PairKernel


@dataclass(frozen=True)
class _Expansion:
    """Orthonormal Hermite coefficients at each of n deviations, shape (n, ORDER + 1), and exact second moments, (n,)."""

    value: Array
    derivative: Array
    tilted: Array
    second_moments: Array  # of phi, phi', z phi'; shape (3, n)


def _expand(function: ActivationFunction, sigma: Array) -> _Expansion:
    """Expand phi(sigma u), phi'(sigma u) and sigma u phi'(sigma u) by quadrature split at the kinks."""
    n = sigma.size
    coefficients = np.zeros((3, n, ORDER + 1))
    moments = np.zeros((3, n))
    nodes, weights = np.polynomial.legendre.leggauss(40)
    for row, s in enumerate(sigma):
        # Panels end at kinks, and shrink around zero where sigma stretches a function that bends on the scale 1.
        bends = {b for b in (*function.kinks, -40.0, -8.0, -2.0, 2.0, 8.0, 40.0) if abs(b) < 11.0 * s and s > 2.0}
        bends |= {b for b in function.kinks if abs(b) < 11.0 * s}
        edges = np.array(sorted({-11.0, -3.0, 0.0, 3.0, 11.0} | {b / s for b in bends}))
        centre, half = (edges[1:] + edges[:-1]) / 2, (edges[1:] - edges[:-1]) / 2
        u = (centre[:, None] + half[:, None] * nodes).ravel()
        mass = (half[:, None] * weights).ravel() * np.exp(-u * u / 2) / np.sqrt(2 * np.pi)
        slope = function.derivative(s * u)
        table = np.stack([function.value(s * u), slope, s * u * slope])
        coefficients[:, row] = (table * mass) @ _hermite(u).T
        moments[:, row] = (table * table) @ mass
    return _Expansion(coefficients[0], coefficients[1], coefficients[2], moments)


def _hermite(u: Array) -> Array:
    """Orthonormal probabilists' Hermite polynomials, shape (ORDER + 1, u.size)."""
    basis = np.empty((ORDER + 1, u.size))
    basis[0], basis[1] = 1.0, u
    for k in range(1, ORDER):
        basis[k + 1] = (u * basis[k] - np.sqrt(k) * basis[k - 1]) / np.sqrt(k + 1)
    return basis


def _expand_many(function: ActivationFunction, sigma: Array) -> _Expansion:
    """Expand at every deviation; more than a table's worth of them are interpolated on a logarithmic grid."""
    distinct, back = np.unique(sigma, return_inverse=True)
    if distinct.size <= _TABLE:
        found = _expand(function, distinct)
        return _Expansion(
            found.value[back], found.derivative[back], found.tilted[back], found.second_moments[:, back]
        )
    floor = distinct[-1] * 1e-4
    grid = np.linspace(np.log(max(distinct[0], floor)), np.log(distinct[-1]), _TABLE)
    at = np.log(np.maximum(sigma, floor))
    found = _expand(function, np.exp(grid))

    def between(table: Array) -> Array:
        return np.asarray(CubicSpline(grid, table, axis=0)(at), dtype=np.float64)

    return _Expansion(
        between(found.value), between(found.derivative), between(found.tilted), between(found.second_moments.T).T
    )


def apply_activation(function: ActivationFunction, kernel: PairKernel) -> Duals:
    """Push a Gaussian pair kernel through an activation.

    Positively homogeneous functions use their closed forms; the others Hermite series, whose truncated tail is put on
    the next power of the correlation so that the diagonal stays exact.
    """
    function, factor, kernel, extra = _within_range(function, kernel)
    if function.homogeneous:
        return _closed_form(function, factor, kernel)
    sigma = np.sqrt(np.maximum(kernel.diagonal, 0.0)) * np.exp(kernel.log_scale / 2)
    expansion = _expand_many(function, sigma.ravel())
    layout, blocks = kernel.layout, kernel.values.shape
    scale = np.exp(kernel.log_scale)
    with np.errstate(invalid="ignore", divide="ignore"):
        inverse = np.where(sigma > 0, 1.0 / sigma, 0.0)
    correlation = kernel.values * scale * inverse[layout.left][:, :, None] * inverse[layout.right][:, None, :]
    np.clip(correlation, -1.0, 1.0, out=correlation)
    results = []
    for table, exact in zip(
        (expansion.value, expansion.derivative, expansion.tilted), expansion.second_moments, strict=True
    ):
        tail = np.sqrt(np.maximum(exact - np.einsum("nk,nk->n", table, table), 0.0))
        series = np.concatenate([table, tail[:, None]], axis=1).reshape(*sigma.shape, -1)
        values = np.empty(blocks)
        power_series(correlation, layout.left, layout.right, np.ascontiguousarray(series.transpose(0, 2, 1)), values)
        diagonal = exact.reshape(sigma.shape)
        own = np.arange(blocks[1])
        values[: layout.profiles, own, own] = diagonal
        results.append(replace(kernel, values=values, log_scale=0.0).scaled(1.0))
    mean = expansion.value[:, 0].reshape(sigma.shape)
    out, derivative, tilted = results
    return Duals(mean, out, derivative.scaled(1.0, extra), tilted.scaled(1.0, extra))


def _closed_form(function: ActivationFunction, factor: float, kernel: PairKernel) -> Duals:
    q = np.maximum(kernel.diagonal, 0.0)
    layout = kernel.layout
    q1, q2 = q[layout.left][:, :, None], q[layout.right][:, None, :]
    scale = np.sqrt(q1 * q2)
    correlation = np.divide(kernel.values, scale, out=np.zeros_like(kernel.values), where=scale > 0)
    np.clip(correlation, -1.0, 1.0, out=correlation)
    own = np.arange(q.shape[1])
    correlation[: layout.profiles, own, own] = 1.0
    values = replace(kernel, values=factor**2 * function.dual(q1, q2, correlation))
    slopes = factor**2 * np.broadcast_to(function.derivative_dual(q1, q2, correlation), correlation.shape)
    derivative = replace(kernel, values=slopes, log_scale=0.0)
    # z phi'(z) = phi(z) for a positively homogeneous phi.
    return Duals(factor * function.mean(q) * np.exp(kernel.log_scale / 2), values, derivative, values)


def _within_range(
    function: ActivationFunction, kernel: PairKernel
) -> tuple[ActivationFunction, float, PairKernel, float]:
    """Replace a function far from its own scale by its germ, or a saturated one by itself at a safe scale.

    Returns the function, a factor on it, the kernel, and the log of the factor of the derivative's second moment that
    the change of scale leaves out: E phi'^2 of a saturating function falls as 1 / sigma.
    """
    if function.homogeneous or -_SAFE < kernel.log_scale < _SAFE:
        return function, 1.0, kernel, 0.0
    if kernel.log_scale < 0:
        value, left, right = function.germ_zero
        if value == 0.0 and right:
            return activation(f"leaky_relu({left / right!r})"), right, kernel, 0.0
        return function, 1.0, replace(kernel, log_scale=-_SAFE), 0.0
    (left, _), (right, _) = function.germ_infinity
    if right:
        return activation(f"leaky_relu({left / right!r})"), right, kernel, 0.0
    return function, 1.0, replace(kernel, log_scale=_SAFE), -(kernel.log_scale - _SAFE) / 2


@jit_parallel
def power_series(correlation: Array, left: Ints, right: Ints, series: Array, out: Array) -> None:
    """out[b, i, j] = sum_k series[left, k, i] series[right, k, j] c[b, i, j]^k by Horner's rule."""
    order = series.shape[1]
    points = correlation.shape[1]
    for flat in numba.prange(correlation.shape[0] * points):
        b, i = flat // points, flat % points
        first, second = series[left[b]], series[right[b]]
        row = np.zeros(points)
        for k in range(order - 1, -1, -1):
            a = first[k, i]
            for j in range(points):
                row[j] = row[j] * correlation[b, i, j] + a * second[k, j]
        out[b, i, :] = row

