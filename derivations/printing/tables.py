"""Tables over all derivations: recurrences of layers and activations, and gains."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mpmath
import sympy as sp

from varprop.derivations.gaussian import q, z
from varprop.derivations.special_functions import elementary
from varprop.derivations.theorem import Derivation

_BACKWARD = ("gradient", "derivative_second_moment")
_MOMENTS = {"mean": ("value", 1), "second_moment": ("value", 2), "derivative_second_moment": ("derivative", 2)}
_CUTS = (-14, -6, -3, -1, 0, 1, 3, 6, 14)


def recurrences(derivations: Sequence[Derivation]) -> Iterator[tuple[Derivation, str, str]]:
    """Yield each derivation that goes forward and backward, with the names of the two results."""
    for one in derivations:
        backward = [name for name in _BACKWARD if name in one.results]
        if "second_moment" in one.results and backward:
            yield one, "second_moment", backward[0]


def gains(derivations: Sequence[Derivation]) -> Iterator[tuple[Derivation, list[float]]]:
    """Yield each activation with E[phi], E[phi^2], E[phi'^2], 1/sqrt(E[phi^2]), 1/sd(phi) and chi, all at q = 1.

    chi = E[phi'^2] / E[phi^2] is the gradient's factor when the weights keep the second moment.
    """
    for one in derivations:
        if {"value", "derivative"} <= set(one.results):
            mean, second, slope = (_moment(one, name) for name in _MOMENTS)
            numbers = [mean, second, slope, 1 / mpmath.sqrt(second), 1 / mpmath.sqrt(second - mean**2), slope / second]
            yield one, [float(number) for number in numbers]


def _moment(derivation: Derivation, name: str) -> mpmath.mpf:
    known = {**derivation.constants, **derivation.defaults}
    with mpmath.workdps(20):
        if name in derivation.results:
            form = elementary(sp.sympify(derivation.results[name].expression)).subs(known).subs(q, 1)
            return mpmath.mpf(sp.N(form, 20))
        function, power = _MOMENTS[name]
        value = sp.lambdify(z, elementary(derivation.results[function].expression).subs(known), "mpmath")
        return mpmath.quad(lambda x: value(x) ** power * mpmath.npdf(x), _CUTS)
