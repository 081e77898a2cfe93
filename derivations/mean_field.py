"""Mean field theory of wide networks: maps of variance and correlation, their fixed points and depth scales."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.gaussian import CORRELATION, c, density, q, q1, q2, z
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_i = sp.Symbol("i", integer=True)
_sigma_w2, _sigma_b2, _second, _g, _d = sp.symbols("sigma_w2 sigma_b2 s g d", positive=True)
_both, _slopes, _curved = sp.symbols("s12 d12 k", real=True)
_chi = sp.Symbol("chi", positive=True)
_eps, _xi = sp.symbols("eps xi", positive=True)
_l = sp.Symbol("l", integer=True, positive=True)
_b, _p, _x, _y, _mean, _mean_g, _mean_d = sp.symbols("b p x y mean mean_g mean_d", real=True)
_w, _h, _u, _v, _delta = (sp.IndexedBase(name) for name in ("w", "h", "u", "v", "delta"))
_phi, _p_q, _p_c = (sp.Function(name) for name in ("phi", "p", "p"))
_SIZES = ({_n: 1}, {_n: 2}, {_n: 3})


def _layer(inputs: sp.IndexedBase) -> sp.Expr:
    return sp.Sum(_w[_i] * inputs[_i], (_i, 1, _n)) + _b


_joint = sp.exp(-(_x**2 / q1 - 2 * c * _x * _y / sp.sqrt(q1 * q2) + _y**2 / q2) / (2 * (1 - c**2))) / (
    2 * sp.pi * sp.sqrt(q1 * q2 * (1 - c**2))
)

DERIVATION = Derivation(
    "mean_field",
    "Mean field theory of wide networks",
    (
        r"weights are independent, with mean 0 and variance $\sigma_w^2 / n$; biases with mean 0 and variance"
        r" $\sigma_b^2$",
        "widths are infinite: pre-activations are Gaussian, jointly for two samples, with variances $q$ and"
        " correlation $c$",
        r"$s = \mathbb{E}[\phi(z)^2]$, $d = \mathbb{E}[\phi'(z)^2]$, $k = \mathbb{E}[\phi(z) \phi''(z)]$; $s_{12}"
        r" = \mathbb{E}[\phi(z_1) \phi(z_2)]$, $d_{12} = \mathbb{E}[\phi'(z_1) \phi'(z_2)]$",
        "backward: the arriving gradient is independent of the weights and of $z$",
    ),
    (
        step(
            "forward",
            r"Forward: the variance map $q \to \sigma_w^2 s(q) + \sigma_b^2$; its fixed points are $q^*$.",
            "products of different weights have mean 0",
            E(_layer(_h) ** 2),
            _sigma_w2 * _second + _sigma_b2,
            cases=_SIZES,
        ),
        step(
            "covariance",
            "Two samples: the covariance map.",
            "samples share their weights and biases",
            E(_layer(_u) * _layer(_v)),
            _sigma_w2 / _n * sp.Sum(_u[_i] * _v[_i], (_i, 1, _n)) + _sigma_b2,
            cases=_SIZES,
        ),
        step(
            "backward",
            r"Backward: the gradient's second moment takes the factor $\chi = \sigma_w^2 d$ where"
            r" $n_{\mathrm{out}} = n$.",
            r"products of different weights have mean 0; $p = \phi'(z)$",
            E((_p * sp.Sum(_w[_i] * _delta[_i], (_i, 1, _n))) ** 2),
            _sigma_w2 * _d * _g,
            cases=_SIZES,
        ),
        step(
            "heat",
            "A Gaussian's density solves the heat equation in its variance.",
            "differentiation",
            sp.Derivative(_p_q(z, q), q),
            sp.Derivative(_p_q(z, q), z, z) / 2,
            where={_p_q: sp.Lambda((z, q), density(z, q))},
        ),
        step(
            "variance_slope",
            r"Hence $d s / d q = \mathbb{E}[(\phi^2)''] / 2 = d + k$, by parts twice; the variance map has"
            r" slope $\sigma_w^2 (d + k)$.",
            "product rule",
            sp.Derivative(_phi(z) ** 2, z, z) / 2,
            sp.Derivative(_phi(z), z) ** 2 + _phi(z) * sp.Derivative(_phi(z), z, z),
        ),
        step(
            "correlation_heat",
            "The joint density of two samples solves the same kind of equation in their correlation.",
            "differentiation (Price's theorem)",
            sp.Derivative(_p_c(_x, _y, c), c),
            sp.sqrt(q1 * q2) * sp.Derivative(_p_c(_x, _y, c), _x, _y),
            domain=CORRELATION,
            where={_p_c: sp.Lambda((_x, _y, c), _joint)},
        ),
        step(
            "correlation_slope",
            r"Hence $d s_{12} / d c = q^* d_{12}$, by parts once in each variable: the map $c \to (\sigma_w^2"
            r" s_{12} + \sigma_b^2) / q^*$ has slope $\sigma_w^2 d_{12}$, which at $c = 1$ is $\chi$: the gradient"
            " explodes exactly where samples move apart.",
            "divide by $q^*$",
            sp.Derivative((_sigma_w2 * (_both + q * _slopes * c) + _sigma_b2) / q, c),
            _sigma_w2 * _slopes,
        ),
        step(
            "fixed_point_one",
            r"$c = 1$ is always a fixed point: equal samples stay equal. It is stable if $\chi < 1$ (order), else"
            r" samples part (chaos) and a second fixed point $c^* < 1$ takes over; $\chi = 1$ is the edge of"
            " chaos.",
            "at $c = 1$ one has $s_{12} = s$, and $q^*$ is the variance map's fixed point",
            (_sigma_w2 * _second + _sigma_b2) / q,
            sp.Integer(1),
            where={q: _sigma_w2 * _second + _sigma_b2},
        ),
        step(
            "depth_scale",
            r"Near a fixed point of slope $\chi$ a deviation $\varepsilon$ shrinks as $\varepsilon \chi^l ="
            r" \varepsilon \exp(-l / \xi)$, $\xi = -1 / \log \chi$.",
            "$l$ equal factors; logarithm",
            _eps * _chi**_l,
            _eps * sp.exp(-_l / _xi),
            where={_xi: -1 / sp.log(_chi)},
        ),
        step(
            "edge",
            r"At the edge the depth scale diverges, as $1 / |1 - \chi|$.",
            "logarithm to first order",
            sp.Limit(-_eps / sp.log(1 - _eps), _eps, 0),
            sp.Integer(1),
        ),
    ),
    {
        "second_moment": Result((_second, _sigma_w2, _sigma_b2), _sigma_w2 * _second + _sigma_b2, "variance map"),
        "gradient": Result((_g, _d, _sigma_w2), _sigma_w2 * _d * _g, "gradient's second moment, a layer back"),
        "chi": Result((_sigma_w2, _d), _sigma_w2 * _d, "slope of the correlation map at 1"),
        "xi_q": Result(
            (_sigma_w2, _d, _curved), -1 / sp.log(_sigma_w2 * (_d + _curved)), "depth scale of the variance"
        ),
        "xi_c": Result((_sigma_w2, _slopes), -1 / sp.log(_sigma_w2 * _slopes), "depth scale of the correlation at c*"),
    },
    (
        cite("poole2016", "Eqs. (3) and (5)"),
        cite("schoenholz2017", "section 3 (depth scales) and section 4 (gradients)"),
        cite("price1958", "theorem"),
    ),
    laws={
        _w: (sp.Integer(0), _sigma_w2 / _n),
        _b: (sp.Integer(0), _sigma_b2),
        _h: (_mean, _second),
        _delta: (_mean_g, _g),
        _p: (_mean_d, _d),
    },
)
