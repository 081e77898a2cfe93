"""MobileNetV2 trained from the four initializers, several seeds each: which differences are real."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from varprop.simulator.experiments.mobilenet_initializers import (
    GLOROT,
    HE,
    LEARNING_RATE,
    LECUN,
    PUBLISHED,
    RANDOM,
    Published,
)
from varprop.simulator.experiments.outcome import Section, Trained
from varprop.simulator.experiments.trained.runs import (
    Difference,
    Options,
    difference,
    summary_row,
    train_all,
    validation_accuracies,
)
from varprop.simulator.propagate import build_network
from varprop.simulator.torch_backend.data import cifar10_data
from varprop.simulator.torch_backend.training import TrainingResult, TrainingSettings

BATCH = 32
SIZE, EPOCHS = 224, 10
QUICK_SIZE, QUICK_EPOCHS, QUICK_IMAGES = 32, 3, 960
Metric = Literal["validation", "train"]
METRICS: dict[Metric, str] = {"validation": "validation", "train": "training"}
PAIRS = ((HE, GLOROT), (RANDOM, GLOROT), (LECUN, GLOROT))


def train(options: Options) -> Trained:
    """Train all four runs and compare their validation accuracies, seed by seed."""
    size = QUICK_SIZE if options.quick else SIZE
    data = cifar10_data(options.data_dir, QUICK_IMAGES if options.quick else None)
    settings = {
        run.init: TrainingSettings(
            build_network(run.settings(options.seed, size=size)),
            epochs=QUICK_EPOCHS if options.quick else EPOCHS,
            learning_rate=LEARNING_RATE,
            batch=BATCH,
        )
        for run in PUBLISHED
    }
    found: dict[str, list[TrainingResult]] = {run.init: [] for run in PUBLISHED}
    for name, result in train_all(options, settings, data):
        found[name].append(result)
    rows = [{**summary_row(run.init, found[run.init]), "published": run.validation_accuracy} for run in PUBLISHED]
    title = f"trained: {data.source}, {size}x{size}, {len(data.train):,} images, {settings[HE.init].epochs} epochs"
    return Trained([Section("trained", title, rows)], _verdict(found, quick=options.quick), quick=options.quick)


def _verdict(found: dict[str, list[TrainingResult]], *, quick: bool) -> Sequence[str]:
    return [
        sentence(
            one,
            other,
            metric,
            difference(*(accuracies(found[run.init], metric) for run in (one, other))),
            quick=quick,
        )
        for metric in METRICS
        for one, other in PAIRS
    ]


def accuracies(results: Sequence[TrainingResult], metric: Metric) -> list[float]:
    """Return the last epoch's accuracy in validation or in training, seed by seed."""
    return validation_accuracies(results) if metric == "validation" else [result.last.accuracy for result in results]


def sentence(one: Published, other: Published, metric: Metric, measured: Difference, *, quick: bool) -> str:
    """Say by how much a run loses or wins, and what that makes of the article's difference."""
    word = "loses to" if measured.mean < 0 else "beats"
    size = Difference(abs(measured.mean), measured.deviation, measured.seeds)
    published = 100 * (getattr(one, f"{metric}_accuracy") - getattr(other, f"{metric}_accuracy"))
    z = measured.z_of(published)
    text = (
        f"in {METRICS[metric]} {one.init} {word} {other.init} by {size}; "
        f"the article's single runs differ by {published:+.1f}"
    )
    if quick:
        return text + ", at full length"
    if z is None:
        return text + ", and one seed cannot say whether that is noise"
    judged = (
        "which the spread of single runs explains" if abs(z) < 2 else "more than the spread of single runs explains"
    )
    return f"{text}, {judged} (z = {z:.1f})"
