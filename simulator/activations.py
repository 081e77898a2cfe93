"""Elementwise activations: what they are, and their moments under Gaussian input."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import lru_cache, partial
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.generated import activations as scalar
from varprop.simulator.generated import arrays, moments
from varprop.simulator.quadrature import gaussian_dual, gaussian_mean, verified_mean

if TYPE_CHECKING:
    from varprop.simulator.formula.function import Formula

Array = NDArray[np.float64]
Line = tuple[float, float]
"""Slope and intercept."""

FORMULA = "formula"
"""Family of the activations that are written out."""

Form = Callable[..., object]
"""Function of arrays."""

_SATURATED = -1e3  # every registered activation is its left germ there, to the last digit


@dataclass(frozen=True)
class _Family:
    """What cannot be read off the formulas: kinks, and lines for z to -inf and +inf (functions of the parameter)."""

    description: str
    kinks: tuple[float, ...] = ()
    left: Callable[[float], Line] = lambda a: (0.0, 0.0)
    right: Callable[[float], Line] = lambda a: (1.0, 0.0)
    parameter: str = ""
    default: float = 0.0


def _slope(a: float) -> Line:
    return (a, 0.0)


def _level(height: float) -> Callable[[float], Line]:
    return lambda a: (0.0, height)


_FAMILIES = {
    "linear": _Family("z", left=lambda a: (1.0, 0.0)),
    "relu": _Family("max(z, 0)", (0.0,)),
    "leaky_relu": _Family(
        "z for z > 0, slope z below; leaky_relu(0.2) sets the slope, 0.01",
        (0.0,),
        _slope,
        parameter="slope",
        default=0.01,
    ),
    "relu6": _Family("min(max(z, 0), 6)", (0.0, 6.0), right=_level(6.0)),
    "elu": _Family(
        "z for z > 0, alpha (exp z - 1) below; elu(0.5) sets alpha, 1",
        (0.0,),
        lambda a: (0.0, -a),
        parameter="alpha",
        default=1.0,
    ),
    "selu": _Family(
        "lambda elu(z; alpha), with mean 0 and variance 1 as a fixed point",
        (0.0,),
        lambda a: (0.0, scalar.selu_value(_SATURATED, a)),
        lambda a: (scalar.selu_value(1.0, a), 0.0),
    ),
    "sigmoid": _Family("1 / (1 + exp(-z))", right=_level(1.0)),
    "tanh": _Family("hyperbolic tangent", left=_level(-1.0), right=_level(1.0)),
    "erf": _Family("error function", left=_level(-1.0), right=_level(1.0)),
    "gelu": _Family("z Phi(z), exact (not the tanh approximation)"),
    "silu": _Family("z sigmoid(z), also called swish"),
    "hard_swish": _Family("z relu6(z + 3) / 6", (-3.0, 3.0)),
}

NAMES: dict[str, str] = {name: family.description for name, family in _FAMILIES.items()}
"""Every activation and its formula."""


@dataclass(frozen=True)
class ActivationFunction:
    """An activation phi with the facts about it that theory needs.

    Moments are over z ~ N(0, q), at any variance q >= 0 up to 1e150: closed forms where there are any, else quadrature
    split at the kinks; relative error below 1e-12 (of the root mean square, for the mean) for q from 1e-8 to 1e8. Those
    of a formula are NaN at a q where they are too large for a float, or where quadrature cannot follow the formula.

    Attributes
    ----------
    name
        Canonical text: `activation(name)` gives the same function back.
    family, parameter
        Formula and its parameter (slope, alpha), 0 where it has none.
    kinks
        Where phi or a derivative of it jumps, or where else quadrature is to be cut.
    homogeneous
        Whether phi(s z) = s phi(z) for every s > 0.
    germ_zero
        phi(0), and its slopes just below and just above 0; infinite where there is none.
    germ_infinity
        (slope, intercept) of the lines that phi approaches as z goes to -inf and to +inf; an infinite slope where it
        grows faster than any line.
    forms
        Functions of arrays: "value" and "derivative" of z, and of the moments those that have a form of their own.
    formula
        What `name` was read as, if it is a formula.
    """

    name: str
    family: str
    parameter: float
    kinks: tuple[float, ...]
    homogeneous: bool
    germ_zero: tuple[float, float, float]
    germ_infinity: tuple[Line, Line]
    forms: Mapping[str, Form] = field(repr=False, compare=False)
    formula: Formula | None = field(default=None, repr=False, compare=False)

    @property
    def closed_dual(self) -> bool:
        """Whether `dual` and `derivative_dual` are closed forms."""
        return "dual" in self.forms

    def value(self, z: ArrayLike) -> Array:
        """Return phi(z), elementwise."""
        return _run(self.forms["value"], z)

    def derivative(self, z: ArrayLike) -> Array:
        """Return phi'(z), elementwise; at a kink the value from the left."""
        return _run(self.forms["derivative"], z)

    def mean(self, q: ArrayLike) -> Array:
        """Return E[phi(z)]."""
        closed = self.forms.get("mean")
        return _run(closed, q) if closed else gaussian_mean(self.value, q, self.kinks)

    def second_moment(self, q: ArrayLike) -> Array:
        """Return E[phi(z)^2]."""
        closed = self.forms.get("second_moment")
        return _run(closed, q) if closed else gaussian_mean(lambda z: self.value(z) ** 2, q, self.kinks)

    def derivative_second_moment(self, q: ArrayLike) -> Array:
        """Return E[phi'(z)^2]."""
        closed = self.forms.get("derivative_second_moment")
        return _run(closed, q) if closed else gaussian_mean(lambda z: self.derivative(z) ** 2, q, self.kinks)

    def dual(self, q1: ArrayLike, q2: ArrayLike, c: ArrayLike) -> Array:
        """Return E[phi(z1) phi(z2)] for variances `q1`, `q2` and correlation `c` (clipped to [-1, 1])."""
        c = np.clip(c, -1, 1)
        closed = self.forms.get("dual")
        return _run(closed, q1, q2, c) if closed else gaussian_dual(self.value, q1, q2, c, self.kinks)

    def derivative_dual(self, q1: ArrayLike, q2: ArrayLike, c: ArrayLike) -> Array:
        """Return E[phi'(z1) phi'(z2)] for variances `q1`, `q2` and correlation `c` (clipped to [-1, 1])."""
        c = np.clip(c, -1, 1)
        closed = self.forms.get("derivative_dual")
        return _run(closed, q1, q2, c) if closed else gaussian_dual(self.derivative, q1, q2, c, self.kinks)

    def require_moments(self, q: float) -> None:
        """Refuse a variance at which E[phi^2] or E[phi'^2] of a formula is not known.

        Raises
        ------
        UserError
            One of them is beyond float range, or the formula turns too often for quadrature.
        """
        if self.family != FORMULA:
            return
        if not np.isfinite([self.second_moment(q), self.derivative_second_moment(q)]).all():
            raise UserError(
                f"activation {self.name}",
                f"z ~ N(0, {q:.4g})",
                "an input at which E[phi^2] and E[phi'^2] are finite numbers that quadrature resolves",
            )


