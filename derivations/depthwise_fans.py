"""What frameworks' initializers do to a depthwise layer, whose fan they count differently from what it sums over."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, Step, step

_taps, _channels = sp.symbols("k channels", integer=True, positive=True)
_i, _j, _c, _o = sp.symbols("i j c o", integer=True)
_sigma2, _q, _g = sp.symbols("sigma2 q g", positive=True)
_x, _mean, _mean_g = sp.symbols("x mean mean_g", real=True)
_w, _h, _delta = (sp.IndexedBase(name) for name in ("w", "h", "delta"))
_area = _taps**2
_in, _out = sp.symbols("f_in f_out", positive=True)
_Fans = dict[sp.Symbol, sp.Expr]
_TORCH: _Fans = {_in: _area, _out: _channels * _area}
_KERAS: _Fans = {_in: _channels * _area, _out: _area}
_bound = 1 / sp.sqrt(_area)


def _factor(name: str, statement: str, reason: str, variance: sp.Expr, fans: _Fans, factor: sp.Expr) -> Step:
    named = {fan: value for fan, value in fans.items() if variance.has(fan)}
    return step(name, statement, reason, _area * variance, factor, where=named)


_RESULTS = {
    "torch_default": (sp.Rational(1, 3), "PyTorch default"),
    "torch_he_fan_in": (sp.Integer(2), "PyTorch He, fan_in"),
    "torch_he_fan_out": (2 / _channels, "PyTorch He, fan_out"),
    "glorot": (2 / (_channels + 1), "Glorot in either framework"),
    "keras_he": (2 / _channels, "Keras He"),
    "keras_lecun": (1 / _channels, "Keras LeCun"),
    "torch_orthogonal": (_area / _channels, "PyTorch orthogonal, at least as many channels as taps"),
    "keras_orthogonal": (1 / _channels, "Keras orthogonal"),
}

DERIVATION = Derivation(
    "depthwise_fans",
    "Frameworks' fans of a depthwise layer",
    (
        r"$k \times k$ depthwise kernel on $C$ channels, multiplier one: every output sums $k^2$ products of its own"
        " channel",
        r"PyTorch stores the shape $(C, 1, k, k)$: its fan_in $f_{\mathrm{in}}$ is $k^2$, its fan_out"
        r" $f_{\mathrm{out}}$, which ignores groups, $C k^2$",
        "Keras stores $(k, k, C, 1)$: its fan_in is $C k^2$, its fan_out $k^2$",
        "the window lies inside the map; factors are those of the second moment, forward (backward they are the same)",
    ),
    (
        step(
            "forward",
            "Forward: the true factor is $k^2$ times the weights' variance.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i, _j] * _h[_i, _j], (_i, 1, _taps), (_j, 1, _taps)) ** 2),
            _area * _sigma2 * _q,
            cases=({_taps: 1}, {_taps: 2}),
        ),
        step(
            "backward",
            "Backward: the same.",
            "products of different weights have mean 0",
            E(sp.Sum(_w[_i, _j] * _delta[_i, _j], (_i, 1, _taps), (_j, 1, _taps)) ** 2),
            _area * _sigma2 * _g,
            cases=({_taps: 1}, {_taps: 2}),
        ),
        step(
            "torch_default",
            r"PyTorch's default, uniform within $1/\sqrt{f_{\mathrm{in}}}$ (Kaiming uniform with $a = \sqrt{5}$):"
            r" $1/3$.",
            "$k^2$ times the variance of a uniform law, a third of the squared bound",
            _area * sp.Integral(_x**2 / (2 * _bound), (_x, -_bound, _bound)),
            _RESULTS["torch_default"][0],
        ),
        _factor(
            "torch_he_fan_in",
            "PyTorch He with fan_in: 2, right for a rectifier.",
            r"the variance is $2 / f_{\mathrm{in}}$",
            2 / _in,
            _TORCH,
            _RESULTS["torch_he_fan_in"][0],
        ),
        _factor(
            "torch_he_fan_out",
            "PyTorch He with fan_out: $C$ times too small.",
            r"the variance is $2 / f_{\mathrm{out}}$",
            2 / _out,
            _TORCH,
            _RESULTS["torch_he_fan_out"][0],
        ),
        _factor(
            "torch_glorot",
            "PyTorch Glorot.",
            r"the variance is $2 / (f_{\mathrm{in}} + f_{\mathrm{out}})$",
            2 / (_in + _out),
            _TORCH,
            _RESULTS["glorot"][0],
        ),
        _factor(
            "keras_glorot",
            "Keras Glorot: the two fans change places, their sum stays.",
            r"the variance is $2 / (f_{\mathrm{in}} + f_{\mathrm{out}})$",
            2 / (_in + _out),
            _KERAS,
            _RESULTS["glorot"][0],
        ),
        _factor(
            "keras_he",
            "Keras He: $C$ times too small.",
            r"the variance is $2 / f_{\mathrm{in}}$",
            2 / _in,
            _KERAS,
            _RESULTS["keras_he"][0],
        ),
        _factor(
            "keras_lecun",
            "Keras LeCun: $C$ times too small.",
            r"the variance is $1 / f_{\mathrm{in}}$",
            1 / _in,
            _KERAS,
            _RESULTS["keras_lecun"][0],
        ),
        step(
            "torch_orthogonal",
            r"PyTorch orthogonal flattens to $C \geq k^2$ rows of $k^2$: orthonormal columns share a total of"
            " $k^2$ among all $C k^2$ weights.",
            "sum of squares $k^2$, so $1/C$ a weight",
            _area * sp.Sum(1, (_c, 1, _area)) / (_channels * _area),
            _RESULTS["torch_orthogonal"][0],
            cases=({_taps: 2}, {_taps: 3}),
        ),
        step(
            "keras_orthogonal",
            "Keras orthogonal flattens to $C k^2$ rows and one column of length one.",
            "sum of squares one, so $1 / (C k^2)$ a weight",
            _area * sp.Sum(1, (_c, 1, 1)) / (_channels * _area),
            _RESULTS["keras_orthogonal"][0],
        ),
    ),
    {
        name: Result((_taps, _channels), sp.sympify(expression), f"factor of the second moment: {words}")
        for name, (expression, words) in _RESULTS.items()
    },
    (
        cite("he2015", "Eqs. (10) and (14)"),
        cite("glorot2010", "Eq. (12)"),
        cite("saxe2014", "section 3"),
        cite("sandler2018", "section 3.1"),
    ),
    laws={_w: (sp.Integer(0), _sigma2), _h: (_mean, _q), _delta: (_mean_g, _g)},
)
