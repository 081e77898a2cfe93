"""Channels that are sums over few channels behind an activation, which leaves them far from Gaussian.

With normal weights g a channel z = sum_j g_j h_j over n independent ones of third cumulant k_3 and variance v over the
data has, over the weights, the mean squared skewness

    E (sum_j g_j^3 k_3)^2 / (n v)^3 = 15 k_3^2 / (n^2 v^3),

and a Gaussian channel of the same kernel nothing of that. The next activation makes of skewness a variance over the
data that differs from channel to channel. Linear layers on top of one another sum the same few channels: behind 32 of
them, a sum over 16 sums is as skew as these, since its weights on the 32 are normal given the second layer's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.sampling import counts, of_size

Array = NDArray[np.float64]

_FEW = 128  # channels up to which a sum is not taken for Gaussian: half of those that are sampled at least


@dataclass(frozen=True)
class Summand:
    """Channels behind an activation that others are sums of.

    Attributes
    ----------
    sample
        Draws of them.
    width
        How many there are.
    share
        Of the sum's variance over the data.
    """

    sample: Callable[[], Sample]
    width: int
    share: float = 1.0


def few(parts: Sequence[Summand]) -> bool:
    """Tell whether a sum is one of few channels."""
    return sum(part.share**2 / part.width for part in parts) * _FEW >= 1.0


def summed(parts: Sequence[Summand], kernel: PairKernel, key: int) -> Sample:
    """Draw half of the channels with a kernel's size that are sums, each over as many sampled channels as there are."""
    rng = np.random.Generator(np.random.SFC64(key))
    half = counts(kernel.layout, kernel.values.shape[1])[1] // 2
    drawn = [part.sample().values for part in parts]
    samples = min(values.shape[1] for values in drawn)
    total: Array = np.zeros(())
    for part, values in zip(parts, drawn, strict=True):
        channels, terms = values.shape[2], half * part.width
        # All of them as often, in another order every time.
        order = np.argsort(rng.random((-(-terms // channels), channels)), axis=1).ravel()[:terms]
        weights = np.zeros((channels, half))
        np.add.at(weights, (order, np.repeat(np.arange(half), part.width)), rng.standard_normal(terms))
        size = float(np.mean((values - values.mean(axis=(0, 1))) ** 2))
        weights *= np.sqrt(part.share / part.width / size) if size > 0 else 0.0
        total = total + values[:, :samples].reshape(-1, channels) @ weights
    total = total.reshape(-1, samples, half)
    return of_size(total, kernel)
