"""Functions that keep closed forms accurate where the textbook form cancels or overflows.

Each is a SymPy function with its definition (`rewrite(sp.exp)` gives it); code runs a library's version.
"""

from __future__ import annotations

import sympy as sp
from sympy.codegen.cfunctions import expm1


class erfcx(sp.Function):  # type: ignore[misc]  # noqa: N801 (SymPy's functions are named as they print)
    """Scaled complementary error function exp(x^2) erfc(x)."""

    nargs = 1

    def _eval_rewrite_as_exp(self, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.exp(x**2) * sp.erfc(x)


class erfcx_tail(sp.Function):  # type: ignore[misc]  # noqa: N801
    """Remainder of erfcx after its first two Taylor terms: erfcx(x) - 1 + 2 x / sqrt(pi)."""

    nargs = 1

    def _eval_rewrite_as_exp(self, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.exp(x**2) * sp.erfc(x) - 1 + 2 * x / sp.sqrt(sp.pi)

    def _latex(self, printer: sp.printing.latex.LatexPrinter) -> str:
        return rf"\operatorname{{erfcx}}_2\left({printer._print(self.args[0])}\right)"


class gammainc(sp.Function):  # type: ignore[misc]  # noqa: N801
    """Regularised lower incomplete gamma function P(s, x)."""

    nargs = 2

    def _eval_rewrite_as_exp(self, s: sp.Expr, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.expand_func(sp.lowergamma(s, x)) / sp.gamma(s)

    def _latex(self, printer: sp.printing.latex.LatexPrinter) -> str:
        return rf"P\left({printer._print(self.args[0])}, {printer._print(self.args[1])}\right)"


DEFINITIONS: dict[type[sp.Function], tuple[sp.Expr, str]] = {
    erfcx: (erfcx(sp.Symbol("x")), "scaled complementary error function"),
    erfcx_tail: (erfcx_tail(sp.Symbol("x")), "its remainder after two Taylor terms"),
    gammainc: (gammainc(sp.Symbol("s"), sp.Symbol("x")), "regularised lower incomplete gamma function"),
}


def elementary(expression: sp.Expr) -> sp.Expr:
    """Return the expression with every special function, expm1 included, replaced by its definition."""
    expression = expression.replace(expm1, lambda x: sp.exp(x) - 1)
    for function in DEFINITIONS:
        expression = expression.replace(function, lambda *args, f=function: f(*args).rewrite(sp.exp))
    return expression
