"""Where a formula or its derivative may jump, bend sharply or be infinite: cuts for quadrature."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.formula.evaluate import evaluate
from varprop.simulator.formula.terms import ONE, Term, add, distinct, has_x, negate

Array = NDArray[np.float64]
Function = Callable[[Array], Array]

_NEAR = np.linspace(-32, 32, 4097)
_FAR = np.geomspace(32, 1e6, 401)[1:]
_GRID = np.concatenate([-_FAR[::-1], _NEAR, _FAR])
_HALVINGS = 100
_SAME = 1e-12  # kinks closer than that, relative to their size or to 1, are one

_PANEL, _ = np.polynomial.legendre.leggauss(24)
_TRANSFORM = np.linalg.inv(np.polynomial.legendre.legvander(_PANEL, 23))
_RUNGS = 2.0 ** np.arange(-6, 7)
_RESOLVED = 1e-9  # last coefficients of a panel over its largest one
_NARROWEST = 1e-9
_MOST_CUTS = 400


def kinks(term: Term) -> tuple[float, ...]:
    """Return where the term or its derivative may jump or be infinite, in order, within 1e6 of the origin.

    Those are the zeros of what stands in abs, log, sqrt, below a fraction or under a broken power, and the places
    where two branches meet. Zeros closer than 1/64 to each other may be missed.
    """
    found: list[float] = []
    for guard in _guards(term):
        found += _zeros(guard)
    distinct_ones: list[float] = []
    for kink in sorted(found):
        if not distinct_ones or kink - distinct_ones[-1] > _SAME * max(1.0, abs(kink)):
            distinct_ones.append(kink)
    return tuple(distinct_ones)


def _guards(term: Term) -> Iterator[Term]:
    for part in distinct(term):
        match part.operator, part.arguments:
            case (("abs" | "log" | "sqrt"), (inner,)):
                guard = inner
            case "log1p", (inner,):
                guard = add(ONE, inner)
            case (("min" | "max" | "less" | "less_equal"), (left, right)):
                guard = add(left, negate(right))
            case "divide", (_, below):
                guard = below
            case "power", (base, exponent) if not _is_natural(exponent):
                guard = base
            case _:
                continue
        if has_x(guard):
            yield guard


def _is_natural(exponent: Term) -> bool:
    return exponent.operator == "number" and exponent.number >= 0 and exponent.number.is_integer()


def _zeros(term: Term) -> list[float]:
    """Return where a term changes sign, begins or ceases to be zero, or touches zero."""
    signs = np.sign(evaluate(term, _GRID))
    changes = np.flatnonzero((signs[1:] != signs[:-1]) & ~np.isnan(signs[1:]) & ~np.isnan(signs[:-1]))
    low, high, sign = _GRID[changes], _GRID[changes + 1], signs[changes]
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        same = np.sign(evaluate(term, middle)) == sign
        low, high = np.where(same, middle, low), np.where(same, high, middle)
    return [_rounded(float(zero)) for zero in (low + high) / 2] + _touching(term)


def _touching(term: Term) -> list[float]:
    """Return local minima of the absolute value that are zero to rounding, by golden section."""
    values = np.abs(evaluate(term, _GRID))
    with np.errstate(invalid="ignore"):
        places = np.flatnonzero((values[1:-1] < values[:-2]) & (values[1:-1] < values[2:])) + 1
    ratio = (np.sqrt(5) - 1) / 2
    low, high, level = _GRID[places - 1], _GRID[places + 1], values[places - 1]
    for _ in range(_HALVINGS // 2):
        left, right = high - ratio * (high - low), low + ratio * (high - low)
        nearer = np.abs(evaluate(term, left)) < np.abs(evaluate(term, right))
        low, high = np.where(nearer, low, left), np.where(nearer, right, high)
    minima = (low + high) / 2
    return [_rounded(float(x)) for x in minima[np.abs(evaluate(term, minima)) <= 1e-13 * level]]


def _rounded(zero: float) -> float:
    """Return the short decimal number that a zero found by halving stands for, if there is one."""
    short = round(zero, 7) + 0.0  # no -0.0
    return short if abs(short - zero) <= 1e-13 * max(1.0, abs(zero)) else zero


def bends(functions: tuple[Function, ...], cuts: tuple[float, ...]) -> tuple[float, ...]:
    """Return further cuts that leave every function smooth on the scale of panels that grow away from the origin.

    Between the cuts and +-2^k, |x| <= 64, a panel is halved until polynomials of degree 23 follow the functions.
    """
    edges = np.array(sorted({*cuts, *_RUNGS, *-_RUNGS, 0.0}))
    edges = edges[np.abs(edges) <= _RUNGS[-1]]
    centre = np.linspace(-1, 1, 200)
    scales = [1e-4 * float(np.max(np.abs(function(centre)), initial=0.0)) for function in functions]
    low, high = edges[:-1], edges[1:]
    found: list[float] = []
    while low.size and len(found) < _MOST_CUTS:
        x = (low + high)[:, None] / 2 + (high - low)[:, None] / 2 * _PANEL
        rough = np.zeros(low.size, dtype=bool)
        for function, scale in zip(functions, scales, strict=True):
            series = np.abs(function(x) @ _TRANSFORM.T)
            top = np.maximum(series.max(axis=1), scale)
            rough |= np.isfinite(top) & (series[:, -4:].max(axis=1) > _RESOLVED * top)
        rough &= high - low > _NARROWEST * np.maximum(1.0, np.abs(low))
        low, high = low[rough], high[rough]
        middle = (low + high) / 2
        found += middle.tolist()
        low, high = np.concatenate([low, middle]), np.concatenate([middle, high])
    return tuple(found)
