"""He's initializer: the variance that keeps the second moment through a rectifier."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.gaussian import a, backward_step, forward_step, q
from varprop.derivations.leaky_relu import BACKWARD, DERIVATIVE, SECOND, VALUE
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out, _fan = sp.symbols("n n_out fan", integer=True, positive=True)
_i, _l, _depth = sp.symbols("i l L", integer=True, positive=True)
_g, _sigma2 = sp.symbols("g sigma2", positive=True)
_mean, _mean_slope, _mean_g, _p = sp.symbols("mean mean_d mean_g p", real=True)
_w, _h, _delta, _width = (sp.IndexedBase(name) for name in ("w", "h", "delta", "n"))
_VARIANCE = 2 / ((1 + a**2) * _fan)
_SIZES = ({_n: 1}, {_n: 2}, {_n: 3})

DERIVATION = Derivation(
    "he",
    "He initialization",
    (
        r"weights are independent, with mean 0 and variance $\sigma^2$; every layer is followed by a (leaky)"
        " rectifier of slope $a$ below zero",
        "the pre-activation is symmetric about 0 (Gaussian in the integrals); $h$ is the rectifier's output, $p$"
        " its slope",
        "backward: the arriving gradient is independent of the weights and of $p$",
    ),
    (
        forward_step(VALUE, SECOND, "a rectifier keeps half of $q$, and $a^2$ of the other half"),
        backward_step(DERIVATIVE, BACKWARD, "the same share of the mass"),
        step(
            "forward_layer",
            "Forward: rectifier and layer.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _h[_i], (_i, 1, _n)) ** 2),
            _n * _sigma2 * (1 + a**2) / 2 * q,
            cases=_SIZES,
        ),
        step(
            "backward_layer",
            "Backward: layer and rectifier.",
            "products of different weights have mean 0",
            E((_p * sp.Sum(_w[_i] * _delta[_i], (_i, 1, _n_out))) ** 2),
            _n_out * _sigma2 * (1 + a**2) / 2 * _g,
            cases=({_n_out: 1}, {_n_out: 2}, {_n_out: 3}),
        ),
        step(
            "condition",
            r"The condition: forward with $f = n$, backward with $f = n_{\mathrm{out}}$.",
            r"set the factor to one and solve for $\sigma^2$",
            _fan * _sigma2 * (1 + a**2) / 2,
            sp.Integer(1),
            where={_sigma2: _VARIANCE},
        ),
        step(
            "either",
            r"Either choice will do: with $f = n$ the gradient's factors $n_{\mathrm{out}} / n$ of the"
            r" layers"
            " cancel along the network.",
            r"each layer's $n_{\mathrm{out}}$ is the next one's $n$",
            sp.Product(_width[_l + 1] / _width[_l], (_l, 1, _depth)),
            _width[_depth + 1] / _width[1],
            cases=({_depth: 1}, {_depth: 4}),
        ),
    ),
    {
        "variance": Result((_fan, a), _VARIANCE, "weight variance"),
        "second_moment": Result(
            (_n, _sigma2, q, a), _n * _sigma2 * (1 + a**2) / 2 * q, "second moment, layer to layer"
        ),
        "gradient": Result(
            (_n_out, _sigma2, _g, a), _n_out * _sigma2 * (1 + a**2) / 2 * _g, "gradient's second moment, layer to layer"
        ),
    },
    (cite("he2015", "Eq. (10) forward, Eqs. (13) and (14) backward, Eq. (15) with slope a"),),
    laws={
        _w: (sp.Integer(0), _sigma2),
        _h: (_mean, SECOND),
        _delta: (_mean_g, _g),
        _p: (_mean_slope, BACKWARD),
    },
)
