"""Derivations as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence

import sympy as sp

from varprop.derivations.printing.text import abbreviations, broken, equation
from varprop.derivations.theorem import Derivation, Step

_RELATIONS = {sp.Eq: "=", sp.Le: "<="}


def render(derivations: Sequence[Derivation]) -> str:
    """Return ``{"schema": "varprop.derive/1", "derivations": [...]}``."""
    document = {"schema": "varprop.derive/1", "derivations": [_derivation(one) for one in derivations]}
    return json.dumps(document, indent=2) + "\n"


def _derivation(derivation: Derivation) -> dict[str, object]:
    return {
        "topic": derivation.topic,
        "title": derivation.title,
        "assumptions": list(derivation.assumptions),
        "steps": [
            {
                "name": step.name,
                "statement": step.statement,
                "reason": step.reason,
                "equation": f"{step.equation.lhs} {_RELATIONS[type(step.equation)]} {step.equation.rhs}",
                "latex": broken(step.equation),
                "where": [{"equation": f"{name} = {meaning}", "latex": text} for name, meaning, text in _where(step)],
            }
            for step in derivation.steps
        ],
        "results": {
            name: {
                "arguments": [str(symbol) for symbol in result.arguments],
                "expression": str(result.expression),
                "latex": equation(sp.sympify(result.expression)),
                "meaning": result.meaning,
            }
            for name, result in derivation.results.items()
        },
        "constants": {str(symbol): str(sp.N(value, 17)) for symbol, value in derivation.constants.items()},
        "references": [str(citation) for citation in derivation.references],
    }


def _where(step: Step) -> Iterator[tuple[str, str, str]]:
    for (name, meaning), text in zip(step.where.items(), abbreviations(step), strict=True):
        rule = isinstance(meaning, sp.Lambda)
        arguments = ", ".join(map(str, meaning.variables)) if rule else ""
        yield f"{name}({arguments})" if rule else str(name), str(meaning.expr if rule else meaning), text
