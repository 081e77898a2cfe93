"""Glorot's initializer: forward and backward conditions of a linear layer, in compromise."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_VARIANCE = 2 / (_n + _n_out)
_LIMIT = sp.sqrt(6 / (_n + _n_out))
_x = sp.Symbol("x", real=True)

DERIVATION = Derivation(
    "glorot",
    "Glorot initialization",
    ("weights are independent, with mean 0; activations are linear near 0 with slope 1",),
    (
        step(
            "compromise",
            "Forward wants n sigma2 = 1, backward n_out sigma2 = 1; the mean of the two factors is kept at one.",
            "solve (n + n_out) sigma2 / 2 = 1",
            (_n * _VARIANCE + _n_out * _VARIANCE) / 2,
            sp.Integer(1),
        ),
        step(
            "uniform",
            "The uniform law of that variance.",
            "a uniform law on [-l, l] has variance l^2 / 3",
            sp.Integral(_x**2 / (2 * _LIMIT), (_x, -_LIMIT, _LIMIT)),
            _VARIANCE,
        ),
    ),
    {
        "variance": Result((_n, _n_out), _VARIANCE, "weight variance"),
        "limit": Result((_n, _n_out), _LIMIT, "bound of the uniform law"),
    },
    (cite("glorot2010", "Eqs. (10), (11), (12) and (16)"),),
)
