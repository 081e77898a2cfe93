"""Residual sum of two branches."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_u, _x, _y, _s = sp.symbols("u x y s", real=True)
_q1, _q2 = sp.symbols("q1 q2", positive=True)
_k, _m1 = sp.symbols("k m1", real=True)
_RESULT = _q1 + _q2 + 2 * _k

DERIVATION = Derivation(
    "add",
    "Residual sum",
    (r"$k = \mathbb{E}[u v]$ is the covariance of the branches: 0 where the last weights of one branch have mean 0",),
    (
        step(
            "square",
            "Forward: second moments add, with twice the covariance; here $v = s u + x$, with $x$ independent of $u$.",
            "expand the square",
            E((_u + _s * _u + _x) ** 2),
            _RESULT.subs({_q2: E((_s * _u + _x) ** 2), _k: E(_u * (_s * _u + _x))}),
        ),
        step(
            "independent",
            "A branch that ends in weights of mean 0 has no covariance with the shortcut.",
            "independence",
            E((_u + _x) ** 2),
            _RESULT.subs(_k, 0),
        ),
        step(
            "backward",
            "Backward: every branch receives the gradient unchanged; where branches meet, their gradients add.",
            "the sum has slope 1 in each branch",
            sp.Derivative(_u + _y, _u),
            sp.Integer(1),
        ),
    ),
    {"second_moment": Result((_q1, _q2, _k), _RESULT, "second moment of the sum")},
    (cite("he2016", "section 3.2"),),
    laws={_u: (_m1, _q1), _x: (sp.Integer(0), _q2)},
)
