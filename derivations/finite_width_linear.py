"""Linear networks of finite width: the exact law of the log of a squared norm."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, bound, step

_n, _m, _depth = sp.symbols("n m L", integer=True, positive=True)
_i, _l = sp.symbols("i l", integer=True)
_o = sp.Symbol("o", integer=True)
_r, _s, _sigma2 = sp.symbols("r s sigma2", positive=True)
_w, _x, _y = (sp.IndexedBase(name) for name in ("w", "x", "y"))
_half = sp.Rational(1, 2)
# Density of the length r of n independent N(0, 1).
_length = 2 * _r ** (_n - 1) * sp.exp(-(_r**2) / 2) / (2 ** (_n * _half) * sp.gamma(_n * _half))
_LOG_MEAN = sp.digamma(_n * _half) - sp.log(_n * _half)
_LOG_VARIANCE = sp.polygamma(1, _n * _half)
_SIZES = ({_n: 1, _m: 1}, {_n: 1, _m: 2}, {_n: 2, _m: 1}, {_n: 2, _m: 2})


def _mean(function: sp.Expr) -> sp.Integral:
    return sp.Integral(function * _length, (_r, 0, sp.oo))


_square = sp.Sum(sp.Sum(_w[_o, _i] * _x[_i], (_i, 1, _m)) ** 2, (_o, 1, _n))

DERIVATION = Derivation(
    "finite_width_linear",
    "Linear networks of finite width",
    (
        r"weights are independent $N(0, \sigma^2)$; layers have $m$ inputs and $n$ outputs; $\sigma^2 = 1/n$"
        " keeps the squared norm",
        "backward: the same with the transposed matrix, so $n$ is then the width of the layer's input",
    ),
    (
        step(
            "forward",
            "Forward: the mean of the squared norm, for any input $x$.",
            "products of different weights have mean 0",
            E(_square),
            _n * _sigma2 * sp.Sum(_x[_i] ** 2, (_i, 1, _m)),
            cases=_SIZES,
        ),
        step(
            "fourth",
            "Its mean square is larger by $1 + 2/n$ a layer: at depth the mean is carried by few lucky draws.",
            r"each output is $N(0, \sigma^2 |x|^2)$, whose fourth moment is 3 times the squared variance",
            E(_square**2),
            (1 + 2 / _n) * (_n * _sigma2 * sp.Sum(_x[_i] ** 2, (_i, 1, _m))) ** 2,
            cases=_SIZES,
        ),
        step(
            "moments",
            r"The factor $|W x|^2 / (\sigma^2 |x|^2)$ is $r^2$ for $r$ the length of $n$ independent $N(0, 1)$,"
            r" whatever $x$ is (a chi square of $n$ degrees): its moments. Layers' factors are independent.",
            "substitute $t = r^2 / 2$: a Gamma function",
            _mean(_r ** (2 * _s)),
            2**_s * sp.gamma(_n * _half + _s) / sp.gamma(_n * _half),
        ),
        step(
            "log_mean",
            r"Mean of its log ($\psi$ is the digamma function).",
            "slope of the log of the moments at $s = 0$",
            _mean(sp.log(_r**2)),
            sp.digamma(_n * _half) + sp.log(2),
        ),
        step(
            "log_variance",
            "Variance of its log (the trigamma function).",
            "second derivative of the log of the moments at $s = 0$",
            _mean((sp.log(_r**2) - sp.digamma(_n * _half) - sp.log(2)) ** 2),
            _LOG_VARIANCE,
        ),
        step(
            "layer",
            r"With $\sigma^2 = 1/n$ the log's mean is $\psi(n/2) - \log(n/2)$ a layer: below 0 although the mean"
            " is kept.",
            r"add $\log \sigma^2$",
            sp.digamma(_n * _half) + sp.log(2) + sp.log(1 / _n),
            _LOG_MEAN,
        ),
        bound("log_mean_above", "It is at most $-1/n$ ...", r"digamma is below $\log x - 1/(2 x)$", _LOG_MEAN, -1 / _n),
        bound("log_mean_below", "... and at least $-2/n$.", r"digamma is above $\log x - 1/x$", -2 / _n, _LOG_MEAN),
        bound(
            "log_variance_below",
            "The variance is at least $2/n + 2/n^2$ ...",
            "trigamma is above $1/x + 1/(2 x^2)$",
            2 / _n + 2 / _n**2,
            _LOG_VARIANCE,
        ),
        bound(
            "log_variance_above",
            "... and at most $2/n + 4/n^2$.",
            "trigamma is below $1/x + 1/x^2$",
            _LOG_VARIANCE,
            2 / _n + 4 / _n**2,
        ),
        step(
            "depth",
            r"$L$ layers: logs of independent factors add, so a typical draw shrinks as $\exp(-L / n)$ and the"
            r" spread of the log grows as $\sqrt{2 L / n}$.",
            "sum over layers, here of one width",
            sp.Sum(_LOG_MEAN, (_l, 1, _depth)),
            _depth * _LOG_MEAN,
            cases=({_depth: 1}, {_depth: 3}),
        ),
        step(
            "backward",
            "Backward: a gradient $y$ takes the same law with the transposed matrix, of $m$ components.",
            "products of different weights have mean 0",
            E(sp.Sum(sp.Sum(_w[_o, _i] * _y[_o], (_o, 1, _n)) ** 2, (_i, 1, _m)) ** 2),
            (1 + 2 / _m) * (_m * _sigma2 * sp.Sum(_y[_o] ** 2, (_o, 1, _n))) ** 2,
            cases=_SIZES,
        ),
    ),
    {
        "log_mean": Result((_n,), _LOG_MEAN, "mean of the log of the squared norm's growth, weight variance 1/n"),
        "log_variance": Result((_n,), _LOG_VARIANCE, "variance of that log"),
        "fourth": Result((_n,), 1 + 2 / _n, "growth a layer of a norm's fourth moment over its squared second"),
    },
    (cite("hanin2020", "section 1"), cite("saxe2014", "section 3"), cite("johnson1994", "chapter 18 (chi square)")),
    laws={_w: (sp.Integer(0), _sigma2, sp.Integer(0), 3 * _sigma2**2)},
)
