"""Logistic function 1 / (1 + exp(-z))."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    derivative_step,
    function_results,
    mean_step,
    moment_results,
    z,
)
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, step

_e = sp.exp(-sp.Abs(z))  # never overflows
VALUE = sp.Piecewise((1 / (1 + _e), z >= 0), (_e / (1 + _e), True))
_DERIVATIVE = _e / (1 + _e) ** 2

DERIVATION = Derivation(
    "sigmoid",
    "Logistic sigmoid",
    (*ASSUMPTIONS, "the second moments have no closed form: the integrals are evaluated by quadrature"),
    (
        step(
            "stable",
            "Form that neither overflows nor loses the tail.",
            "multiply through by exp z where z is negative",
            1 / (1 + sp.exp(-z)),
            VALUE,
        ),
        derivative_step(VALUE, _DERIVATIVE),
        step(
            "symmetry",
            "The function less one half is odd.",
            "common denominator",
            1 / (1 + sp.exp(-z)) + 1 / (1 + sp.exp(z)),
            sp.Integer(1),
        ),
        mean_step(VALUE, sp.Rational(1, 2), "symmetry"),
    ),
    function_results(VALUE, _DERIVATIVE) | moment_results(mean=sp.Rational(1, 2)),
    (cite("glorot2010", "section 3.1"), cite("lecun1998", "section 4.4")),
)
