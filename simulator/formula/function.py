"""A formula as an activation: values, derivative, facts for theory; refused where theory has nothing to say."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varprop.simulator.errors import UserError
from varprop.simulator.formula.calculus import derivative
from varprop.simulator.formula.evaluate import evaluate
from varprop.simulator.formula.grammar import parse
from varprop.simulator.formula.kinks import Function, bends, kinks
from varprop.simulator.formula.terms import Term, distinct, has_x, shortened

Array = NDArray[np.float64]

_LARGEST_EXPONENT = 64
_MOST_KINKS = 50
_SIDES = np.array([-1.0, 1.0])
_PROBES = np.concatenate([s * np.geomspace(1e-6, 30, 400) for s in (-1, 1)])


@dataclass(frozen=True)
class Formula:
    """A function of x.

    Attributes
    ----------
    text
        Canonical text.
    term, slope
        The function and its derivative, almost everywhere.
    kinks
        Where the function or its derivative may jump, in order.
    bends
        Further places at which quadrature is to be cut.
    """

    text: str
    term: Term
    slope: Term
    kinks: tuple[float, ...]
    bends: tuple[float, ...]

    def value(self, x: ArrayLike) -> Array:
        """Return the function, elementwise."""
        return evaluate(self.term, x)

    def derivative(self, x: ArrayLike) -> Array:
        """Return the derivative, elementwise; at a kink the value from the left."""
        return evaluate(self.slope, _left_of(self.kinks, np.asarray(x, dtype=np.float64)))


def formula(text: str) -> Formula:
    """Read a formula in x.

    Raises
    ------
    UserError
        The text is no formula, is not real and finite for almost every x, has too many kinks, or has a second moment
        (its own or its derivative's) that is infinite under Gaussian input.

    Examples
    --------
    >>> swish = formula("x / (1 + exp(-x))")
    >>> swish.value([-1000.0, 0.0, 1000.0]).tolist()
    [-0.0, 0.0, 1000.0]
    >>> formula("max(x, 0) - abs(x + 2)").kinks
    (-2.0, 0.0)
    """
    term, canonical = parse(text)
    _refuse_wild_constants(term, text)
    slope = derivative(term)
    places = kinks(term)
    if len(places) > _MOST_KINKS:
        raise UserError("formula", shortened(text), f"at most {_MOST_KINKS} kinks", f"it has {len(places)}")
    found = Formula(canonical, term, slope, places, ())
    functions = (found.value, found.derivative)
    with np.errstate(all="ignore"):
        for function, what in zip(functions, ("the formula", "its derivative"), strict=True):
            probes = function(_PROBES)
            if np.isnan(probes).any():
                where = _PROBES[np.isnan(probes)][0]
                raise UserError(
                    "formula", shortened(text), "a real number for every x", f"{what} has none at {where:g}"
                )
            _refuse_poles(function, places, what, text)
            _refuse_growth(function, what, text)
        return Formula(canonical, term, slope, places, bends(functions, places))


def _left_of(places: tuple[float, ...], x: Array) -> Array:
    if places:
        on = np.isin(x, places)
        if on.any():
            return np.where(on, np.nextafter(x, -np.inf), x)
    return x


def _refuse_wild_constants(term: Term, text: str) -> None:
    for part in distinct(term):
        if part.operator in ("less", "less_equal") or has_x(part):
            continue
        value = float(evaluate(part, 0.0))
        if not math.isfinite(value):
            raise UserError("formula", shortened(text), "numbers that are finite")
    for part in distinct(term):
        if part.operator == "power" and not has_x(part.arguments[1]):
            exponent = float(evaluate(part.arguments[1], 0.0))
            if abs(exponent) > _LARGEST_EXPONENT:
                raise UserError(
                    "formula", shortened(text), f"exponents from -{_LARGEST_EXPONENT} to {_LARGEST_EXPONENT}"
                )


def _refuse_poles(function: Function, places: tuple[float, ...], what: str, text: str) -> None:
    """Refuse what grows as h^(-1/2) or faster at distance h from a kink: its square has no integral."""
    for place in places:
        far, near = (np.abs(function(place + _SIDES * h * max(1.0, abs(place)))) for h in (1e-4, 1e-7))
        exponent = np.log(near / far) / math.log(1e3)
        if np.any(exponent > 0.49):
            advice = f"{what} is infinite at {place:.6g}, and so is the mean of its square"
            raise UserError("formula", shortened(text), "finite Gaussian moments", advice)


def _refuse_growth(function: Function, what: str, text: str) -> None:
    """Refuse what grows as exp(a x^2): from some variance on its moments are infinite."""
    x = np.geomspace(1.0, 1e150, 20_001)
    for side in _SIDES:
        values = np.abs(function(side * x))
        finite = np.flatnonzero(np.isfinite(values) & (values > 0))
        if not finite.size:
            continue
        last = finite[-1]
        logs = np.log(np.abs(function(side * x[last] * np.array([1.0, 0.5]))))
        if logs[0] > 100 and logs[0] > 2**1.95 * logs[1]:
            raise UserError(
                "formula", shortened(text), "finite Gaussian moments", f"{what} grows like exp(x^2), or faster"
            )
