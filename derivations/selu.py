"""Scaled exponential linear unit: lambda ELU(z; alpha), with lambda and alpha from the fixed point (0, 1)."""

import sympy as sp

from varprop.derivations.elu import DERIVATIVE as ELU_DERIVATIVE
from varprop.derivations.elu import DERIVATIVE_SECOND_MOMENT, EXPONENTIAL_STEPS, MEAN, SECOND_MOMENT
from varprop.derivations.elu import VALUE as ELU_VALUE
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
)
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, step

SCALE = sp.Symbol("lambda", positive=True)
ALPHA = sp.Symbol("alpha", positive=True)

_e = sp.sqrt(sp.E) * sp.erfc(1 / sp.sqrt(2))  # erfcx(1 / sqrt 2)
_e2 = sp.exp(2) * sp.erfc(sp.sqrt(2))  # erfcx(sqrt 2)
_ALPHA = sp.sqrt(2 / sp.pi) / (1 - _e)
_SCALE = 1 / sp.sqrt(sp.Rational(1, 2) + _ALPHA**2 * (_e2 / 2 - _e + sp.Rational(1, 2)))


def _piecewise(expression: sp.Piecewise) -> sp.Piecewise:
    return sp.Piecewise(*((SCALE * piece.subs(a, ALPHA), condition) for piece, condition in expression.args))


_VALUE, _DERIVATIVE = _piecewise(ELU_VALUE), _piecewise(ELU_DERIVATIVE)
_MEAN = SCALE * MEAN.subs(a, ALPHA)
_SECOND = SCALE**2 * SECOND_MOMENT.subs(a, ALPHA)
_BACKWARD = SCALE**2 * DERIVATIVE_SECOND_MOMENT.subs(a, ALPHA)

DERIVATION = Derivation(
    "selu",
    "Scaled exponential linear unit",
    ASSUMPTIONS,
    (
        derivative_step(_VALUE, _DERIVATIVE),
        *EXPONENTIAL_STEPS,
        mean_step(_VALUE, _MEAN, "ELU's mean, scaled"),
        forward_step(_VALUE, _SECOND, "ELU's second moment, scaled"),
        backward_step(_DERIVATIVE, _BACKWARD, "ELU's factor, scaled"),
        step(
            "alpha",
            "A mean of zero at q = 1 fixes alpha.",
            "1 / sqrt(2 pi) = alpha (1 - erfcx(1 / sqrt 2)) / 2",
            MEAN.subs({q: 1, a: _ALPHA}),
            sp.Integer(0),
        ),
        step(
            "lambda",
            "A second moment of one at q = 1 fixes lambda.",
            "lambda^2 times ELU's second moment at alpha is one",
            _SCALE**2 * SECOND_MOMENT.subs({q: 1, a: _ALPHA}),
            sp.Integer(1),
        ),
    ),
    function_results(_VALUE, _DERIVATIVE)
    | moment_results(mean=_MEAN, second_moment=_SECOND, derivative_second_moment=_BACKWARD),
    (cite("klambauer2017", "section 2 and the fixed point in its appendix"),),
    constants={SCALE: _SCALE, ALPHA: _ALPHA},
)
