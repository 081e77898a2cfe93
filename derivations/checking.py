"""Check a derivation step by step: symbolically where SymPy can, else at random points to many digits."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import mpmath
import sympy as sp

from varprop.derivations.expectation import evaluate
from varprop.derivations.special_functions import elementary
from varprop.derivations.theorem import Derivation, Step

_DIGITS = 25
_TOLERANCE = mpmath.mpf(10) ** -15  # integrands and kinks leave 20 digits and more of 25
_POINTS = 3
_POINTS_OF_PIECES = 16  # every piece of a piecewise function must be met


@dataclass(frozen=True)
class Check:
    """Outcome for one step; `method` is "symbolic" or "numeric"."""

    topic: str
    step: str
    holds: bool
    method: str
    detail: str = ""


def check(derivation: Derivation) -> tuple[Check, ...]:
    """Check every step of a derivation."""
    return tuple(_check(derivation, step) for step in derivation.steps)


def _check(derivation: Derivation, step: Step) -> Check:
    method = "symbolic"
    for left, right in _concrete(derivation, step):
        inequality = isinstance(step.equation, sp.Le)
        if not inequality and _proved(left - right):
            continue
        method = "numeric"
        for values in _points(left - right, step):
            found, expected = _number(left, values), _number(right, values)
            excess = found - expected if inequality else abs(found - expected)
            if not excess <= _TOLERANCE * (1 + abs(expected)):
                where = ", ".join(f"{symbol} = {mpmath.nstr(value, 6)}" for symbol, value in values.items())
                relation = "is above" if inequality else "is not"
                numbers = f"{mpmath.nstr(found, 17)} {relation} {mpmath.nstr(expected, 17)}"
                detail = f"{numbers} at {where or 'no free symbol'}"
                return Check(derivation.topic, step.name, False, method, detail)
    return Check(derivation.topic, step.name, True, method)


def _concrete(derivation: Derivation, step: Step) -> Iterator[tuple[sp.Expr, sp.Expr]]:
    """Yield both sides with sizes put in, sums written out, and expectations and constants replaced."""
    for case in step.cases or ({},):
        left, right = (
            elementary(_written_out(_spelled_out(side, step), case, derivation)).subs(derivation.constants)
            for side in step.equation.args
        )
        # Elements of families become plain symbols, so that they can be drawn.
        elements = sorted((left - right).atoms(sp.Indexed), key=str)
        names = {element: sp.Dummy(str(element), real=True) for element in elements}
        yield left.xreplace(names), right.xreplace(names)


def _spelled_out(side: sp.Expr, step: Step) -> sp.Expr:
    """Replace a step's abbreviations, each of which may use those after it."""
    for name, meaning in step.where.items():
        if isinstance(name, sp.IndexedBase):
            side = side.replace(
                lambda part, name=name: isinstance(part, sp.Indexed) and part.base == name,
                lambda part, meaning=meaning: meaning(*part.indices),
            )
        else:
            side = side.replace(name, meaning)
    return side


def _written_out(side: sp.Expr, case: Mapping[sp.Symbol, int], derivation: Derivation) -> sp.Expr:
    side = side.subs(case)
    laws = {base: tuple(moment.subs(case) for moment in law) for base, law in derivation.laws.items()}
    side = side.replace(lambda part: isinstance(part, sp.Sum | sp.Product), lambda part: part.doit())
    side = evaluate(side, laws)
    return side.replace(lambda part: isinstance(part, sp.Derivative | sp.Limit | sp.Subs), lambda part: part.doit())


def _proved(residual: sp.Expr) -> bool:
    if residual.has(sp.Integral, sp.Piecewise):
        return False
    if sp.expand(residual) == 0:
        return True
    # Beyond that size simplify takes seconds and seldom ends at 0.
    return bool(residual.count_ops() < 120 and sp.simplify(residual) == 0)


def _points(residual: sp.Expr, step: Step) -> Iterator[dict[sp.Symbol, mpmath.mpf]]:
    symbols = sorted(residual.free_symbols, key=str)
    pieces = residual.has(sp.Piecewise) and not residual.has(sp.Integral)
    source = random.Random(step.name)
    for _ in range(_POINTS_OF_PIECES if pieces else _POINTS if symbols else 1):
        yield {symbol: mpmath.mpf(_draw(symbol, step, source, pieces)) for symbol in symbols}


def _draw(symbol: sp.Symbol, step: Step, source: random.Random, pieces: bool) -> float:
    if symbol in step.domain:
        return source.uniform(*step.domain[symbol])
    if symbol.is_integer:
        return source.randint(2, 9)
    if symbol.is_nonnegative:
        return source.uniform(0.2, 3)
    return source.uniform(-9, 9) if pieces else source.uniform(-2, 2)


def _number(expression: sp.Expr, values: Mapping[sp.Symbol, mpmath.mpf]) -> mpmath.mpf:
    with mpmath.workdps(_DIGITS):
        integrals = expression.atoms(sp.Integral)
        known = {sp.Dummy("integral", real=True): _quadrature(integral, values) for integral in integrals}
        plain = expression.xreplace(dict(zip(integrals, known, strict=True)))
        return _run(plain, {**values, **known})


def _quadrature(integral: sp.Integral, values: Mapping[sp.Symbol, mpmath.mpf]) -> mpmath.mpf:
    """Integrate over one variable, cut at kinks; an infinite end is put where Gaussian tails are below 1e-30."""
    ((variable, lower, upper),) = integral.limits
    reach = 14 * mpmath.sqrt(max([mpmath.mpf(1), *values.values()]))
    ends = [sign * reach if end.is_infinite else _run(end, values) for end, sign in ((lower, -1), (upper, 1))]
    inner = {mpmath.mpf(0)} | {mpmath.mpf(int(k)) for k in _kinks(integral.function, variable)}
    cuts = [ends[0], *sorted(cut for cut in inner if ends[0] < cut < ends[1]), ends[1]]
    symbols = [symbol for symbol in values if symbol in integral.free_symbols]
    function = sp.lambdify([variable, *symbols], integral.function, "mpmath")
    arguments = [values[symbol] for symbol in symbols]
    return mpmath.quad(lambda x: function(x, *arguments), cuts)


def _kinks(function: sp.Expr, variable: sp.Symbol) -> set[sp.Expr]:
    return {
        relation.rhs
        for relation in function.atoms(sp.core.relational.Relational)
        if relation.lhs == variable and relation.rhs.is_number
    }


def _run(expression: sp.Expr, values: Mapping[sp.Symbol, mpmath.mpf]) -> mpmath.mpf:
    symbols = [symbol for symbol in values if symbol in expression.free_symbols]
    return mpmath.mpmathify(sp.lambdify(symbols, expression, "mpmath")(*(values[symbol] for symbol in symbols)))
