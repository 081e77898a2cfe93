"""What documents share: equations and words as LaTeX."""

from __future__ import annotations

import re

import sympy as sp
from sympy.codegen.cfunctions import expm1
from sympy.printing.latex import LatexPrinter

from varprop.derivations.special_functions import DEFINITIONS, gammainc
from varprop.derivations.theorem import Derivation, Step

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
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
}

_NAMES = {
    "sigma2": r"\sigma^{2}",
    "sigma_w2": r"\sigma_w^{2}",
    "sigma_b2": r"\sigma_b^{2}",
    "mean": r"\mu",
    "mean_g": r"\mu_g",
    "mean_d": r"\mu_d",
    "eps": r"\varepsilon",
    "l2": r"\lambda_{2}",
    "mean_g2": r"\overline{g}^{2}",
    "mean_gy2": r"\overline{gy}^{2}",
    "fan": "f",
    "gain": r"\gamma",
    "grad": "g",
    "limit": r"\ell",
    "zbar": r"\bar{z}",
    "f_in": r"f_{\mathrm{in}}",
    "f_out": r"f_{\mathrm{out}}",
    "n_out": r"n_{\mathrm{out}}",
    "channels": "C",
    "channels_out": r"C_{\mathrm{out}}",
}
"""Symbols whose name in code is not their letter."""

_LINE = 80
"""Characters of ordinary width that an equation's line holds, 16 cm at 10 points, with room for its number."""


class _Printer(LatexPrinter):  # type: ignore[misc]
    def _print_Indexed(self, expr: sp.Indexed) -> str:
        # SymPy's {w}_{i} would be Markdown's emphasis.
        return f"{self._print(expr.base)}_{{{','.join(map(self._print, expr.indices))}}}"

    def _print_polygamma(self, expr: sp.Function, exp: str | None = None) -> str:
        order, x = expr.args
        name = r"\psi" if order == 0 else rf"\psi_{{{self._print(order)}}}"
        return name + (f"^{{{exp}}}" if exp else "") + rf"\left({self._print(x)}\right)"

    def _deal_with_super_sub(self, string: str, style: str = "plain") -> str:
        return _NAMES.get(string) or str(super()._deal_with_super_sub(string, style))


_printer = _Printer({"inv_trig_style": "full", "long_frac_ratio": 2})


def equation(expression: sp.Basic) -> str:
    """Return an expression as LaTeX; expm1 is a matter of code, so it is printed as exp(x) - 1."""
    return str(_printer.doprint(expression.replace(expm1, lambda x: sp.exp(x) - 1)))


def broken(relation: sp.Rel) -> str:
    """Return an equation or bound as LaTeX, on several aligned lines where it is too long for one."""
    left, right = (equation(side) for side in relation.args)
    return lines(left, _SIGNS[type(relation)], relation.rhs if width(left + right) > _LINE else right)


def lines(left: str, sign: str, right: sp.Expr | str) -> str:
    """Return ``left sign right``, broken after `left` and between the terms of `right` where it is too long."""
    if isinstance(right, str) or width(left) + width(equation(right)) <= _LINE:
        return f"{left} {sign} {right if isinstance(right, str) else equation(right)}"
    rows = _rows(right)
    if width(left + rows[0]) > _LINE:
        head = rf"& {left} \\" + "\n" + rf"& \quad {sign} {rows[0]}"
    else:
        head = rf"& {left} {sign} {rows[0]}"
    body = "".join(r" \\" + "\n" + f"& {row}" for row in rows[1:])
    return rf"\begin{{aligned}}{head}{body}\end{{aligned}}"


def _rows(expression: sp.Expr) -> list[str]:
    """Return a long expression as rows that break between terms, or between those of its only sum as a factor."""
    sums = [factor for factor in expression.args if factor.is_Add] if expression.is_Mul else []
    if len(sums) == 1:
        *first, last = _rows(sums[0])
        opened = [*first, rf"{last} \biggr)"]
        return [rf"{equation(expression / sums[0])} \biggl( {opened[0]}", *opened[1:]]
    rows = [""]
    for term in expression.as_ordered_terms() if expression.is_Add else (expression,):
        text = equation(term)
        text = text if text.startswith("-") or not rows[0] else f"+ {text}"
        if rows[-1] and width(rows[-1] + text) > _LINE - 15:
            rows.append(rf"\quad {text}")
        else:
            rows[-1] = f"{rows[-1]} {text}".strip()
    return rows


