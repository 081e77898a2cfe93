"""Text to term: tokens, and a recursive descent over them.

The grammar, with x the one variable; nothing of Python's is asked to read the text::

    sum       = product { ("+" | "-") product }
    product   = signed { ("*" | "/") signed }
    signed    = ("+" | "-") signed | raised
    raised    = atom [ ("^" | "**") signed ]
    atom      = NUMBER | "x" | "pi" | "e" | "(" sum ")" | FUNCTION "(" sum { "," sum } ")"
              | "where" "(" condition "," sum "," sum ")"
              | "piecewise" "(" "(" sum "," condition ")" "," { "(" sum "," condition ")" "," } sum ")"
    condition = sum ("<" | "<=" | ">" | ">=") sum
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import reduce

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.formula.terms import (
    PI,
    TWO,
    Term,
    X,
    add,
    call,
    divide,
    multiply,
    negate,
    number,
    power,
    refuse_large,
    shortened,
    where,
)

LONGEST = 1000
"""Characters of a formula."""

_DEEPEST = 40  # parentheses, signs and powers inside one another

_TOKEN = re.compile(r"\s*(?:((?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?)|([A-Za-z_]\w*)|(\*\*|<=|>=|[-+*/^(),<>]))", re.ASCII)

_UNARY = ("exp", "expm1", "log", "log1p", "sqrt", "abs", "sin", "cos", "tanh", "erf", "sigmoid", "softplus")

_SQRT_TWO = call("sqrt", TWO)


def _clipped(u: Term, low: float, high: float) -> Term:
    return Term("min", (Term("max", (u, number(low))), number(high)))


# Registered activations that are not among the grammar's own functions mean the same inside a formula.
_DEFINED: dict[str, Callable[[Term], Term]] = {
    "relu": lambda u: Term("max", (u, number(0.0))),
    "relu6": lambda u: _clipped(u, 0.0, 6.0),
    "elu": lambda u: where(Term("less", (number(0.0), u)), u, Term("expm1", (u,))),
    "silu": lambda u: multiply(u, Term("sigmoid", (u,))),
    "gelu": lambda u: divide(multiply(u, add(number(1.0), Term("erf", (divide(u, _SQRT_TWO),)))), TWO),
    "hard_swish": lambda u: divide(multiply(u, _clipped(add(u, number(3.0)), 0.0, 6.0)), number(6.0)),
}

FUNCTIONS = (*_UNARY, "min", "max", "where", "piecewise", *_DEFINED)
"""Every function that a formula may use."""

_NAMES = ("x", "pi", "e", *FUNCTIONS)


def mentions_x(text: str) -> bool:
    """Whether x stands in a text as a name of its own: then it is a formula, and not an activation's name."""
    return re.search(r"(?<![A-Za-z_])x(?!\w)", text) is not None


def parse(text: str) -> tuple[Term, str]:
    """Read a formula.

    Parameters
    ----------
    text
        At most `LONGEST` characters, plain ASCII.

    Returns
    -------
    term
        The formula.
    canonical
        The same text without blanks, with ^ for powers.

    Raises
    ------
    UserError
        The text is not a formula, or it is too long or too deep.
    """
    if len(text) > LONGEST:
        raise UserError("formula", f"{len(text):,} characters", f"at most {LONGEST:,}")
    tokens = _tokens(text)
    reader = _Reader(text, tokens)
    term = reader.sum()
    if reader.next:
        raise reader.error(f"an operator before {reader.next!r}" if reader.next not in ")," else "no more")
    return refuse_large(term, text), "".join("^" if token == "**" else token for token in tokens)


def _tokens(text: str) -> list[str]:
    found, place = [], 0
    end = len(text.rstrip())
    while place < end:
        match = _TOKEN.match(text, place)
        if match is None:
            stray = text[place:].lstrip()[0]
            raise UserError("formula", shortened(text), f"numbers, names and operators, not {stray!a}")
        found.append(match[1] or match[2] or match[3])
        place = match.end()
    return found


