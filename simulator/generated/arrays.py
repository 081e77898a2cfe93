"""Activations and their derivatives on arrays.

Written by `python -m varprop.derivations.generate`; do not edit.
"""

# fmt: off
from collections.abc import Callable
from typing import Any

# SciPy imports its rooms when they are first asked for: not every formula needs the slow one of special functions.
import numpy as np
import scipy
from numpy.typing import NDArray

Array = NDArray[np.float64]


def linear_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return z


def linear_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return 1.0


def relu_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return np.maximum(0, z)


def relu_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return 1.0*(z > 0)


def leaky_relu_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return a*np.minimum(0, z) + np.maximum(0, z)


def leaky_relu_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return a*(z <= 0) + 1.0*(z > 0)


def relu6_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return np.minimum(6, np.maximum(0, z))


def relu6_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return 1.0*((z > 0) & (z < 6))


def elu_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return a*np.expm1(np.minimum(0, z)) + np.maximum(0, z)


def elu_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return a*np.exp(np.minimum(0, z))*(z <= 0) + 1.0*(z > 0)


def selu_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return 1.7580993408473768*np.expm1(np.minimum(0, z)) + 1.0507009873554805*np.maximum(0, z)


def selu_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return 1.7580993408473768*np.exp(np.minimum(0, z))*(z <= 0) + 1.0507009873554805*(z > 0)


def sigmoid_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    t0 = np.exp(-abs(z))
    t1 = (1/(t0 + 1))
    return np.where(z >= 0, t1, t0*t1)


def sigmoid_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    t0 = np.exp(-abs(z))
    return t0/(t0 + 1)**2


def tanh_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return np.tanh(z)


def tanh_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    t0 = np.exp(-2*abs(z))
    return 4*t0/(t0 + 1)**2


def erf_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return scipy.special.erf(z)


def erf_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return 2*np.exp(-(z*z))/np.sqrt(np.pi)


def gelu_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return z*scipy.special.ndtr(z)


def gelu_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return (1/2)*np.sqrt(2)*z*np.exp(-1/2*(z*z))/np.sqrt(np.pi) + scipy.special.ndtr(z)


def silu_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    t0 = np.exp(-abs(z))
    t1 = z/(t0 + 1)
    return np.where(z >= 0, t1, t0*t1)


def silu_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    t0 = np.exp(-abs(z))
    t1 = t0 + 1
    t2 = (1/(t1*t1))
    return np.where(z >= 0, t2*(t0*z + t1), t0*t2*(t1 + z))


def hard_swish_value(z: Array, a: float) -> Any:
    """Return value of the activation."""
    return np.where(z <= -3, 0.0, np.where(z <= 3, (1/6)*z*(z + 3), z))


def hard_swish_derivative(z: Array, a: float) -> Any:
    """Return derivative of the activation."""
    return ((1/3)*np.minimum(3, np.maximum(-3, z)) + 1/2)*((z > -3) & (z <= 3)) + 1.0*(z > 3)


TABLE: dict[str, dict[str, Callable[..., Any]]] = {
    "value": {
        "linear": linear_value,
        "relu": relu_value,
        "leaky_relu": leaky_relu_value,
        "relu6": relu6_value,
        "elu": elu_value,
        "selu": selu_value,
        "sigmoid": sigmoid_value,
        "tanh": tanh_value,
        "erf": erf_value,
        "gelu": gelu_value,
        "silu": silu_value,
        "hard_swish": hard_swish_value,
    },
    "derivative": {
        "linear": linear_derivative,
        "relu": relu_derivative,
        "leaky_relu": leaky_relu_derivative,
        "relu6": relu6_derivative,
        "elu": elu_derivative,
        "selu": selu_derivative,
        "sigmoid": sigmoid_derivative,
        "tanh": tanh_derivative,
        "erf": erf_derivative,
        "gelu": gelu_derivative,
        "silu": silu_derivative,
        "hard_swish": hard_swish_derivative,
    },
}
