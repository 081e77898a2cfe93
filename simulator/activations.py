"""Elementwise activations: what they are, and their moments under Gaussian input."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.generated import activations as scalar
from varprop.simulator.generated import arrays, moments
from varprop.simulator.quadrature import gaussian_dual, gaussian_mean

Array = NDArray[np.float64]
Line = tuple[float, float]
"""Slope and intercept."""

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
    split at the kinks; relative error below 1e-12 (of the root mean square, for the mean) for q from 1e-8 to 1e8.

    Attributes
    ----------
    name
        Canonical text: `activation(name)` gives the same function back.
    family, parameter
        Formula and its parameter (slope, alpha), 0 where it has none.
    kinks
        Where phi or a derivative of it jumps.
    homogeneous
        Whether phi(s z) = s phi(z) for every s > 0.
    germ_zero
        phi(0), and its slopes just below and just above 0.
    germ_infinity
        (slope, intercept) of the lines that phi approaches as z goes to -inf and to +inf.
    """

    name: str
    family: str
    parameter: float
    kinks: tuple[float, ...]
    homogeneous: bool
    germ_zero: tuple[float, float, float]
    germ_infinity: tuple[Line, Line]

    @property
    def closed_dual(self) -> bool:
        """Whether `dual` and `derivative_dual` are closed forms."""
        return self.family in moments.TABLE["dual"]

    def value(self, z: ArrayLike) -> Array:
        """Return phi(z), elementwise."""
        return self._run(arrays.TABLE["value"][self.family], z)

    def derivative(self, z: ArrayLike) -> Array:
        """Return phi'(z), elementwise; at a kink the value from the left."""
        return self._run(arrays.TABLE["derivative"][self.family], z)

    def mean(self, q: ArrayLike) -> Array:
        """Return E[phi(z)]."""
        closed = moments.TABLE["mean"].get(self.family)
        return self._run(closed, q) if closed else gaussian_mean(self.value, q, self.kinks)

    def second_moment(self, q: ArrayLike) -> Array:
        """Return E[phi(z)^2]."""
        closed = moments.TABLE["second_moment"].get(self.family)
        return self._run(closed, q) if closed else gaussian_mean(lambda z: self.value(z) ** 2, q, self.kinks)

    def derivative_second_moment(self, q: ArrayLike) -> Array:
        """Return E[phi'(z)^2]."""
        closed = moments.TABLE["derivative_second_moment"].get(self.family)
        return self._run(closed, q) if closed else gaussian_mean(lambda z: self.derivative(z) ** 2, q, self.kinks)

    def dual(self, q1: ArrayLike, q2: ArrayLike, c: ArrayLike) -> Array:
        """Return E[phi(z1) phi(z2)] for variances `q1`, `q2` and correlation `c` (clipped to [-1, 1])."""
        c = np.clip(c, -1, 1)
        closed = moments.TABLE["dual"].get(self.family)
        return self._run(closed, q1, q2, c) if closed else gaussian_dual(self.value, q1, q2, c, self.kinks)

    def derivative_dual(self, q1: ArrayLike, q2: ArrayLike, c: ArrayLike) -> Array:
        """Return E[phi'(z1) phi'(z2)] for variances `q1`, `q2` and correlation `c` (clipped to [-1, 1])."""
        c = np.clip(c, -1, 1)
        closed = moments.TABLE["derivative_dual"].get(self.family)
        return self._run(closed, q1, q2, c) if closed else gaussian_dual(self.derivative, q1, q2, c, self.kinks)

    def _run(self, formula: Callable[..., object], *inputs: ArrayLike) -> Array:
        given = np.broadcast_arrays(*(np.asarray(value, dtype=np.float64) for value in inputs))
        # Branches that np.where discards overflow, and at q = 0 the limit of a/q is the right one.
        with np.errstate(over="ignore", invalid="ignore", divide="ignore", under="ignore"):
            found = np.asarray(formula(*given, self.parameter), dtype=np.float64)
        return np.broadcast_to(found, given[0].shape).copy() if found.shape != given[0].shape else found


@lru_cache(maxsize=256)
def activation(text: str) -> ActivationFunction:
    """Return the activation that a text names: ``relu``, ``leaky_relu(0.2)``, ``elu(alpha=0.5)``.

    Raises
    ------
    UserError
        If the name is unknown, or the parameter is not a finite number, or the activation has none.

    Examples
    --------
    >>> activation("leaky_relu(0.2)").second_moment(1.0)
    array(0.52)
    """
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*(?:(\w+)\s*=)?\s*([^()=]*?)\s*\))?\s*", text)
    if match is None:
        raise UserError("activation", repr(text), "a name, or a name with a number, like leaky_relu(0.2)")
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
    )


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
