"""MobileNetV2 trained from the four initializers, several seeds each: which differences are real."""

from __future__ import annotations

from collections.abc import Sequence

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
    title = f"trained: {size}x{size}, {len(data.train):,} images, {settings[HE.init].epochs} epochs"
    return Trained([Section("trained", title, rows)], _verdict(found, quick=options.quick), quick=options.quick)


def _verdict(found: dict[str, list[TrainingResult]], *, quick: bool) -> Sequence[str]:
    return [
        sentence(
            one,
            other,
            difference(validation_accuracies(found[one.init]), validation_accuracies(found[other.init])),
            quick=quick,
        )
        for one, other in PAIRS
    ]


def sentence(one: Published, other: Published, measured: Difference, *, quick: bool) -> str:
    """Say by how much a run loses or wins, and what that makes of the article's difference."""
    word = "loses to" if measured.mean < 0 else "beats"
    size = Difference(abs(measured.mean), measured.deviation, measured.seeds)
    published = 100 * (one.validation_accuracy - other.validation_accuracy)
    z = measured.z_of(published)
    text = f"{one.init} {word} {other.init} by {size}; the article's single runs differ by {published:+.1f}"
    if quick:
        return text + ", at full length"
    if z is None:
        return text + ", and one seed cannot say whether that is noise"
    judged = (
        "which the spread of single runs explains" if abs(z) < 2 else "more than the spread of single runs explains"
    )
    return f"{text}, {judged} (z = {z:.1f})"
