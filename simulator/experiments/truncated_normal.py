"""he_normal has the deviation sqrt(2 / fan_in) after truncation, truncated_normal before it.

Cutting N(0, 1) at two deviations leaves the variance 1 - 4 pdf(2) / (2 cdf(2) - 1) = .7737413, which a network of ReLU
layers multiplies once a layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.architectures import build
from varprop.simulator.compare import BEYOND
from varprop.simulator.experiments.outcome import Outcome, Row, Section
from varprop.simulator.initializers import TRUNCATION_FACTOR, TRUNCATION_POINT, draw, parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Moments
from varprop.simulator.theory import predict as predict_moments

FAN_IN, OUTPUTS = 2, 50_000
EDGES = np.round(np.arange(-15, 16) * 0.2, 1)
DEPTH, WIDTH, SIZE, BATCH, TRIALS = 24, 32, 8, 4, 150
LAST = f"conv{DEPTH}"

RULES = {"he_normal": "he_normal", "truncated_normal": f"truncated_normal(std={math.sqrt(2 / FAN_IN)})"}
SCALED = {"he_normal": "he_normal", "truncated_normal": f"he_normal(gain={math.sqrt(2) * TRUNCATION_FACTOR})"}
"""The same two laws where a layer's own fan sets the deviation."""


@dataclass(frozen=True)
class _Sample:
    """Weights of one rule: counts in the histogram's bins, drawn and expected, and what lies beyond two."""

    drawn: NDArray[np.intp]
    expected: NDArray[np.float64]
    deviation: float
    largest: float
    beyond_two: int

    @property
    def chi_square(self) -> tuple[float, int]:
        """Pearson's statistic over bins that can hold weights, and its degrees of freedom."""
        some = self.expected > 0
        terms = (self.drawn[some] - self.expected[some]) ** 2 / self.expected[some]
        return float(terms.sum()), int(some.sum()) - 1


def predict(seed: int, progress: Callable[[int, int], None] | None) -> Outcome:
    """Draw the histogram, and send a batch through 24 layers of each rule."""
    rng = np.random.default_rng(seed)
    samples = {title: _sample(rule, rng) for title, rule in RULES.items()}
    # Weights of their own: with the same ones the two runs differ by a constant, and the ratio would confirm itself.
    signals = {title: _signal(rule, seed, n, progress) for n, (title, rule) in enumerate(SCALED.items())}
    sections = [
        Section("factor", "a normal cut at two deviations", [_factor_row()], digits=17),
        Section("weights", f"{FAN_IN} x {OUTPUTS:,} weights, fan_in {FAN_IN}", _weight_rows(samples), digits=6),
        Section("histogram", "weights per bin", _histogram_rows(samples), digits=6),
        Section("signal", f"second moment after {DEPTH} convolutions, over the input's", _signal_rows(signals)),
    ]
    return Outcome("truncated-normal", sections, _verdict(samples, signals))


def _sample(rule: str, rng: np.random.Generator) -> _Sample:
    net = NetworkBuilder("weights", "keras", (FAN_IN,))
    net.linear(OUTPUTS, parse_initializer(rule))
    node = net.build().nodes[-1]
    law = weight_law(node, "keras")
    weights = draw(law, node, rng)
    counts = np.histogram(weights, EDGES)[0]
    parent = NormalDist(0, law.limit / TRUNCATION_POINT)
    inside = parent.cdf(law.limit) - parent.cdf(-law.limit)
    clipped = [parent.cdf(edge) for edge in np.clip(EDGES, -law.limit, law.limit)]
    return _Sample(
        counts,
        np.diff(clipped) / inside * weights.size,
        float(weights.std()),
        float(np.abs(weights).max()),
        int(np.count_nonzero(np.abs(weights) > 2)),
    )


@dataclass(frozen=True, slots=True)
class _Signal:
    """Log of the second moment after the last convolution over the input's: theory, and measured with its error."""

    theory: float
    measured: Moments
    start: float

    @property
    def ratio(self) -> float:
        return self.measured.second_moment / self.start

    @property
    def z(self) -> float:
        error = self.measured.standard_error or math.nan
        return (self.measured.second_moment - self.theory * self.start) / error


