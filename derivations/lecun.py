"""LeCun's initializer: unit variance in, unit variance out."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n = sp.Symbol("n", integer=True, positive=True)
_i = sp.Symbol("i", integer=True)
_w, _x = sp.IndexedBase("w"), sp.IndexedBase("x")

DERIVATION = Derivation(
    "lecun",
    "LeCun initialization",
    ("weights are independent, with mean 0 and variance 1/n; inputs are normalised to second moment 1",),
    (
        step(
            "condition",
            "The pre-activation has second moment 1.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _x[_i], (_i, 1, _n)) ** 2),
            sp.Integer(1),
            cases=({_n: 1}, {_n: 2}, {_n: 3}),
        ),
    ),
    {"variance": Result((_n,), 1 / _n, "weight variance")},
    (cite("lecun1998", "section 4.6"), cite("klambauer2017", "section 2")),
    laws={_w: (sp.Integer(0), 1 / _n), _x: (sp.Symbol("mean", real=True), sp.Integer(1))},
)
