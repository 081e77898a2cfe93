"""The three runs trained: how dead the run without BN is, and how norms and angles move in those with it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median

import numpy as np

from varprop.simulator.architectures import build
from varprop.simulator.experiments.batchnorm_and_l2 import BATCH_SIZE, BN, BOTH, DECAY, L2, LEARNING_RATE, SIZE, STEM
from varprop.simulator.experiments.outcome import Row, Section, Trained
from varprop.simulator.experiments.trained.runs import Options, summary_row, train_all
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.scale_invariance import scale_invariant
from varprop.simulator.torch_backend.data import cifar10_data
from varprop.simulator.torch_backend.records import LayerRecord
from varprop.simulator.torch_backend.training import TrainingResult, TrainingSettings
from varprop.simulator.weight_decay import Sgd, angular_update, keras_l2, motion, pure_decay

EPOCHS, RECORDED = 10, 1000
QUICK_SIZE, QUICK_EPOCHS, QUICK_IMAGES, QUICK_RECORDED = 32, 2, 960, 6
"""Every so many steps all layers are measured, and at each of the first `EARLY`, where norms move most."""
EARLY = 10

FLOAT32 = 2.0**-24
"""Largest relative rounding of one operation in float32."""

RUNS = {BN.run: ("batch", 0.0), DECAY.run: ("none", L2), BOTH.run: ("batch", L2)}


def train(options: Options) -> Trained:
    """Train the three runs for every seed; norms and angles are followed in the first."""
    size, epochs, every = (QUICK_SIZE, QUICK_EPOCHS, QUICK_RECORDED) if options.quick else (SIZE, EPOCHS, RECORDED)
    data = cifar10_data(options.data_dir, QUICK_IMAGES if options.quick else None)
    steps = epochs * math.ceil(len(data.train) / BATCH_SIZE)
    settings = {
        name: TrainingSettings(
            build("mobilenet_v2", framework="keras", init=parse_initializer("default"), norm=norm, size=size),
            epochs=epochs,
            learning_rate=LEARNING_RATE,
            batch=BATCH_SIZE,
            l2=l2,
            record_steps=tuple(sorted({*range(EARLY), *range(0, steps, every)})),
            watch=STEM,
        )
        for name, (norm, l2) in RUNS.items()
    }
    found: dict[str, list[TrainingResult]] = {name: [] for name in RUNS}
    for name, result in train_all(options, settings, data):
        found[name].append(result)
    deaths = [_death(result) for result in found[DECAY.run]]
    movements = {name: _movements(found[name][0]) for name in (BN.run, BOTH.run)}
    sections = [
        Section(
            "trained",
            f"trained: {data.source}, {size}x{size}, {len(data.train):,} images, {epochs} epochs",
            [summary_row(name, results) for name, results in found.items()],
        ),
        Section("dead", "L2 only, trained: ten weights of the stem at the end, against pure decay", _dead_rows(deaths)),
        Section(
            "moved",
            "trained: |w|^2 over that at the start, and the angle of the last recorded step; medians over a role",
            [row for name, layers in movements.items() for row in _motion_rows(name, layers)],
        ),
    ]
    return Trained(sections, _verdict(found, deaths, movements), quick=options.quick)


@dataclass(frozen=True, slots=True)
class Death:
    """How dead a run without BN is.

    Attributes
    ----------
    logits
        Root mean square at the first step.
    gradient
        Norm of the data's gradient over that of the decay, the largest of all kernels and recorded steps.
    difference
        Of the stem's ten weights from pure decay, relative, the largest.
    rounding
        Four standard deviations of float32's rounding over as many steps.
    """

    logits: float
    gradient: float
    difference: float
    rounding: float


def _death(result: TrainingResult) -> Death:
    settings, records = result.settings, result.records
    first, *_, last = records.weights
    expected = pure_decay(Sgd(settings.learning_rate, keras_l2(settings.l2)), last.step) * np.array(first.weights)
    shares = [
        record.gradient_norm / (keras_l2(settings.l2) * record.weight_norm)
        for record in records.layers
        if record.gradient_norm is not None and record.weight_norm
    ]
    logits = next(r.second_moment or 0.0 for r in records.layers if r.index == len(settings.network) - 1)
    return Death(
        math.sqrt(logits),
        max(shares),
        float(np.max(np.abs(np.array(last.weights) / expected - 1))),
        4 * FLOAT32 * math.sqrt(last.step / 3),
    )


def _dead_rows(deaths: Sequence[Death]) -> list[Row]:
    return [
        {
            "logits at the start": death.logits,
            "largest gradient / decay": death.gradient,
            "largest difference from pure decay": death.difference,
            "rounding allows": death.rounding,
        }
        for death in deaths
    ]


@dataclass(frozen=True, slots=True)
class Movement:
    """One layer before BN: |w|^2 at the end over that at the start, and its last recorded angle, both as predicted."""

    role: str
    growth: float
    predicted_growth: float
    angle: float
    predicted_angle: float


def _movement(records: Sequence[LayerRecord], sgd: Sgd) -> Movement:
    """Follow a layer by the recurrence, with the size of its gradients as last recorded."""
    seen = [record for record in records if record.gradient_norm is not None]
    norms = [(record.weight_norm or 0.0) ** 2 for record in records]
    gradients = np.empty(records[-1].step)
    for record in seen:
        gradients[record.step :] = ((record.gradient_norm or 0.0) * (record.weight_norm or 0.0)) ** 2
    path = motion(sgd, norms[0], gradients, records[-1].step)
    return Movement(
        records[0].layer.split(".")[-1],
        norms[-1] / norms[0],
        float(path.squared_norm[-1]) / norms[0],
        seen[-1].angle or 0.0,
        float(path.angle[seen[-1].step]),
    )


def _movements(result: TrainingResult) -> list[Movement]:
    settings = result.settings
    sgd = Sgd(settings.learning_rate, keras_l2(settings.l2))
    free = [index for index, yes in enumerate(scale_invariant(settings.network)) if yes]
    return [_movement([r for r in result.records.layers if r.index == index], sgd) for index in free]


def _motion_rows(run: str, movements: Sequence[Movement]) -> list[Row]:
    rows: list[Row] = []
    for role in dict.fromkeys(movement.role for movement in movements):
        layers = [movement for movement in movements if movement.role == role]
        rows.append(
            {
                "run": run,
                "role": role,
                "layers": len(layers),
                "growth": median(layer.growth for layer in layers),
                "predicted": median(layer.predicted_growth for layer in layers),
                "angle, degrees": math.degrees(median(layer.angle for layer in layers)),
                "predicted angle": math.degrees(median(layer.predicted_angle for layer in layers)),
            }
        )
    return rows


def _verdict(
    found: dict[str, list[TrainingResult]], deaths: Sequence[Death], movements: dict[str, list[Movement]]
) -> Sequence[str]:
    worst = max(deaths, key=lambda death: death.difference)
    accuracy = {name: fmean(result.last.accuracy for result in results) for name, results in found.items()}
    kept = "within" if worst.difference < worst.rounding else "NOT within"
    lines = [
        f"L2 only, trained: logits of {deaths[0].logits:.0e} at the start, the data's gradient is at most "
        f"{max(death.gradient for death in deaths):.0e} of the decay in any kernel, and ten weights follow pure decay "
        f"to {worst.difference:.0e}, {kept} float32's rounding ({worst.rounding:.0e})",
        "training accuracy: " + ", ".join(f"{100 * value:.1f}% ({name})" for name, value in accuracy.items()),
    ]
    for name, layers in movements.items():
        errors = [abs(layer.predicted_growth / layer.growth - 1) for layer in layers]
        lines.append(
            f"{name}, trained: |w|^2 of {len(layers)} layers is predicted from the size of their gradients within "
            f"{100 * median(errors):.1f}% (median) and {100 * max(errors):.0f}% (worst)"
        )
    sgd = Sgd(LEARNING_RATE, keras_l2(L2))
    angles = [layer.angle for layer in movements[BOTH.run]]
    lines.append(
        f"{BOTH.run}, trained: the last recorded step turns the layers by {math.degrees(median(angles)):.2f} degrees "
        f"(median); the equilibrium is {math.degrees(angular_update(sgd)):.2f}"
    )
    return lines
