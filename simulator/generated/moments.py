"""Closed forms of the activations' Gaussian moments.

Written by `python -m varprop.derivations.generate`; do not edit.
"""

# fmt: off
from collections.abc import Callable
from typing import Any

# SciPy imports its rooms when they are first asked for: not every formula needs the slow one of special functions.
import numpy as np
import scipy
from numpy.typing import NDArray

from varprop.simulator.special import erfcx_tail

Array = NDArray[np.float64]


def linear_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return 0.0


def linear_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    return q


def linear_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return 1.0


def linear_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two outputs, variances q1 and q2, correlation c."""
    return c*np.sqrt(q1)*np.sqrt(q2)


def linear_derivative_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two derivatives."""
    return 1.0


def relu_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return (1/2)*np.sqrt(2)*np.sqrt(q)/np.sqrt(np.pi)


def relu_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    return (1/2)*q


def relu_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return 1/2


def relu_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two outputs, variances q1 and q2, correlation c."""
    return (1/2)*np.sqrt(q1)*np.sqrt(q2)*(c*(np.pi - np.arccos(c)) + np.sqrt(1 - (c*c)))/np.pi


def relu_derivative_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two derivatives."""
    return (1/2)*(np.pi - np.arccos(c))/np.pi


def leaky_relu_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return (1/2)*np.sqrt(2)*np.sqrt(q)*(1 - a)/np.sqrt(np.pi)


def leaky_relu_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    return (1/2)*q*((a*a) + 1)


def leaky_relu_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return (1/2)*(a*a) + 1/2


def leaky_relu_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two outputs, variances q1 and q2, correlation c."""
    return np.sqrt(q1)*np.sqrt(q2)*(a*c + (1/2)*(1 - a)**2*(c*(np.pi - np.arccos(c)) + np.sqrt(1 - (c*c)))/np.pi)


def leaky_relu_derivative_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two derivatives."""
    return a + (1/2)*(1 - a)**2*(np.pi - np.arccos(c))/np.pi


def relu6_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    t0 = np.sqrt(2)
    t1 = np.sqrt(q)
    return -1/2*t0*t1*np.expm1(-18/q)/np.sqrt(np.pi) + 3*scipy.special.erfc(3*t0/t1)


def relu6_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    return (1/2)*q*scipy.special.gammainc(3/2, 18/q) + 18*scipy.special.erfc(3*np.sqrt(2)/np.sqrt(q))


def relu6_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return (1/2)*scipy.special.erf(3*np.sqrt(2)/np.sqrt(q))


def elu_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    t0 = (1/2)*np.sqrt(2)*np.sqrt(q)
    return (1/2)*a*erfcx_tail(t0) + t0*(1 - a)/np.sqrt(np.pi)


def elu_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    t0 = np.sqrt(2)*np.sqrt(q)
    return (a*a)*(-erfcx_tail((1/2)*t0) + (1/2)*erfcx_tail(t0)) + (1/2)*q


def elu_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return (1/2)*(a*a)*scipy.special.erfcx(np.sqrt(2)*np.sqrt(q)) + 1/2


def selu_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    t0 = np.sqrt(2)*np.sqrt(q)
    return -0.3536991767459482*t0/np.sqrt(np.pi) + 0.8790496704236884*erfcx_tail((1/2)*t0)


def selu_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    t0 = np.sqrt(2)*np.sqrt(q)
    return 0.5519862824148908*q - 3.090913292287981*erfcx_tail((1/2)*t0) + 1.5454566461439905*erfcx_tail(t0)


def selu_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return 1.5454566461439905*scipy.special.erfcx(np.sqrt(2)*np.sqrt(q)) + 0.5519862824148908


def sigmoid_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return 1/2


def tanh_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return 0.0


def erf_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return 0.0


def erf_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    return 2*np.arctan(2*q/np.sqrt(4*q + 1))/np.pi


def erf_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    return 4/(np.pi*np.sqrt(4*q + 1))


def erf_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two outputs, variances q1 and q2, correlation c."""
    return 2*np.arctan(2*c*np.sqrt(q1)*np.sqrt(q2)/np.sqrt(4*q1*q2*(1 - (c*c)) + 2*q1 + 2*q2 + 1))/np.pi


def erf_derivative_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two derivatives."""
    return 4/(np.pi*np.sqrt(4*q1*q2*(1 - (c*c)) + 2*q1 + 2*q2 + 1))


def gelu_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    return (1/2)*np.sqrt(2)*q/(np.sqrt(np.pi)*np.sqrt(q + 1))


def gelu_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    t0 = (1/(np.pi))
    t1 = q/np.sqrt(2*q + 1)
    return q*(t0*t1/(q + 1) + (1/2)*t0*np.arctan(t1) + 1/4)


