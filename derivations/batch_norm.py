"""Batch normalisation in training mode, scale 1 and shift 0: y = (z - mean z) / sqrt(v + eps)."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_m = sp.Symbol("m", integer=True, positive=True)
_i, _j, _k, _l = sp.symbols("i j k l", integer=True)
_eps, _scale = sp.symbols("eps s", positive=True)
_v, _g, _mean_g2, _mean_gy2 = sp.symbols("v g mean_g2 mean_gy2", nonnegative=True)
_z, _gradient, _y = (sp.IndexedBase(name) for name in ("z", "g", "y"))
_deviation = sp.Symbol("zbar", real=True)
_loss = sp.Function("L")


def _mean(term: sp.Expr, index: sp.Symbol) -> sp.Expr:
    return sp.Sum(term, (index, 1, _m)) / _m


def _normalised(scale: sp.Expr, eps: sp.Expr) -> dict[sp.Basic, sp.Expr | sp.Lambda]:
    """Return y, v and the mean for s z in place of z."""
    return {
        _y: sp.Lambda(_i, (scale * _z[_i] - _deviation) / sp.sqrt(_v + eps)),
        _v: _mean((scale * _z[_l] - _deviation) ** 2, _l),
        _deviation: _mean(scale * _z[_j], _j),
    }


def _with_loss(eps: sp.Expr) -> dict[sp.Basic, sp.Expr | sp.Lambda]:
    return {_loss: sp.Lambda(_k, sp.Sum(_gradient[_i] * _y[_i], (_i, 1, _m))), **_normalised(sp.S.One, eps)}


_WHERE = _normalised(sp.S.One, _eps)
_MEAN_G, _MEAN_GY = _mean(_gradient[_i], _i), _mean(_gradient[_i] * _y[_i], _i)
_INPUT_GRADIENT = (_gradient[_k] - _MEAN_G - _y[_k] * _MEAN_GY) / sp.sqrt(_v + _eps)

_KEPT = _v / (_v + _eps)
_FORWARD = _KEPT
_BACKWARD = (_g - _mean_g2 - (2 - _KEPT) * _mean_gy2) / (_v + _eps)
_SIZES = ({_m: 2, _k: 1}, {_m: 3, _k: 2})
_ONE_SIZE = ({_m: 3, _k: 2},)

DERIVATION = Derivation(
    "batch_norm",
    "Batch normalization",
    (
        "one channel; $m$ values, over batch and positions; $v$ is their variance (divisor $m$)",
        "exact for given values and given arriving gradient $g$",
    ),
    (
        step(
            "centred",
            "The output $y$ has mean 0.",
            "the mean is removed",
            _mean(_y[_i], _i),
            sp.Integer(0),
            cases=_SIZES,
            where=_WHERE,
        ),
        step(
            "forward",
            r"Forward: the output's second moment is $r = v / (v + \varepsilon)$, not 1: $\varepsilon$ shows where"
            r" $v$ is"
            " small.",
            r"divide the variance by $v + \varepsilon$",
            _mean(_y[_i] ** 2, _i),
            _FORWARD,
            cases=_SIZES,
            where=_WHERE,
        ),
        step(
            "gradient",
            "The input's gradient: the arriving one less its mean and less its projection on the output.",
            "differentiate through the mean and through the variance",
            sp.Derivative(_loss(_z[_k]), _z[_k]),
            _INPUT_GRADIENT,
            cases=_SIZES,
            where=_with_loss(_eps),
        ),
        step(
            "backward",
            "Backward: second moment of the input's gradient, from the means of $g_i^2$, $g_i$ and $g_i y_i$.",
            "square and average; the output has mean 0 and mean square $r$",
            _mean(_INPUT_GRADIENT**2, _k),
            _BACKWARD.subs({_g: _mean(_gradient[_k] ** 2, _k), _mean_g2: _MEAN_G**2, _mean_gy2: _MEAN_GY**2}),
            cases=_ONE_SIZE,
            where=_WHERE,
        ),
        step(
            "scale_invariance",
            r"With $\varepsilon = 0$ the output does not change when $z$ is multiplied by $s$, so weights before it"
            r" have"
            " no scale.",
            "numerator and deviation scale alike",
            _y[_k],
            (_z[_k] - _mean(_z[_j], _j)) / sp.sqrt(_mean((_z[_l] - _mean(_z[_j], _j)) ** 2, _l)),
            cases=_SIZES,
            where=_normalised(_scale, sp.S.Zero),
        ),
        step(
            "orthogonal",
            r"With $\varepsilon = 0$ the gradient is orthogonal to $z$, so at $s z$ it is $1/s$ of that at $z$"
            r" (Euler).",
            "differentiate the previous equation with respect to $s$ at $s = 1$",
            sp.Sum(_z[_k] * sp.Derivative(_loss(_z[_k]), _z[_k]), (_k, 1, _m)),
            sp.Integer(0),
            cases=({_m: 2}, {_m: 3}),
            where=_with_loss(sp.S.Zero),
        ),
    ),
    {
        "second_moment": Result((_v, _eps), _FORWARD, "second moment of the output"),
        "gradient": Result((_g, _mean_g2, _mean_gy2, _v, _eps), _BACKWARD, "second moment of the input's gradient"),
    },
    (
        cite("ioffe2015", "Algorithm 1 and section 3"),
        cite("yang2019", "forward and backward dynamics"),
        cite("vanlaarhoven2017", "section 2"),
    ),
)
