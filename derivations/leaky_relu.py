"""Leaky rectifier: slope 1 above zero, a below."""

import sympy as sp

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    a,
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
from varprop.derivations.relu import ARC_COSINE, ARC_STEPS, BOTH_POSITIVE
from varprop.derivations.relu import VALUE as RECTIFIED
from varprop.derivations.theorem import Derivation, step

VALUE = sp.Piecewise((z, z > 0), (a * z, True))
DERIVATIVE = sp.Piecewise((1, z > 0), (a, True))
SECOND = q * (1 + a**2) / 2
BACKWARD = (1 + a**2) / 2
MEAN = (1 - a) * sp.sqrt(q / (2 * sp.pi))
_DUAL = sp.sqrt(q1 * q2) * (a * c + (1 - a) ** 2 * ARC_COSINE)
_DERIVATIVE_DUAL = a + (1 - a) ** 2 * BOTH_POSITIVE

DERIVATION = Derivation(
    "leaky_relu",
    "Leaky rectified linear unit",
    (*ASSUMPTIONS, "the slope $a$ below zero is a constant"),
    (
        derivative_step(VALUE, DERIVATIVE),
        step(
            "split",
            "A leaky rectifier is a line plus a rectifier.",
            "both sides agree on each half line",
            VALUE,
            a * z + (1 - a) * RECTIFIED,
        ),
        mean_step(VALUE, MEAN, "the line has mean 0"),
        forward_step(VALUE, SECOND, "each half line carries half of $q$, one of them scaled by $a^2$"),
        backward_step(DERIVATIVE, BACKWARD, "each half line carries half of the mass"),
        *ARC_STEPS,
        price_step(_DUAL, _DERIVATIVE_DUAL),
    ),
    function_results(VALUE, DERIVATIVE)
    | moment_results(
        mean=MEAN,
        second_moment=SECOND,
        derivative_second_moment=BACKWARD,
        dual=_DUAL,
        derivative_dual=_DERIVATIVE_DUAL,
    ),
    (cite("maas2013", "section 2"), cite("he2015", "Eq. (15)"), cite("cho2009", "section 2, degrees 0 and 1")),
    defaults={a: 0.01},
)
