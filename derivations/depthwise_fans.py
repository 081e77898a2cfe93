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
_torch_in, _torch_out = _area, _channels * _area
_keras_in, _keras_out = _channels * _area, _area
_bound = 1 / sp.sqrt(_torch_in)


def _factor(name: str, statement: str, reason: str, variance: sp.Expr, factor: sp.Expr) -> Step:
    return step(name, statement, reason, _area * variance, factor)


_RESULTS = {
    "torch_default": (sp.Rational(1, 3), "PyTorch default (Kaiming uniform, a = sqrt 5)"),
    "torch_he_fan_in": (sp.Integer(2), "PyTorch He, fan_in"),
    "torch_he_fan_out": (2 / _channels, "PyTorch He, fan_out"),
    "glorot": (2 / (_channels + 1), "Glorot in either framework"),
    "keras_he": (2 / _channels, "Keras He"),
    "keras_lecun": (1 / _channels, "Keras LeCun"),
    "torch_orthogonal": (_area / _channels, "PyTorch orthogonal, at least k^2 channels"),
    "keras_orthogonal": (1 / _channels, "Keras orthogonal"),
}

DERIVATION = Derivation(
    "depthwise_fans",
    "Frameworks' fans of a depthwise layer",
    (
        "k x k depthwise kernel on C channels, multiplier one: every output sums k^2 products of its own channel",
        "PyTorch stores the shape (C, 1, k, k): its fan_in is k^2, its fan_out, which ignores groups, C k^2",
        "Keras stores (k, k, C, 1): its fan_in is C k^2, its fan_out k^2",
        "the window lies inside the map; factors are those of the second moment, forward (backward they are the same)",
    ),
    (
        step(
            "forward",
            "Forward: the true factor is k^2 times the weights' variance.",
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
            "PyTorch's default, uniform within 1/sqrt(fan_in) (Kaiming uniform with a = sqrt 5): 1/3.",
            "k^2 times the variance of a uniform law, bound^2 / 3",
            _area * sp.Integral(_x**2 / (2 * _bound), (_x, -_bound, _bound)),
            _RESULTS["torch_default"][0],
        ),
        _factor(
            "torch_he_fan_in",
            "PyTorch He with fan_in: 2, right for a rectifier.",
            "2 / fan_in",
            2 / _torch_in,
            _RESULTS["torch_he_fan_in"][0],
        ),
        _factor(
            "torch_he_fan_out",
            "PyTorch He with fan_out: C times too small.",
            "2 / fan_out",
            2 / _torch_out,
            _RESULTS["torch_he_fan_out"][0],
        ),
        _factor(
            "torch_glorot",
            "PyTorch Glorot.",
            "2 / (fan_in + fan_out)",
            2 / (_torch_in + _torch_out),
            _RESULTS["glorot"][0],
        ),
        _factor(
            "keras_glorot",
            "Keras Glorot: the two fans change places, their sum stays.",
            "2 / (fan_in + fan_out)",
            2 / (_keras_in + _keras_out),
            _RESULTS["glorot"][0],
        ),
        _factor("keras_he", "Keras He: C times too small.", "2 / fan_in", 2 / _keras_in, _RESULTS["keras_he"][0]),
        _factor(
            "keras_lecun", "Keras LeCun: C times too small.", "1 / fan_in", 1 / _keras_in, _RESULTS["keras_lecun"][0]
        ),
        step(
            "torch_orthogonal",
            "PyTorch orthogonal flattens to C rows of k^2 (C >= k^2): orthonormal columns share a total of k^2 among"
            " all"
            " C k^2 weights.",
            "sum of squares k^2, so 1/C a weight",
            _area * sp.Sum(1, (_c, 1, _area)) / (_channels * _area),
            _RESULTS["torch_orthogonal"][0],
            cases=({_taps: 2}, {_taps: 3}),
        ),
        step(
            "keras_orthogonal",
            "Keras orthogonal flattens to C k^2 rows and one column of length one.",
            "sum of squares one, so 1 / (C k^2) a weight",
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