def _run(form: Form, *inputs: ArrayLike) -> Array:
    given = [np.asarray(value, dtype=np.float64) for value in inputs]
    shape = np.broadcast_shapes(*(value.shape for value in given))
    # Branches that np.where discards overflow, and at q = 0 the limit of a/q is the right one.
    with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
        found = np.asarray(form(*given), dtype=np.float64)
    return np.broadcast_to(found, shape).copy() if found.shape != shape else found


@lru_cache(maxsize=256)
def activation(text: str) -> ActivationFunction:
    """Return the activation of a text: a name (``relu``, ``leaky_relu(0.2)``, ``elu(alpha=0.5)``) or a formula in x.

    Raises
    ------
    UserError
        If the name is unknown, or the parameter is not a finite number, or the activation has none, or the formula
        cannot be used.

    Examples
    --------
    >>> activation("leaky_relu(0.2)").second_moment(1.0)
    array(0.52)
    >>> activation("max(x, 0.2*x)").second_moment(1.0)
    array(0.52)
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*(?:(\w+)\s*=)?\s*([^()=]*?)\s*\))?\s*", text)
    if match is None or match[1] not in _FAMILIES or "x" in text:
        # What reads written ones is imported for them alone: named ones start sooner so.
        from varprop.simulator.formula.function import formula
        from varprop.simulator.formula.grammar import LONGEST, mentions_x
        from varprop.simulator.formula.terms import shortened

        if mentions_x(text) or len(text) > LONGEST:
            return _written(formula(text))
        if match is None:
            expected = "a name, a name with a number like leaky_relu(0.2), or a formula in x"
            raise UserError("activation", shortened(text), expected)
    name, key, number = match.groups()
    if name not in _FAMILIES:
        raise did_you_mean("activation", name, list(NAMES))
    family = _FAMILIES[name]
    parameter = family.default if number is None else _parameter(name, family, key, number)
    value, derivative = (getattr(scalar, f"{name}_{part}") for part in ("value", "derivative"))
    return ActivationFunction(
        name=name if parameter == family.default else f"{name}({parameter!r})",
        family=name,
        parameter=parameter,
        kinks=family.kinks,
        homogeneous=name in ("linear", "relu", "leaky_relu"),
        germ_zero=(value(0.0, parameter), derivative(-1e-300, parameter), derivative(1e-300, parameter)),
        germ_infinity=(family.left(parameter), family.right(parameter)),
        forms={
            part: partial(_with_parameter, table[name], parameter)
            for part, table in (arrays.TABLE | moments.TABLE).items()
            if name in table
        },
    )


def _with_parameter(form: Callable[..., object], parameter: float, *inputs: Array) -> object:
    return form(*inputs, parameter)


def half_lines(left: float, right: float) -> ActivationFunction:
    """Return phi(z) = left z for z < 0, right z for z > 0.

    Its moments are those of relu: phi(z) = right relu(z) - left relu(-z).
    """
    relu = activation("relu")
    square, cross = left * left + right * right, left * right

    def dual(q1: Array, q2: Array, c: Array) -> Array:
        return square * relu.dual(q1, q2, c) - 2 * cross * relu.dual(q1, q2, -c)

    def derivative_dual(q1: Array, q2: Array, c: Array) -> Array:
        return square * relu.derivative_dual(q1, q2, c) + 2 * cross * relu.derivative_dual(q1, q2, -c)

    return ActivationFunction(
        name=f"where(x>0,{right!r}*x,{left!r}*x)",
        family=FORMULA,
        parameter=0.0,
        kinks=(0.0,) if left != right else (),
        homogeneous=True,
        germ_zero=(0.0, left, right),
        germ_infinity=((left, 0.0), (right, 0.0)),
        forms={
            "value": lambda z: np.where(z > 0, right * z, left * z),
            "derivative": lambda z: np.where(z > 0, right, left),
            "mean": lambda q: (right - left) * relu.mean(q),
            "second_moment": lambda q: square * q / 2,
            "derivative_second_moment": lambda q: square / 2,
            "dual": dual,
            "derivative_dual": derivative_dual,
        },
    )


_SIDES = np.array([[-1.0], [1.0]])
_PROBES = _SIDES * np.geomspace(1e-8, 1e8, 33)
_NEAR_ZERO = _SIDES * np.array([1e-280, 1e-300])
_FAR_OUT = _SIDES * np.array([1e80, 1e100])


def _written(written: Formula) -> ActivationFunction:
    slopes = written.value(_PROBES) / _PROBES + 0.0  # no -0.0
    at_zero = float(written.value(0.0))
    if at_zero == 0.0 and np.all(np.abs(slopes - slopes[:, :1]) <= 1e-15 * np.abs(slopes)):
        return replace(half_lines(*map(float, slopes[:, 0])), name=written.text, formula=written)
    kinks = tuple(sorted({*written.kinks, *written.bends}))

    def square(z: Array) -> Array:
        return written.value(z) ** 2

    def derivative_square(z: Array) -> Array:
        return written.derivative(z) ** 2

    below, above = map(_limit, written.derivative(_NEAR_ZERO))
    left, right = map(_limit, written.value(_FAR_OUT) / _FAR_OUT)
    ends = written.value(_FAR_OUT[:, -1])
    found = ActivationFunction(
        name=written.text,
        family=FORMULA,
        parameter=0.0,
        kinks=kinks,
        homogeneous=False,
        germ_zero=(at_zero, below, above),
        # Far out the intercept is lost beside the line.
        germ_infinity=((left, 0.0 if left else float(ends[0])), (right, 0.0 if right else float(ends[1]))),
        forms={
            "value": written.value,
            "derivative": written.derivative,
            "mean": lambda q: verified_mean(written.value, q, kinks),
            "second_moment": lambda q: verified_mean(square, q, kinks),
            "derivative_second_moment": lambda q: verified_mean(derivative_square, q, kinks),
        },
        formula=written,
    )
    found.require_moments(1.0)
    return found


def _limit(slopes: Array) -> float:
    """Return the limit of slopes at two places, the second further on the way; infinite where they still grow."""
    before, last = slopes
    if abs(last) < 1e-9:
        return 0.0
    return float(last) if abs(last) <= 1.001 * abs(before) else math.copysign(math.inf, last)


def _parameter(name: str, family: _Family, key: str | None, number: str) -> float:
    if not family.parameter:
        raise UserError(f"activation {name}", f"{name}({number})", "no parameter", f"write {name}")
    if key not in (None, family.parameter):
        raise UserError(f"activation {name}: parameter", key, family.parameter)
    try:
        value = float(number)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise UserError(f"activation {name}: {family.parameter}", repr(number), "a finite number")
    return value
