"""Derivations as notebooks show them: HTML whose mathematics the notebook typesets, and LaTeX."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

import sympy as sp

from varprop.derivations.printing.markdown import portable, words
from varprop.derivations.printing.text import abbreviations, broken, equation, glossary, heading
from varprop.derivations.theorem import Derivation, Result, Step


def html(derivation: Derivation) -> str:
    """Return a derivation as HTML."""
    return "\n".join(_lines(derivation))


def latex(shown: Derivation | Step | Result) -> str:
    """Return the equations of a derivation, a step or a result as displays."""
    if isinstance(shown, Derivation):
        return "\n".join(_display(broken(step.equation)) for step in shown.steps)
    if isinstance(shown, Step):
        return "\n".join(map(_display, [broken(shown.equation), *abbreviations(shown)]))
    return _display(equation(sp.sympify(shown.expression)))


def _lines(derivation: Derivation) -> Iterator[str]:
    yield f"<h3>{_text(derivation.title)}</h3>"
    facts = [*map(_text, derivation.assumptions)]
    facts += [f"{_text(what)}: {_inline(definition)}" for what, definition in glossary(derivation)]
    yield from _list(facts)
    yield "<ol>"
    for step in derivation.steps:
        name, statement = heading(step)
        yield f"<li><b>{_text(name)}</b> {_text(statement)}{_display(escape(broken(step.equation)))}"
        for abbreviation in abbreviations(step):
            yield _display(escape(abbreviation))
        yield f"<i>Reason:</i> {_text(step.reason)}.</li>"
    yield "</ol>"
    yield from _list(
        f"<code>{name}</code>, {_text(result.meaning)}: {_inline(equation(sp.sympify(result.expression)))}"
        for name, result in derivation.results.items()
    )
    yield from _list(_text(str(citation)) for citation in derivation.references)


def _list(items: Iterator[str] | list[str]) -> Iterator[str]:
    yield "<ul>"
    yield from (f"<li>{item}</li>" for item in items)
    yield "</ul>"


def _text(plain: str) -> str:
    return escape(words(plain), quote=False)


def _inline(formula: str) -> str:
    return f"${escape(portable(formula))}$"


def _display(formula: str) -> str:
    return f"$${formula}$$"
