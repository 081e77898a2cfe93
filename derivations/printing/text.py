"""What documents share: equations and words as LaTeX."""

from __future__ import annotations

import sympy as sp
from sympy.codegen.cfunctions import expm1

from varprop.derivations.special_functions import DEFINITIONS
from varprop.derivations.theorem import Derivation

_ESCAPES = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "#": r"\#",
    "_": r"\_",
    "^": r"\^{}",
    "~": r"\~{}",
    "{": r"\{",
    "}": r"\}",
}


def equation(expression: sp.Basic) -> str:
    """Return an expression as LaTeX; expm1 is a matter of code, so it is printed as exp(x) - 1."""
    return str(sp.latex(expression.replace(expm1, lambda x: sp.exp(x) - 1)))


def escape(words: str) -> str:
    """Return plain words safe for LaTeX text."""
    return "".join(_ESCAPES.get(character, character) for character in words)


def glossary(derivation: Derivation) -> list[tuple[str, str]]:
    """Return (words, LaTeX) for each special function that occurs in a derivation's steps or results."""
    expressions = [step.equation for step in derivation.steps]
    expressions += [sp.sympify(result.expression) for result in derivation.results.values()]
    return [
        (words, equation(sp.Eq(symbol, symbol.rewrite(sp.exp) if len(symbol.args) == 1 else _GAMMA, evaluate=False)))
        for function, (symbol, words) in DEFINITIONS.items()
        if any(expression.has(function) for expression in expressions)
    ]


_s, _x = sp.symbols("s x", positive=True)
_t = sp.Symbol("t", positive=True)
_GAMMA = sp.Integral(_t ** (_s - 1) * sp.exp(-_t), (_t, 0, _x)) / sp.gamma(_s)
