"""Channels that each have a level of their own: those of a depthwise layer, nine weights each at any width.

Given its input such a channel is Gaussian, of the level that its own taps see. What an activation makes of all of them
is the mean over these levels: of E phi^2, E phi'^2 and the like, and of products with phi^2 at one channel.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.theory.level_law import STILL, Law, Passage, gathered, passed

Array = NDArray[np.float64]

_LEAST = 1e-12  # relative variance that stands for none


@dataclass(frozen=True)
class Mixture:
    """Law of the levels of single channels.

    Attributes
    ----------
    law
        Of those levels that are not zero.
    silent
        Share of those that are, and their channels with them.
    """

    law: Law
    silent: float

    @staticmethod
    def of(levels: Array) -> Mixture:
        """Return that of as many equally likely levels, of mean one."""
        heard = levels[levels > 0.0]
        return Mixture(gathered(heard) if len(heard) else STILL, 1.0 - len(heard) / levels.size)


def passed_by_mixture(function: ActivationFunction, second_moment: float, levels: Array, own: Mixture) -> Passage:
    """Return what an activation makes of points whose channels have levels of their own, too."""
    heard, silent = 1.0 - own.silent, own.silent
    masses, inner = heard * own.law.masses, own.law.levels / (heard or 1.0)
    each = passed(function, second_moment, np.outer(levels, inner).ravel(), 0.0, np.inf)
    rows = {name.name: getattr(each, name.name).reshape(len(levels), -1) for name in fields(Passage)}
    at_zero, slope_at_zero = float(function.value(0.0)), float(function.derivative(0.0))
    square, slope = rows["square"] @ masses + silent * at_zero**2, rows["slope"] @ masses + silent * slope_at_zero**2
    tilted, along = rows["tilted"] * inner, rows["along"] * rows["square"]
    fourth = ((1.0 + rows["noise"]) * rows["square"] ** 2) @ masses + silent * at_zero**4
    noise = np.maximum(np.divide(fourth, square**2, out=np.ones_like(square), where=square > 0) - 1.0, 0.0)

    def with_square(response: str, field: Array, mean: Array, more: float = 0.0) -> Array:
        """Mean product of a field and phi^2 of one channel over the product of their means."""
        product = ((1.0 + rows[response] * rows["noise"]) * field * rows["square"]) @ masses + more
        return np.asarray(np.divide(product, mean * square, out=np.ones_like(mean), where=mean * square != 0))

    bent, turned = tilted @ masses, along @ masses
    gate = with_square("on_slope", rows["slope"], slope, silent * (slope_at_zero * at_zero) ** 2)
    others = with_square("on_tilted", tilted, bent), with_square("on_along", along, turned)
    responses = (np.divide(one - 1.0, noise, out=np.zeros_like(one), where=noise > _LEAST) for one in (gate, *others))
    return Passage(
        rows["mean"] @ masses + silent * at_zero,
        square,
        slope,
        noise,
        bent,
        np.divide(turned, square, out=np.zeros_like(turned), where=square > 0),
        square / (second_moment * levels),
        gate,
        *responses,
    )
