"""A plain ReLU network of 24 convolutions on CIFAR-10, from he_normal and from truncated_normal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean

from varprop.simulator import cifar10
from varprop.simulator.architectures import build
from varprop.simulator.experiments.outcome import Row, Section, Trained
from varprop.simulator.experiments.trained.runs import (
    Options,
    difference,
    summary_row,
    train_all,
    validation_accuracies,
)
from varprop.simulator.experiments.truncated_normal import DEPTH, LAST, SCALED
from varprop.simulator.initializers import TRUNCATION_FACTOR, parse_initializer
from varprop.simulator.torch_backend.data import cifar10_data
from varprop.simulator.torch_backend.training import TrainingResult, TrainingSettings

BATCH, LEARNING_RATE = 32, 0.02
WIDTH, SIZE, EPOCHS = 64, 32, 10
GUESS = math.log(cifar10.CLASSES)
"""Loss of a net that ignores its input."""
QUICK_WIDTH, QUICK_SIZE, QUICK_EPOCHS, QUICK_IMAGES = 16, 16, 2, 2000


def train(options: Options) -> Trained:
    """Train both for several seeds; hold the signal at the first step against theory."""
    data = cifar10_data(options.data_dir, QUICK_IMAGES if options.quick else None)
    width, size = (QUICK_WIDTH, QUICK_SIZE) if options.quick else (WIDTH, SIZE)
    epochs = QUICK_EPOCHS if options.quick else EPOCHS
    settings = {
        title: TrainingSettings(
            build("plain_conv", framework="keras", depth=DEPTH, width=width, size=size, init=parse_initializer(rule)),
            epochs=epochs,
            learning_rate=LEARNING_RATE,
            batch=BATCH,
        )
        for title, rule in SCALED.items()
    }
    found: dict[str, list[TrainingResult]] = {title: [] for title in SCALED}
    for name, result in train_all(options, settings, data):
        found[name].append(result)
    rows = [
        {**summary_row(title, results), "second moment at the start": signals(results)[0]}
        for title, results in found.items()
    ]
    # One seed draws both from the same numbers, so that their ratios are free of the draw's spread.
    full, lost = found.values()
    ratios = [b / a for a, b in zip(signals(full), signals(lost), strict=True)]
    reached = [b / a for a, b in zip(gradients(full), gradients(lost), strict=True)]
    ahead = difference(validation_accuracies(full), validation_accuracies(lost))
    losses = [fmean(result.last.loss for result in results) for results in (full, lost)]
    verdict = [
        f"at the first step on CIFAR-10, truncated_normal has {min(ratios):.6f} to {max(ratios):.6f} of he_normal's "
        f"second moment after {DEPTH} layers, predicted {TRUNCATION_FACTOR ** (2 * DEPTH):.6f}; the gradient of the "
        f"last kernel is {min(reached):.3f} to {max(reached):.3f} of he_normal's, "
        f"{TRUNCATION_FACTOR ** (DEPTH - 1):.3f} where softmax is the same: the scales of the {DEPTH - 1} other layers",
        f"after {epochs} epochs the training loss is {losses[0]:.3f} from he_normal and {losses[1]:.3f} from "
        f"truncated_normal (ln 10 = {GUESS:.3f}); he_normal is ahead in validation by {ahead.judged()}",
        *guessing(dict(zip(SCALED, losses, strict=True)), epochs),
    ]
    title = (
        f"trained: {DEPTH} layers of width {width}, {data.source}, {size}x{size}, {len(data.train):,} images, "
        f"{epochs} epochs"
    )
    return Trained(
        [Section("trained", title, rows), Section("curves", "training loss by epoch", _curves(found))],
        verdict,
        quick=options.quick,
    )


def guessing(losses: Mapping[str, float], epochs: int) -> list[str]:
    """Return a sentence about the rules whose loss is within 2% of a guess's; nothing where all have learnt."""
    found = [rule for rule, loss in losses.items() if abs(loss / GUESS - 1) < 0.02]
    if not found:
        return []
    alone = len(found) < len(losses)
    meaning = "the other has learnt" if alone else "so short a run says nothing of how the learning curves part"
    return [f"{' and '.join(found)} still guess{'es' * alone} after {epochs} epochs: {meaning}"]


def _curves(found: Mapping[str, Sequence[TrainingResult]]) -> list[Row]:
    rows: list[Row] = []
    for epoch in range(len(next(iter(found.values()))[0].records.epochs)):
        row: dict[str, str | float | None] = {"epoch": epoch + 1}
        for title, results in found.items():
            for result in results:
                row[f"{title}, seed {result.settings.seed}"] = result.records.epochs[epoch].loss
        rows.append(row)
    return rows


def signals(results: Sequence[TrainingResult]) -> list[float]:
    """Return the second moment after the last convolution at the first step, seed by seed."""
    return [
        next(
            record.second_moment or 0.0 for record in result.records.layers if record.layer == LAST and record.step == 0
        )
        for result in results
    ]


def gradients(results: Sequence[TrainingResult]) -> list[float]:
    """Return the norm of the last convolution's kernel gradient at the first step, seed by seed."""
    return [
        next(r.gradient_norm or 0.0 for r in result.records.layers if r.layer == LAST and r.step == 0)
        for result in results
    ]
