"""Dense layer without bias: z_o = sum_i w_oi x_i."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_sigma2, _q, _g = sp.symbols("sigma2 q g", positive=True)
_mean, _mean_g, _input = sp.symbols("mean mean_g x_i", real=True)
_i, _o = sp.symbols("i o", integer=True)
_w, _x, _y, _h, _delta = (sp.IndexedBase(name) for name in ("w", "x", "y", "h", "delta"))
_SIZES = ({_n: 1, _n_out: 1}, {_n: 2, _n_out: 2}, {_n: 3, _n_out: 3})


def _out(inputs: sp.IndexedBase) -> sp.Sum:
    return sp.Sum(_w[_i] * inputs[_i], (_i, 1, _n))


DERIVATION = Derivation(
    "linear",
    "Dense layer",
    (
        r"weights are independent, with mean 0 and variance $\sigma^2$; nothing else of their law is used",
        "forward: exact at any width for given inputs $x$; $h$ are inputs with second moment $q$, however correlated",
        r"backward: the gradient $\delta$ that arrives is independent of $w$ (exact for a cotangent drawn at the"
        " output)",
    ),
    (
        step(
            "mean",
            "For given inputs the output has mean 0.",
            "the weights have mean 0",
            E(_out(_x)),
            sp.Integer(0),
            cases=_SIZES,
        ),
        step(
            "covariance",
            "Covariance of the outputs for two given inputs.",
            "products of different weights have mean 0",
            E(_out(_x) * _out(_y)),
            _sigma2 * sp.Sum(_x[_i] * _y[_i], (_i, 1, _n)),
            cases=_SIZES,
        ),
        step(
            "forward",
            r"Forward: the layer multiplies the second moment by $n \sigma^2$.",
            "the covariance of an input with itself, averaged over inputs",
            E(_out(_h) ** 2),
            _n * _sigma2 * _q,
            cases=_SIZES,
        ),
        step(
            "chain_rule",
            "Gradient with respect to one input.",
            "differentiate the outputs' contribution to the loss",
            sp.Derivative(sp.Sum(_delta[_o] * _w[_o] * _input, (_o, 1, _n_out)), _input),
            sp.Sum(_delta[_o] * _w[_o], (_o, 1, _n_out)),
            cases=_SIZES,
        ),
        step(
            "backward",
            r"Backward: the layer multiplies the gradient's second moment by $n_{\mathrm{out}} \sigma^2$.",
            "products of different weights have mean 0",
            E(sp.Sum(_delta[_o] * _w[_o], (_o, 1, _n_out)) ** 2),
            _n_out * _sigma2 * _g,
            cases=_SIZES,
        ),
    ),
    {
        "second_moment": Result((_n, _sigma2, _q), _n * _sigma2 * _q, "second moment of the output"),
        "gradient": Result((_n_out, _sigma2, _g), _n_out * _sigma2 * _g, "second moment of the input's gradient"),
    },
    (cite("lecun1998", "section 4.6"), cite("glorot2010", "Eqs. (5) and (6)"), cite("he2015", "Eqs. (7) and (12)")),
    laws={_w: (sp.Integer(0), _sigma2), _h: (_mean, _q), _delta: (_mean_g, _g)},
)
