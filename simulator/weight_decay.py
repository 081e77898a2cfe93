r"""Stochastic gradient descent on weights whose scale does not matter, with weight decay and without.

Batch normalisation after a layer makes the loss invariant to the scale of the layer's weights w. Then the gradient is
orthogonal to w and 1 / |w| of that at unit norm [1]_, [2]_, and what happens to n = |w|^2 can be written down. With
torch's momentum, v' = mu v + g + lambda w and w' = w - eta v', write C = w.v, V = |v|^2 and G = |g|^2 n, the squared
gradient at unit norm. If successive gradients are uncorrelated, their means follow

.. math:: V' = \mu^2 V + \lambda^2 n + 2 \mu \lambda C + G / n, \quad D = \mu C + \lambda n, \quad
          n' = n - 2 \eta D + \eta^2 V', \quad C' = D - \eta V' ,

whose fixed point has n^2 = eta G / (lambda (1 - mu) (2 - eta lambda / (1 + mu))) [3]_, and turns w by an angle
theta a step with cos theta = 1 - eta lambda / (1 + mu): sqrt(2 eta lambda / (1 + mu)) for small steps, whatever the
gradient. Without decay n^2 grows linearly in time, as d(n^2)/dt = 2 (eta / (1 - mu))^2 G.

References
----------
.. [1] T. van Laarhoven, "L2 regularization versus batch and weight normalization", arXiv:1706.05350, 2017, section 2.
.. [2] S. Arora, Z. Li, K. Lyu, "Theoretical analysis of auto rate-tuning by batch normalization", ICLR 2019, section 2.
.. [3] R. Wan, Z. Zhu, X. Zhang, J. Sun, "Spherical motion dynamics: learning dynamics of normalized neural network
   using SGD and weight decay", NeurIPS 2021, section 3.
.. [4] Z. Li, S. Arora, "An exponential learning rate schedule for deep learning", ICLR 2020, section 2.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from varprop.simulator.errors import UserError

Array = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sgd:
    """Gradient descent as torch and Keras run it.

    Attributes
    ----------
    lr
        Learning rate eta, above 0.
    weight_decay
        Lambda: lambda w is added to the gradient. Keras's l2(x) adds x |w|^2 to the loss, which is lambda = 2 x
        (`keras_l2`).
    momentum
        Mu, from 0 to below 1; torch's buffer v, without dampening or Nesterov's variant.
    """

    lr: float
    weight_decay: float = 0.0
    momentum: float = 0.0

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise UserError("learning rate", self.lr, "a number above 0")
        if not 0 <= self.momentum < 1:
            raise UserError("momentum", self.momentum, "a number from 0 to below 1")
        # Where both roots of the pure decay lie inside the unit circle.
        if not 0 <= self.lr * self.weight_decay < 2 * (1 + self.momentum):
            raise UserError("weight decay", self.weight_decay, f"from 0 to below {2 * (1 + self.momentum) / self.lr:g}")


@dataclass(frozen=True, slots=True)
class Motion:
    """Squared norm n after 0, 1, ..., steps updates, and the angle in radians that each update turns w by."""

    squared_norm: Array
    angle: Array


def keras_l2(strength: float) -> float:
    """Return the weight decay that Keras's ``l2(strength)`` amounts to: the gradient of strength |w|^2 is 2 strength w.

    Examples
    --------
    >>> keras_l2(0.001)
    0.002
    """
    return 2 * strength


def pure_decay(sgd: Sgd, steps: int) -> float:
    """Return w_t / w_0 of a weight that no gradient reaches, (1 - eta lambda)^t without momentum.

    Examples
    --------
    Nine epochs of 1563 steps at rate 0.1 under l2(0.001):

    >>> round(pure_decay(Sgd(0.1, keras_l2(0.001)), 9 * 1563), 7)
    0.0599838
    """
    shrink = sgd.lr * sgd.weight_decay
    step = np.array([[1 - shrink, -sgd.lr * sgd.momentum], [sgd.weight_decay, sgd.momentum]])
    return float(np.linalg.matrix_power(step, steps)[0, 0])


def motion(sgd: Sgd, squared_norm: float, gradient: ArrayLike, steps: int) -> Motion:
    """Run the recurrence of the means, from a buffer of zero.

    Parameters
    ----------
    sgd
        Rate, decay and momentum.
    squared_norm
        n at the start, above 0.
    gradient
        G: the squared norm of the minibatch gradient times n, one for all steps or one a step.
    steps
        Number of updates.

    Notes
    -----
    Without momentum, and where G has no spread, it is exact; else up to the fluctuations of n.
    """
    gradients = np.broadcast_to(np.asarray(gradient, dtype=np.float64), steps)
    n, overlap, buffer = squared_norm, 0.0, 0.0
    norms, angles = np.empty(steps + 1), np.empty(steps)
    norms[0] = n
    for step in range(steps):
        buffer = (
            sgd.momentum**2 * buffer
            + sgd.weight_decay**2 * n
            + 2 * sgd.momentum * sgd.weight_decay * overlap
            + float(gradients[step]) / n
        )
        along = sgd.momentum * overlap + sgd.weight_decay * n
        after = n - 2 * sgd.lr * along + sgd.lr**2 * buffer
        overlap = along - sgd.lr * buffer
        # The sine from the part of the update across w: the cosine of a small angle would lose half the digits.
        across = math.sqrt(max(buffer - along**2 / n, 0.0))
        angles[step] = math.atan2(sgd.lr * across, math.sqrt(n) - sgd.lr * along / math.sqrt(n))
        norms[step + 1] = n = after
    return Motion(norms, angles)


def squared_norm_after(sgd: Sgd, squared_norm: float, gradient: float, steps: ArrayLike) -> Array:
    """Return n after a number of steps in closed form, for small eta lambda / (1 - mu) and small angles.

    n^2 relaxes exponentially to eta G / (2 lambda (1 - mu)); without decay it grows by 2 (eta / (1 - mu))^2 G a step.
    Arguments as in `motion`.
    """
    time = np.asarray(steps, dtype=np.float64)
    gained = 2 * (sgd.lr / (1 - sgd.momentum)) ** 2 * gradient
    rate = 4 * sgd.lr * sgd.weight_decay / (1 - sgd.momentum)
    if rate == 0:
        return np.asarray(np.sqrt(squared_norm**2 + gained * time))
    return np.asarray(np.sqrt(squared_norm**2 * np.exp(-rate * time) - gained / rate * np.expm1(-rate * time)))


def relaxation_steps(sgd: Sgd) -> float:
    """Return the steps in which the distance of n^2 from its equilibrium falls by e: (1 - mu) / (4 eta lambda)."""
    return (1 - sgd.momentum) / (4 * sgd.lr * sgd.weight_decay) if sgd.weight_decay else math.inf


def equilibrium_squared_norm(sgd: Sgd, gradient: float) -> float:
    """Return the n that decay and gradients of squared norm G / n keep; infinite without decay."""
    if not sgd.weight_decay:
        return math.inf
    slack = 2 - sgd.lr * sgd.weight_decay / (1 + sgd.momentum)
    return math.sqrt(sgd.lr * gradient / (sgd.weight_decay * (1 - sgd.momentum) * slack))


def angular_update(sgd: Sgd) -> float:
    """Return the angle, in radians, by which a step turns w at equilibrium: arccos(1 - eta lambda / (1 + mu)).

    Examples
    --------
    >>> round(angular_update(Sgd(0.1, 0.002)), 6), round((2 * 0.1 * 0.002) ** 0.5, 6)
    (0.02, 0.02)
    """
    return 2 * math.asin(math.sqrt(sgd.lr * sgd.weight_decay / (1 + sgd.momentum) / 2))


def effective_learning_rate(sgd: Sgd, squared_norm: float) -> float:
    """Return eta / ((1 - mu) n): the rate at which the direction w / |w| descends the loss on the unit sphere [1]_."""
    return sgd.lr / ((1 - sgd.momentum) * squared_norm)


def exponential_schedule(sgd: Sgd, steps: int) -> tuple[Array, float]:
    """Return rates that, without decay, move the direction of w as the constant rate with decay does [4]_.

    With alpha the larger root of x^2 - (1 + mu - eta lambda) x + mu, the rates are eta alpha^(-2 t - 1) and the weights
    alpha^(-t) times those with decay. Momentum stays the same, but its buffer starts at -(1 - alpha) / (eta alpha) w.

    Returns
    -------
    rates, buffer
        An array of `steps` learning rates, and the multiple of w that the momentum buffer holds at the start.

    Raises
    ------
    UserError
        The roots are complex: eta lambda above (1 - sqrt(mu))^2.
    """
    middle = 1 + sgd.momentum - sgd.lr * sgd.weight_decay
    square = middle**2 - 4 * sgd.momentum
    if square < 0 or middle <= 0:
        largest = (1 - math.sqrt(sgd.momentum)) ** 2 / sgd.lr
        raise UserError("weight decay", sgd.weight_decay, f"at most {largest:g} at this rate and momentum")
    alpha = (middle + math.sqrt(square)) / 2
    rates = sgd.lr * np.exp(-(2 * np.arange(steps) + 1) * math.log(alpha))
    return rates, -(1 - alpha) / (alpha * sgd.lr)
