"""SymPy expressions as code: scalar Python, NumPy and C, with common subexpressions computed once."""

from __future__ import annotations

import keyword
import re
from collections.abc import Callable, Iterator, Mapping
from functools import reduce
from itertools import pairwise

import sympy as sp
from sympy.printing.c import C99CodePrinter
from sympy.printing.codeprinter import CodePrinter
from sympy.printing.numpy import SciPyPrinter
from sympy.printing.pycode import PythonCodePrinter

from varprop.derivations.theorem import Derivation, Result

Line = tuple[int, str]
"""Depth of indentation, and text."""

_SQUARED = 2


class _Common:
    """Squares as products: 1e200**2 raises in Python, 1e200*1e200 is infinite. Numbers as they are stored."""

    def _print_Float(self, expr: sp.Float) -> str:
        return repr(float(expr))

    def _print_Pow(self, expr: sp.Pow, **settings: object) -> str:
        if expr.exp == _SQUARED and expr.base.is_Symbol:
            name = self._print(expr.base)  # type: ignore[attr-defined]
            return f"({name}*{name})"
        if expr.exp.is_Integer and expr.exp.is_negative:
            inner = self._print(sp.Pow(expr.base, -expr.exp))  # type: ignore[attr-defined]
            bracketed = expr.base.is_Symbol and expr.exp == -_SQUARED
            return f"(1/{inner})" if bracketed else f"(1/({inner}))"
        return str(super()._print_Pow(expr, **settings))  # type: ignore[misc]

    def _print_Relational(self, expr: sp.core.relational.Relational) -> str:
        left, right = (self._print(side) for side in (expr.lhs, expr.rhs))  # type: ignore[attr-defined]
        return f"{left} {expr.rel_op} {right}"


def _float(printer: CodePrinter, expression: sp.Expr) -> str:
    """Print an integer as a float: an array of integers would not hold a moment."""
    return f"{int(expression)}.0" if expression.is_Integer else str(printer._print(expression))


class ScalarPrinter(_Common, PythonCodePrinter):  # type: ignore[misc]
    """Python on floats with the math module alone."""

    def _print_Phi(self, expr: sp.Function) -> str:
        return f"(0.5*math.erfc({self._print(-expr.args[0] / sp.sqrt(2))}))"


class ArrayPrinter(_Common, SciPyPrinter):  # type: ignore[misc]
    """Python on arrays, with np and scipy in scope."""

    def doprint(self, expr: sp.Expr) -> str:
        return str(super().doprint(expr)).replace("numpy.", "np.")

    def _print_Pi(self, expr: sp.Expr) -> str:
        return "np.pi"

    def _print_Piecewise(self, expr: sp.Piecewise) -> str:
        return _pieces_joined(self, expr) or _pieces_added(self, expr) or self._chosen(expr)

    def _chosen(self, expr: sp.Piecewise) -> str:
        *pieces, (last, _) = expr.args
        text = _float(self, last)
        for value, condition in reversed(pieces):
            text = f"np.where({self._print(condition)}, {_float(self, value)}, {text})"
        return text

    def _print_Phi(self, expr: sp.Function) -> str:
        return f"scipy.special.ndtr({self._print(expr.args[0])})"

    def _print_erfcx(self, expr: sp.Function) -> str:
        return f"scipy.special.erfcx({self._print(expr.args[0])})"

    def _print_erfcx_tail(self, expr: sp.Function) -> str:
        return f"erfcx_tail({self._print(expr.args[0])})"

    def _print_gammainc(self, expr: sp.Function) -> str:
        return f"scipy.special.gammainc({self._print(expr.args[0])}, {self._print(expr.args[1])})"

    def _print_Min(self, expr: sp.Expr) -> str:
        first, *rest = (self._print(part) for part in expr.args)
        return str(reduce(lambda so_far, part: f"np.minimum({so_far}, {part})", rest, first))

    def _print_Max(self, expr: sp.Expr) -> str:
        first, *rest = (self._print(part) for part in expr.args)
        return str(reduce(lambda so_far, part: f"np.maximum({so_far}, {part})", rest, first))