_SIGNS = {sp.Eq: "=", sp.Le: r"\leq"}


def width(latex: str) -> float:
    """Return about how many characters wide a formula is set."""
    latex = re.sub(r"\\(left|right|,|;|:|quad|limits|displaystyle)(?![a-zA-Z])", "", latex)
    latex = re.sub(r"\\begin\{[a-z]+\}(\{[a-z]*\})?|\\end\{[a-z]+\}", "", latex)
    return _Width(latex).of_sequence()


class _Width:
    def __init__(self, text: str) -> None:
        self.text, self.at = text, 0

    def of_sequence(self) -> float:
        """Add up widths to the end of a group; of rows (a piecewise function's), the widest counts."""
        total, widest = 0.0, 0.0
        while self.at < len(self.text) and self.text[self.at] != "}":
            if self.text.startswith(r"\\", self.at):
                self.at += 2
                total, widest = 0.0, max(widest, total)
            else:
                total += self.of_one()
        self.at += 1
        return max(total, widest)

    def of_one(self) -> float:
        character = self.text[self.at]
        self.at += 1
        if character in "_^":
            return 0.7 * self.of_one()
        if character == "{":
            return self.of_sequence()
        if character in " &":
            return 0.0
        if character in "+-=<>":
            return 2.0
        if character != "\\":
            return 1.0
        match = re.compile(r"[a-zA-Z]+|.").match(self.text, self.at)
        command = match.group() if match else ""
        self.at += len(command)
        if command == "frac":
            return 0.5 + max(self.of_one(), self.of_one())
        if command in ("sum", "int", "prod", "sqrt", "leq"):
            return 2.0
        if command in ("sin", "cos", "tan", "log", "tanh", "arctan", "arcsin", "arccos", "min", "max", "lim"):
            return float(len(command))
        return 0.0 if command in ("mathrm", "operatorname", "mathbb", "text", "overline") else 1.0


def escape(words: str) -> str:
    """Return words safe for LaTeX text; what stands between dollars is LaTeX already."""
    parts = words.split("$")
    parts[::2] = ["".join(_ESCAPES.get(character, character) for character in part) for part in parts[::2]]
    return "$".join(parts)


def abbreviations(step: Step) -> list[str]:
    """Return a step's abbreviations as LaTeX, each ``name = meaning``."""
    return [
        lines(equation(_head(name, meaning)), "=", meaning.expr if isinstance(meaning, sp.Lambda) else meaning)
        for name, meaning in step.where.items()
    ]


def _head(name: sp.Basic, meaning: sp.Expr | sp.Lambda) -> sp.Basic:
    if not isinstance(meaning, sp.Lambda):
        return name
    if not meaning.expr.free_symbols & set(meaning.variables):
        return sp.Symbol(str(name))
    return name[meaning.variables] if isinstance(name, sp.IndexedBase) else name(*meaning.variables)


def heading(step: Step) -> tuple[str, str]:
    """Return a step's heading and the rest of its statement: its name, unless the statement begins with it."""
    name = step.name.replace("_", " ").capitalize()
    begin, rest = step.statement[: len(name)], step.statement[len(name) :]
    if begin.lower() != name.lower() or rest[:1] not in (" ", ":"):
        return f"{name}.", step.statement
    return (f"{begin}:", rest[2:]) if rest[0] == ":" else (begin, rest[1:])


def glossary(derivation: Derivation) -> list[tuple[str, str]]:
    """Return (words, LaTeX) for each special function that occurs in a derivation's steps or results."""
    expressions = [step.equation for step in derivation.steps]
    expressions += [sp.sympify(result.expression) for result in derivation.results.values()]
    return [
        (words, equation(sp.Eq(symbol, _GAMMA if function is gammainc else symbol.rewrite(sp.exp), evaluate=False)))
        for function, (symbol, words) in DEFINITIONS.items()
        if any(expression.has(function) for expression in expressions)
    ]


_s, _x = sp.symbols("s x", positive=True)
_t = sp.Symbol("t", positive=True)
_GAMMA = sp.Integral(_t ** (_s - 1) * sp.exp(-_t), (_t, 0, _x)) / sp.gamma(_s)
