"""Markdown with LaTeX equations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sympy as sp

from varprop.derivations.printing.text import equation, glossary
from varprop.derivations.theorem import Derivation


def render(derivations: Sequence[Derivation]) -> str:
    """Return a section for each derivation."""
    return "\n".join(line for one in derivations for line in _section(one))


def _section(derivation: Derivation) -> Iterator[str]:
    yield f"# {derivation.title}\n"
    yield "Assumptions:\n"
    yield from (f"- {assumption}" for assumption in derivation.assumptions)
    yield from (f"- {words}: ${definition}$" for words, definition in glossary(derivation))
    yield ""
    for number, step in enumerate(derivation.steps, 1):
        yield f"**{number}. {step.name.replace('_', ' ')}.** {step.statement}\n"
        yield f"$${equation(step.equation)}$$\n"
        yield f"Why: {step.reason}.\n"
    yield "Results:\n"
    for name, result in derivation.results.items():
        arguments = ", ".join(str(symbol) for symbol in result.arguments)
        yield f"- `{name}({arguments})`, {result.meaning}: ${equation(sp.sympify(result.expression))}$"
    for symbol, value in derivation.constants.items():
        yield f"- ${equation(symbol)} = {equation(value)} = {sp.N(value, 17)}$"
    yield "\nReferences:\n"
    yield from (f"- {citation}" for citation in derivation.references)
    yield ""