def _signal(rule: str, seed: int, number: int, progress: Callable[[int, int], None] | None) -> _Signal:
    network = build("plain_conv", framework="keras", depth=DEPTH, width=WIDTH, size=SIZE, init=parse_initializer(rule))
    batch = load_batch("gaussian", network.nodes[0].shape, BATCH, seed)
    last = next(index for index, node in enumerate(network.nodes) if node.name == LAST)
    theory = predict_moments(network, batch)
    measured = simulate(network, batch, trials=TRIALS, seed=seed + number, progress=progress)
    start = theory.layers[0].forward.second_moment
    return _Signal(theory.layers[last].forward.second_moment / start, measured.layers[last].forward, start)


def _factor_row() -> Row:
    return {"deviation": TRUNCATION_FACTOR, "variance": TRUNCATION_FACTOR**2, "variance^24": TRUNCATION_FACTOR**48}


def _weight_rows(samples: dict[str, _Sample]) -> list[Row]:
    rows: list[Row] = []
    for title, sample in samples.items():
        statistic, freedom = sample.chi_square
        rows.append(
            {
                "rule": title,
                "initializer": RULES[title],
                "deviation": sample.deviation,
                "largest |w|": sample.largest,
                "beyond 2": sample.beyond_two,
                "chi^2 of the histogram": statistic,
                "degrees of freedom": freedom,
            }
        )
    return rows


def _histogram_rows(samples: dict[str, _Sample]) -> list[Row]:
    rows: list[Row] = []
    for bin_, (low, high) in enumerate(pairwise(EDGES)):
        row: dict[str, str | float | None] = {"from": float(low), "to": float(high)}
        for title, sample in samples.items():
            row[title] = int(sample.drawn[bin_])
            row[f"{title} expected"] = float(sample.expected[bin_])
        rows.append(row)
    return rows


def _signal_rows(signals: dict[str, _Signal]) -> list[Row]:
    return [
        {
            "rule": title,
            "theory": signal.theory,
            "Monte Carlo": signal.ratio,
            "standard error": (signal.measured.standard_error or math.nan) / signal.start,
            "z": signal.z,
            "mean of log": (signal.measured.log_second_moment_mean or math.nan) - math.log(signal.start),
        }
        for title, signal in signals.items()
    ]


def _verdict(samples: dict[str, _Sample], signals: dict[str, _Signal]) -> Sequence[str]:
    he, cut = samples["he_normal"], samples["truncated_normal"]
    full, lost = signals["he_normal"], signals["truncated_normal"]
    # Logs, as the draws are log-normal; their deviations give the error of the difference.
    logs = [signal.measured.log_second_moment_mean or math.nan for signal in (lost, full)]
    spreads = [signal.measured.log_second_moment_sd or math.nan for signal in (lost, full)]
    difference = logs[0] - math.log(lost.start) - logs[1] + math.log(full.start)
    error = math.hypot(*spreads) / math.sqrt(TRIALS)
    predicted = 2 * DEPTH * math.log(TRUNCATION_FACTOR)
    z = (difference - predicted) / error
    return [
        f"he_normal reaches {he.largest:.2f} and has {he.beyond_two:,} of {FAN_IN * OUTPUTS:,} weights beyond 2; "
        f"truncated_normal reaches {cut.largest:.2f} and has {cut.beyond_two}",
        f"cutting a normal at two deviations multiplies its variance by {TRUNCATION_FACTOR**2:.7f}; measured "
        f"{(cut.deviation / he.deviation) ** 2:.4f}",
        f"after {DEPTH} layers theory leaves truncated_normal {TRUNCATION_FACTOR**48:.4f} of he_normal's signal; "
        f"the Monte Carlo's log ratio is {difference:.2f} +- {error:.2f}, predicted {predicted:.2f} (z = {z:.1f}): "
        + ("confirmed" if abs(z) < BEYOND else "NOT confirmed"),
    ]
