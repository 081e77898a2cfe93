"""Functions that keep closed forms accurate where the textbook form cancels or overflows.

Each is a SymPy function with its definition (`rewrite(sp.exp)` gives it); code runs a library's version.
"""

from __future__ import annotations

import sympy as sp
from sympy.codegen.cfunctions import expm1


def _call(name: str, power: str | None, arguments: str) -> str:
    return name + (f"^{{{power}}}" if power else "") + rf"\left({arguments}\right)"


class Phi(sp.Function):  # type: ignore[misc]
    """Normal distribution function; sp.erfc(-x) would turn itself into 2 - erfc(x), which loses the tail."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return sp.exp(-(self.args[0] ** 2) / 2) / sp.sqrt(2 * sp.pi)

    def _eval_rewrite_as_exp(self, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.erfc(-x / sp.sqrt(2)) / 2

    def _latex(self, printer: sp.printing.latex.LatexPrinter, exp: str | None = None) -> str:
        return _call(r"\Phi", exp, printer._print(self.args[0]))


class normal(sp.Function):  # type: ignore[misc]
    """Density of N(0, variance) at x."""

    nargs = 2

    def _eval_rewrite_as_exp(self, x: sp.Expr, variance: sp.Expr, **_: object) -> sp.Expr:
        return sp.exp(-(x**2) / (2 * variance)) / sp.sqrt(2 * sp.pi * variance)

    def _latex(self, printer: sp.printing.latex.LatexPrinter, exp: str | None = None) -> str:
        x, variance = (printer._print(part) for part in self.args)
        return _call(rf"p_{{{variance}}}", exp, x)


class erfcx(sp.Function):  # type: ignore[misc]
    """Scaled complementary error function exp(x^2) erfc(x)."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return 2 * self.args[0] * self - 2 / sp.sqrt(sp.pi)

    def _eval_rewrite_as_exp(self, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.exp(x**2) * sp.erfc(x)


class erfcx_tail(sp.Function):  # type: ignore[misc]
    """Remainder of erfcx after its first two Taylor terms: erfcx(x) - 1 + 2 x / sqrt(pi)."""

    nargs = 1

    def fdiff(self, argindex: int = 1) -> sp.Expr:
        return 2 * self.args[0] * erfcx(self.args[0])

    def _eval_rewrite_as_exp(self, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.exp(x**2) * sp.erfc(x) - 1 + 2 * x / sp.sqrt(sp.pi)

    def _latex(self, printer: sp.printing.latex.LatexPrinter, exp: str | None = None) -> str:
        return _call("R", exp, printer._print(self.args[0]))


class gammainc(sp.Function):  # type: ignore[misc]
    """Regularised lower incomplete gamma function P(s, x)."""

    nargs = 2

    def _eval_rewrite_as_exp(self, s: sp.Expr, x: sp.Expr, **_: object) -> sp.Expr:
        return sp.expand_func(sp.lowergamma(s, x)) / sp.gamma(s)

    def _latex(self, printer: sp.printing.latex.LatexPrinter, exp: str | None = None) -> str:
        return _call("P", exp, ", ".join(printer._print(part) for part in self.args))


DEFINITIONS: dict[type[sp.Function], tuple[sp.Expr, str]] = {
    Phi: (Phi(sp.Symbol("x")), "normal distribution function"),
    normal: (normal(sp.Symbol("x"), sp.Symbol("q", positive=True)), "density of $N(0, q)$"),
    erfcx: (erfcx(sp.Symbol("x")), "scaled complementary error function"),
    erfcx_tail: (erfcx_tail(sp.Symbol("x")), "remainder of erfcx after two Taylor terms"),
    gammainc: (gammainc(sp.Symbol("s"), sp.Symbol("x")), "regularised lower incomplete gamma function"),
}


def elementary(expression: sp.Expr) -> sp.Expr:
    """Return the expression with every special function, expm1 included, replaced by its definition."""
    expression = expression.replace(expm1, lambda x: sp.exp(x) - 1)
    for function in DEFINITIONS:
        expression = expression.replace(function, lambda *args, f=function: f(*args).rewrite(sp.exp))
    return expression
