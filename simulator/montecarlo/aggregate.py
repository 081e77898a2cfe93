"""From the moments of single trials to averages with standard errors."""

from __future__ import annotations

import math
from collections.abc import Set
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.montecarlo.controls import controlled
from varprop.simulator.montecarlo.trial import EXPONENT, MEAN, SECOND_MOMENT, VARIANCE, Columns
from varprop.simulator.report import LayerMoments, Moments

Array = NDArray[np.float64]

RUN = 64
"""Nodes that are averaged together."""


@dataclass(frozen=True)
class TrialMoments:
    """Moments of every node in every trial, one direction; arrays have shape (trials, nodes).

    `mean` is to be multiplied by 2**`exponent`, `second_moment` and `variance` by 4**`exponent`. `controls`, of shape
    (trials, any number), have expectation 0; `columns` are those that go with each node's moments.
    """

    mean: Array
    second_moment: Array
    variance: Array
    exponent: NDArray[np.int64]
    controls: Array
    columns: Columns

    @property
    def log_second_moment(self) -> Array:
        """Natural log of the second moment, -inf for an exact zero."""
        with np.errstate(divide="ignore"):
            logs: Array = np.log(self.second_moment) + 2 * math.log(2) * self.exponent
        return logs

    @cached_property
    def estimates(self) -> Estimates:
        """Averages over trials."""
        return _estimates(self)


def trial_moments(
    moments: Array, controls: Array | None = None, columns: tuple[Columns, Columns] | None = None
) -> tuple[TrialMoments, TrialMoments]:
    """Return what `run_trials` recorded, with the plan's columns or without controls, as (forward, backward)."""
    controls = np.empty((len(moments), 0)) if controls is None else controls
    none = ((),) * moments.shape[2]
    forward, backward = (
        TrialMoments(
            rows[..., MEAN],
            rows[..., SECOND_MOMENT],
            rows[..., VARIANCE],
            rows[..., EXPONENT].astype(np.int64),
            controls,
            of_node,
        )
        for rows, of_node in zip((moments[:, 0], moments[:, 1]), columns or (none, none), strict=True)
    )
    return forward, backward


def relative_error(*directions: TrialMoments) -> float:
    """Return the largest standard error of any node's second moment, as a share of it, over at least two trials.

    A second moment that is 0 in every trial has none.
    """
    worst = 0.0
    for moments in directions:
        found = moments.estimates
        means, errors = found.means[1], found.deviations[1] / math.sqrt(len(moments.mean))
        worst = max(worst, float((errors[means > 0] / means[means > 0]).max(initial=0.0)))
    return worst


def summarize(
    forward: TrialMoments, backward: TrialMoments, unseen: Set[int] = frozenset()
) -> tuple[LayerMoments, ...]:
    """Return every node's averages over trials; `unseen` are the nodes whose weights were not drawn."""
    estimates = forward.estimates, backward.estimates
    return tuple(
        LayerMoments(
            _average(forward, estimates[0], node), _average(backward, estimates[1], node), weightless=node in unseen
        )
        for node in range(forward.mean.shape[1])
    )


def _average(moments: TrialMoments, found: Estimates, node: int) -> Moments:
    """Return one node's averages over trials.

    The second moment may leave float64 (0 or inf) where its log does not. Mean and deviation of the log are None if
    a trial's second moment is exactly zero; deviations are None for a single trial.
    """
    (mean, second_moment, variance), top = found.means[:, node].tolist(), int(found.top[node])
    trials, exact = len(moments.mean), math.isfinite(found.log_mean[node])
    error = None if trials == 1 else _ldexp(float(found.deviations[1, node]) / math.sqrt(trials), 2 * top)
    return Moments(
        mean=_ldexp(mean, top),
        second_moment=_ldexp(second_moment, 2 * top),
        variance=_ldexp(variance, 2 * top),
        log_second_moment=math.log(second_moment) + 2 * top * math.log(2) if second_moment else -math.inf,
        log_second_moment_mean=float(found.log_mean[node]) if exact else None,
        log_second_moment_sd=float(found.log_deviation[node]) if exact and trials > 1 else None,
        standard_error=error,
        trials=trials,
    )


@dataclass(frozen=True)
class Estimates:
    """Means of the mean, the second moment and the variance over trials, and deviations of what they are taken over.

    Both have shape (3, nodes), in units of 2**`top`, the largest power of two among the trials, or of its square. Mean
    and deviation of the second moment's natural log are those of all of it, and not finite if it is 0 in a trial.
    """

    means: Array
    deviations: Array
    log_mean: Array
    log_deviation: Array
    top: NDArray[np.int64]


def _estimates(moments: TrialMoments) -> Estimates:
    """Average over trials, less what controls explain; about the first trial, so exactly where all are equal.

    Where a spread is so large that controls would take a second moment below 0, they are left out.
    """
    trials, nodes = moments.mean.shape
    top = moments.exponent.max(axis=0)
    means, deviations = np.empty((3, nodes)), np.empty((3, nodes))
    for run in _runs(moments.columns):
        # A slice where it may be: it is not copied.
        part = slice(run[0], run[-1] + 1) if run[-1] - run[0] == len(run) - 1 else run
        found = [moments.mean[:, part], moments.second_moment[:, part], moments.variance[:, part]]
        exponent = moments.exponent[:, part] - top[part]
        values = np.stack(found, axis=1)
        if exponent.any():
            values *= np.ldexp(1.0, exponent[:, np.newaxis] * np.array([[1], [2], [2]]))
        shifted = values - values[0]
        controls = moments.controls[:, moments.columns[run[0]]]
        better = controlled(shifted.reshape(trials, -1), controls).reshape(shifted.shape)
        positive = values[0, 1] + better[:, 1].mean(axis=0) >= 0
        shifted = np.where(positive, better, shifted)
        mean, deviations[:, part] = _mean_and_deviation(shifted)
        means[:, part] = values[0] + mean
    logs = [_log_statistics(moments, slice(start, start + RUN)) for start in range(0, nodes, RUN)]
    log_mean, log_deviation = np.concatenate(logs, axis=1)
    return Estimates(means, deviations, log_mean, log_deviation, top)


def _log_statistics(moments: TrialMoments, part: slice) -> Array:
    """Return mean and deviation of some nodes' logs: shape (2, nodes)."""
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(moments.second_moment[:, part]) + 2 * math.log(2) * moments.exponent[:, part]
        return np.stack(_mean_and_deviation(logs))


def _runs(columns: Columns) -> list[list[int]]:
    """Group the nodes, at most `RUN` together, by the controls that go with them."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for node, own in enumerate(columns):
        groups.setdefault(own, []).append(node)
    return [nodes[start : start + RUN] for nodes in groups.values() for start in range(0, len(nodes), RUN)]


def _mean_and_deviation(values: Array) -> tuple[Array, Array]:
    """Return mean and deviation over trials, the first axis, about the first value: exact where all are equal."""
    shifted = values - values[0]
    mean = shifted.mean(axis=0)
    shifted -= mean
    deviation = np.sqrt(np.square(shifted, out=shifted).sum(axis=0) / max(len(values) - 1, 1))
    return values[0] + mean, deviation


def _ldexp(value: float, exponent: int) -> float:
    with np.errstate(over="ignore", under="ignore"):
        return float(np.ldexp(value, exponent))
