"""Activations and their derivatives on floats, in terms of `math` alone.

Written by `python -m varprop.derivations.generate`; do not edit.
"""

# fmt: off
import math


def linear_value(z: float, a: float) -> float:
    """Return value of the activation."""
    return z


def linear_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    return 1.0


def relu_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z > 0:
        return z
    return 0.0


def relu_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z > 0:
        return 1.0
    return 0.0


def leaky_relu_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z > 0:
        return z
    return a*z


def leaky_relu_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z > 0:
        return 1.0
    return a


def relu6_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z <= 0:
        return 0.0
    if z < 6:
        return z
    return 6.0


def relu6_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z <= 0:
        return 0.0
    if z < 6:
        return 1.0
    return 0.0


def elu_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z > 0:
        return z
    return a*math.expm1(z)


def elu_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z > 0:
        return 1.0
    return a*math.exp(z)


def selu_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z > 0:
        return 1.0507009873554805*z
    return 1.7580993408473768*math.expm1(z)


def selu_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z > 0:
        return 1.0507009873554805
    return 1.7580993408473768*math.exp(z)


def sigmoid_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z >= 0:
        return (1/(1 + math.exp(-abs(z))))
    t0 = math.exp(-abs(z))
    return t0/(t0 + 1)


def sigmoid_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    t0 = math.exp(-abs(z))
    return t0/(t0 + 1)**2


def tanh_value(z: float, a: float) -> float:
    """Return value of the activation."""
    return math.tanh(z)


def tanh_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    t0 = math.exp(-2*abs(z))
    return 4*t0/(t0 + 1)**2


def erf_value(z: float, a: float) -> float:
    """Return value of the activation."""
    return math.erf(z)


def erf_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    return 2*math.exp(-(z*z))/math.sqrt(math.pi)


def gelu_value(z: float, a: float) -> float:
    """Return value of the activation."""
    return z*(0.5*math.erfc(-1/2*math.sqrt(2)*z))


def gelu_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    return (1/2)*math.sqrt(2)*z*math.exp(-1/2*(z*z))/math.sqrt(math.pi) + (0.5*math.erfc(-1/2*math.sqrt(2)*z))


def silu_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z >= 0:
        return z/(1 + math.exp(-abs(z)))
    t0 = math.exp(-abs(z))
    return t0*z/(t0 + 1)


def silu_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z >= 0:
        t0 = math.exp(-abs(z))
        t1 = t0 + 1
        return (t0*z + t1)/(t1*t1)
    t0 = math.exp(-abs(z))
    t1 = t0 + 1
    return t0*(t1 + z)/(t1*t1)


def hard_swish_value(z: float, a: float) -> float:
    """Return value of the activation."""
    if z <= -3:
        return 0.0
    if z <= 3:
        return (1/6)*z*(z + 3)
    return z


def hard_swish_derivative(z: float, a: float) -> float:
    """Return derivative of the activation."""
    if z <= -3:
        return 0.0
    if z <= 3:
        return (1/3)*z + 1/2
    return 1.0
