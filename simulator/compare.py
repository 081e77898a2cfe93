"""Holding a prediction against a measurement, on reports alone.

Two measures, because each hides what the other shows: z-scores say whether a difference is more than the sampling noise
of the run, relative differences say whether it matters. Backward moments of a deep net inherit the error of every later
layer, so that errors of opposite sign cancel in them; the *step* from each weighted layer to the one before it is
compared as well.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from varprop.simulator.network import Network
from varprop.simulator.report import Moments, Report

BEYOND = 4.0
"""A |z| above this happens by chance once in 16,000 normal draws."""

FORWARD_ACCURACY = 0.05
"""Largest relative difference of a forward second moment that the documented accuracy allows."""

STEP_ACCURACY = 0.15
"""Largest relative difference of a backward step that the documented accuracy allows."""

ALLOWED_FAILURES = 0.01
"""Share of comparisons that may fail: heavy tails make |z| > 4 less rare than a normal law has it."""

ROUNDING = 1e-6
"""Relative error of a measured second moment that has nothing to do with sampling: single precision rounds each value
by up to 2^-24, and sums of a few hundred products by some ten times that."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """How far one prediction lies from its measurement.

    `relative` is measured / predicted - 1 (None: one of the two is exactly zero and the other not, or neither is
    known); `z` is (measured - predicted) in standard errors (None: no standard error, or out of float range).
    """

    relative: float | None
    z: float | None

    def fails(self, accuracy: float) -> bool:
        """Tell whether the difference is both beyond |z| = 4 and beyond `accuracy`."""
        large = self.relative is None or abs(self.relative) > accuracy
        return large and self.z is not None and abs(self.z) > BEYOND


@dataclass(frozen=True, slots=True)
class Step:
    """The gradient's second moment at weighted layer `to`, over that at the next weighted layer `source`."""

    source: int
    to: int
    log_predicted: float
    log_measured: float
    agreement: Agreement


@dataclass(frozen=True, slots=True)
class Summary:
    """A list of agreements in five numbers; None where nothing could be compared. `compared` counts those with a z."""

    compared: int
    beyond: int
    largest_z: float | None
    median: float | None
    worst: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Prediction beside measurement, a row per node, and one per pair of consecutive weighted layers."""

    forward: tuple[Agreement, ...]
    backward: tuple[Agreement, ...]
    steps: tuple[Step, ...]

    @property
    def accumulated(self) -> float | None:
        """Relative difference of the gradient's second moment at the first weighted layer: all steps' errors."""
        return self.backward[self.steps[0].to].relative if self.steps else None

    @property
    def failures(self) -> tuple[int, int]:
        """Number of failed comparisons, and number of comparisons.

        A forward second moment fails beyond |z| = 4 and 5%, a backward step beyond |z| = 4 and 15%. What has no z
        is left out.
        """
        failed = [row.fails(FORWARD_ACCURACY) for row in self.forward if row.z is not None]
        failed += [step.agreement.fails(STEP_ACCURACY) for step in self.steps if step.agreement.z is not None]
        return sum(failed), len(failed)

    @property
    def agrees(self) -> bool:
        """Whether at most 1% of the comparisons fail."""
        failed, compared = self.failures
        return failed <= ALLOWED_FAILURES * compared


def compare(predicted: Report, measured: Report) -> Comparison:
    """Hold a prediction against a measurement of the same network.

    Parameters
    ----------
    predicted
        Report without standard errors (theory).
    measured
        Report with standard errors over independent weight draws (Monte Carlo).

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The reports are of different networks.
    """
    if predicted.network != measured.network:
        raise ValueError("the reports are of different networks")
    rows = list(zip(predicted.layers, measured.layers, strict=True))
    return Comparison(
        tuple(agreement(theory.forward, sample.forward) for theory, sample in rows),
        tuple(agreement(theory.backward, sample.backward) for theory, sample in rows),
        tuple(
            _step(
                to,
                source,
                [layer.backward for layer in predicted.layers],
                [layer.backward for layer in measured.layers],
            )
            for to, source in pairwise(weighted_layers(predicted))
        ),
    )


def agreement(predicted: Moments, measured: Moments) -> Agreement:
    """Compare two second moments; the rounding of single precision counts as a second, independent source of error."""
    if predicted.log_second_moment == measured.log_second_moment == -math.inf:
        return Agreement(0.0, None if measured.standard_error is None else 0.0)
    relative = _ratio(measured.log_second_moment - predicted.log_second_moment)
    error = measured.standard_error
    q, prediction = measured.second_moment, predicted.second_moment
    if error is None or not _in_range(predicted) or not _in_range(measured):
        return Agreement(relative, None)
    return Agreement(relative, _finite((q - prediction) / math.hypot(error, ROUNDING * max(q, prediction))))


def weighted_layers(report: Report) -> tuple[int, ...]:
    """Return the indices of the nodes that have weights, in the network's order."""
    return tuple(index for index, node in enumerate(report.network.nodes) if node.fan_in is not None)


def merged_layers(networks: Sequence[Network]) -> tuple[str, ...]:
    """Return the layer names of several networks in one order: each network's own, as far as it goes.

    Networks of one family differ by a few nodes (Keras pads before a strided convolution) or in depth; a layer that
    an earlier network lacks comes after the layer that it follows.
    """
    names: list[str] = []
    for network in sorted(networks, key=len, reverse=True):
        place = 0
        for node in network.nodes:
            if node.name in names:
                place = names.index(node.name) + 1
            else:
                names.insert(place, node.name)
                place += 1
    return tuple(names)


def summarise(agreements: Sequence[Agreement]) -> Summary:
    """Count and rank agreements; `worst` and `largest_z` keep their sign."""
    scores = [row.z for row in agreements if row.z is not None]
    differences = [row.relative for row in agreements if row.relative is not None]
    return Summary(
        len(scores),
        sum(abs(z) > BEYOND for z in scores),
        max(scores, key=abs, default=None),
        median(map(abs, differences)) if differences else None,
        max(differences, key=abs, default=None),
    )


def end_to_end(report: Report) -> tuple[float, float]:
    """Return the natural logs of q_out / q_in and of g_in / g_out over the whole network (nan for 0 / 0)."""
    first, last = report.layers[0], report.layers[-1]
    return (
        last.forward.log_second_moment - first.forward.log_second_moment,
        first.backward.log_second_moment - last.backward.log_second_moment,
    )


def _step(to: int, source: int, predicted: list[Moments], measured: list[Moments]) -> Step:
    """Compare g[to] / g[source]; the two standard errors are added as if independent, which overstates their sum."""
    theory = predicted[to].log_second_moment - predicted[source].log_second_moment
    sample = measured[to].log_second_moment - measured[source].log_second_moment
    errors = [_relative_error(measured[index]) for index in (to, source)]
    known = [error for error in errors if error is not None]
    z = _finite((sample - theory) / math.hypot(*known, ROUNDING)) if len(known) == 2 else None
    return Step(source, to, theory, sample, Agreement(_ratio(sample - theory), z))


def _relative_error(moments: Moments) -> float | None:
    if moments.standard_error is None or not _in_range(moments) or moments.second_moment == 0:
        return None
    return moments.standard_error / moments.second_moment


def _in_range(moments: Moments) -> bool:
    """Whether the second moment stands for what its log says: exactly zero, or a normal float."""
    if moments.log_second_moment == -math.inf:
        return True
    return 1e-290 < moments.second_moment < 1e290


def _ratio(log: float) -> float | None:
    """Return exp(log) - 1, or None where that is no finite number."""
    return math.expm1(log) if log < 700 else None


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
