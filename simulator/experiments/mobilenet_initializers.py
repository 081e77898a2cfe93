"""MobileNetV2 in Keras with four initializers: what each does to signal and gradient, and what BN hides of it.

Keras counts the fan-in of a depthwise kernel as k k C, although every output sums k k products: He and Glorot make such
layers about C times too small. Batch normalisation undoes that as far as its eps lets it, v / (v + eps), and makes
the loss invariant to the kernels' scale, so that an initializer sets effective learning rates, lr / |w|^2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

from varprop.simulator.compare import summarise
from varprop.simulator.experiments.outcome import Outcome, Row, Section
from varprop.simulator.initializers import weight_law
from varprop.simulator.network import BatchNorm
from varprop.simulator.propagate import Run, Settings, prepare, propagate
from varprop.simulator.report import Report
from varprop.simulator.scale_invariance import LayerRate, effective_learning_rates
from varprop.simulator.weight_decay import Sgd

LEARNING_RATE = 0.1
"""Not printed in this article; another by its author, on the same network, has it."""

AT_FULL_SIZE = {"size": 224, "batch": 8, "engines": ("theory",)}
CHECKED = {"size": 64, "batch": 8, "engines": ("theory", "monte-carlo"), "trials": 12}
SHOWN = ("stem", "block1", "block2", "block4", "block7", "block11", "block14", "block16")
"""Blocks whose depthwise layers have 32, 96, 144, 192, 384, 576, 960 and 960 channels."""

ROLES = ("conv", "expand", "depthwise", "project")
"""Last part of a layer's name: the stem's and the head's convolution, and the three of every block."""


@dataclass(frozen=True, slots=True)
class Published:
    """One of the article's runs and the figures that it reports."""

    init: str
    activation: str
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float

    def settings(self, seed: int, **options: object) -> Settings:
        """Return the run's network as `propagate` takes it."""
        return Settings(
            "mobilenet_v2",
            framework="keras",
            init=self.init,
            activation=self.activation,
            norm="batch",
            seed=seed,
            **options,  # type: ignore[arg-type]
        )


RANDOM, GLOROT, HE, LECUN = PUBLISHED = (
    Published("random_normal", "relu6", 0.4510, 0.8434, 0.7016, 0.7788),
    Published("glorot_normal", "relu6", 0.4442, 0.8459, 0.5632, 0.8206),
    Published("he_normal", "relu6", 0.4585, 0.8408, 0.8109, 0.7348),
    Published("lecun_normal", "selu", 0.7519, 0.7345, 1.1013, 0.6193),
)


@dataclass(frozen=True)
class Prediction:
    """What theory says of one run at the article's image size."""

    report: Report
    rates: tuple[LayerRate, ...]

    def depthwise(self) -> dict[str, float]:
        """Return the factor of the second moment through every depthwise layer, by name."""
        nodes, layers = self.report.network.nodes, self.report.layers
        return {
            node.name: layers[index].forward.second_moment / layers[node.inputs[0]].forward.second_moment
            for index, node in enumerate(nodes)
            if node.kind == "depthwise_conv2d"
        }

    def restored(self) -> dict[str, float]:
        """Return the second moment after every batch normalisation, E[v / (v + eps)]: 1 where eps is nothing."""
        return {
            node.name: layer.forward.second_moment
            for node, layer in zip(self.report.network.nodes, self.report.layers, strict=True)
            if isinstance(node.operation, BatchNorm)
        }

    def gradients(self) -> list[float]:
        """Return the logs of the gradient's second moment at every layer with weights."""
        return [
            layer.backward.log_second_moment
            for node, layer in zip(self.report.network.nodes, self.report.layers, strict=True)
            if node.fan_in is not None
        ]

    def rate(self, role: str) -> float:
        """Return the median effective learning rate over the layers of a role."""
        return median(row.effective_lr or 0.0 for row in self.rates if row.name.split(".")[-1] == role)


def predict(seed: int, progress: Callable[[int, int], None] | None) -> Outcome:
    """Predict all four runs by theory at 224x224, and hold theory against Monte Carlo at 64x64."""
    found: dict[Published, Prediction] = {}
    checks: list[Row] = []
    for run in PUBLISHED:
        theory = propagate(prepare(run.settings(seed, **AT_FULL_SIZE))).reports[0]
        found[run] = Prediction(theory, effective_learning_rates(theory.network, Sgd(LEARNING_RATE)))
        checks.append(_check_row(run, propagate(prepare(run.settings(seed, **CHECKED)), progress=progress)))
    sections = [
        Section("published", "as the article reports it: one run each", [_published_row(run) for run in PUBLISHED]),
        Section("depthwise", "second moment after a depthwise layer, over that before it", _depthwise_rows(found)),
        Section("batch_norm", "what batch normalisation makes of it", [_hidden_row(*pair) for pair in found.items()]),
        Section("gradient", "gradient's second moment at the layers with weights", _gradient_rows(found)),
        Section(
            "rates",
            f"effective learning rate lr / |w|^2 at the start, lr = {LEARNING_RATE:g}: median over layers of a role",
            [
                {"initializer": run.init, **{role: prediction.rate(role) for role in ROLES}}
                for run, prediction in found.items()
            ],
        ),
        Section("monte_carlo", "theory against Monte Carlo, 64x64 images of N(0, 1) pixels", checks),
    ]
    return Outcome("mobilenet-initializers", sections, _verdict(found))


