"""An activation of one's own: from its tree to SymPy, and the derivation of what can be said about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    backward_step,
    derivative_step,
    forward_step,
    function_results,
    mean_over,
    mean_step,
    moment_results,
    q,
    z,
)
from varprop.derivations.references import cite
from varprop.derivations.search import Found
from varprop.derivations.theorem import Derivation, Result, Step, step


class Tree(Protocol):
    """What is asked of a parsed formula: operators and arguments, nothing that could be run."""

    @property
    def operator(self) -> str: ...
    @property
    def arguments(self) -> Sequence[Tree]: ...
    @property
    def number(self) -> float: ...


_FUNCTIONS: dict[str, Callable[..., sp.Expr]] = {
    "add": sp.Add,
    "multiply": sp.Mul,
    "divide": lambda above, below: above / below,
    "negate": lambda u: -u,
    "power": sp.Pow,
    "less": sp.StrictLessThan,
    "less_equal": sp.LessThan,
    "where": lambda condition, yes, no: sp.Piecewise((yes, condition), (no, True)),
    "min": lambda left, right: sp.Piecewise((left, left < right), (right, True)),
    "max": lambda left, right: sp.Piecewise((left, left > right), (right, True)),
    "abs": lambda u: sp.Piecewise((u, u > 0), (-u, True)),
    "exp": sp.exp,
    "expm1": lambda u: sp.exp(u) - 1,
    "log": sp.log,
    "log1p": lambda u: sp.log(1 + u),
    "sqrt": sp.sqrt,
    "sin": sp.sin,
    "cos": sp.cos,
    "tanh": sp.tanh,
    "erf": sp.erf,
    "sigmoid": lambda u: 1 / (1 + sp.exp(-u)),
    "softplus": lambda u: sp.log(1 + sp.exp(u)),
}


def expression(tree: Tree) -> sp.Expr:
    """Return a formula's tree as an expression in z; decimal numbers become the fractions they are written as."""
    match tree.operator:
        case "x":
            return z
        case "pi":
            return sp.pi
        case "number":
            return sp.Rational(repr(tree.number))
    return _FUNCTIONS[tree.operator](*map(expression, tree.arguments))


_MOMENTS = {
    "mean": r"$\mathbb{E}[\phi(z)]$",
    "second_moment": r"$\mathbb{E}[\phi(z)^2]$",
    "derivative_second_moment": r"$\mathbb{E}[\phi'(z)^2]$",
}

_FACTORS: dict[str, tuple[str, Callable[[sp.Expr], sp.Expr], str]] = {
    "gain": (
        "second_moment",
        lambda moment: 1 / sp.sqrt(moment),
        r"Gain: weights of variance $\gamma^2 / n$, $n$ inputs, give second moment 1 after an activation of $z \sim"
        r" N(0, q)$.",
    ),
    "critical_sigma_w2": (
        "derivative_second_moment",
        lambda moment: 1 / moment,
        r"Critical initialization: $\sigma_w^2\, \mathbb{E}[\phi'^2] = 1$ keeps the gradient's second moment at"
        r" variance $q$.",
    ),
}


def formula_derivation(text: str, found: Found, numbers: str) -> Derivation:
    """Return the derivation of an activation.

    Parameters
    ----------
    text
        The formula as it was written.
    found
        The activation and its closed forms.
    numbers
        What quadrature gives, in words; printed with the assumptions.
    """
    value, forms = found.value, found.forms
    missing = [meaning for name, meaning in _MOMENTS.items() if name not in forms]
    remarks = [f"no closed form of {meaning} was found: the integral is evaluated by quadrature" for meaning in missing]
    slope = sp.diff(value, z)
    reason = "integration over z, piece by piece"
    writers: dict[str, Callable[[sp.Expr], Step]] = {
        "mean": lambda form: mean_step(value, form, reason),
        "second_moment": lambda form: forward_step(value, form, reason),
        "derivative_second_moment": lambda form: backward_step(slope, form, reason),
    }
    steps, factors = [derivative_step(value, slope)], {}
    steps += [write(forms[name]) for name, write in writers.items() if name in forms]
    for name, (moment, inverse, statement) in _FACTORS.items():
        if forms.get(moment, sp.S.Zero) != 0:
            factor = inverse(forms[moment])
            square = value**2 if moment == "second_moment" else slope**2
            scale = factor**2 if name == "gain" else factor
            steps.append(step(name, statement, "inverse of the moment", scale * mean_over(square), sp.Integer(1)))
            factors[name] = Result((q,), factor, statement.split(":")[0].lower())
    results = function_results(value, slope) | moment_results(**forms) | factors
    return Derivation(
        "formula",
        f"Activation {text}",
        (*ASSUMPTIONS, *remarks, numbers),
        tuple(steps),
        results,
        (cite("he2015", "Eq. (7)"), cite("poole2016", "section 2"), cite("schoenholz2017", "section 2")),
    )
