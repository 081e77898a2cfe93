"""Piecewise quadratic swish z relu6(z + 3) / 6."""

import sympy as sp

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

_VALUE = sp.Piecewise((0, z <= -3), (z * (z + 3) / 6, z <= 3), (z, True))
_DERIVATIVE = sp.Piecewise((0, z <= -3), ((2 * z + 3) / 6, z <= 3), (1, True))

_x = 9 / (2 * q)
_SQUARE = gammainc(sp.Rational(3, 2), _x)  # share of z^2 inside the kinks
_FOURTH = gammainc(sp.Rational(5, 2), _x)  # share of z^4
_OUTSIDE = 1 - _SQUARE
_MEAN = q * _SQUARE / 6 + sp.sqrt(q / (2 * sp.pi)) * sp.exp(-_x)
_SECOND = q**2 * _FOURTH / 12 + q / 4 * _SQUARE + q / 2 * _OUTSIDE
_BACKWARD = q * _SQUARE / 9 + sp.erf(sp.sqrt(_x)) / 4 + sp.erfc(sp.sqrt(_x)) / 2

DERIVATION = Derivation(
    "hard_swish",
    "Hard swish",
    ASSUMPTIONS,
    (
        derivative_step(_VALUE, _DERIVATIVE),
        step(
            "second_inside",
            "Second moment between the kinks; $P(s, x)$ is the regularised lower incomplete gamma function.",
            "substitute $t = z^2 / 2q$",
            sp.Integral(z**2 * normal(z, q), (z, -3, 3)),
            q * _SQUARE,
        ),
        step(
            "fourth_inside",
            "Fourth moment between the kinks.",
            "the same substitution",
            sp.Integral(z**4 * normal(z, q), (z, -3, 3)),
            3 * q**2 * _FOURTH,
        ),
        mean_step(_VALUE, _MEAN, r"the odd part vanishes inside; beyond 3, $z \exp(-z^2/2q)$ is a derivative"),
        forward_step(_VALUE, _SECOND, "$(z^4 + 9 z^2) / 36$ inside, $z^2$ beyond 3"),
        backward_step(_DERIVATIVE, _BACKWARD, "$(4 z^2 + 9) / 36$ inside, 1 beyond 3"),
    ),
    function_results(_VALUE, _DERIVATIVE)
    | moment_results(mean=_MEAN, second_moment=_SECOND, derivative_second_moment=_BACKWARD),
    (cite("howard2019", "section 5.2"),),
)
