"""He-ReLU networks of finite width: fluctuations of the squared norm, forward and backward."""

import sympy as sp

from varprop.derivations.expectation import E
from varprop.derivations.gaussian import mean_over, q
from varprop.derivations.references import cite
from varprop.derivations.relu import VALUE
from varprop.derivations.theorem import Derivation, Result, bound, step

_n, _m, _depth = sp.symbols("n m L", integer=True, positive=True)
_i, _o, _l = sp.symbols("i o l", integer=True)
_sigma2, _g = sp.symbols("sigma2 g", positive=True)
_h, _w, _masked = (sp.IndexedBase(name) for name in ("h", "w", "u"))
_SIZES = ({_n: 1}, {_n: 2}, {_n: 3})
_GROWTH = 1 + 5 / _n

DERIVATION = Derivation(
    "finite_width_relu",
    "ReLU networks of finite width",
    (
        "weights are independent $N(0, 2/m)$ with $m$ inputs; the pre-activations of a layer are then independent $N(0,"
        r" q)$ given its input $x$, with $q = 2 |x|^2 / m$, and $h_i = \operatorname{relu}(z_i)$; exact at"
        " any width $n$",
        "backward: the arriving gradient has independent $N(0, g)$ components, and passes units that are active"
        " with probability $1/2$ independently of it and of the weights (exact in law under a symmetric weight"
        " law)",
    ),
    (
        step(
            "second",
            "Second moment of a unit.",
            "half of an even integrand",
            mean_over(VALUE**2),
            q / 2,
        ),
        step(
            "fourth_unit",
            "Fourth moment of a unit.",
            "half of $3 q^2$",
            mean_over(VALUE**4),
            3 * q**2 / 2,
        ),
        step(
            "forward",
            "Forward: the squared norm of $n$ units keeps its mean, $n q / 2 = |x|^2$ for $n = m$.",
            "$n$ equal terms",
            E(sp.Sum(_h[_i] ** 2, (_i, 1, _n))),
            _n * q / 2,
            cases=_SIZES,
        ),
        step(
            "forward_fourth",
            "Its mean square is larger than its squared mean by $1 + 5/n$.",
            "$n$ fourth moments $3 q^2 / 2$ and $n (n - 1)$ products $q^2 / 4$",
            E(sp.Sum(_h[_i] ** 2, (_i, 1, _n)) ** 2),
            _GROWTH * (_n * q / 2) ** 2,
            cases=_SIZES,
        ),
        step(
            "depth",
            r"$L$ layers: given each layer's input the factor is the same, so $\mathbb{E}|x_L|^4 / |x_0|^4$ is the"
            " product, here of one width.",
            "condition on the layer before",
            sp.Product(_GROWTH, (_l, 1, _depth)),
            _GROWTH**_depth,
            cases=({_depth: 1}, {_depth: 3}),
        ),
        step(
            "log_normal",
            "Fluctuations of many layers multiply, so the log is nearly normal; with mean of the factor one and"
            r" mean square $1 + 5/n$ its variance is $\log(1 + 5/n)$ a layer and its mean minus half of that;"
            " $5/n$ for large $n$.",
            "a log-normal factor with E = 1 has E of its square exp(variance)",
            sp.Limit(sp.log(1 + 5 / q) * q, q, sp.oo),
            sp.Integer(5),
        ),
        bound(
            "typical",
            r"So a typical draw shrinks at least as $\exp(-5 L / (2 (n + 5)))$ while the mean is kept.",
            r"$\log(1 + x)$ is above $x / (1 + x)$",
            5 / (_n + 5),
            sp.log(_GROWTH),
        ),
        step(
            "backward_mask",
            "Backward: a masked gradient component $u$ has second moment $g/2$ and fourth moment $3 g^2 / 2$;"
            r" the norm before the layer's transposed weights, of variance $\sigma^2$ and with $m$ columns, has"
            " this mean square.",
            r"each of the $m$ components is Gaussian given the masked gradient: $m (m + 2) \sigma^4$ times its"
            " fourth power",
            E(sp.Sum(sp.Sum(_w[_o, _i] * _masked[_o], (_o, 1, _n)) ** 2, (_i, 1, _m)) ** 2),
            _m * (_m + 2) * _sigma2**2 * (3 * _n / sp.Integer(2) + _n * (_n - 1) / 4) * _g**2,
            cases=({_n: 1, _m: 1}, {_n: 2, _m: 1}, {_n: 1, _m: 2}, {_n: 2, _m: 2}),
        ),
        step(
            "backward",
            "Backward: relative to $n (n + 2) g^2$, the mean square of the arriving norm, this is $1 + 5/n$ for"
            r" $m = n$ and $\sigma^2 = 2/n$: the gradient fluctuates as the signal does.",
            "insert and divide",
            (_m * (_m + 2) * _sigma2**2 * (3 * _n / sp.Integer(2) + _n * (_n - 1) / 4) / (_n * (_n + 2))).subs(
                {_m: _n, _sigma2: 2 / _n}
            ),
            _GROWTH,
        ),
    ),
    {
        "fourth": Result(
            (_n,),
            _GROWTH,
            "growth a layer of a norm's fourth moment over its squared second",
        ),
        "log_variance": Result((_n,), sp.log(_GROWTH), "variance of the log a layer, in the log-normal law"),
        "log_mean": Result((_n,), -sp.log(_GROWTH) / 2, "mean of the log a layer, in the log-normal law"),
    },
    (cite("hanin2018", "section 3"), cite("hanin2020", "section 1 (law of the masks)")),
    laws={
        _h: (sp.sqrt(q / (2 * sp.pi)), q / 2, sp.Symbol("third", real=True), 3 * q**2 / 2),
        _w: (sp.Integer(0), _sigma2, sp.Integer(0), 3 * _sigma2**2),
        _masked: (sp.Integer(0), _g / 2, sp.Integer(0), 3 * _g**2 / 2),
    },
)
