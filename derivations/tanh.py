"""Hyperbolic tangent."""

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
from varprop.derivations.theorem import Derivation

_VALUE = sp.tanh(z)
_e = sp.exp(-2 * sp.Abs(z))
_DERIVATIVE = 4 * _e / (1 + _e) ** 2  # 1 - tanh(z)^2 would lose the tail

DERIVATION = Derivation(
    "tanh",
    "Hyperbolic tangent",
    (*ASSUMPTIONS, "the second moments have no closed form: the integrals are evaluated by quadrature"),
    (
        derivative_step(_VALUE, _DERIVATIVE),
        mean_step(_VALUE, sp.Integer(0), "the function is odd"),
    ),
    function_results(_VALUE, _DERIVATIVE) | moment_results(mean=sp.Integer(0)),
    (cite("poole2016", "section 2"), cite("schoenholz2017", "section 2")),
)
