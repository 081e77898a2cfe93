"""Orthogonal weights: norms are kept exactly, not on average."""

import sympy as sp

from varprop.derivations.references import cite
from varprop.derivations.theorem import Derivation, Result, step

_n, _n_out = sp.symbols("n n_out", integer=True, positive=True)
_i, _j, _o = sp.symbols("i j o", integer=True)
_gain, _q, _g = sp.symbols("gain q g", positive=True)
_x, _y, _u = (sp.IndexedBase(name) for name in ("x", "y", "u"))
_SIZES = ({_n: 2}, {_n: 3})
_MEAN_SQUARE = _gain**2 * sp.Min(_n, _n_out) / (_n * _n_out)


def _reflection(row: sp.Expr, column: sp.Expr) -> sp.Expr:
    """Return an entry of the Householder reflection along u; every orthogonal matrix is a product of such."""
    return sp.KroneckerDelta(row, column) - 2 * _u[row] * _u[column] / sp.Sum(_u[_j] ** 2, (_j, 1, _n))


def _image(inputs: sp.IndexedBase, row: sp.Expr) -> sp.Sum:
    return sp.Sum(_reflection(row, _i) * inputs[_i], (_i, 1, _n))


DERIVATION = Derivation(
    "orthogonal",
    "Orthogonal weights",
    (
        r"$W$ is $\gamma$ (the gain) times a matrix with orthonormal rows or columns, whichever are fewer, uniform"
        r" among these (Haar)",
        "shown for one reflection; every orthogonal matrix is a product of at most $n$ of them",
    ),
    (
        step(
            "forward",
            "Forward: a square orthogonal matrix keeps every norm, for each draw and at any width.",
            "a reflection turns the component along $u$ around",
            sp.Sum(_image(_x, _o) ** 2, (_o, 1, _n)),
            sp.Sum(_x[_i] ** 2, (_i, 1, _n)),
            cases=_SIZES,
        ),
        step(
            "covariance",
            "And every inner product: correlations of samples do not change in a linear network.",
            "polarisation",
            sp.Sum(_image(_x, _o) * _image(_y, _o), (_o, 1, _n)),
            sp.Sum(_x[_i] * _y[_i], (_i, 1, _n)),
            cases=_SIZES,
        ),
        step(
            "backward",
            "Backward: the transposed matrix is orthogonal as well: it undoes the matrix.",
            "a reflection is symmetric and its own inverse",
            sp.Sum(_reflection(_o, _n) * _image(_x, _o), (_o, 1, _n)),
            _x[_n],
            cases=_SIZES,
        ),
        step(
            "total",
            "Sum of all squared entries: one for each row or column that is orthonormal.",
            "each has length one",
            sp.Sum(_reflection(_o, _i) ** 2, (_i, 1, _n), (_o, 1, _n)),
            _n,
            cases=_SIZES,
        ),
        step(
            "variance",
            r"Hence the mean square of a weight, all entries being alike; a square matrix has $\gamma^2 / n$, as"
            " LeCun's.",
            r"share the total $\min(n, n_{\mathrm{out}})$ among $n n_{\mathrm{out}}$ entries",
            _MEAN_SQUARE,
            _gain**2 / _n,
            where={_n_out: _n},
        ),
        step(
            "narrowing",
            r"From $n$ to $n_{\mathrm{out}}$ units the mean second moment is kept forward if $n \geq"
            r" n_{\mathrm{out}}$, else it shrinks by $n / n_{\mathrm{out}}$.",
            "$n$ times the mean square of a weight",
            _n * _MEAN_SQUARE * _q,
            _gain**2 * sp.Min(1, _n / _n_out) * _q,
        ),
        step(
            "widening",
            r"Backward it is kept if $n_{\mathrm{out}} \geq n$.",
            r"$n_{\mathrm{out}}$ times the mean square of a weight",
            _n_out * _MEAN_SQUARE * _g,
            _gain**2 * sp.Min(1, _n_out / _n) * _g,
        ),
        step(
            "relu",
            r"Under ReLU gain $\sqrt{2}$ keeps the mean second moment, no longer each norm.",
            "the rectifier takes half",
            _n * _MEAN_SQUARE / 2,
            sp.Integer(1),
            where={_n_out: _n, _gain: sp.sqrt(2)},
        ),
    ),
    {
        "variance": Result((_n, _n_out, _gain), _MEAN_SQUARE, "mean square of a weight"),
        "second_moment": Result((_n, _n_out, _gain, _q), _n * _MEAN_SQUARE * _q, "second moment of the output"),
        "gradient": Result(
            (_n, _n_out, _gain, _g), _n_out * _MEAN_SQUARE * _g, "second moment of the input's gradient"
        ),
    },
    (cite("saxe2014", "section 3"), cite("pennington2017", "section 2"), cite("mezzadri2007", "section 3")),
)