def _intervals(expr: sp.Piecewise) -> tuple[sp.Symbol, list[tuple[sp.Expr, sp.Interval]]] | None:
    """Return the one symbol that pieces depend on, and each with where it holds, from left to right; None if not so."""
    found = {symbol for _, condition in expr.args for symbol in condition.free_symbols}
    if len(found) != 1:
        return None
    (z,) = found
    if any(symbol.name not in (z.name, "a") for value, _ in expr.args for symbol in value.free_symbols):
        return None  # others stand for anything
    pieces = expr.as_expr_set_pairs()
    if not all(isinstance(held, sp.Interval) for _, held in pieces):
        return None
    return z, sorted(pieces, key=lambda piece: piece[1].start)


def _within(z: sp.Symbol, held: sp.Interval) -> sp.Expr:
    """Return the nearest number to z where a piece holds."""
    above = sp.Max(z, held.start) if held.start.is_finite else z
    return sp.Min(above, held.end) if held.end.is_finite else above


def _pieces_joined(printer: CodePrinter, expr: sp.Piecewise) -> str | None:
    """Print pieces that meet as a sum, each of the nearest number where it holds; None if that leaves a constant.

    Exact if no two of them differ from zero at a time, and several times as fast on random signs as np.where, whose
    branches a processor cannot guess.
    """
    known = _intervals(expr)
    if known is None:
        return None
    z, pieces = known
    meets = [(value.subs(z, held.end), later.subs(z, held.end)) for (value, held), (later, _) in pairwise(pieces)]
    bent = [(value, held) for value, held in pieces if value.has(z)]
    left = sum((value for value, _ in pieces if not value.has(z)), -sum(value for value, _ in meets))
    if any(sp.simplify(first - second) != 0 for first, second in meets) or left != 0 or len(bent) > 2:
        return None
    if len(bent) == 2 and any(value != 0 for value, _ in meets):
        return None
    return str(printer._print(sp.Add(*(value.subs(z, _within(z, held)) for value, held in bent))))


def _pieces_added(printer: CodePrinter, expr: sp.Piecewise) -> str | None:
    """Print other lines and functions as a sum, each times where it holds; None for polynomials, which grow long.

    Exact, as all terms but one are zero. Where a piece does not hold, and might overflow, it is taken at the nearest
    number where it does, and multiplied by zero.
    """
    known = _intervals(expr)
    if known is None:
        return None
    z, pieces = known
    if any(not value.has(sp.Function) and sp.diff(value, z, 2) != 0 for value, _ in pieces):
        return None
    terms = []
    for value, held in pieces:
        if value == 0:
            continue
        bounds = []
        if held.start.is_finite:
            bounds.append(f"({z} {'>' if held.left_open else '>='} {printer._print(held.start)})")
        if held.end.is_finite:
            bounds.append(f"({z} {'<' if held.right_open else '<='} {printer._print(held.end)})")
        where = bounds[0] if len(bounds) == 1 else f"({' & '.join(bounds)})"
        text = _float(printer, value.subs(z, _within(z, held)))
        terms.append(f"({text})*{where}" if value.is_Add else f"{text}*{where}")
    return " + ".join(terms)


class JitPrinter(ArrayPrinter):
    """The same on numbers or arrays for numba, which does not know scipy.special: its functions stand in the module."""

    def _print_Piecewise(self, expr: sp.Piecewise) -> str:
        return self._chosen(expr)

    def doprint(self, expr: sp.Expr) -> str:
        return str(super().doprint(expr)).replace("scipy.special.", "")

    def _print_polygamma(self, expr: sp.Function) -> str:
        return f"{('digamma', 'trigamma')[int(expr.args[0])]}({self._print(expr.args[1])})"


class CPrinter(_Common, C99CodePrinter):  # type: ignore[misc]
    """C99; the calling file supplies erfcx and erfcx_tail."""

    def _print_Piecewise(self, expr: sp.Piecewise) -> str:
        *pieces, (last, _) = expr.args
        text = _float(self, last)
        for value, condition in reversed(pieces):
            text = f"({self._print(condition)} ? {_float(self, value)} : {text})"
        return text

    def _print_Phi(self, expr: sp.Function) -> str:
        return f"(0.5*erfc({self._print(-expr.args[0] / sp.sqrt(2))}))"

    def _print_erfcx(self, expr: sp.Function) -> str:
        return f"erfcx({self._print(expr.args[0])})"

    def _print_erfcx_tail(self, expr: sp.Function) -> str:
        return f"erfcx_tail({self._print(expr.args[0])})"

    def _print_gammainc(self, expr: sp.Function) -> str:
        return f"gammainc({self._print(expr.args[0])}, {self._print(expr.args[1])})"

    def _print_polygamma(self, expr: sp.Function) -> str:
        return f"polygamma({self._print(expr.args[0])}, {self._print(expr.args[1])})"


