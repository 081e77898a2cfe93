"""A formula as a tree, and the constructors that keep it small and safe to evaluate."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

from varprop.simulator.errors import UserError

DEEPEST = 100
"""Levels of a formula's tree; its derivative may have a few times as many, well within Python's own limit."""

LARGEST = 500
"""Terms of a formula."""


@dataclass(frozen=True, slots=True)
class Term:
    """A number, the variable, a named constant, or an operator with its arguments.

    Attributes
    ----------
    operator
        "number", "x", "pi", "add", "multiply", "divide", "negate", "power", "less", "less_equal", "where", or a
        function's name.
    arguments
        Terms that it acts on; any number of two or more for "add" and "multiply".
    number
        Of a "number".
    size, depth
        Of the tree, a term that occurs twice counted twice.
    """

    operator: str
    arguments: tuple[Term, ...] = ()
    number: float = 0.0
    size: int = field(init=False, compare=False, repr=False)
    depth: int = field(init=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", 1 + sum(term.size for term in self.arguments))
        object.__setattr__(self, "depth", 1 + max((term.depth for term in self.arguments), default=0))


X = Term("x")
PI = Term("pi")


def number(value: float) -> Term:
    """Return a number."""
    return Term("number", number=value)


ZERO, ONE, TWO = number(0.0), number(1.0), number(2.0)


def refuse_large(term: Term, text: str) -> Term:
    """Return a term of a formula that was written by somebody else, if it is not too large.

    Raises
    ------
    UserError
        It has more than `LARGEST` terms, or more than `DEEPEST` levels.
    """
    if term.size > LARGEST or term.depth > DEEPEST:
        raise UserError("formula", shortened(text), f"at most {LARGEST} terms in {DEEPEST} levels", "simplify it")
    return term


def shortened(text: str) -> str:
    """Return a text in quotes, cut where it is long."""
    return repr(text if len(text) <= 60 else text[:57] + "...")


def distinct(term: Term) -> Iterator[Term]:
    """Yield every part of a term once, the term itself last; parts that are one object in memory are one part."""
    seen: set[int] = set()
    stack = [(term, False)]
    while stack:
        part, done = stack.pop()
        if done:
            yield part
        elif id(part) not in seen:
            seen.add(id(part))
            stack.append((part, True))
            stack.extend((argument, False) for argument in reversed(part.arguments))


def has_x(term: Term) -> bool:
    """Whether the variable occurs."""
    return any(part.operator == "x" for part in distinct(term))


def add(*terms: Term) -> Term:
    """Return a sum without zeros."""
    flat = [part for term in terms for part in (term.arguments if term.operator == "add" else (term,))]
    kept = tuple(part for part in flat if part != ZERO)
    if len(kept) == 2:
        for here, other in (kept, kept[::-1]):
            if here.operator == "exp" and other in (number(-1.0), negate(ONE)):
                return Term("expm1", here.arguments)
    return Term("add", kept) if len(kept) > 1 else kept[0] if kept else ZERO


def negate(term: Term) -> Term:
    """Return the negative."""
    if term.operator == "negate":
        return term.arguments[0]
    return ZERO if term == ZERO else Term("negate", (term,))


def multiply(*terms: Term) -> Term:
    """Return a product without ones; 0 if a factor is 0."""
    flat = [part for term in terms for part in (term.arguments if term.operator == "multiply" else (term,))]
    if ZERO in flat:
        return ZERO
    kept = tuple(part for part in flat if part != ONE)
    return Term("multiply", kept) if len(kept) > 1 else kept[0] if kept else ONE


def divide(above: Term, below: Term) -> Term:
    """Return a quotient; logistic functions, whose exponentials overflow on one side, are recognised."""
    if above == ZERO or below == ONE:
        return above
    if below.operator == "add" and len(below.arguments) == 2:
        for one, grown in (below.arguments, below.arguments[::-1]):
            if one == ONE and grown.operator == "exp":
                (argument,) = grown.arguments
                if above == grown:
                    return Term("sigmoid", (argument,))
                return multiply(above, Term("sigmoid", (negate(argument),)))
    return Term("divide", (above, below))


def power(base: Term, exponent: Term) -> Term:
    """Return a power."""
    if exponent == ONE:
        return base
    return ONE if exponent == ZERO else Term("power", (base, exponent))


def call(function: str, *arguments: Term) -> Term:
    """Return a function of terms; log(1 + u) and log(1 + exp u) become functions that neither cancel nor overflow."""
    if function == "log" and arguments[0].operator == "add" and ONE in arguments[0].arguments:
        rest = list(arguments[0].arguments)
        rest.remove(ONE)
        return call("log1p", add(*rest))
    if function == "log1p" and arguments[0].operator == "exp":
        return Term("softplus", arguments[0].arguments)
    return Term(function, arguments)


def where(condition: Term, yes: Term, no: Term) -> Term:
    """Return one of two terms by a condition, "less" or "less_equal"."""
    return yes if yes == no else Term("where", (condition, yes, no))
