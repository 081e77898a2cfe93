"""Layer recurrences on floats or arrays.

Written by `python -m varprop.derivations.generate`; do not edit.
"""

# fmt: off
from typing import Any, TypeAlias

import numpy as np
import scipy

Quantity: TypeAlias = Any
"""A float or an array, combined by NumPy's rules."""


def linear_second_moment(n: Quantity, sigma2: Quantity, q: Quantity) -> Quantity:
    """Return second moment of the output."""
    return n*q*sigma2


def linear_gradient(n_out: Quantity, sigma2: Quantity, g: Quantity) -> Quantity:
    """Return second moment of the input's gradient."""
    return g*n_out*sigma2


def bias_second_moment(q: Quantity, sigma_b2: Quantity) -> Quantity:
    """Return second moment after adding the bias."""
    return q + sigma_b2


def batch_norm_second_moment(v: Quantity, eps: Quantity) -> Quantity:
    """Return second moment of the output."""
    return v/(eps + v)


def batch_norm_gradient(g: Quantity, mean_g2: Quantity, mean_gy2: Quantity, v: Quantity, eps: Quantity) -> Quantity:
    """Return second moment of the input's gradient."""
    t0 = (1/(eps + v))
    return t0*(g - mean_g2 - mean_gy2*(-t0*v + 2))


def add_second_moment(q1: Quantity, q2: Quantity, k: Quantity) -> Quantity:
    """Return second moment of the sum."""
    return 2*k + q1 + q2


def average_pool_second_moment(n: Quantity, q: Quantity, k: Quantity) -> Quantity:
    """Return second moment of the window's mean."""
    return (k*(n - 1) + q)/n


def average_pool_gradient(n: Quantity, g: Quantity) -> Quantity:
    """Return second moment of the input's gradient."""
    return g/(n*n)


def truncated_normal_signal(q: Quantity, limit: Quantity, L: Quantity) -> Quantity:
    """Return second moment behind L uncorrected layers."""
    t0 = np.sqrt(2)*limit
    return q*(-t0*np.exp(-1/2*(limit*limit))/(np.sqrt(np.pi)*scipy.special.erf((1/2)*t0)) + 1)**L


def truncated_normal_variance(limit: Quantity) -> Quantity:
    """Return variance after truncation at +-limit deviations."""
    t0 = np.sqrt(2)*limit
    return -t0*np.exp(-1/2*(limit*limit))/(np.sqrt(np.pi)*scipy.special.erf((1/2)*t0)) + 1


def truncated_normal_deviation(limit: Quantity) -> Quantity:
    """Return deviation after truncation (0.8796... at limit 2)."""
    t0 = np.sqrt(2)*limit
    return np.sqrt(-t0*np.exp(-1/2*(limit*limit))/(np.sqrt(np.pi)*scipy.special.erf((1/2)*t0)) + 1)
