"""Rectifier clipped at 6."""

import sympy as sp
from sympy.codegen.cfunctions import expm1

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    backward_step,
    derivative_step,
    forward_step,
    function_results,
    mean_step,
    moment_results,
    q,
    z,
)
from varprop.derivations.references import cite
from varprop.derivations.special_functions import gammainc, normal
from varprop.derivations.theorem import Derivation, step

_VALUE = sp.Piecewise((0, z <= 0), (z, z < 6), (6, True))
_DERIVATIVE = sp.Piecewise((0, z <= 0), (1, z < 6), (0, True))
_TAIL = sp.erfc(6 / sp.sqrt(2 * q)) / 2  # P(z > 6)
_MEAN = -sp.sqrt(q / (2 * sp.pi)) * expm1(-18 / q) + 6 * _TAIL
_SECOND = q / 2 * gammainc(sp.Rational(3, 2), 18 / q) + 36 * _TAIL
_BACKWARD = sp.erf(6 / sp.sqrt(2 * q)) / 2

DERIVATION = Derivation(
    "relu6",
    "Rectifier clipped at 6",
    ASSUMPTIONS,
    (
        derivative_step(_VALUE, _DERIVATIVE),
        step(
            "tail",
            "Mass beyond the clip.",
            "definition of erfc",
            sp.Integral(normal(z, q), (z, 6, sp.oo)),
            _TAIL,
        ),
        step(
            "inside",
            "Second moment between the kinks; $P(s, x)$ is the regularised lower incomplete gamma function.",
            "substitute $t = z^2 / 2q$",
            sp.Integral(z**2 * normal(z, q), (z, 0, 6)),
            q / 2 * gammainc(sp.Rational(3, 2), 18 / q),
        ),
        mean_step(_VALUE, _MEAN, r"$z \exp(-z^2/2q)$ is a derivative; beyond 6 the output is 6"),
        forward_step(_VALUE, _SECOND, "inside the kinks plus 36 times the mass beyond the clip"),
        backward_step(_DERIVATIVE, _BACKWARD, "mass between the kinks"),
    ),
    function_results(_VALUE, _DERIVATIVE)
    | moment_results(mean=_MEAN, second_moment=_SECOND, derivative_second_moment=_BACKWARD),
    (cite("sandler2018", "section 4"), cite("he2015", "Eq. (7)")),
)
