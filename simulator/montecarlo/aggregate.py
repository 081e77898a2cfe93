"""From the moments of single trials to averages with standard errors."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.trial import EXPONENT, MEAN, SECOND_MOMENT, VARIANCE
from varprop.simulator.report import LayerMoments, Moments

Array = NDArray[np.float64]


@dataclass(frozen=True)
class TrialMoments:
    """Moments of every node in every trial, one direction; all arrays have shape (trials, nodes).

    `mean` is to be multiplied by 2**`exponent`, `second_moment` and `variance` by 4**`exponent`.
    """

    mean: Array
    second_moment: Array
    variance: Array
    exponent: NDArray[np.int64]

    @property
    def log_second_moment(self) -> Array:
        """Natural log of the second moment, -inf for an exact zero."""
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self.second_moment) + 2 * math.log(2) * self.exponent
        return logs


def trial_moments(records: Array) -> tuple[TrialMoments, TrialMoments]:
    """Return what `run_trial` recorded, of shape (trials, 2, nodes, 4), as (forward, backward)."""
    forward, backward = (
        TrialMoments(
            rows[..., MEAN], rows[..., SECOND_MOMENT], rows[..., VARIANCE], rows[..., EXPONENT].astype(np.int64)
        )
        for rows in (records[:, 0], records[:, 1])
    )
    return forward, backward


def relative_error(*directions: TrialMoments) -> float:
    """Return the largest standard error of any node's second moment, as a share of it, over at least two trials.

    A second moment that is 0 in every trial has none.
    """
    worst = 0.0
    for moments in directions:
        units = np.ldexp(1.0, 2 * (moments.exponent - moments.exponent.max(axis=0)))
        values = moments.second_moment * units
        mean = values.mean(axis=0)
        errors = (values - values[0]).std(axis=0, ddof=1) / math.sqrt(len(values))
        worst = max(worst, float((errors[mean > 0] / mean[mean > 0]).max(initial=0.0)))
    return worst


def summarize(
    forward: TrialMoments, backward: TrialMoments, unseen: Set[int] = frozenset()
) -> tuple[LayerMoments, ...]:
    """Return every node's averages over trials; `unseen` are the nodes whose weights were not drawn."""
    return tuple(
        LayerMoments(_average(forward, node), _average(backward, node), weightless=node in unseen)
        for node in range(forward.mean.shape[1])
    )


def _average(moments: TrialMoments, node: int) -> Moments:
    """Average one node over trials, in units of the largest power of two among them.

    The second moment may leave float64 (0 or inf) where its log does not. Mean and deviation of the log are None if
    a trial's second moment is exactly zero; deviations are None for a single trial.
    """
    exponents = moments.exponent[:, node]
    top = int(exponents.max())
    units = np.ldexp(1.0, exponents - top)
    mean, _ = _mean_and_deviation(moments.mean[:, node] * units)
    variance, _ = _mean_and_deviation(moments.variance[:, node] * units**2)
    second_moment, deviation = _mean_and_deviation(moments.second_moment[:, node] * units**2)
    logs = moments.log_second_moment[:, node]
    log_mean, log_deviation = _mean_and_deviation(logs) if np.isfinite(logs).all() else (None, None)
    trials = len(exponents)
    return Moments(
        mean=_ldexp(mean, top),
        second_moment=_ldexp(second_moment, 2 * top),
        variance=_ldexp(variance, 2 * top),
        log_second_moment=math.log(second_moment) + 2 * top * math.log(2) if second_moment else -math.inf,
        log_second_moment_mean=log_mean,
        log_second_moment_sd=log_deviation,
        standard_error=None if deviation is None else _ldexp(deviation / math.sqrt(trials), 2 * top),
        trials=trials,
    )


def _mean_and_deviation(values: Array) -> tuple[float, float | None]:
    """Return mean and deviation over trials, about the first value: exact where all are equal."""
    shifted = values - values[0]
    mean = float(values[0] + shifted.mean())
    return mean, float(shifted.std(ddof=1)) if len(values) > 1 else None


def _ldexp(value: float, exponent: int) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, exponent))
