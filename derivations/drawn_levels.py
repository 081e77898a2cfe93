"""Finite layers: the level of a point as a chain from draw to draw, and the gradient that knows of it."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.gaussian import mean_over, q, z
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n = sp.Symbol("n", integer=True, positive=True)
_i = sp.Symbol("i", integer=True)
_alpha = sp.Symbol("alpha", real=True)
_s, _next, _D, _A2 = sp.symbols("s q_next D A2", positive=True)
_slope, _h, _norm2 = sp.symbols("phi_slope h h2", positive=True)
_r = sp.Symbol("r", positive=True)
_K, _P, _Q = sp.symbols("K P Q", positive=True)
_c = sp.Symbol("c", real=True)
_f = sp.IndexedBase("f")
_SIZES = ({_n: 1}, {_n: 2}, {_n: 3})

# Mean square of a component of the gradient behind the weights, given the outputs that they made.
_behind = _h**2 * _A2 / _norm2**2 + _s * _D * (1 - _h**2 / _norm2)
_phi = sp.exp(_alpha * z)
_correlation = _K / sp.sqrt(_P * _Q)
_unit = {_K: _c, _P: 1, _Q: 1}
# Of one channel's products at two Gaussian points of variance one.
_covariances = {(_K, _K): 1 + _c**2, (_P, _P): 2, (_Q, _Q): 2, (_P, _Q): 2 * _c**2, (_K, _P): 2 * _c, (_K, _Q): 2 * _c}
_delta = sum(
    (1 if a is b else 2) * sp.diff(_correlation, a).subs(_unit) * sp.diff(_correlation, b).subs(_unit) * value
    for (a, b), value in _covariances.items()
)

DERIVATION = Derivation(
    "drawn_levels",
    "Layers of finite width, draw by draw",
    (
        "weights are independent $N(0, s)$; given a layer's input $h$ its outputs are then independent $N(0, q')$ with"
        r" $q' = s |h|^2$, the level: all that is left of the input",
        r"$h_i = \phi(z_i)$ with $z_i$ independent $N(0, q)$, $i = 1 \ldots n$; $f$ stands for $\phi^2$, $C$ for its"
        " mean",
        r"backward: $\delta'$ is the gradient at the next layer's outputs $z'$, $D = |\delta'|^2$,"
        r" $A = z' \cdot \delta'$; given $z'$ the weights are $z' h^T / |h|^2$ and, across $h$, as if $z'$ were"
        " not known",
    ),
    (
        step(
            "level",
            "Forward: given the level, the mean of the next one is that of independent channels,",
            "$n$ equal terms",
            _s * E(sp.Sum(_f[_i], (_i, 1, _n))),
            _s * _n * sp.Symbol("C", positive=True),
            cases=_SIZES,
        ),
        step(
            "noise",
            "and its mean square says how far it strays: $1/n$ of one channel's relative variance.",
            "$n$ squares and $n (n - 1)$ products",
            E(sp.Sum(_f[_i], (_i, 1, _n)) ** 2) / E(sp.Sum(_f[_i], (_i, 1, _n))) ** 2 - 1,
            (sp.Symbol("F", positive=True) / sp.Symbol("C", positive=True) ** 2 - 1) / _n,
            cases=_SIZES,
        ),
        step(
            "fixed",
            r"Orthogonal weights leave the mean of $z^2$ as it is. What $\phi^2$ has in common with that does not"
            r" stray: $\mathbb{E}[(z^2/q - 1) \phi^2] = 2\, \mathbb{E}[z \phi \phi']$, here of $\phi = e^{\alpha z}$.",
            "Stein's lemma",
            mean_over((z**2 / q - 1) * _phi**2),
            2 * mean_over(z * _phi * sp.diff(_phi, z)),
            domain={_alpha: (-0.5, 0.5)},
        ),
        step(
            "gradient",
            r"Backward: $D$ of the layer is the sum of $\phi'^2$ times the mean square of $W^T \delta'$, which is that"
            r" of independent weights and, with $q' = s |h|^2$, a part of what $A^2$ is more than $q' D$.",
            "multiply out",
            _slope**2 * _behind.subs(_norm2, _next / _s),
            _s * _slope**2 * (_D + (_h**2 / (_next / _s)) * (_A2 / _next - _D)),
        ),
        step(
            "alignment",
            r"Of $A^2$ itself the part along $h$ is the square of a sum, $(\sum z \phi' h)^2 A^2 / |h|^4$, and the part"
            r" across it $s D (\sum z^2 \phi'^2 - (\sum z \phi' h)^2 / |h|^2)$; together, with $T$ for the sum $\sum z"
            r" \phi' h$ and $B$ for $\sum z^2 \phi'^2$,",
            "collect, with $q' = s |h|^2$",
            sp.Symbol("T") ** 2 * _A2 / _norm2**2 + _s * _D * (sp.Symbol("B") - sp.Symbol("T") ** 2 / _norm2),
            _s * (sp.Symbol("B") * _D + sp.Symbol("T") ** 2 / _norm2 * (_A2 / (_s * _norm2) - _D)),
        ),
        step(
            "term",
            r"Of a sum of Gaussian terms the one of level $r q$ is $r z$ and a rest of variance $r q (1 - r)$ that what"
            r" comes later does not know: $A_r^2$ is $r^2 A^2 + r q (1 - r) D$ in the mean.",
            "multiply out",
            (_r**2 * _A2 + _r * _next * (1 - _r) * _D) / (_r * _next) - _D,
            _r * (_A2 / _next - _D),
        ),
        step(
            "correlation",
            "The correlation of two points over $n$ Gaussian channels strays by this variance over $n$.",
            "first order in the products' covariances $1 + c^2$, $2$, $2 c^2$ and $2 c$",
            _delta,
            (1 - _c**2) ** 2,
            domain={_c: (-0.9, 0.9)},
        ),
    ),
    {
        "correlation_variance": Result(
            (_c, _n), (1 - _c**2) ** 2 / _n, "variance of the correlation of two points over n Gaussian channels"
        ),
    },
    (
        cite("hanin2018", "section 3"),
        cite("hanin2020", "section 1"),
        cite("stein1981", "lemma 1"),
    ),
    laws={_f: (sp.Symbol("C", positive=True), sp.Symbol("F", positive=True))},
)
