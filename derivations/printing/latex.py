"""A LaTeX document."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import sympy as sp

from varprop.derivations.printing.bibtex import entry, item
from varprop.derivations.printing.code import used_arguments
from varprop.derivations.printing.tables import gains, recurrences
from varprop.derivations.printing.text import (
    abbreviations,
    broken,
    equation,
    escape,
    glossary,
    heading,
    lines,
    width,
)
from varprop.derivations.references import REFERENCES, Reference
from varprop.derivations.theorem import Derivation, Result, Step

# References travel as BibTeX, and as what BibTeX makes of them, so that pdflatex alone will do. That LaTeX writes these
# two files is no warning.
_HEAD = r"""\makeatletter
\let\warning\@latex@warning@no@line
\let\@latex@warning@no@line\@latex@info@no@line
\makeatother
\begin{filecontents*}[overwrite]{\jobname.bib}
%s\end{filecontents*}
\begin{filecontents*}[overwrite]{\jobname.bbl}
%s
\end{filecontents*}
\makeatletter
\let\@latex@warning@no@line\warning
\makeatother
\documentclass[10pt,a4paper]{article}
\usepackage[utf8]{inputenc}
\usepackage{amsmath,amssymb,booktabs,longtable}
\usepackage[margin=2.5cm]{geometry}
\usepackage[hidelinks]{hyperref}
\numberwithin{equation}{section}
\allowdisplaybreaks
\setlength{\emergencystretch}{4em}
\setlength{\parindent}{0pt}
\setlength{\parskip}{4pt plus 2pt}
\title{Variance propagation: derivations}
\author{varprop}
\date{}
\begin{document}
\maketitle
"""

_WORDS = r"""Every result below is a chain of steps from its assumptions. Each step is an equation, or a bound, that
\texttt{varprop derive --check} proves symbolically or verifies to 15 digits at random points, integrals by quadrature;
sums of symbolic length are written out for several lengths. $q$ is a second moment over weight draws, $g$ that of the
gradient of a loss; $\mathbb{E}$ is the mean over the random variables that the assumptions name. The last two sections
collect the recurrences and the gains. References come along as \texttt{\jobname.bib}.
"""

_CONTENTS = r"""\makeatletter
\renewcommand*\l@section{\@dottedtocline{1}{0em}{2em}}
\makeatother
{\setlength{\parskip}{0pt}\tableofcontents}
\newpage
"""

_REFERENCES = r"""\bibliographystyle{plain}
\bibliography{\jobname}"""

_INLINE = 20
"""Widest formula for a column of a table; wider ones are referred to."""


def render(derivations: Sequence[Derivation]) -> str:
    """Return a document with a section for each derivation; of several, with contents and tables."""
    works = sorted(
        {citation.reference for one in derivations for citation in one.references}, key=lambda work: work.key
    )
    several = len(derivations) > 1
    body = [line for one in derivations for line in _section(one)]
    head = _HEAD % ("\n".join(map(entry, works)), "\n".join(_bibliography(works)))
    front = [_WORDS, _CONTENTS] if several else []
    tables = [*_recurrences(derivations), *_gains(derivations)] if several else []
    return "\n".join([head, *front, *body, *tables, _REFERENCES, r"\end{document}", ""])


def _section(derivation: Derivation) -> Iterator[str]:
    yield rf"\section{{{escape(derivation.title)}}}\label{{{derivation.topic}}}"
    yield r"\paragraph{Assumptions.}"
    yield from _list(escape(assumption) for assumption in derivation.assumptions)
    definitions = glossary(derivation)
    if definitions:
        yield r"\paragraph{Functions.}"
        yield from _list(f"{escape(words)}: ${definition}$" for words, definition in definitions)
    for step in derivation.steps:
        yield from _step(step, derivation)
    yield r"\paragraph{Results.}"
    for name, result in derivation.results.items():
        yield from _result(name, result, derivation)
    for symbol, value in derivation.constants.items():
        digits = rf"{equation(value)} = {sp.N(value, 17)}\ldots"
        yield from _equation(lines(equation(symbol), "=", digits), f"{derivation.topic}:constant:{symbol}")
    cited = "; ".join(rf"\cite[{{{escape(one.where)}}}]{{{one.reference.key}}}" for one in derivation.references)
    yield rf"\paragraph{{Sources.}} {cited}."
    yield ""


def _step(step: Step, derivation: Derivation) -> Iterator[str]:
    name, statement = heading(step)
    yield rf"\paragraph{{{escape(name)}}} {escape(statement)}"
    yield from _equation(broken(step.equation), f"{derivation.topic}:{step.name}")
    if step.where:
        yield "with"
        for index, abbreviation in enumerate(abbreviations(step), 1):
            yield from _display(abbreviation + ("." if index == len(step.where) else ","))
    yield rf"\emph{{Reason:}} {escape(step.reason)}."
    yield ""


def _result(name: str, result: Result, derivation: Derivation) -> Iterator[str]:
    arguments = ", ".join(equation(symbol) for symbol in used_arguments(result))
    head = rf"\mathtt{{{escape(name)}}}\left({arguments}\right)"
    yield rf"{escape(result.meaning[0].upper() + result.meaning[1:])}:"
    yield from _equation(lines(head, "=", sp.sympify(result.expression)), f"{derivation.topic}:result:{name}")


def _recurrences(derivations: Sequence[Derivation]) -> Iterator[str]:
    yield r"\section{Recurrences of all layers}"
    yield r"The second moment behind a layer or activation, and the second moment of the gradient before it (for an"
    yield r"activation: the factor that the gradient's second moment takes). Symbols are those of the sections."
    yield r"{\small\begin{longtable}{llll}\toprule"
    yield r"& section & forward & backward \\ \midrule\endhead"
    for one, forward, backward in recurrences(derivations):
        cells = (_cell(one, name) for name in (forward, backward))
        yield rf"{escape(one.title)} & \ref{{{one.topic}}} & {' & '.join(cells)} \\[6pt]"
    yield r"\bottomrule\end{longtable}}"


def _cell(derivation: Derivation, name: str) -> str:
    formula = equation(sp.sympify(derivation.results[name].expression))
    return f"${formula}$" if width(formula) <= _INLINE else rf"\eqref{{{derivation.topic}:result:{name}}}"


def _gains(derivations: Sequence[Derivation]) -> Iterator[str]:
    yield r"\section{Gains of all activations}"
    yield r"Moments at $z \sim N(0, 1)$; a gain multiplies the deviation $1/\sqrt{\mathrm{fan\_in}}$ of the weights:"
    yield r"$1/\sqrt{\mathbb{E}[\phi^2]}$ keeps the second moment at one, $1/\mathrm{sd}(\phi)$ makes the variance"
    yield r"behind the activation one, and $\chi = \mathbb{E}[\phi'^2]/\mathbb{E}[\phi^2]$ is what the first does to"
    yield r"the gradient."
    yield r"Slopes below zero and scales have their customary values, as in the sections."
    yield r"\begin{longtable}{lrrrrrr}\toprule"
    yield r"& $\mathbb{E}[\phi]$ & $\mathbb{E}[\phi^2]$ & $\mathbb{E}[\phi'^2]$ & $1/\sqrt{\mathbb{E}[\phi^2]}$"
    yield r"& $1/\mathrm{sd}(\phi)$ & $\chi$ \\ \midrule\endhead"
    for one, numbers in gains(derivations):
        yield " & ".join([escape(one.title), *(f"${number:.6f}$" for number in numbers)]) + r" \\"
    yield r"\bottomrule\end{longtable}"


def _bibliography(works: Iterable[Reference]) -> Iterator[str]:
    yield rf"\begin{{thebibliography}}{{{len(REFERENCES)}}}"
    yield from map(item, works)
    yield r"\end{thebibliography}"


def _equation(text: str, label: str) -> Iterator[str]:
    yield rf"\begin{{equation}}\label{{{label}}}"
    yield text
    yield r"\end{equation}"


def _display(text: str) -> Iterator[str]:
    yield r"\begin{equation*}"
    yield text
    yield r"\end{equation*}"


def _list(items: Iterator[str]) -> Iterator[str]:
    yield r"\begin{itemize}\setlength{\itemsep}{0pt}"
    yield from (rf"\item {item}" for item in items)
    yield r"\end{itemize}"
