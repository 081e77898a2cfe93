"""The search for closed forms of an activation's moments, in a process of its own that can be stopped."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import mpmath
import sympy as sp

from varprop.derivations.gaussian import density, q, z
from varprop.derivations.gaussian_integral import gaussian_integral
from varprop.derivations.special_functions import elementary

Piece = tuple[sp.Expr, sp.Expr, sp.Expr]
"""Function of z, and the ends of an interval."""

LIMIT = 20.0
"""Seconds that a search may take."""

_CHECKED_AT = (sp.Rational(3, 10), sp.Integer(2))


@dataclass(frozen=True)
class Found:
    """What a search brought in its time.

    Attributes
    ----------
    value
        The activation, its pieces in order from left to right.
    forms
        Those of "mean", "second_moment" and "derivative_second_moment" that were found, functions of q.
    """

    value: sp.Expr
    forms: Mapping[str, sp.Expr]

    @property
    def readable(self) -> dict[str, str]:
        """The forms as text, in elementary functions, erf and erfc."""
        return {name: str(elementary(form)) for name, form in self.forms.items()}


def search(value: sp.Expr, seconds: float = LIMIT) -> Found:
    """Look for closed forms of an activation's moments.

    Sums of z^n exp(b z + c z^2) between kinks are integrated exactly; for anything else SymPy is asked. Every form is
    compared with quadrature before it is believed.

    Parameters
    ----------
    value
        The activation, an expression in z.
    seconds
        After which the search is stopped.
    """
    spawn = multiprocessing.get_context("spawn")
    receiver, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=_search, args=(value, sender), daemon=True)
    process.start()
    sender.close()
    end = time.monotonic() + seconds
    found: dict[str, sp.Expr] = {}
    try:
        while receiver.poll(max(0.0, end - time.monotonic())):
            name, form = receiver.recv()
            found[name] = form
    except EOFError:
        pass  # the search is over
    finally:
        process.kill()
        process.join()
        receiver.close()
    return Found(found.pop("value", value), found)


def _search(value: sp.Expr, sender: Connection) -> None:
    with suppress(Exception):
        value = _ordered(value)
        sender.send(("value", value))
    moments = {"mean": value, "second_moment": value**2, "derivative_second_moment": sp.diff(value, z) ** 2}
    for integral in (gaussian_integral, _asked):  # all that is quick comes first
        for name, function in tuple(moments.items()):
            # A search may end in any error of SymPy's; the moment then has no closed form.
            with suppress(Exception):
                pieces = list(_pieces(function))
                forms: list[Any] = [integral(*piece) for piece in pieces]
                if None not in forms:
                    form = sum(forms, sp.S.Zero)
                    if all(_holds(form, pieces, variance) for variance in _CHECKED_AT):
                        sender.send((name, form))
                        del moments[name]
    sender.close()


def _asked(function: sp.Expr, low: sp.Expr, high: sp.Expr) -> sp.Expr | None:
    found = sp.simplify(sp.integrate(function * density(z, q), (z, low, high)))
    return None if found.has(sp.Integral, sp.Piecewise, sp.meijerg, z) else found


def _pieces(function: sp.Expr) -> Iterator[Piece]:
    """Yield a piecewise function of z interval by interval, zeros left out."""
    folded = sp.piecewise_fold(function)
    pairs = folded.as_expr_set_pairs() if isinstance(folded, sp.Piecewise) else [(folded, sp.Reals)]
    for piece, where in pairs:
        for interval in where.args if isinstance(where, sp.Union) else [where]:
            if piece != 0 and isinstance(interval, sp.Interval):
                yield piece, interval.inf, interval.sup


def _ordered(value: sp.Expr) -> sp.Expr:
    """Return a piecewise function with conditions z < k or z <= k on ever larger k."""
    folded = sp.piecewise_fold(value)
    if not isinstance(folded, sp.Piecewise):
        return folded
    intervals = [
        (interval, piece)
        for piece, where in folded.as_expr_set_pairs()
        for interval in (where.args if isinstance(where, sp.Union) else [where])
        if isinstance(interval, sp.Interval)
    ]
    pieces = [
        (piece, z < interval.sup if interval.right_open else z <= interval.sup)
        for interval, piece in sorted(intervals, key=lambda pair: pair[0].inf)
    ]
    return sp.Piecewise(*pieces[:-1], (pieces[-1][0], True))


def _holds(form: sp.Expr, pieces: list[Piece], variance: sp.Expr) -> bool:
    found = sp.N(elementary(form).subs(q, variance), 20)
    expected = mpmath.mpf(0)
    with mpmath.workdps(20):
        reach = 12 * sp.sqrt(variance)
        for function, low, high in pieces:
            integrand = sp.lambdify(z, function * density(z, variance), "mpmath")
            ends = [mpmath.mpmathify(sp.N(max(-reach, min(reach, end)), 20)) for end in (low, high)]
            expected += mpmath.quad(integrand, mpmath.linspace(*ends, 13))
        return bool(abs(found - expected) <= 1e-12 * (1 + abs(expected)))
