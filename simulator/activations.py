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
from varprop.simulator.quadrature import gaussian_dual, gaussian_mean

Array = NDArray[np.float64]
Line = tuple[float, float]


@dataclass(frozen=True)
class _Family:
    description: str
    kinks: tuple[float, ...] = ()
    left: Callable[[float], Line] = lambda a: (0.0, 0.0)
    right: Callable[[float], Line] = lambda a: (1.0, 0.0)
    parameter: str = ""
    default: float = 0.0


_FAMILIES = {
    "linear": _Family("identity", left=lambda a: (1.0, 0.0)),
    "relu": _Family("max(z, 0)", (0.0,)),
    "leaky_relu": _Family("z for z > 0, slope * z below; slope 0.01", (0.0,), lambda a: (a, 0.0), parameter="slope", default=0.01),
    "relu6": _Family("min(max(z, 0), 6)", (0.0, 6.0), right=lambda a: (0.0, 6.0)),
    "elu": _Family("z for z > 0, alpha (exp(z) - 1) below; alpha 1", (0.0,), lambda a: (0.0, -a), parameter="alpha", default=1.0),
    "selu": _Family("lambda ELU(z; alpha) with mean 0, variance 1 as fixed point", (0.0,), lambda a: (0.0, scalar.selu_value(-1e3, a))),
    "sigmoid": _Family("1 / (1 + exp(-z))", right=lambda a: (0.0, 1.0)),
    "tanh": _Family("hyperbolic tangent", left=lambda a: (0.0, -1.0), right=lambda a: (0.0, 1.0)),
    "erf": _Family("error function", left=lambda a: (0.0, -1.0), right=lambda a: (0.0, 1.0)),
    "gelu": _Family("z Phi(z), exact (not the tanh approximation)"),
    "silu": _Family("z sigmoid(z), also called swish"),
    "hard_swish": _Family("z relu6(z + 3) / 6", (-3.0, 3.0)),
}
NAMES: dict[str, str] = {name: family.description for name, family in _FAMILIES.items()}


@dataclass(frozen=True)
class ActivationFunction:
    name: str
    family: str
    parameter: float
    kinks: tuple[float, ...]
    homogeneous: bool
    germ_zero: tuple[float, float, float]
    germ_infinity: tuple[Line, Line]

    def value(self, z: ArrayLike) -> Array:
        f = getattr(scalar, self.family + "_value")
        return np.vectorize(lambda x: f(float(x), self.parameter), otypes=[float])(z)

    def derivative(self, z: ArrayLike) -> Array:
        f = getattr(scalar, self.family + "_derivative")
        return np.vectorize(lambda x: f(float(x), self.parameter), otypes=[float])(z)

    def mean(self, q: ArrayLike) -> Array:
        return gaussian_mean(self.value, q, self.kinks)

    def second_moment(self, q: ArrayLike) -> Array:
        return gaussian_mean(lambda z: self.value(z) ** 2, q, self.kinks)

    def derivative_second_moment(self, q: ArrayLike) -> Array:
        return gaussian_mean(lambda z: self.derivative(z) ** 2, q, self.kinks)

    def dual(self, q1: ArrayLike, q2: ArrayLike, c: ArrayLike) -> Array:
        return gaussian_dual(self.value, q1, q2, np.clip(c, -1, 1), self.kinks)

    def derivative_dual(self, q1: ArrayLike, q2: ArrayLike, c: ArrayLike) -> Array:
        return gaussian_dual(self.derivative, q1, q2, np.clip(c, -1, 1), self.kinks)


@lru_cache(maxsize=256)
def activation(text: str) -> ActivationFunction:
    match = re.fullmatch(r"\s*(\w+)\s*(?:\(\s*(?:(\w+)\s*=)?\s*([^()]*?)\s*\))?\s*", text)
    if match is None:
        raise UserError("activation", repr(text), "a name, with a number in parentheses where it takes one", "for example leaky_relu(0.2)")
    name, key, number = match[1], match[2], match[3]
    if name not in _FAMILIES:
        raise did_you_mean("activation", name, list(NAMES))
    family = _FAMILIES[name]
    parameter = family.default
    if number:
        if not family.parameter or key not in (None, family.parameter):
            raise UserError(f"activation {name}", repr(text), f"{name}({family.parameter}=NUMBER)" if family.parameter else "no parameter")
        try:
            parameter = float(number)
        except ValueError:
            parameter = math.nan
        if not math.isfinite(parameter):
            raise UserError(f"activation {name}: {family.parameter}", number, "a finite number")
    value, derivative = getattr(scalar, name + "_value"), getattr(scalar, name + "_derivative")
    left, right = (derivative(side, parameter) for side in (-1e-300, 1e-300))
    return ActivationFunction(
        name if parameter == family.default else f"{name}({parameter!r})",
        name,
        parameter,
        family.kinks,
        name in ("linear", "relu", "leaky_relu"),
        (value(0.0, parameter), left, right),
        (family.left(parameter), family.right(parameter)),
    )