def gelu_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    t0 = 2*q + 1
    t1 = (1/(np.pi))
    t2 = (1/2)*t1
    t3 = q/np.sqrt(t0)
    return q*t2/t0**(3/2) + t1*t3/(q + 1) + t2*np.arctan(t3) + 1/4


def gelu_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two outputs, variances q1 and q2, correlation c."""
    t0 = (c*c)
    t1 = q1*(1 - t0)
    t2 = q2 + 1
    t3 = 1/np.sqrt(q1 + q2*t1 + t2)
    t4 = c*np.sqrt(q1)*np.sqrt(q2)
    t5 = (1/2)/np.pi
    return q1*q2*t3*t5*(t0/t2 + (t1 + 1)/(q1 + 1)) + t4*(t5*np.arctan(t3*t4) + 1/4)


def gelu_derivative_dual(q1: Array, q2: Array, c: Array, a: float) -> Any:
    """Return mean product of two derivatives."""
    t0 = q1 + 1
    t1 = q1*q2*(1 - (c*c)) + q2 + t0
    t2 = c*np.sqrt(q1)*np.sqrt(q2)/np.sqrt(t1)
    t3 = (1/2)/np.pi
    return t2*t3*((1/(q2 + 1)) + (1/(t1)) + (1/(t0))) + t3*np.arctan(t2) + 1/4


def hard_swish_mean(q: Array, a: float) -> Any:
    """Return mean of the output."""
    t0 = (9/2)/q
    return (1/2)*np.sqrt(2)*np.sqrt(q)*np.exp(-t0)/np.sqrt(np.pi) + (1/6)*q*scipy.special.gammainc(3/2, t0)


def hard_swish_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the output."""
    t0 = (9/2)/q
    t1 = scipy.special.gammainc(3/2, t0)
    return (1/12)*(q*q)*scipy.special.gammainc(5/2, t0) + (1/4)*q*t1 + (1/2)*q*(1 - t1)


def hard_swish_derivative_second_moment(q: Array, a: float) -> Any:
    """Return second moment of the derivative."""
    t0 = (3/2)*np.sqrt(2)/np.sqrt(q)
    return (1/9)*q*scipy.special.gammainc(3/2, (9/2)/q) + (1/4)*scipy.special.erf(t0) + (1/2)*scipy.special.erfc(t0)


TABLE: dict[str, dict[str, Callable[..., Any]]] = {
    "mean": {
        "linear": linear_mean,
        "relu": relu_mean,
        "leaky_relu": leaky_relu_mean,
        "relu6": relu6_mean,
        "elu": elu_mean,
        "selu": selu_mean,
        "sigmoid": sigmoid_mean,
        "tanh": tanh_mean,
        "erf": erf_mean,
        "gelu": gelu_mean,
        "hard_swish": hard_swish_mean,
    },
    "second_moment": {
        "linear": linear_second_moment,
        "relu": relu_second_moment,
        "leaky_relu": leaky_relu_second_moment,
        "relu6": relu6_second_moment,
        "elu": elu_second_moment,
        "selu": selu_second_moment,
        "erf": erf_second_moment,
        "gelu": gelu_second_moment,
        "hard_swish": hard_swish_second_moment,
    },
    "derivative_second_moment": {
        "linear": linear_derivative_second_moment,
        "relu": relu_derivative_second_moment,
        "leaky_relu": leaky_relu_derivative_second_moment,
        "relu6": relu6_derivative_second_moment,
        "elu": elu_derivative_second_moment,
        "selu": selu_derivative_second_moment,
        "erf": erf_derivative_second_moment,
        "gelu": gelu_derivative_second_moment,
        "hard_swish": hard_swish_derivative_second_moment,
    },
    "dual": {
        "linear": linear_dual,
        "relu": relu_dual,
        "leaky_relu": leaky_relu_dual,
        "erf": erf_dual,
        "gelu": gelu_dual,
    },
    "derivative_dual": {
        "linear": linear_derivative_dual,
        "relu": relu_derivative_dual,
        "leaky_relu": leaky_relu_derivative_dual,
        "erf": erf_derivative_dual,
        "gelu": gelu_derivative_dual,
    },
}


