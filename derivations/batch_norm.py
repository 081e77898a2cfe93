"""Batch normalisation in training mode, scale 1 and shift 0: y = (z - mean z) / sqrt(v + eps)."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_m = sp.Symbol("m", integer=True, positive=True)
_i, _j, _k, _l = sp.symbols("i j k l", integer=True)
_eps, _scale = sp.symbols("eps s", positive=True)
_v, _g, _mean_g2, _mean_gy2 = sp.symbols("v g mean_g2 mean_gy2", nonnegative=True)
_z, _gradient = sp.IndexedBase("z"), sp.IndexedBase("g")


def _mean(term: sp.Expr, index: sp.Symbol) -> sp.Expr:
    return sp.Sum(term, (index, 1, _m)) / _m


def _variance(scale: sp.Expr) -> sp.Expr:
    return _mean((scale * _z[_l] - _mean(scale * _z[_j], _j)) ** 2, _l)


def _output(index: sp.Expr, scale: sp.Expr = sp.S.One, eps: sp.Expr = _eps) -> sp.Expr:
    return (scale * _z[index] - _mean(scale * _z[_j], _j)) / sp.sqrt(_variance(scale) + eps)


_V = _variance(sp.S.One)
_MEAN_GY = _mean(_gradient[_i] * _output(_i), _i)


def _input_gradient(index: sp.Expr) -> sp.Expr:
    return (_gradient[index] - _mean(_gradient[_i], _i) - _output(index) * _MEAN_GY) / sp.sqrt(_V + _eps)


_KEPT = _v / (_v + _eps)
_FORWARD = _KEPT
_BACKWARD = (_g - _mean_g2 - (2 - _KEPT) * _mean_gy2) / (_v + _eps)
_SIZES = ({_m: 2, _k: 1}, {_m: 3, _k: 2})
_without_eps = _output(_i, eps=sp.Integer(0))

DERIVATION = Derivation(
    "batch_norm",
    "Batch normalisation",
    (
        "one channel; m values, over batch and positions; v is their variance (divisor m)",
        "exact for given values and given arriving gradient g",
    ),
    (
        step(
            "centred",
            "The output has mean 0.",
            "the mean is removed",
            _mean(_output(_i), _i),
            sp.Integer(0),
            cases=_SIZES,
        ),
        step(
            "forward",
            "Forward: the output's second moment is r = v / (v + eps), not 1: eps shows where v is small.",
            "divide the variance by v + eps",
            _mean(_output(_i) ** 2, _i),
            _FORWARD.subs(_v, _V),
            cases=_SIZES,
        ),
        step(
            "gradient",
            "The input's gradient: the arriving one less its mean and less its projection on the output.",
            "differentiate through the mean and through the variance",
            sp.Derivative(sp.Sum(_gradient[_i] * _output(_i), (_i, 1, _m)), _z[_k]),
            _input_gradient(_k),
            cases=_SIZES,
        ),
        step(
            "backward",
            "Backward: second moment of the input's gradient, from g = mean g_i^2, (mean g_i)^2 and (mean g_i y_i)^2.",
            "square and average; the output has mean 0 and mean square r",
            _mean(_input_gradient(_k) ** 2, _k),
            _BACKWARD.subs(
                {
                    _v: _V,
                    _g: _mean(_gradient[_k] ** 2, _k),
                    _mean_g2: _mean(_gradient[_i], _i) ** 2,
                    _mean_gy2: _MEAN_GY**2,
                }
            ),
            cases=_SIZES,
        ),
        step(
            "scale_invariance",
            "With eps = 0 the output does not change when z is scaled, so weights before it have no scale.",
            "numerator and deviation scale alike",
            _output(_k, scale=_scale, eps=sp.Integer(0)),
            _output(_k, eps=sp.Integer(0)),
            cases=_SIZES,
        ),
        step(
            "orthogonal",
            "With eps = 0 the gradient is orthogonal to z, so at s z it is 1/s of that at z (Euler).",
            "differentiate the previous equation with respect to s at s = 1",
            sp.Sum(
                _z[_k] * sp.Derivative(sp.Sum(_gradient[_i] * _without_eps, (_i, 1, _m)), _z[_k]),
                (_k, 1, _m),
            ),
            sp.Integer(0),
            cases=({_m: 2}, {_m: 3}),
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
