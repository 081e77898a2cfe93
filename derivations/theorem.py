"""What a derivation is: steps that can be printed and checked, and results that can be run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

import sympy as sp

from varprop.derivations.references import Citation

Moments = tuple[sp.Expr, ...]
"""First, second, ... moment of a random variable."""


@dataclass(frozen=True)
class Step:
    """One equation, or one bound, with what it says and why it holds.

    `equation` is what is printed and, by `varprop.derivations.checking`, what is checked.
    """

    name: str
    statement: str
    reason: str
    equation: sp.Eq | sp.Le
    cases: tuple[Mapping[sp.Symbol, int], ...] = ()
    """Sizes at which sums of symbolic length are written out to be checked."""
    domain: Mapping[sp.Symbol, tuple[float, float]] = field(default_factory=dict)
    """Where symbols are drawn from in a numerical check, if their assumptions do not say it."""
    where: Mapping[sp.Basic, sp.Expr | sp.Lambda] = field(default_factory=dict)
    """Abbreviations in the equation: a symbol and its expression, or a function or family and its rule."""

    def _repr_latex_(self) -> str:
        return str(_notebook().latex(self))


@dataclass(frozen=True)
class Result:
    """A formula to run: arguments in calling order, and the expression."""

    arguments: tuple[sp.Symbol, ...]
    expression: sp.Expr
    meaning: str

    def _repr_latex_(self) -> str:
        return str(_notebook().latex(self))


@dataclass(frozen=True)
class Derivation:
    """A theorem: assumptions, steps, results."""

    topic: str
    title: str
    assumptions: tuple[str, ...]
    steps: tuple[Step, ...]
    results: Mapping[str, Result]
    references: tuple[Citation, ...]
    laws: Mapping[sp.Basic, Moments] = field(default_factory=dict)
    """Moments of the independent random variables (symbols or indexed families) inside E[...]."""
    constants: Mapping[sp.Symbol, sp.Expr] = field(default_factory=dict)
    """Exact values of the symbols in results that are numbers (SELU's lambda and alpha)."""
    defaults: Mapping[sp.Symbol, float] = field(default_factory=dict)
    """Customary values of an activation's parameter."""

    def _repr_latex_(self) -> str:
        return str(_notebook().latex(self))

    def _repr_html_(self) -> str:
        return str(_notebook().html(self))


def _notebook() -> Any:
    """Return what draws derivations in notebooks; it knows this module, so it is imported when asked for."""
    return import_module("varprop.derivations.printing.notebook")


def step(
    name: str,
    statement: str,
    reason: str,
    left: sp.Expr,
    right: sp.Expr,
    *,
    cases: tuple[Mapping[sp.Symbol, int], ...] = (),
    domain: Mapping[sp.Symbol, tuple[float, float]] | None = None,
    where: Mapping[sp.Basic, sp.Expr | sp.Lambda] | None = None,
) -> Step:
    """Return a step whose equation is kept as written: SymPy must not evaluate it to True."""
    return Step(name, statement, reason, sp.Eq(left, right, evaluate=False), cases, domain or {}, where or {})


def bound(
    name: str,
    statement: str,
    reason: str,
    smaller: sp.Expr,
    larger: sp.Expr,
    *,
    cases: tuple[Mapping[sp.Symbol, int], ...] = (),
    domain: Mapping[sp.Symbol, tuple[float, float]] | None = None,
    where: Mapping[sp.Basic, sp.Expr | sp.Lambda] | None = None,
) -> Step:
    """Return a step that says smaller <= larger; it is checked at random points."""
    return Step(name, statement, reason, sp.Le(smaller, larger, evaluate=False), cases, domain or {}, where or {})
