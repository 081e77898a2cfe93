"""Where second moments of single draws of the weights lie: quantiles and probabilities of the log-moment law.

The log of a second moment over draws is close to normal (Hanin & Nica 2018, arXiv 1812.05994, theorem 1), with the mean
and the deviation that a report gives: theory's from `theory.finite_width`, a Monte Carlo's from its trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from varprop.simulator.compare import weighted_layers
from varprop.simulator.report import Moments, Report

BAND = (0.1, 0.9)
"""Probabilities whose quantiles are tabulated and drawn."""

_NORMAL = NormalDist()


def log_quantile(moments: Moments, probability: float) -> float | None:
    """Return the natural log of the second moment that a draw stays below with a probability; None if not known.

    Parameters
    ----------
    moments
        Of one node and direction.
    probability
        Between 0 and 1, both excluded.

    Examples
    --------
    >>> from varprop.simulator.report import Moments
    >>> round(log_quantile(Moments(0.0, 1.0, 1.0, 0.0, -0.5, 1.0), 0.9), 6)
    0.781552
    """
    mean, deviation = moments.log_second_moment_mean, moments.log_second_moment_sd
    return None if mean is None or deviation is None else mean + deviation * _NORMAL.inv_cdf(probability)


def probability_below(moments: Moments, log_second_moment: float) -> float | None:
    """Return the probability that a draw's second moment lies below exp(log_second_moment); None if not known.

    Examples
    --------
    >>> from varprop.simulator.report import Moments
    >>> probability_below(Moments(0.0, 1.0, 1.0, 0.0, -0.5, 1.0), -0.5)
    0.5
    """
    mean, deviation = moments.log_second_moment_mean, moments.log_second_moment_sd
    if moments.log_second_moment == -math.inf:
        return 1.0  # exactly zero in every draw
    if mean is None or deviation is None:
        return None
    if deviation == 0:
        return float(mean < log_second_moment)
    return _NORMAL.cdf((log_second_moment - mean) / deviation)


@dataclass(frozen=True, slots=True)
class End:
    """Share of draws whose second moment ends below, or above, a threshold; None where an engine does not know."""

    direction: str
    layer: str
    side: str
    threshold: float
    share: dict[str, float | None]


def ends(reports: Sequence[Report], below: float | None, above: float | None) -> list[End]:
    """Return how often a net ends beyond two thresholds: its output, and the gradient at its first weighted layer.

    Parameters
    ----------
    reports
        Of one network, by several engines.
    below, above
        Second moments, above 0; None asks nothing.
    """
    network = reports[0].network
    first = next(iter(weighted_layers(reports[0])), 0)
    found = []
    for direction, index in (("forward", len(network) - 1), ("backward", first)):
        rows = {report.engine: getattr(report.layers[index], direction) for report in reports}
        for side, threshold in (("below", below), ("above", above)):
            if threshold is None:
                continue
            share: dict[str, float | None] = {}
            for engine, moments in rows.items():
                lower = probability_below(moments, math.log(threshold))
                share[engine] = lower if lower is None or side == "below" else 1 - lower
            found.append(End(direction, network.nodes[index].name, side, threshold, share))
    return found
