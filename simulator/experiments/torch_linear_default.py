"""torch's nn.Linear draws from kaiming_uniform(a = sqrt(5)); an article's NumPy version has a = 5.

With gain^2 = 2 / (1 + a^2) the variance of a weight is gain^2 / fan_in: 1 / (3 fan_in) and 1 / (13 fan_in), so that a
layer after ReLU keeps 1/6 or 1/26 of the second moment.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from varprop.simulator.activations import activation
from varprop.simulator.compare import BEYOND
from varprop.simulator.experiments.outcome import Outcome, Row, Section
from varprop.simulator.gain import gain
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.network import Initializer, Network, NetworkBuilder
from varprop.simulator.report import Moments
from varprop.simulator.theory import predict as predict_moments

WIDTHS = (784, 256, 64, 10)
BATCH, TRIALS = 4, 1500
DEFAULT = "default"
RULES = {"a = sqrt(5), torch": DEFAULT, "a = 5, the article": "he_uniform(a=5)"}
FACTORS = {"a = sqrt(5), torch": 1 / 6, "a = 5, the article": 1 / 26}

CALCULATE_GAIN = {
    "linear": 1.0,
    "sigmoid": 1.0,
    "tanh": 5 / 3,
    "relu": math.sqrt(2),
    "leaky_relu(0.01)": math.sqrt(2 / (1 + 0.01**2)),
    "selu": 3 / 4,
}
"""torch.nn.init.calculate_gain, as printed in torch's documentation."""


@dataclass(frozen=True, slots=True)
class _Step:
    """The factor of the second moment between two neighbouring linear layers, predicted and measured."""

    theory: float
    measured: float
    error: float

    @property
    def z(self) -> float:
        return (self.measured - self.theory) / self.error


def predict(seed: int, progress: Callable[[int, int], None] | None) -> Outcome:
    """Compare the two rules on the article's network, layer by layer, forward and backward."""
    laws: list[Row] = []
    steps: list[Row] = []
    outputs: list[Row] = []
    found: dict[str, list[_Step]] = {}
    for number, (title, rule) in enumerate(RULES.items()):
        network = article_network(parse_initializer(rule))
        laws += _law_rows(title, network)
        batch = load_batch("gaussian", (WIDTHS[0],), BATCH, seed)
        theory = predict_moments(network, batch)
        measured = simulate(network, batch, trials=TRIALS, seed=seed + number, progress=progress)
        linear = [index for index, node in enumerate(network.nodes) if node.fan_in is not None]
        for to, source in zip(linear[1:], linear, strict=False):
            n_in, n_out = network.nodes[to].fan_in, network.nodes[to].shape[0]
            forward, backward = (
                _step(*(getattr(report.layers[index], way) for report in (theory, measured) for index in pair))
                for way, pair in (("forward", (source, to)), ("backward", (to, source)))
            )
            found.setdefault(title, []).extend((forward, backward))
            steps.append(
                {
                    "rule": title,
                    "layer": network.nodes[to].name,
                    "fan_in": n_in,
                    "fan_out": n_out,
                    "forward": forward.theory,
                    "measured": forward.measured,
                    "z": forward.z,
                    "backward": backward.theory,
                    "measured back": backward.measured,
                    "z back": backward.z,
                }
            )
        outputs.append(_output_row(title, rule, theory.layers[-1].forward, measured.layers[-1].forward, seed))
    largest = max(abs(step.z) for rows in found.values() for step in rows)
    sections = [
        Section("weights", "variance of a weight, network 784-256-64-10", laws),
        Section(
            "steps",
            "factor of the second moment from one layer to the next through ReLU: FACTOR forward, FACTOR fan_out / "
            "fan_in backward, with FACTOR = 1/6 = .1667 for torch and 1/26 = .03846 for the article",
            steps,
        ),
        Section("logits", "second moment of the logits for N(0, 1) inputs", outputs),
        Section("gains", "torch's calculate_gain beside 1 / sqrt(E phi^2) for z ~ N(0, 1)", _gain_rows(), digits=7),
    ]
    return Outcome("torch-linear-default", sections, _verdict(found, largest, outputs))


def article_network(init: Initializer, bias: Initializer | None = None) -> Network:
    """Return the article's network, 784-256-64-10 with ReLU between, without biases unless one is given."""
    net = NetworkBuilder("784-256-64-10", "torch", (WIDTHS[0],))
    for layer, width in enumerate(WIDTHS[1:], 1):
        net.linear(width, init, bias=bias, name=f"linear{layer}")
        if width != WIDTHS[-1]:
            net.activation("relu")
    return net.build()


def _law_rows(title: str, network: Network) -> list[Row]:
    rows: list[Row] = []
    for node in network.nodes:
        if node.fan_in is not None:
            law = weight_law(node, network.framework)
            inverse = 1 / (law.variance * node.fan_in)
            rows.append(
                {
                    "rule": title,
                    "layer": node.name,
                    "fan_in": node.fan_in,
                    "bound": law.limit,
                    "variance": law.variance,
                    "as a fraction": f"1 / ({inverse:.6g} fan_in)",
                }
            )
    return rows


def _step(before: Moments, after: Moments, measured_before: Moments, measured_after: Moments) -> _Step:
    """Return the ratio after / before; errors are added as if independent, which overstates theirs."""
    measured = measured_after.second_moment / measured_before.second_moment
    errors = [(one.standard_error or 0.0) / one.second_moment for one in (measured_before, measured_after)]
    return _Step(after.second_moment / before.second_moment, measured, measured * math.hypot(*errors))


def _output_row(title: str, rule: str, theory: Moments, measured: Moments, seed: int) -> Row:
    error = measured.standard_error or math.nan
    biased = predict_moments(
        article_network(parse_initializer(rule), parse_initializer("default")),
        load_batch("gaussian", (WIDTHS[0],), BATCH, seed),
    )
    return {
        "rule": title,
        "theory": theory.second_moment,
        "Monte Carlo": measured.second_moment,
        "standard error": error,
        "z": (measured.second_moment - theory.second_moment) / error,
        "theory with torch's biases": biased.layers[-1].forward.second_moment,
    }


def _gain_rows() -> list[Row]:
    rows: list[Row] = []
    for name, hard_coded in CALCULATE_GAIN.items():
        derived = gain(activation(name), 1.0).gain_second_moment
        rows.append({"activation": name, "calculate_gain": hard_coded, "derived": derived})
    return rows


def _verdict(found: dict[str, list[_Step]], largest: float, outputs: Sequence[Row]) -> list[str]:
    lines = []
    for title, factor in FACTORS.items():
        forward = [step.measured for step in found[title][::2]]
        lines.append(
            f"{title}: each layer after ReLU keeps 1/{1 / factor:.0f} = {factor:.5f} of the second moment; measured "
            + ", ".join(f"{value:.5f}" for value in forward)
        )
    torch, article = (float(row["Monte Carlo"] or 0) for row in outputs)
    agree = "agree" if largest < BEYOND else "DISAGREE"
    lines.append(f"theory and Monte Carlo {agree}: largest |z| {largest:.1f} of {sum(map(len, found.values()))} steps")
    lines.append(
        f"a = 5 is no re-implementation of torch's default: variances differ by 13/3, and after three layers the "
        f"logits' second moment is {torch / article:.0f} times smaller, (13/3)^3 = {(13 / 3) ** 3:.0f}"
    )
    return lines
