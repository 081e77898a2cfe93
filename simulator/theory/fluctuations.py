"""Fluctuations of second moments as linear combinations of independent sources."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from varprop.simulator.network import Network

Source = tuple[str, int]
Fluctuation = dict[Source, float]
"""Relative fluctuation of one second moment: the coefficient of every source."""


@dataclass(frozen=True, slots=True)
class LogLaw:
    """Of a second moment over draws: variance of its log, and how far the mean of the log is below the log of the mean.

    Both are those of a sum of independent terms c log X, to first order in the powers c for the second.
    """

    variance: float = 0.0
    deficit: float = 0.0


def narrow(network: Network) -> list[bool]:
    """Tell of every node whether all paths lead through it."""
    reach = np.maximum.accumulate([max(readers, default=0) for readers in network.consumers])
    return [index == 0 or bool(reach[index - 1] <= index) for index in range(len(network))]


class Fluctuations:
    """Every node's fluctuation as a combination of independent sources.

    Where all paths run through one node, its fluctuation becomes a single source of all that comes after (forward) or
    before (backward), so that the cost of a chain is linear in its depth.

    Attributes
    ----------
    forward, backward
        Every node's law; nan where a source on the way is nan.
    """

    def __init__(self, network: Network) -> None:
        self._network = network
        self._narrow = narrow(network)
        self._law: dict[Source, LogLaw] = {}
        self._signals: list[Fluctuation] = []
        self._inner: list[Fluctuation] = []
        self._gradients: list[Fluctuation] = [{} for _ in network.nodes]
        self.forward: list[LogLaw] = []
        self.backward = [LogLaw(math.nan, math.nan)] * len(network)

    def add(self, index: int, weights: tuple[float, ...], own: float) -> None:
        """Follow a node forward: weights of its inputs, and the relative variance of its own source."""
        terms = [(w, self._signals[i]) for w, i in zip(weights, self._network.nodes[index].inputs, strict=True)]
        found = self._combined(terms, ("channels", index), own)
        self.forward.append(self._total(found))
        self._inner.append(found)
        self._signals.append(self._single(("node", index), self.forward[index]) if self._narrow[index] else found)

    def add_back(self, index: int, shares: tuple[float, ...], slope: float, own: float) -> None:
        """Follow a node backward: shares of its consumers, weight of its signal, and its own source."""
        terms = [(w, self._gradients[i]) for w, i in zip(shares, self._network.consumers[index], strict=True)]
        terms.append((slope, self._signals[index]))
        found = self._combined(terms, ("gradient channels", index), own)
        self.backward[index] = self._total(found)
        if self._narrow[index]:
            # All but what the nodes before know of this one's signal is news to them.
            shared = found.pop(("node", index), 0.0)
            later = self._single(("gradient", index), self._total(found))
            found = self._combined([(1.0, later), (shared, self._inner[index])])
        self._gradients[index] = found

    def _combined(
        self, terms: list[tuple[float, Fluctuation]], source: Source | None = None, own: float = 0.0
    ) -> Fluctuation:
        found: Fluctuation = {}
        for weight, fluctuation in terms:
            if weight:
                for key, coefficient in fluctuation.items():
                    found[key] = found.get(key, 0.0) + weight * coefficient
        if source is not None and own:
            # The log of a chi-squared of 2 / own degrees of freedom: exact for linear layers of any width.
            self._law[source] = _log_chi_squared(1.0 / own) if own > 0 else LogLaw(own, own / 2)
            found[source] = 1.0
        return found

    def _single(self, source: Source, law: LogLaw) -> Fluctuation:
        self._law[source] = law
        return {source: 1.0}

    def _total(self, fluctuation: Fluctuation) -> LogLaw:
        laws = [(c * c, self._law[key]) for key, c in fluctuation.items()]
        return LogLaw(sum(c * law.variance for c, law in laws), sum(c * law.deficit for c, law in laws))


def _log_chi_squared(half: float) -> LogLaw:
    """Law of chi^2 of 2 half degrees of freedom: psi_1(half), and log(half) - psi(half).

    SciPy's special functions take longer to import than all the rest here to run.
    """
    variance, deficit, above = 0.0, 0.0, half
    while above < 16.0:
        variance, deficit, above = variance + 1 / above / above, deficit + 1 / above, above + 1.0
    y = above**-2
    # Asymptotic series, whose terms' ratios are those of Bernoulli numbers.
    tail = y / 6 * (1 - y / 5 * (1 - y * 5 / 7 * (1 - y * 7 / 5 * (1 - y * 25 / 11))))
    low = y / 12 * (1 - y / 10 * (1 - y * 10 / 21 * (1 - y * 21 / 20 * (1 - y * 20 / 11))))
    return LogLaw(variance + (1 + tail) / above + y / 2, deficit + math.log(half / above) + 1 / (2 * above) + low)