def numeric(result: Result, derivation: Derivation) -> sp.Expr:
    """Return the result's expression with the derivation's constants as numbers."""
    constants = {symbol: value.evalf(30) for symbol, value in derivation.constants.items()}
    return sp.sympify(result.expression).subs(constants)


def array_body(expression: sp.Expr) -> Iterator[Line]:
    """Yield the lines of a function on arrays."""
    return _straight(expression, ArrayPrinter().doprint, "", "")


def jit_body(expression: sp.Expr) -> Iterator[Line]:
    """Yield the lines of a function for numba."""
    return _straight(expression, JitPrinter().doprint, "", "")


def scalar_body(expression: sp.Expr) -> Iterator[Line]:
    """Yield the lines of a function on floats; a piecewise expression becomes tests."""
    printer = ScalarPrinter()
    if not isinstance(expression, sp.Piecewise):
        yield from _straight(expression, printer.doprint, "", "")
        return
    for value, condition in expression.args:
        if condition != sp.true:
            yield 0, f"if {printer.doprint(condition)}:"
        for depth, line in _straight(value, printer.doprint, "", ""):
            yield depth + (condition != sp.true), line


def c_body(expression: sp.Expr) -> Iterator[Line]:
    """Yield the lines of a C function."""
    return _straight(expression, CPrinter().doprint, "const double ", ";")


def _straight(expression: sp.Expr, text: Callable[[sp.Expr], str], declare: str, end: str) -> Iterator[Line]:
    if expression.is_Integer:
        yield 0, f"return {int(expression)}.0{end}"
        return
    shared, (value,) = sp.cse(expression, symbols=sp.numbered_symbols("t"))
    for name, part in shared:
        yield 0, f"{declare}{name} = {text(part)}{end}"
    yield 0, f"return {text(value)}{end}"


def function_name(derivation: Derivation, result: str, *, alone: bool) -> str:
    """Return the name that an exported function has."""
    return result if alone else f"{derivation.topic}_{result}"


def used_arguments(result: Result) -> tuple[sp.Symbol, ...]:
    """Return the arguments without a parameter that the formula does not contain."""
    free = sp.sympify(result.expression).free_symbols
    return tuple(symbol for symbol in result.arguments if symbol in free or symbol.name != "a")


def integrals(derivation: Derivation) -> tuple[tuple[str, str], ...]:
    """Return an activation's second moments that have no closed form, each with the function to be squared."""
    if "value" not in derivation.results:
        return ()
    pairs = (("second_moment", "value"), ("derivative_second_moment", "derivative"))
    return tuple(pair for pair in pairs if pair[0] not in derivation.results)


def kinks(derivation: Derivation) -> list[float]:
    """Return where an activation's pieces meet, in order."""
    (variable, *_), value = derivation.results["value"].arguments, derivation.results["value"].expression
    conditions = sp.sympify(value).atoms(sp.core.relational.Relational)
    places = {part.rhs for part in conditions if part.lhs == variable and part.rhs.is_number}
    return sorted(float(place) for place in places)


def signature(derivation: Derivation, result: Result) -> str:
    """Return the arguments of an exported Python function, a parameter with its customary value."""
    return ", ".join(
        f"{symbol}={derivation.defaults[symbol]}" if symbol in derivation.defaults else _word(symbol)
        for symbol in used_arguments(result)
    )


def _word(symbol: sp.Symbol) -> str:
    return f"{symbol}_" if keyword.iskeyword(str(symbol)) else str(symbol)


def used_parts(text: str, parts: Mapping[str, str]) -> str:
    """Return those helper functions, given by name in the order of their definition, that a text calls."""
    needed: list[str] = []
    for name, source in reversed(list(parts.items())):
        if re.search(rf"(?<![\w.]){name}\(", text):
            needed.append(source)
            text += source
    return "".join(reversed(needed))
