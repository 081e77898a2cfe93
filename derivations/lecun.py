"""LeCun's initializer: unit variance in, unit variance out."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_i = sp.Symbol("i", integer=True)
_g = sp.Symbol("g", positive=True)
_x = sp.Symbol("x", real=True)
_w, _h, _delta = (sp.IndexedBase(name) for name in ("w", "h", "delta"))
_LIMIT = sp.sqrt(3 / _n)

DERIVATION = Derivation(
    "lecun",
    "LeCun initialization",
    (
        "weights are independent, with mean 0 and variance $1/n$; inputs $h$ are normalised to second moment 1",
        "backward: the arriving gradient is independent of the weights",
    ),
    (
        step(
            "forward",
            "Forward: the pre-activation has second moment 1.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _h[_i], (_i, 1, _n)) ** 2),
            sp.Integer(1),
            cases=({_n: 1}, {_n: 2}, {_n: 3}),
        ),
        step(
            "backward",
            r"Backward: the layer multiplies the gradient's second moment by $n_{\mathrm{out}} / n$.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _delta[_i], (_i, 1, _n_out)) ** 2),
            _n_out / _n * _g,
            cases=({_n_out: 1}, {_n_out: 2}, {_n_out: 3}),
        ),
        step(
            "uniform",
            "The uniform law of that variance.",
            "a uniform law on $[-l, l]$ has variance $l^2 / 3$",
            sp.Integral(_x**2 / (2 * _LIMIT), (_x, -_LIMIT, _LIMIT)),
            1 / _n,
        ),
    ),
    {
        "variance": Result((_n,), 1 / _n, "weight variance"),
        "limit": Result((_n,), _LIMIT, "bound of the uniform law"),
    },
    (cite("lecun1998", "section 4.6, Eq. (16)"), cite("klambauer2017", "section 2")),
    laws={
        _w: (sp.Integer(0), 1 / _n),
        _h: (sp.Symbol("mean", real=True), sp.Integer(1)),
        _delta: (sp.Symbol("mean_g", real=True), _g),
    },
)
