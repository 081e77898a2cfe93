"""Derivatives of terms, almost everywhere: piece by piece between kinks."""

from __future__ import annotations

from collections.abc import Callable

from varprop.simulator.formula.terms import (
    ONE,
    PI,
    TWO,
    ZERO,
    Term,
    add,
    call,
    distinct,
    divide,
    has_x,
    multiply,
    negate,
    number,
    power,
    where,
)

# Outer derivatives of functions of one argument, in forms that do not cancel.
_OUTER: dict[str, Callable[[Term], Term]] = {
    "exp": lambda u: call("exp", u),
    "expm1": lambda u: call("exp", u),
    "log": lambda u: divide(ONE, u),
    "log1p": lambda u: divide(ONE, add(ONE, u)),
    "sqrt": lambda u: divide(ONE, multiply(TWO, call("sqrt", u))),
    "sin": lambda u: call("cos", u),
    "cos": lambda u: negate(call("sin", u)),
    "tanh": lambda u: multiply(number(4.0), _logistic(multiply(TWO, u))),
    "erf": lambda u: multiply(divide(TWO, call("sqrt", PI)), call("exp", negate(power(u, TWO)))),
    "sigmoid": lambda u: _logistic(u),
    "softplus": lambda u: call("sigmoid", u),
    "negate": lambda u: number(-1.0),
    "abs": lambda u: where(Term("less", (ZERO, u)), ONE, number(-1.0)),
}


def _logistic(u: Term) -> Term:
    return multiply(call("sigmoid", u), call("sigmoid", negate(u)))


def derivative(term: Term) -> Term:
    """Return the derivative with respect to x; at a kink it is that of either side."""
    found: dict[int, Term] = {}
    for part in distinct(term):
        found[id(part)] = _derivative(part, [found[id(argument)] for argument in part.arguments])
    return found[id(term)]


def _derivative(term: Term, inner: list[Term]) -> Term:
    operator, arguments = term.operator, term.arguments
    if operator == "x":
        return ONE
    if operator in ("number", "pi", "less", "less_equal"):
        return ZERO
    if operator in _OUTER:
        return multiply(_OUTER[operator](arguments[0]), inner[0]) if inner[0] != ZERO else ZERO
    if operator == "add":
        return add(*inner)
    if operator == "multiply":
        return add(
            *(
                multiply(slope, *arguments[:place], *arguments[place + 1 :])
                for place, slope in enumerate(inner)
                if slope != ZERO
            )
        )
    if operator == "where":
        return where(arguments[0], inner[1], inner[2])
    left, right = arguments
    if operator in ("min", "max"):
        sides = (left, right) if operator == "min" else (right, left)
        return where(Term("less", sides), *inner)
    if operator == "divide":
        if inner[1] == ZERO:
            return divide(inner[0], right)
        return add(divide(inner[0], right), negate(divide(multiply(left, inner[1]), power(right, TWO))))
    assert operator == "power"
    return _of_power(left, right, *inner)


def _of_power(base: Term, exponent: Term, base_slope: Term, exponent_slope: Term) -> Term:
    parts = []
    if base_slope != ZERO:
        lowered = number(exponent.number - 1.0) if exponent.operator == "number" else add(exponent, number(-1.0))
        parts.append(multiply(exponent, power(base, lowered), base_slope))
    if has_x(exponent):
        parts.append(multiply(power(base, exponent), call("log", base), exponent_slope))
    return add(*parts)