CLOSED_FORMS: dict[str, dict[str, str]] = {
    "linear": {
        "mean": "0",
        "second_moment": "q",
        "derivative_second_moment": "1",
    },
    "relu": {
        "mean": "sqrt(2)*sqrt(q)/(2*sqrt(pi))",
        "second_moment": "q/2",
        "derivative_second_moment": "1/2",
    },
    "leaky_relu": {
        "mean": "sqrt(2)*sqrt(q)*(1 - a)/(2*sqrt(pi))",
        "second_moment": "q*(a**2 + 1)/2",
        "derivative_second_moment": "a**2/2 + 1/2",
    },
    "relu6": {
        "mean": "-sqrt(2)*sqrt(q)*(-1 + exp(-18/q))/(2*sqrt(pi)) + 3*erfc(3*sqrt(2)/sqrt(q))",
        "second_moment": (
            "q*(erf(3*sqrt(2)/sqrt(q)) - 6*sqrt(2)*exp(-18/q)/(sqrt(pi)*sqrt(q)))/2 + 18*erfc"
            "(3*sqrt(2)/sqrt(q))"
        ),
        "derivative_second_moment": "erf(3*sqrt(2)/sqrt(q))/2",
    },
    "elu": {
        "mean": (
            "a*(sqrt(2)*sqrt(q)/sqrt(pi) + exp(q/2)*erfc(sqrt(2)*sqrt(q)/2) - 1)/2 + sqrt(2)*"
            "sqrt(q)*(1 - a)/(2*sqrt(pi))"
        ),
        "second_moment": (
            "a**2*(-exp(q/2)*erfc(sqrt(2)*sqrt(q)/2) + exp(2*q)*erfc(sqrt(2)*sqrt(q))/2 + 1/2"
            ") + q/2"
        ),
        "derivative_second_moment": "a**2*exp(2*q)*erfc(sqrt(2)*sqrt(q))/2 + 1/2",
    },
    "selu": {
        "mean": (
            "0.52535049367774025*sqrt(2)*sqrt(q)/sqrt(pi) + 0.87904967042368843*exp(q/2)*erfc"
            "(sqrt(2)*sqrt(q)/2) - 0.87904967042368843"
        ),
        "second_moment": (
            "0.55198628241489079*q - 3.090913292287981*exp(q/2)*erfc(sqrt(2)*sqrt(q)/2) + 1.5"
            "454566461439905*exp(2*q)*erfc(sqrt(2)*sqrt(q)) + 1.5454566461439905"
        ),
        "derivative_second_moment": "1.5454566461439905*exp(2*q)*erfc(sqrt(2)*sqrt(q)) + 0.55198628241489079",
    },
    "sigmoid": {
        "mean": "1/2",
    },
    "tanh": {
        "mean": "0",
    },
    "erf": {
        "mean": "0",
        "second_moment": "2*atan(2*q/sqrt(4*q + 1))/pi",
        "derivative_second_moment": "4/(pi*sqrt(4*q + 1))",
    },
    "gelu": {
        "mean": "sqrt(2)*q/(2*sqrt(pi)*sqrt(q + 1))",
        "second_moment": "q*(q/(pi*(q + 1)*sqrt(2*q + 1)) + atan(q/sqrt(2*q + 1))/(2*pi) + 1/4)",
        "derivative_second_moment": (
            "q/(2*pi*(2*q + 1)**(3/2)) + q/(pi*(q + 1)*sqrt(2*q + 1)) + atan(q/sqrt(2*q + 1))"
            "/(2*pi) + 1/4"
        ),
    },
    "silu": {
    },
    "hard_swish": {
        "mean": (
            "sqrt(2)*sqrt(q)*exp(-9/(2*q))/(2*sqrt(pi)) + q*(erf(3*sqrt(2)/(2*sqrt(q))) - 3*s"
            "qrt(2)*exp(-9/(2*q))/(sqrt(pi)*sqrt(q)))/6"
        ),
        "second_moment": (
            "q**2*(-(3*sqrt(2)/(sqrt(pi)*sqrt(q)) + 9*sqrt(2)/(sqrt(pi)*q**(3/2)))*exp(-9/(2*"
            "q)) + erf(3*sqrt(2)/(2*sqrt(q))))/12 + q*(erf(3*sqrt(2)/(2*sqrt(q))) - 3*sqrt(2)"
            "*exp(-9/(2*q))/(sqrt(pi)*sqrt(q)))/4 + q*(-erf(3*sqrt(2)/(2*sqrt(q))) + 1 + 3*sq"
            "rt(2)*exp(-9/(2*q))/(sqrt(pi)*sqrt(q)))/2"
        ),
        "derivative_second_moment": (
            "q*(erf(3*sqrt(2)/(2*sqrt(q))) - 3*sqrt(2)*exp(-9/(2*q))/(sqrt(pi)*sqrt(q)))/9 + "
            "erf(3*sqrt(2)/(2*sqrt(q)))/4 + erfc(3*sqrt(2)/(2*sqrt(q)))/2"
        ),
    },
}
