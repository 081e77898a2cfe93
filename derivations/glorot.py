"""Glorot's initializer: forward and backward conditions of a linear layer, in compromise."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_VARIANCE = 2 / (_n + _n_out)
_LIMIT = sp.sqrt(6 / (_n + _n_out))
_x, _mean, _mean_g = sp.symbols("x mean mean_g", real=True)
_i = sp.Symbol("i", integer=True)
_sigma2, _q, _g = sp.symbols("sigma2 q g", positive=True)
_w, _h, _delta = (sp.IndexedBase(name) for name in ("w", "h", "delta"))

DERIVATION = Derivation(
    "glorot",
    "Glorot initialization",
    (
        r"weights are independent, with mean 0 and variance $\sigma^2$; activations are linear near 0 with slope 1",
        "backward: the arriving gradient is independent of the weights",
    ),
    (
        step(
            "forward",
            r"Forward: the layer multiplies the second moment by $n \sigma^2$.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _h[_i], (_i, 1, _n)) ** 2),
            _n * _sigma2 * _q,
            cases=({_n: 1}, {_n: 2}, {_n: 3}),
        ),
        step(
            "backward",
            r"Backward: it multiplies the gradient's second moment by $n_{\mathrm{out}} \sigma^2$.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _delta[_i], (_i, 1, _n_out)) ** 2),
            _n_out * _sigma2 * _g,
            cases=({_n_out: 1}, {_n_out: 2}, {_n_out: 3}),
        ),
        step(
            "compromise",
            r"Forward wants $n \sigma^2 = 1$, backward $n_{\mathrm{out}} \sigma^2 = 1$; the mean of the two"
            " factors is kept at one.",
            r"solve $(n + n_{\mathrm{out}}) \sigma^2 / 2 = 1$",
            (_n * _sigma2 + _n_out * _sigma2) / 2,
            sp.Integer(1),
            where={_sigma2: _VARIANCE},
        ),
        step(
            "uniform",
            "The uniform law of that variance.",
            "a uniform law on $[-l, l]$ has variance $l^2 / 3$",
            sp.Integral(_x**2 / (2 * _LIMIT), (_x, -_LIMIT, _LIMIT)),
            _VARIANCE,
        ),
    ),
    {
        "variance": Result((_n, _n_out), _VARIANCE, "weight variance"),
        "limit": Result((_n, _n_out), _LIMIT, "bound of the uniform law"),
    },
    (cite("glorot2010", "Eqs. (5), (6), (10), (11), (12) and (16)"),),
    laws={_w: (sp.Integer(0), _sigma2), _h: (_mean, _q), _delta: (_mean_g, _g)},
)
