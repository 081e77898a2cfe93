"""Linear activation phi(z) = z."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    backward_step,
    c,
    derivative_step,
    forward_step,
    function_results,
    mean_step,
    moment_results,
    price_step,
    q,
    q1,
    q2,
    z,
)
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation

_ONE, _DUAL = sp.Integer(1), sp.sqrt(q1 * q2) * c

DERIVATION = Derivation(
    "identity",
    "Linear activation",
    ASSUMPTIONS,
    (
        derivative_step(z, _ONE),
        mean_step(z, sp.Integer(0), "the integrand is odd"),
        forward_step(z, q, "definition of $q$"),
        backward_step(_ONE, _ONE, "the density integrates to one"),
        price_step(_DUAL, _ONE),
    ),
    function_results(z, _ONE)
    | moment_results(
        mean=sp.Integer(0), second_moment=q, derivative_second_moment=_ONE, dual=_DUAL, derivative_dual=_ONE
    ),
    (cite("glorot2010", "Eqs. (10) and (11)"), cite("price1958", "theorem")),
)
