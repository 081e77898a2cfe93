"""Depthwise convolution: every channel has its own kernel and sees only itself."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_taps = sp.Symbol("k", integer=True, positive=True)
_sigma2, _q, _g = sp.symbols("sigma2 q g", positive=True)
_mean, _mean_g, _kappa = sp.symbols("mean mean_g kappa", real=True)
_i, _j = sp.symbols("i j", integer=True)
_w, _h, _delta, _W = (sp.IndexedBase(name) for name in ("w", "h", "delta", "W"))
_SIZES = ({_taps: 1}, {_taps: 2})
_n = _taps**2


def _over_taps(term: sp.Expr) -> sp.Sum:
    return sp.Sum(term, (_i, 1, _taps), (_j, 1, _taps))


_norm = _over_taps(_W[_i, _j] ** 2)

DERIVATION = Derivation(
    "depthwise_conv2d",
    "Depthwise convolution",
    (
        r"weights are independent, with mean 0, variance $\sigma^2$ and excess kurtosis $\kappa$",
        "the window lies inside the map (stride 1); for the border see zero_padding",
        "backward: the gradient that arrives is independent of $w$ and its positions are uncorrelated or have mean 0",
    ),
    (
        step(
            "forward",
            "Forward: the fan is the $k^2$ taps, whatever the number of channels.",
            "products of different weights have mean 0",
            E(_over_taps(_w[_i, _j] * _h[_i, _j]) ** 2),
            _n * _sigma2 * _q,
            cases=_SIZES,
        ),
        step(
            "backward",
            "Backward: the same fan.",
            "transposed convolution",
            E(_over_taps(_w[_i, _j] * _delta[_i, _j]) ** 2),
            _n * _sigma2 * _g,
            cases=_SIZES,
        ),
        step(
            "fluctuation",
            "Channels do not self-average: for white input a channel's variance is $q$ times the sum of its"
            r" squared weights, whose relative variance is $(\kappa + 2) / k^2$ at any width.",
            r"fourth moment $(3 + \kappa) \sigma^4$",
            E(_norm**2) - E(_norm) ** 2,
            (_kappa + 2) / _n * (_n * _sigma2) ** 2,
            cases=_SIZES,
        ),
    ),
    {
        "second_moment": Result((_taps, _sigma2, _q), _n * _sigma2 * _q, "second moment of the output"),
        "gradient": Result((_taps, _sigma2, _g), _n * _sigma2 * _g, "second moment of the input's gradient"),
        "relative_variance": Result(
            (_taps, _kappa), (_kappa + 2) / _n, "relative variance over channels of the output's variance"
        ),
    },
    (cite("sandler2018", "section 3.1"), cite("he2015", "Eqs. (7) and (12)")),
    laws={
        _w: (sp.Integer(0), _sigma2),
        _W: (sp.Integer(0), _sigma2, sp.Integer(0), (3 + _kappa) * _sigma2**2),
        _h: (_mean, _q),
        _delta: (_mean_g, _g),
    },
)
