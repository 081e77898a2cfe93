"""Which weight variance keeps a signal, for any activation: the condition that He, Glorot, LeCun and SELU solve."""

import sympy as sp

from varprop.derivations.elu import DERIVATIVE_SECOND_MOMENT, SECOND_MOMENT
from varprop.derivations.expectation import E
from varprop.derivations.gaussian import a, mean_over, q
from varprop.derivations.leaky_relu import VALUE as LEAKY_RELU
from varprop.derivations.references import cite
from varprop.derivations.selu import ALPHA_AT_FIXED_POINT, SCALE, scale_of
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_i, _o = sp.symbols("i o", integer=True)
_sigma2, _g, _second, _slope = sp.symbols("sigma2 g s d", positive=True)
_mean, _mean_slope, _mean_g = sp.symbols("mean mean_d mean_g", real=True)
_w, _h, _delta = (sp.IndexedBase(name) for name in ("w", "h", "delta"))
_p = sp.Symbol("p", real=True)
_SIZES = ({_n: 1, _n_out: 1}, {_n: 2, _n_out: 2}, {_n: 3, _n_out: 3})
_FORWARD, _BACKWARD = q / (_n * _second), 1 / (_n_out * _slope)
_SELU = {SCALE: scale_of(a), a: ALPHA_AT_FIXED_POINT, q: sp.Integer(1)}

DERIVATION = Derivation(
    "critical_variance",
    "The condition on the weight variance",
    (
        r"weights are independent, with mean 0 and variance $\sigma^2$; $n$ inputs and $n_{\mathrm{out}}$ outputs",
        r"inputs are $h = \phi(z)$, $z \sim N(0, q)$, with $s = \mathbb{E}[\phi^2]$ and $d = \mathbb{E}[\phi'^2]$",
        r"backward: the arriving gradient is independent of the weights and of $p = \phi'(z)$",
    ),
    (
        step(
            "forward",
            "Forward: from pre-activation to pre-activation.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i] * _h[_i], (_i, 1, _n)) ** 2),
            _n * _sigma2 * _second,
            cases=_SIZES,
        ),
        step(
            "backward",
            "Backward: from pre-activation to pre-activation.",
            "the same, times the activation's slope",
            E((_p * sp.Sum(_w[_o] * _delta[_o], (_o, 1, _n_out))) ** 2),
            _n_out * _sigma2 * _slope * _g,
            cases=_SIZES,
        ),
        step(
            "forward_condition",
            "The variance that keeps $q$.",
            "set the forward recurrence to $q$ and solve",
            _n * _sigma2 * _second,
            q,
            where={_sigma2: _FORWARD},
        ),
        step(
            "backward_condition",
            "The variance that keeps the gradient.",
            "set the backward factor to one and solve",
            _n_out * _sigma2 * _slope,
            sp.Integer(1),
            where={_sigma2: _BACKWARD},
        ),
        step(
            "mismatch",
            r"Gradient's factor $\chi$ at the variance that keeps $q$: one number tells whether both can hold.",
            "insert one condition into the other recurrence",
            _n_out * _sigma2 * _slope,
            _n_out / _n * q * _slope / _second,
            where={_sigma2: _FORWARD},
        ),
        step(
            "lecun",
            "LeCun: the identity, or any activation with $s = q$, asks for $1 / n$.",
            "$s = q$",
            _FORWARD,
            1 / _n,
            where={_second: q},
        ),
        step(
            "glorot",
            r"Glorot: with $s = q$ and $d = 1$ the two conditions are $1 / n$ and $1 / n_{\mathrm{out}}$; $2 / (n"
            r" + n_{\mathrm{out}})$ is their harmonic mean, and makes the mean of the two factors one.",
            "harmonic mean of both conditions",
            2 / (1 / _FORWARD + 1 / _BACKWARD),
            2 / (_n + _n_out),
            where={_second: q, _slope: sp.Integer(1)},
        ),
        step(
            "he",
            "He: a rectifier of slope $a$ below zero asks for $2 / ((1 + a^2) n)$, forward; with"
            r" $n_{\mathrm{out}}$, backward.",
            "$s = (1 + a^2) q / 2$",
            q / (_n * mean_over(LEAKY_RELU**2)),
            2 / ((1 + a**2) * _n),
        ),
        step(
            "selu",
            "SELU: at $q = 1$ its second moment is one, so it asks for $1 / n$, LeCun's variance.",
            r"$\lambda$ is chosen so",
            q / (_n * SCALE**2 * SECOND_MOMENT),
            1 / _n,
            where=_SELU,
        ),
        step(
            "selu_mismatch",
            "There SELU's gradient grows by 7% a layer (1.0716): forward and backward cannot both hold.",
            r"$\lambda^2$ times ELU's factor, written out",
            SCALE**2 * DERIVATIVE_SECOND_MOMENT,
            SCALE**2 * (sp.Rational(1, 2) + a**2 * sp.exp(2) * sp.erfc(sp.sqrt(2)) / 2),
            where=_SELU,
        ),
        step(
            "square_mean",
            "The second moment is what counts, not the variance: a mean of $h$ passes through weights of mean 0"
            " as power.",
            "the forward recurrence holds whatever the mean of $h$",
            E((_w[1] * _h[1]) ** 2),
            _sigma2 * _second,
        ),
    ),
    {
        "variance_forward": Result((_n, q, _second), _FORWARD, "weight variance that keeps q"),
        "variance_backward": Result((_n_out, _slope), _BACKWARD, "weight variance that keeps the gradient"),
        "chi": Result((_n, _n_out, q, _second, _slope), _n_out / _n * q * _slope / _second, "gradient's factor there"),
    },
    (
        cite("lecun1998", "section 4.6"),
        cite("glorot2010", "Eqs. (10), (11) and (12)"),
        cite("he2015", "Eqs. (10), (14) and (15)"),
        cite("klambauer2017", "section 2"),
    ),
    laws={
        _w: (sp.Integer(0), _sigma2),
        _h: (_mean, _second),
        _delta: (_mean_g, _g),
        _p: (_mean_slope, _slope),
    },
)
