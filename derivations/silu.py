"""Sigmoid linear unit z sigmoid(z), also called swish."""

import sympy as sp

from varprop.derivations.gaussian import ASSUMPTIONS, derivative_step, function_results, mean_over, q, z
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, step

_e = sp.exp(-sp.Abs(z))
_VALUE = sp.Piecewise((z / (1 + _e), z >= 0), (z * _e / (1 + _e), True))
_DERIVATIVE = sp.Piecewise(((1 + _e + z * _e) / (1 + _e) ** 2, z >= 0), (_e * (1 + _e + z) / (1 + _e) ** 2, True))

DERIVATION = Derivation(
    "silu",
    "Sigmoid linear unit",
    (*ASSUMPTIONS, "the moments have no closed form: the integrals are evaluated by quadrature"),
    (
        step(
            "stable",
            "Form that neither overflows nor loses the tail.",
            "multiply through by exp z where z is negative",
            z / (1 + sp.exp(-z)),
            _VALUE,
        ),
        derivative_step(_VALUE, _DERIVATIVE),
        step(
            "stein",
            "The mean is q times the mean slope of the sigmoid.",
            "Stein: E[z f(z)] = q E[f'(z)]",
            mean_over(_VALUE),
            q * mean_over(_e / (1 + _e) ** 2),
        ),
    ),
    function_results(_VALUE, _DERIVATIVE),
    (cite("elfwing2018", "section 2"), cite("ramachandran2017", "section 4"), cite("stein1981", "lemma 1")),
)
