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
ALPHA_AT_FIXED_POINT = sp.sqrt(2 / sp.pi) / (1 - _e)


def scale_of(alpha: sp.Expr) -> sp.Expr:
    """Return lambda at the fixed point, in terms of alpha."""
    return 1 / sp.sqrt(sp.Rational(1, 2) + alpha**2 * (_e2 / 2 - _e + sp.Rational(1, 2)))


SCALE_AT_FIXED_POINT = scale_of(ALPHA_AT_FIXED_POINT)

_MEAN_AT_ONE = 1 / sp.sqrt(2 * sp.pi) - ALPHA * (1 - _e) / 2
_SECOND_AT_ONE = sp.Rational(1, 2) + ALPHA**2 * (_e2 - 2 * _e + 1) / 2
_MEAN_SLOPE = SCALE * ((1 - ALPHA) / sp.sqrt(2 * sp.pi) + ALPHA * _e / 2) / 2
_SECOND_SLOPE = SCALE**2 * (sp.Rational(1, 2) + ALPHA**2 * (_e2 - _e / 2))


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
            "mean_at_one",
            r"The fixed point is sought at $q = 1$: there ELU's mean is linear in $\alpha$.",
            "insert $q = 1$ and write erfcx out",
            MEAN.subs({q: 1, a: ALPHA}),
            _MEAN_AT_ONE,
        ),
        step(
            "alpha",
            r"A mean of zero at $q = 1$ fixes $\alpha$; $\lambda$ does not matter for it.",
            "solve the linear equation",
            _MEAN_AT_ONE,
            sp.Integer(0),
            where={ALPHA: ALPHA_AT_FIXED_POINT},
        ),
        step(
            "second_at_one",
            "ELU's second moment at $q = 1$.",
            "insert $q = 1$ and write erfcx out",
            SECOND_MOMENT.subs({q: 1, a: ALPHA}),
            _SECOND_AT_ONE,
        ),
        step(
            "lambda",
            r"A second moment of one at $q = 1$ fixes $\lambda$.",
            r"$\lambda^2$ times ELU's second moment at this $\alpha$ is one",
            SCALE**2 * _SECOND_AT_ONE,
            sp.Integer(1),
            where={SCALE: scale_of(ALPHA), ALPHA: ALPHA_AT_FIXED_POINT},
        ),
        step(
            "variance_slope",
            "Slope of the variance map at the fixed point, 0.7826: below one, so the fixed point attracts.",
            "the mean is 0 there, so only the second moment counts; differentiate, then put $q = 1$",
            sp.Subs(sp.Derivative(_SECOND, q), q, 1),
            _SECOND_SLOPE,
        ),
        step(
            "mean_slope",
            "Slope of the mean with respect to the variance, 0.0888: with weights of mean 0 the incoming mean itself"
            " has no"
            " effect, and the Jacobian is [[0, 0.0888], [0, 0.7826]].",
            "differentiate, then put $q = 1$",
            sp.Subs(sp.Derivative(_MEAN, q), q, 1),
            _MEAN_SLOPE,
        ),
    ),
    function_results(_VALUE, _DERIVATIVE)
    | moment_results(mean=_MEAN, second_moment=_SECOND, derivative_second_moment=_BACKWARD),
    (cite("klambauer2017", "Eq. (2); the map and its fixed point, section 2"),),
    constants={SCALE: SCALE_AT_FIXED_POINT, ALPHA: ALPHA_AT_FIXED_POINT},
)
