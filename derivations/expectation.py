"""The expectation E[...] of polynomials in independent random variables."""

from __future__ import annotations

from collections.abc import Mapping

import sympy as sp

from varprop.derivations.theorem import Moments


class E(sp.Function):  # type: ignore[misc]
    """Expectation over the random variables that a derivation gives laws for; everything else is held fixed."""

    nargs = 1

    def _latex(self, printer: sp.printing.latex.LatexPrinter, exp: str | None = None) -> str:
        mean = rf"\mathbb{{E}}\left[{printer._print(self.args[0])}\right]"
        return f"{mean}^{{{exp}}}" if exp else mean


def evaluate(expression: sp.Expr, laws: Mapping[sp.Basic, Moments]) -> sp.Expr:
    """Replace every E[polynomial] by its value under independence.

    Raises
    ------
    ValueError
        If a moment is needed that the law does not give.
    """
    return expression.replace(E, lambda inside: _mean(sp.expand(inside.doit()), laws))


def _mean(polynomial: sp.Expr, laws: Mapping[sp.Basic, Moments]) -> sp.Expr:
    return sp.Add(
        *(
            sp.Mul(*(_moment(base, power, laws) for base, power in term.as_powers_dict().items()))
            for term in sp.Add.make_args(polynomial)
        )
    )


def _moment(base: sp.Expr, power: sp.Expr, laws: Mapping[sp.Basic, Moments]) -> sp.Expr:
    law = laws.get(base.base if isinstance(base, sp.Indexed) else base)
    if law is None:
        return base**power
    if not (power.is_Integer and 0 < power <= len(law)):
        raise ValueError(f"no moment of order {power} for {base}")
    return law[int(power) - 1]
