"""Convolution: z(o, p, r) = sum over channels and taps of w(o, c, i, j) x(c, p + i, r + j)."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_channels, _channels_out, _taps = sp.symbols("channels channels_out k", integer=True, positive=True)
_sigma2, _q, _g = sp.symbols("sigma2 q g", positive=True)
_mean, _mean_g = sp.symbols("mean mean_g", real=True)
_c, _i, _j, _p, _r, _s, _t = sp.symbols("c i j p r s t", integer=True)
_w, _x, _h, _delta = (sp.IndexedBase(name) for name in ("w", "x", "h", "delta"))
_POSITIONS = {_p: 3, _r: 4, _s: 5, _t: 3}
_SIZES = tuple({_channels: m, _channels_out: m, _taps: k, **_POSITIONS} for m, k in ((1, 2), (2, 1), (2, 2)))


def _window(weights: sp.Expr, inputs: sp.Expr, channels: sp.Symbol) -> sp.Sum:
    return sp.Sum(weights * inputs, (_c, 1, channels), (_i, 1, _taps), (_j, 1, _taps))


_kernel = _w[_c, _i, _j]
_forward = _window(_kernel, _h[_c, _p + _i, _r + _j], _channels)
_backward = _window(_kernel, _delta[_c, _p - _i, _r - _j], _channels_out)

DERIVATION = Derivation(
    "conv2d",
    "Two-dimensional convolution",
    (
        r"weights are independent, with mean 0 and variance $\sigma^2$, and shared over positions",
        "the window lies inside the map (stride 1); for the border see zero_padding",
        "backward: the gradient that arrives is independent of $w$ and its positions are uncorrelated or have mean 0",
    ),
    (
        step(
            "covariance",
            "Covariance of the output at two positions $(p, r)$ and $(s, t)$: windows share their weights tap by tap.",
            "products of different weights have mean 0",
            E(
                _window(_kernel, _x[_c, _p + _i, _r + _j], _channels)
                * _window(_kernel, _x[_c, _s + _i, _t + _j], _channels)
            ),
            _sigma2 * _window(_x[_c, _p + _i, _r + _j], _x[_c, _s + _i, _t + _j], _channels),
            cases=_SIZES,
        ),
        step(
            "forward",
            "Forward: a dense layer of fan channels $k^2$.",
            "one position against itself",
            E(_forward**2),
            _channels * _taps**2 * _sigma2 * _q,
            cases=_SIZES,
        ),
        step(
            "backward",
            "Backward: each input position is seen through every tap of every output channel.",
            "transposed convolution, products of different weights have mean 0",
            E(_backward**2),
            _channels_out * _taps**2 * _sigma2 * _g,
            cases=_SIZES,
        ),
    ),
    {
        "second_moment": Result(
            (_channels, _taps, _sigma2, _q), _channels * _taps**2 * _sigma2 * _q, "second moment of the output"
        ),
        "gradient": Result(
            (_channels_out, _taps, _sigma2, _g),
            _channels_out * _taps**2 * _sigma2 * _g,
            "second moment of the input's gradient",
        ),
    },
    (cite("he2015", "Eqs. (7) and (12)"), cite("xiao2018", "section 2")),
    laws={_w: (sp.Integer(0), _sigma2), _h: (_mean, _q), _delta: (_mean_g, _g)},
)
