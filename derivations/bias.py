"""Bias: a constant b added to every sample and position of a channel."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_q, _sigma_b2 = sp.symbols("q sigma_b2", positive=True)
_b, _z, _u, _v = sp.symbols("b z u v", real=True)

DERIVATION = Derivation(
    "bias",
    "Bias",
    (r"the bias is independent of the weights and has mean 0 and variance $\sigma_b^2$",),
    (
        step(
            "forward",
            "Forward: the variances add.",
            "the cross term has mean 0",
            E((_z + _b) ** 2),
            _q + _sigma_b2,
        ),
        step(
            "covariance",
            "Two samples, or two positions, share the bias: their covariance grows by as much.",
            "for given $z(x) = u$ and $z(x') = v$ only the square of $b$ survives",
            E((_u + _b) * (_v + _b)),
            _u * _v + _sigma_b2,
        ),
        step(
            "backward",
            "Backward: the gradient passes unchanged.",
            "the sum has slope 1",
            sp.Derivative(_u + _b, _u),
            sp.Integer(1),
        ),
    ),
    {"second_moment": Result((_q, _sigma_b2), _q + _sigma_b2, "second moment after adding the bias")},
    (cite("poole2016", "section 2"), cite("schoenholz2017", "section 2")),
    laws={_b: (sp.Integer(0), _sigma_b2), _z: (sp.Integer(0), _q)},
)
