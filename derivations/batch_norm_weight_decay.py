"""Weights before a batch normalisation: no scale, hence a norm that grows, and with decay an equilibrium."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_eta, _decay, _size, _scale, _k = sp.symbols("eta lambda G s k", positive=True)
_momentum = sp.Symbol("mu", positive=True)
_n = sp.Symbol("n", integer=True, positive=True)
_t = sp.Symbol("t", integer=True, nonnegative=True)
_i, _j = sp.symbols("i j", integer=True)
_norm2, _u = sp.symbols("W u", positive=True)
_w, _b = sp.IndexedBase("w"), sp.IndexedBase("b")
_KEPT = 1 - _eta * _decay
_SIZES = ({_n: 2, _j: 1}, {_n: 3, _j: 2})
_SMALL = {_eta: (0.01, 0.9), _decay: (0.01, 0.9), _momentum: (0.05, 0.95)}


def _loss(scale: sp.Expr) -> sp.Expr:
    """Return a loss of the direction alone: cosine of the angle between w and b."""
    inner = sp.Sum(scale * _w[_i] * _b[_i], (_i, 1, _n))
    return inner / sp.sqrt(sp.Sum((scale * _w[_i]) ** 2, (_i, 1, _n)))


_v, _c, _cosine = sp.symbols("V C K", real=True)
# Stationary second moments of momentum: W = |w|^2, V = |v|^2, C = w v (see the steps).
_V = 2 * _decay * _norm2 / (_eta * (1 + _momentum))
_C = -_eta * _v / 2
_WITH_MOMENTUM = _size**2 * _eta * (1 + _momentum) / (_decay * (1 - _momentum) * (2 * (1 + _momentum) - _eta * _decay))
_PLAIN = {_norm2: _size * sp.sqrt(_eta / (_decay * (2 - _eta * _decay)))}  # the same without momentum

DERIVATION = Derivation(
    "batch_norm_weight_decay",
    "Weight decay with batch normalization",
    (
        r"$w$ are all weights of one layer that a batch normalization follows; $\varepsilon$ is negligible, so"
        " the loss depends on $w$'s direction alone (shown for the cosine to a fixed $b$, and for the normalised"
        " output under batch_norm)",
        r"learning rate $\eta$, decay $\lambda$ in the update, momentum $\mu$: $v \leftarrow \mu v + g + \lambda w$"
        r" with the gradient $g$, $w \leftarrow w - \eta v$",
        "$G$ is the gradient's norm at $|w| = 1$; a step's gradient has mean 0 given the past (noise dominates),"
        " and $W$, $V$, $C$ are the stationary means of $|w|^2$, $|v|^2$ and $w v$",
    ),
    (
        step(
            "invariance",
            "Forward: scaling $w$ changes nothing.",
            "numerator and norm scale alike",
            _loss(_scale),
            _loss(sp.Integer(1)),
            cases=_SIZES,
        ),
        step(
            "gradient_scale",
            "Backward: the gradient at $s w$ is $1/s$ of that at $w$.",
            "chain rule on the previous equation: the derivative of $f(s w)$ with respect to $w$ is $s$ times"
            " the gradient there",
            sp.Derivative(_loss(_scale), _w[_j]) / _scale,
            sp.Derivative(_loss(sp.Integer(1)), _w[_j]) / _scale,
            cases=_SIZES,
        ),
        step(
            "orthogonal",
            "The gradient is orthogonal to $w$.",
            "Euler: differentiate the first equation with respect to $s$",
            sp.Sum(_w[_j] * sp.Derivative(_loss(sp.Integer(1)), _w[_j]), (_j, 1, _n)),
            sp.Integer(0),
            cases=({_n: 2}, {_n: 3}),
        ),
        step(
            "growth",
            r"Without decay the norm can only grow: $|w|^2$ by $\eta^2 |g|^2$ a step, $g$ being the gradient.",
            "Pythagoras, the gradient being orthogonal",
            sp.Sum((_w[_j] - _eta * sp.Derivative(_loss(sp.Integer(1)), _w[_j])) ** 2, (_j, 1, _n)),
            sp.Sum(_w[_j] ** 2, (_j, 1, _n))
            + _eta**2 * sp.Sum(sp.Derivative(_loss(sp.Integer(1)), _w[_j]) ** 2, (_j, 1, _n)),
            cases=({_n: 2},),
        ),
        step(
            "effective_rate",
            r"What matters is the rate $\eta / W$ on the unit sphere: steps of $\eta$ at $s w$ turn $w$ as steps"
            r" of $\eta / s^2$ at $w$.",
            "the gradient is $1/s$ of that at $w$, and a step is $1/s$ as large beside $s w$",
            (_scale * _u - _eta * _k / (_scale * _u)) / _scale,
            _u - (_eta / _scale**2) * _k / _u,
        ),
        step(
            "exponential_rate",
            r"Constant $\eta$ with decay is the same run, in direction, as no decay with $\eta$ growing by $(1 -"
            r" \eta \lambda)^{-2}$ a step: put $w = (1 - \eta \lambda)^t u$.",
            "the gradient at $a^t u$ is $a^{-t}$ of that at $u$ (here $k / u$, homogeneous of degree -1)",
            (_KEPT * (_KEPT**_t * _u) - _eta * _k / (_KEPT**_t * _u)) / _KEPT ** (_t + 1),
            _u - _eta * _KEPT ** (-2 * _t - 1) * _k / _u,
            domain=_SMALL,
        ),
        step(
            "equilibrium",
            r"Equilibrium norm without momentum: what decay takes, $(1 - (1 - \eta \lambda)^2) W$, the step gives"
            r" back, $\eta^2 G^2 / W$.",
            r"$W = (1 - \eta \lambda)^2 W + \eta^2 G^2 / W$, solved for $W$",
            _KEPT**2 * _norm2 + _eta**2 * _size**2 / _norm2,
            _norm2,
            domain=_SMALL,
            where=_PLAIN,
        ),
        step(
            "angle",
            r"Angle between $w$ before and after a step at equilibrium: its cosine is $1 - \eta \lambda$,"
            " whatever the loss.",
            r"the tangent is the step $\eta G / |w|$ over what is left, $(1 - \eta \lambda) |w|$",
            sp.cos(sp.atan(_eta * _size / (_KEPT * _norm2))),
            _KEPT,
            domain=_SMALL,
            where=_PLAIN,
        ),
        step(
            "small_angle",
            r"For small $\eta \lambda$ the angle is $\sqrt{2 \eta \lambda}$.",
            r"$\cos x = 1 - x^2 / 2$ to leading order",
            sp.Limit(sp.acos(1 - _u**2) / _u, _u, 0),
            sp.sqrt(2),
        ),
        step(
            "momentum_norm",
            r"With momentum, $W$ is stationary if $2 w v' = \eta V$ for $v' = \mu v + g + \lambda w$,"
            r" with $w v' = \mu C + \lambda W$; and $C = w v' - \eta V$.",
            r"expand $|w - \eta v'|^2$ and $w'v'$, the gradient being orthogonal to $w$ and new",
            2 * (_momentum * _c + _decay * _norm2),
            _eta * _v,
            domain=_SMALL,
            where={_c: _C, _v: _V},
        ),
        step(
            "momentum_velocity",
            "$V$ is stationary at this norm ($W^2$ is the result below).",
            r"expand $|\mu v + g + \lambda w|^2$ with $|g|^2 = G^2 / W$",
            _momentum**2 * _v + _size**2 / _norm2 + _decay**2 * _norm2 + 2 * _momentum * _decay * _c,
            _v,
            where={_c: _C, _v: _V, _norm2: sp.sqrt(_WITH_MOMENTUM)},
            domain=_SMALL,
        ),
        step(
            "momentum_angle",
            r"Angular update: the chord $\eta \sqrt{V / W}$ between two vectors of equal norm belongs to the"
            r" angle whose cosine is $1 - \eta \lambda / (1 + \mu)$: about $\sqrt{2 \eta \lambda / (1 + \mu)}$.",
            r"a chord of the unit sphere has the square $2 (1 - \cos)$",
            _eta**2 * _v / _norm2,
            2 * (1 - _cosine),
            where={_cosine: 1 - _eta * _decay / (1 + _momentum), _v: _V},
        ),
    ),
    {
        "equilibrium_norm": Result(
            (_size, _eta, _decay, _momentum), _WITH_MOMENTUM ** sp.Rational(1, 4), "norm of the weights at equilibrium"
        ),
        "angular_update": Result(
            (_eta, _decay, _momentum),
            sp.acos(1 - _eta * _decay / (1 + _momentum)),
            "angle that a step turns the weights by at equilibrium",
        ),
        "small_angular_update": Result(
            (_eta, _decay, _momentum),
            sp.sqrt(2 * _eta * _decay / (1 + _momentum)),
            "the same for small steps",
        ),
        "rate_growth": Result((_eta, _decay), _KEPT**-2, "growth a step of the learning rate that acts like decay"),
    },
    (
        cite("vanlaarhoven2017", "section 2"),
        cite("arora2019", "section 2"),
        cite("liarora2020", "section 2"),
        cite("wan2021", "section 3"),
    ),
)