class _Reader:
    """The tokens and how far they have been read; a method for each rule of the grammar."""

    def __init__(self, text: str, tokens: list[str]) -> None:
        self._text = text
        self._tokens = tokens
        self._place = 0
        self._depth = 0

    @property
    def next(self) -> str:
        """The token to be read next, "" at the end."""
        return self._tokens[self._place] if self._place < len(self._tokens) else ""

    def error(self, expected: str) -> UserError:
        return UserError("formula", shortened(self._text), expected)

    def _take(self) -> str:
        token = self.next
        self._place += 1
        return token

    def _require(self, token: str) -> None:
        if self.next != token:
            raise self.error(f"{token!r} before {self.next!r}" if self.next else f"{token!r} at the end")
        self._take()

    def _deeper(self, rule: Callable[[], Term]) -> Term:
        self._depth += 1
        if self._depth > _DEEPEST:
            raise self.error(f"at most {_DEEPEST} parentheses, signs and powers inside one another")
        term = rule()
        self._depth -= 1
        return term

    def sum(self) -> Term:
        terms = [self._product()]
        while self.next in ("+", "-"):
            terms.append(self._product() if self._take() == "+" else negate(self._product()))
        return add(*terms)

    def _product(self) -> Term:
        term = self._signed()
        while self.next in ("*", "/"):
            operation = multiply if self._take() == "*" else divide
            term = refuse_large(operation(term, self._signed()), self._text)
        return term

    def _signed(self) -> Term:
        if self.next not in ("+", "-"):
            return self._raised()
        sign = self._take()
        term = self._deeper(self._signed)
        return negate(term) if sign == "-" else term

    def _raised(self) -> Term:
        base = self._atom()
        if self.next not in ("^", "**"):
            return base
        self._take()
        return power(base, self._deeper(self._signed))

    def _atom(self) -> Term:
        token = self._take()
        if not token:
            raise self.error("something more at the end")
        if token == "(":
            term = self._deeper(self.sum)
            self._require(")")
            return term
        if token[0].isdigit() or token[0] == ".":
            return number(float(token))
        if not (token[0].isalpha() or token[0] == "_"):
            raise self.error(f"a number, x or a function before {token!r}")
        if token == "x":
            return X
        if token == "pi":
            return PI
        if token == "e":
            return call("exp", number(1.0))
        if token not in FUNCTIONS:
            raise did_you_mean("formula: name", token, list(_NAMES))
        self._require("(")
        term = self._deeper(lambda: self._function(token))
        self._require(")")
        return refuse_large(term, self._text)

    def _function(self, name: str) -> Term:
        if name == "where":
            condition = self._condition()
            self._require(",")
            yes = self.sum()
            self._require(",")
            return where(condition, yes, self.sum())
        if name == "piecewise":
            return self._piecewise()
        arguments = [self.sum()]
        while self.next == ",":
            self._take()
            arguments.append(self.sum())
        if name in ("min", "max"):
            if len(arguments) < 2:
                raise self.error(f"two or more values in {name}()")
            return reduce(lambda left, right: refuse_large(Term(name, (left, right)), self._text), arguments)
        if len(arguments) != 1:
            raise self.error(f"one value in {name}()")
        return _DEFINED[name](arguments[0]) if name in _DEFINED else call(name, arguments[0])

    def _piecewise(self) -> Term:
        pieces: list[tuple[Term, Term]] = []
        while self.next == "(":
            start = self._place
            self._take()
            value = self._deeper(self.sum)
            if self.next != ",":
                self._place = start  # a last value that happens to begin with a parenthesis
                break
            self._take()
            pieces.append((self._condition(), value))
            self._require(")")
            self._require(",")
        if not pieces:
            raise self.error("values with their conditions and one for all else, like piecewise((0, x < 0), x)")
        term = self.sum()
        for condition, value in reversed(pieces):
            term = where(condition, value, term)
        return term

    def _condition(self) -> Term:
        left = self.sum()
        sign = self._take()
        if sign not in ("<", "<=", ">", ">="):
            raise self.error("a comparison like x > 0 where a condition belongs")
        right = self.sum()
        sides = (left, right) if sign in ("<", "<=") else (right, left)
        return Term("less_equal" if sign.endswith("=") else "less", sides)
