"""Derivations as documents and as code."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module

from varprop.derivations.theorem import Derivation

FORMATS: dict[str, str] = {
    "latex": "a document for pdflatex, every equation numbered",
    "markdown": "text with LaTeX equations",
    "python": "a module that needs NumPy and SciPy",
    "numba": "the same, compiled by numba",
    "c": "C99, self-contained",
    "json": "steps, results and references as data",
}

_MODULES = {"latex": "latex", "markdown": "markdown", "python": "python", "numba": "compiled", "c": "c", "json": "data"}


def render(derivations: Sequence[Derivation], form: str) -> str:
    """Return derivations in one of `FORMATS`.

    Code of a single derivation names its functions as its results are named (``second_moment``); code of several
    puts the topic before (``relu_second_moment``).

    Raises
    ------
    KeyError
        If `form` is not in `FORMATS`.
    """
    printer: Callable[[Sequence[Derivation]], str] = import_module(
        f"varprop.derivations.printing.{_MODULES[form]}"
    ).render
    return printer(derivations)
