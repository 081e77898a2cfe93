"""Exponential linear unit: z above zero, a (exp z - 1) below."""

import sympy as sp
from sympy.codegen.cfunctions import expm1

from varprop.derivations.gaussian import (
    ASSUMPTIONS,
    a,
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
from varprop.derivations.special_functions import erfcx, erfcx_tail, normal
from varprop.derivations.theorem import Derivation, Step, step

VALUE = sp.Piecewise((z, z > 0), (a * expm1(z), True))
DERIVATIVE = sp.Piecewise((1, z > 0), (a * sp.exp(z), True))

_x = sp.sqrt(q / 2)
MEAN = (1 - a) * sp.sqrt(q / (2 * sp.pi)) + a * erfcx_tail(_x) / 2
SECOND_MOMENT = q / 2 + a**2 * (erfcx_tail(2 * _x) / 2 - erfcx_tail(_x))
DERIVATIVE_SECOND_MOMENT = sp.Rational(1, 2) + a**2 * erfcx(2 * _x) / 2

_t = sp.Symbol("t", positive=True)
EXPONENTIAL_STEPS: tuple[Step, ...] = (
    step(
        "half_line",
        r"Exponential moment of the negative half line, $\operatorname{erfcx}(x) = \exp(x^2)"
        r" \operatorname{erfc}(x)$.",
        "complete the square",
        sp.Integral(sp.exp(_t * z) * normal(z, q), (z, -sp.oo, 0)),
        erfcx(_t * _x) / 2,
    ),
    step(
        "tail",
        "Remainder of erfcx after its first two Taylor terms: with it nothing cancels at small $q$.",
        "definition",
        erfcx(_x),
        1 - 2 * _x / sp.sqrt(sp.pi) + erfcx_tail(_x),
    ),
)

DERIVATION = Derivation(
    "elu",
    "Exponential linear unit",
    (*ASSUMPTIONS, "the scale $a$ below zero is a constant"),
    (
        derivative_step(VALUE, DERIVATIVE),
        *EXPONENTIAL_STEPS,
        mean_step(VALUE, MEAN, "rectified half plus $a$ times the exponential moment at 1 less the mass"),
        forward_step(VALUE, SECOND_MOMENT, r"expand $(\exp z - 1)^2$: exponential moments at 2, 1 and 0"),
        backward_step(DERIVATIVE, DERIVATIVE_SECOND_MOMENT, "exponential moment at 2"),
    ),
    function_results(VALUE, DERIVATIVE)
    | moment_results(mean=MEAN, second_moment=SECOND_MOMENT, derivative_second_moment=DERIVATIVE_SECOND_MOMENT),
    (cite("clevert2016", "section 3"), cite("tsuchida2021", "kernel of the ELU")),
    defaults={a: 1.0},
)
