"""Markdown with LaTeX equations, for code hosts and notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import sympy as sp

from varprop.derivations.printing.code import used_arguments
from varprop.derivations.printing.tables import gains, recurrences
from varprop.derivations.printing.text import abbreviations, broken, equation, glossary, heading
from varprop.derivations.theorem import Derivation, Step

# Hosts refuse \operatorname, read a backslash before punctuation as Markdown's own, and < as the start of a tag.
_PORTABLE = (
    (re.compile(r"\\operatorname\{(\w+)\}"), r"\\mathop{\\mathrm{\1}}"),
    (re.compile(r"\\\\\s*"), r"\\cr "),
    (re.compile(r"\\[,;]"), r"\\thinspace "),
    (re.compile(r"\\:"), r"\\medspace "),
    (re.compile(r"<"), r"\\lt "),
    (re.compile(r">"), r"\\gt "),
)


def render(derivations: Sequence[Derivation]) -> str:
    """Return a section for each derivation; of several, with contents and tables."""
    body = [line for one in derivations for line in section(one)]
    if len(derivations) == 1:
        return "\n".join(body)
    front = ["# Variance propagation: derivations\n", *_contents(derivations), ""]
    return "\n".join([*front, *body, *_recurrences(derivations), *_gains(derivations)])


def portable(latex: str) -> str:
    """Return LaTeX that survives Markdown and the subsets of MathJax and KaTeX that hosts run."""
    for pattern, replacement in _PORTABLE:
        latex = pattern.sub(replacement, latex)
    return latex


def words(text: str) -> str:
    """Return words whose mathematics, between dollars, is portable."""
    parts = text.split("$")
    parts[1::2] = [portable(part) for part in parts[1::2]]
    return "$".join(parts)


def section(derivation: Derivation) -> Iterator[str]:
    """Yield a derivation's lines."""
    yield f"## {derivation.title}\n"
    yield "Assumptions:\n"
    yield from (f"- {words(assumption)}" for assumption in derivation.assumptions)
    yield from (f"- {words(what)}: ${portable(definition)}$" for what, definition in glossary(derivation))
    yield ""
    for number, step in enumerate(derivation.steps, 1):
        yield from _step(number, step)
    yield "Results:\n"
    for name, result in derivation.results.items():
        arguments = ", ".join(str(symbol) for symbol in used_arguments(result))
        formula = portable(equation(sp.sympify(result.expression)))
        yield f"- `{name}({arguments})`, {result.meaning}: ${formula}$"
    for symbol, value in derivation.constants.items():
        yield f"- ${portable(equation(symbol))} = {portable(equation(value))} = {sp.N(value, 17)}\\ldots$"
    yield "\nSources:\n"
    yield from (f"- {citation}" for citation in derivation.references)
    yield ""


def _step(number: int, step: Step) -> Iterator[str]:
    name, statement = heading(step)
    yield f"**{number}. {name}** {words(statement)}\n"
    yield from _display(broken(step.equation))
    if step.where:
        yield "with\n"
        for abbreviation in abbreviations(step):
            yield from _display(abbreviation)
    yield f"Reason: {words(step.reason)}.\n"


def _display(latex: str) -> Iterator[str]:
    # A leading minus would begin a list.
    yield f"$$\n{'{}' * latex.startswith('-')}{portable(latex)}\n$$\n"


def _contents(derivations: Sequence[Derivation]) -> Iterator[str]:
    titles = [*(one.title for one in derivations), "Recurrences of all layers", "Gains of all activations"]
    for name in titles:
        anchor = re.sub(r"[^\w\- ]", "", name.lower()).replace(" ", "-")
        yield f"- [{name}](#{anchor})"


def _recurrences(derivations: Sequence[Derivation]) -> Iterator[str]:
    yield "## Recurrences of all layers\n"
    yield "| | forward: second moment | backward: the gradient's second moment, or its factor |\n|---|---|---|"
    for one, *names in recurrences(derivations):
        cells = (portable(equation(sp.sympify(one.results[name].expression))) for name in names)
        yield f"| {one.title} | {' | '.join(f'${cell}$' for cell in cells)} |"
    yield ""


def _gains(derivations: Sequence[Derivation]) -> Iterator[str]:
    yield "## Gains of all activations\n"
    yield "Moments at $z \\sim N(0, 1)$; $\\chi = E[\\phi'^2] / E[\\phi^2]$.\n"
    yield "| | $E[\\phi]$ | $E[\\phi^2]$ | $E[\\phi'^2]$ | $1/\\sqrt{E[\\phi^2]}$ | $1/\\mathrm{sd}(\\phi)$ | $\\chi$ |"
    yield "|---|---|---|---|---|---|---|"
    for one, numbers in gains(derivations):
        yield " | ".join([f"| {one.title}", *(f"{number:.6f}" for number in numbers)]) + " |"
    yield ""
