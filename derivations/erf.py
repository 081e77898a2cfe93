"""Error function."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    CORRELATION,
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
from varprop.derivations.special_functions import normal
from varprop.derivations.theorem import Derivation, step

_VALUE = sp.erf(z)
_DERIVATIVE = 2 * sp.exp(-(z**2)) / sp.sqrt(sp.pi)
# Arctangents in place of Williams's arcsine: the arcsine loses half of the digits as its argument nears 1.
_SECOND = 2 / sp.pi * sp.atan(2 * q / sp.sqrt(1 + 4 * q))
_BACKWARD = 4 / (sp.pi * sp.sqrt(1 + 4 * q))
_k = c * sp.sqrt(q1 * q2)
_determinant = 1 + 2 * q1 + 2 * q2 + 4 * q1 * q2 * (1 - c**2)
_DUAL = 2 / sp.pi * sp.atan(2 * _k / sp.sqrt(_determinant))
_DERIVATIVE_DUAL = 4 / (sp.pi * sp.sqrt(_determinant))
_u = sp.Symbol("u", real=True)

DERIVATION = Derivation(
    "erf",
    "Error function",
    ASSUMPTIONS,
    (
        derivative_step(_VALUE, _DERIVATIVE),
        mean_step(_VALUE, sp.Integer(0), "the function is odd"),
        forward_step(_VALUE, _SECOND, "the dual below at equal arguments"),
        backward_step(_DERIVATIVE, _BACKWARD, "a product of two Gaussians is a Gaussian"),
        step(
            "inner",
            "Given $z_1$, $z_2$ is Gaussian about $u$; here with variance $q$.",
            "complete the square",
            sp.Integral(sp.exp(-((_u + z) ** 2)) * normal(z, q), (z, -sp.oo, sp.oo)),
            sp.exp(-(_u**2) / (1 + 2 * q)) / sp.sqrt(1 + 2 * q),
        ),
        step(
            "determinant",
            r"Averaging over $z_1$ as well gives $\det(1 + 2 \Sigma)^{-1/2}$.",
            r"$u = c \sqrt{q_2 / q_1} z_1$ and the variance given $z_1$ is $q_2 (1 - c^2)$",
            sp.Integral(
                _DERIVATIVE.subs(z, _u)
                * normal(_u, q1)
                * 2
                / sp.sqrt(sp.pi)
                * sp.exp(-(c**2) * q2 / q1 * _u**2 / (1 + 2 * q2 * (1 - c**2)))
                / sp.sqrt(1 + 2 * q2 * (1 - c**2)),
                (_u, -sp.oo, sp.oo),
            ),
            _DERIVATIVE_DUAL,
            domain=CORRELATION,
        ),
        price_step(_DUAL, _DERIVATIVE_DUAL),
        step(
            "arcsine",
            "Williams's form of the dual.",
            "tan of the arcsine",
            _DUAL,
            2 / sp.pi * sp.asin(2 * _k / sp.sqrt((1 + 2 * q1) * (1 + 2 * q2))),
            domain=CORRELATION,
        ),
    ),
    function_results(_VALUE, _DERIVATIVE)
    | moment_results(
        mean=sp.Integer(0),
        second_moment=_SECOND,
        derivative_second_moment=_BACKWARD,
        dual=_DUAL,
        derivative_dual=_DERIVATIVE_DUAL,
    ),
    (cite("williams1997", "section 3.1"), cite("price1958", "theorem")),
)
