"""Values of terms on arrays, also where an exponential on the way leaves the floating range."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import reduce

import numpy as np
import scipy  # it imports special functions when they are first asked for
from numpy.typing import ArrayLike, NDArray

from varprop.simulator.formula.terms import Term, distinct

Array = NDArray[np.float64]

_BLOCK = 2**14  # numbers worked on at a time, so that intermediate results stay in the processor's cache

_ON_FLOATS: dict[str, Callable[..., Array]] = {
    "add": lambda *terms: reduce(np.add, terms),
    "multiply": lambda *factors: reduce(np.multiply, factors),
    "divide": np.divide,
    "negate": np.negative,
    "power": np.power,
    "less": np.less,
    "less_equal": np.less_equal,
    "where": np.where,
    "min": np.minimum,
    "max": np.maximum,
    "abs": np.abs,
    "exp": np.exp,
    "expm1": np.expm1,
    "log": np.log,
    "log1p": np.log1p,
    "sqrt": np.sqrt,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "erf": lambda u: scipy.special.erf(u),
    "sigmoid": lambda u: 1 / (1 + np.exp(-u)),
    "softplus": lambda u: np.log1p(np.exp(-np.abs(u))) + np.maximum(u, 0.0),
}


def evaluate(term: Term, x: ArrayLike) -> Array:
    """Return a term's values at x, elementwise.

    Where plain arithmetic ends in infinity or in 0/0, it is repeated on logarithms; where that does not help either, a
    gap in the formula (sin(x)/x at 0) is filled from both sides. What is left is infinite, or not a number.
    """
    x = np.asarray(x, dtype=np.float64)
    flat = np.ascontiguousarray(x).reshape(-1)
    out = np.empty_like(flat)
    order = list(distinct(term))
    with np.errstate(all="ignore"):
        for start in range(0, flat.size, _BLOCK):
            part = slice(start, start + _BLOCK)
            out[part] = _plain(order, flat[part])
        for repair in (_by_logarithms, _from_both_sides):
            lost = ~np.isfinite(out)
            if not lost.any():
                break
            out[lost] = repair(order, flat[lost])
    return out.reshape(x.shape)


def _plain(order: list[Term], x: Array) -> Array:
    values: dict[int, Array] = {}
    for part in order:
        if part.operator == "x":
            value = x
        elif not part.arguments:
            value = np.float64(_constant(part))  # type: ignore[assignment]
        else:
            value = _ON_FLOATS[part.operator](*(values[id(argument)] for argument in part.arguments))
        values[id(part)] = value
    return values[id(order[-1])]


def _constant(part: Term) -> float:
    return math.pi if part.operator == "pi" else part.number


def _from_both_sides(order: list[Term], x: Array) -> Array:
    step = 1e-8 * np.maximum(np.abs(x), 1.0)
    return (_plain(order, x - step) + _plain(order, x + step)) / 2


Logarithmic = tuple[Array, Array]
"""Numbers as (sign, log of the absolute value)."""


def _by_logarithms(order: list[Term], x: Array) -> Array:
    values: dict[int, Logarithmic | NDArray[np.bool_]] = {}
    for part in order:
        inner = [values[id(argument)] for argument in part.arguments]
        if part.operator == "x":
            values[id(part)] = _logarithmic(x)
        elif not part.arguments:
            values[id(part)] = _logarithmic(np.full_like(x, _constant(part)))
        elif part.operator in _ON_LOGARITHMS:
            values[id(part)] = _ON_LOGARITHMS[part.operator](*inner)
        else:
            plain = _ON_FLOATS[part.operator](*(_number(value) for value in inner))  # type: ignore[arg-type]
            values[id(part)] = _logarithmic(plain)
    return _number(values[id(order[-1])])  # type: ignore[arg-type]


def _logarithmic(value: Array) -> Logarithmic:
    return np.sign(value), np.log(np.abs(value))


def _number(value: Logarithmic) -> Array:
    sign, log = value
    return np.where(np.isneginf(log), 0.0, sign * np.exp(log))  # and not a number for 0/0


def _sum(*terms: Logarithmic) -> Logarithmic:
    top = reduce(np.maximum, (log for _, log in terms))
    shift = np.where(np.isfinite(top), top, 0.0)
    total = sum(sign * np.exp(log - shift) for sign, log in terms)
    return np.sign(total), shift + np.log(np.abs(total))


def _product(*factors: Logarithmic) -> Logarithmic:
    return reduce(np.multiply, (sign for sign, _ in factors)), reduce(np.add, (log for _, log in factors))


def _negative(value: Logarithmic) -> Logarithmic:
    return -value[0], value[1]


def _below(left: Logarithmic, right: Logarithmic) -> NDArray[np.bool_]:
    return np.asarray(_sum(left, _negative(right))[0] < 0)


def _chosen(condition: NDArray[np.bool_], yes: Logarithmic, no: Logarithmic) -> Logarithmic:
    return np.where(condition, yes[0], no[0]), np.where(condition, yes[1], no[1])


def _power(base: Logarithmic, exponent: Logarithmic) -> Logarithmic:
    n = _number(exponent)
    sign = np.where(base[0] < 0, np.where(n % 2 == 0, 1.0, np.where(n % 2 == 1, -1.0, np.nan)), base[0])
    return sign, n * base[1]


def _log(value: Logarithmic) -> Logarithmic:
    return _logarithmic(np.where(value[0] > 0, value[1], np.nan))


def _log1p(value: Logarithmic) -> Logarithmic:
    return _logarithmic(np.where(value[1] < 700, np.log1p(_number(value)), _number(_log(value))))


def _sigmoid(value: Logarithmic) -> Logarithmic:
    plain = _number(value)
    return np.ones_like(plain), -np.logaddexp(0.0, -plain)


def _expm1(value: Logarithmic) -> Logarithmic:
    plain = _number(value)
    return _chosen(plain < 700, _logarithmic(np.expm1(plain)), (np.ones_like(plain), plain))


_ON_LOGARITHMS: dict[str, Callable[..., Logarithmic | NDArray[np.bool_]]] = {
    "add": _sum,
    "multiply": lambda *factors: (
        reduce(np.multiply, (f[0] for f in factors)),
        reduce(np.add, (f[1] for f in factors)),
    ),
    "divide": lambda left, right: (left[0] * right[0], left[1] - right[1]),
    "negate": _negative,
    "power": _power,
    "less": _below,
    "less_equal": lambda left, right: ~_below(right, left),
    "where": _chosen,
    "min": lambda left, right: _chosen(_below(left, right), left, right),
    "max": lambda left, right: _chosen(_below(right, left), left, right),
    "abs": lambda value: (np.abs(value[0]), value[1]),
    "exp": lambda value: (np.ones_like(value[1]), _number(value)),
    "expm1": _expm1,
    "log": _log,
    "log1p": _log1p,
    "sqrt": lambda value: (np.where(value[0] < 0, np.nan, value[0]), value[1] / 2),
    "sigmoid": _sigmoid,
}
