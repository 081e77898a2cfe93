"""Average pooling over windows that do not overlap."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n = sp.Symbol("n", integer=True, positive=True)
_i, _j = sp.symbols("i j", integer=True)
_q, _g = sp.symbols("q g", positive=True)
_mean, _k, _delta, _mean_g = sp.symbols("mean k delta mean_g", real=True)
_h, _x = sp.IndexedBase("h"), sp.IndexedBase("x")
_SIZES = ({_n: 1, _j: 1}, {_n: 2, _j: 2}, {_n: 4, _j: 3})
_FORWARD = (_q + (_n - 1) * _k) / _n

DERIVATION = Derivation(
    "average_pool",
    "Average pooling",
    (
        r"$n$ values with second moment $q$; $k$ is the mean of $\mathbb{E}[h_i h_j]$ over pairs $i \neq j$",
        "windows do not overlap",
    ),
    (
        step(
            "forward",
            "Forward: $n$ squares and $n (n - 1)$ pairs share the window; here for independent values, where $k$"
            " is the mean squared.",
            "expand the square of the sum",
            E(sp.Sum(_h[_i], (_i, 1, _n)) ** 2 / _n**2),
            _FORWARD.subs(_k, _mean**2),
            cases=_SIZES,
        ),
        step(
            "gradient",
            "Each value receives an $n$-th of the window's gradient.",
            "differentiate the mean",
            sp.Derivative(sp.Sum(_x[_i], (_i, 1, _n)) / _n, _x[_j]),
            1 / _n,
            cases=_SIZES,
        ),
        step(
            "backward",
            "Backward: so the gradient's second moment at a value is $g / n^2$, $g$ being that at the window's output.",
            "square",
            E((_delta / _n) ** 2),
            _g / _n**2,
        ),
    ),
    {
        "second_moment": Result((_n, _q, _k), _FORWARD, "second moment of the window's mean"),
        "gradient": Result((_n, _g), _g / _n**2, "second moment of the input's gradient"),
    },
    (cite("lecun1998", "section 4.6 (variance of a sum)"),),
    laws={_h: (_mean, _q), _delta: (_mean_g, _g)},
)
