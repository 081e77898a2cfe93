"""A LaTeX document."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import sympy as sp

from varprop.derivations.printing.text import equation, escape, glossary
from varprop.derivations.theorem import Derivation

_HEAD = r"""\documentclass{article}
\usepackage[utf8]{inputenc}
\usepackage[T1]{fontenc}
\usepackage{amsmath,amssymb}
\usepackage[margin=2.5cm]{geometry}
\title{Variance propagation: derivations}
\date{}
\begin{document}
\maketitle"""


def render(derivations: Sequence[Derivation]) -> str:
    """Return a document with a section for each derivation."""
    return "\n".join([_HEAD, *(line for one in derivations for line in _section(one)), r"\end{document}", ""])


def _section(derivation: Derivation) -> Iterator[str]:
    yield rf"\section{{{escape(derivation.title)}}}"
    yield r"\paragraph{Assumptions}"
    yield from _list(escape(assumption) for assumption in derivation.assumptions)
    definitions = glossary(derivation)
    if definitions:
        yield r"\paragraph{Functions}"
        yield from _list(f"{escape(words)}: ${definition}$" for words, definition in definitions)
    for step in derivation.steps:
        yield rf"\paragraph{{{escape(step.name.replace('_', ' '))}}} {escape(step.statement)}"
        yield from _equation(step.equation, f"{derivation.topic}:{step.name}")
        yield rf"\emph{{Why:}} {escape(step.reason)}."
    yield r"\paragraph{Results}"
    for name, result in derivation.results.items():
        arguments = ", ".join(equation(symbol) for symbol in result.arguments)
        yield rf"\noindent {escape(result.meaning)}:"
        head = rf"\mathtt{{{escape(name)}}}\left({arguments}\right)"
        yield from _equation_text(
            f"{head} = {equation(sp.sympify(result.expression))}", f"{derivation.topic}:result:{name}"
        )
    for symbol, value in derivation.constants.items():
        yield from _equation(sp.Eq(symbol, value, evaluate=False), f"{derivation.topic}:constant:{symbol}")
    yield r"\paragraph{References}"
    yield from _list(escape(str(citation)) for citation in derivation.references)


def _equation(expression: sp.Basic, label: str) -> Iterator[str]:
    return _equation_text(equation(expression), label)


def _equation_text(text: str, label: str) -> Iterator[str]:
    yield rf"\begin{{equation}}\label{{{label}}}"
    yield text
    yield r"\end{equation}"


def _list(items: Iterator[str]) -> Iterator[str]:
    yield r"\begin{itemize}"
    yield from (rf"\item {item}" for item in items)
    yield r"\end{itemize}"