def _published_row(run: Published) -> Row:
    return {
        "initializer": run.init,
        "activation": run.activation,
        "train loss": run.train_loss,
        "train accuracy": run.train_accuracy,
        "validation loss": run.validation_loss,
        "validation accuracy": run.validation_accuracy,
    }


def _depthwise_rows(found: Mapping[Published, Prediction]) -> list[Row]:
    rows: list[Row] = []
    factors = {run.init: prediction.depthwise() for run, prediction in found.items()}
    network = found[HE].report.network
    for node in network.nodes:
        if node.kind == "depthwise_conv2d" and node.name.split(".")[0] in SHOWN:
            law = weight_law(node, network.framework)
            row = {"layer": node.name, "fan_in": node.fan_in, "Keras's fan_in": law.framework_fan_in}
            rows.append({**row, **{init: values[node.name] for init, values in factors.items()}})
    return rows


def _hidden_row(run: Published, prediction: Prediction) -> Row:
    restored = prediction.restored()
    worst = min(restored, key=lambda name: restored[name])
    forward = prediction.report.layers[-1].forward.second_moment
    return {
        "initializer": run.init,
        "smallest q after BN": restored[worst],
        "where": worst,
        "median": median(restored.values()),
        "scale invariance lost there": 1 - restored[worst],
        "q of the logits": forward,
    }


def _gradient_rows(found: Mapping[Published, Prediction]) -> list[Row]:
    rows: list[Row] = []
    for run, prediction in found.items():
        logs = prediction.gradients()
        rows.append(
            {
                "initializer": run.init,
                "activation": run.activation,
                "stem over head": math.exp(logs[0] - logs[-1]),
                "largest over smallest": math.exp(max(logs) - min(logs)),
            }
        )
    return rows


def _check_row(run: Published, both: Run) -> Row:
    found = both.comparison
    assert found is not None
    steps = summarise([step.agreement for step in found.steps])
    forward = summarise(found.forward)
    failed, compared = found.failures
    return {
        "initializer": run.init,
        "forward, median": forward.median,
        "forward, worst": forward.worst,
        "backward step, median": steps.median,
        "backward step, worst": steps.worst,
        "beyond bounds": f"{failed} of {compared}",
    }


def _verdict(found: Mapping[Published, Prediction]) -> Sequence[str]:
    he, glorot = found[HE], found[GLOROT]
    smallest = min(he.depthwise().items(), key=lambda pair: pair[1])
    restored = {run: min(prediction.restored().values()) for run, prediction in found.items()}
    logs = {run: prediction.gradients() for run, prediction in found.items()}
    steps = [[a - b for a, b in pairwise(logs[run])] for run in (HE, GLOROT)]
    apart = max(abs(a - b) for a, b in zip(*steps, strict=True))
    slower = {role: he.rate(role) / glorot.rate(role) for role in ROLES}
    selu, relu = (math.exp((logs[run][0] - logs[run][-1]) / len(logs[run])) for run in (LECUN, HE))
    points = [100 * (getattr(GLOROT, key) - getattr(HE, key)) for key in ("validation_accuracy", "train_accuracy")]
    return [
        f"under he_normal the second moment falls to {smallest[1]:.2g} of its input's in {smallest[0]}: Keras divides "
        "by 9 C where 9 products are summed, and Glorot's rule "
        f"({glorot.depthwise()[smallest[0]]:.2g} there) does nearly the same",
        "BN hides most of that: with eps = 1e-3 it brings every layer back to at least "
        + ", ".join(f"{value:.2f} ({run.init})" for run, value in restored.items()),
        "BN does not hide the gradient's steps from layer to layer, which differ between He and Glorot by up to a "
        f"factor {math.exp(apart):.1f}; on average a step back multiplies its second moment by {relu:.2f} (He, ReLU6) "
        f"and {selu:.2f} (LeCun, SELU)",
        "nor the effective learning rates: He's are "
        + ", ".join(f"{ratio:.2f} ({role})" for role, ratio in slower.items())
        + f" of Glorot's, and its depthwise layers learn {he.rate('depthwise') / he.rate('expand'):.0f} times as fast "
        "as its expanding ones",
        f"He's {points[0]:.1f} points behind Glorot in validation are {points[1]:.1f} points in training, in one run "
        "each: what of it is noise only several seeds of training can tell",
    ]
