"""The network 784-256-64-10 trained from both rules; the images are CIFAR-10's in grey, 28x28."""

from __future__ import annotations

import torch
from torch.nn import functional

from varprop.simulator.experiments.outcome import Section, Trained
from varprop.simulator.experiments.torch_linear_default import RULES, WIDTHS, article_network
from varprop.simulator.experiments.trained.runs import (
    Options,
    difference,
    summary_row,
    train_all,
    validation_accuracies,
)
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.torch_backend.data import Labelled, TrainingData, cifar10_data
from varprop.simulator.torch_backend.training import TrainingResult, TrainingSettings

SIDE = 28
BATCH, LEARNING_RATE = 32, 0.05
EPOCHS = 10
QUICK_EPOCHS, QUICK_IMAGES = 2, 10_000


def train(options: Options) -> Trained:
    """Train both for several seeds and compare what they reach."""
    colour = cifar10_data(options.data_dir, QUICK_IMAGES if options.quick else None)
    validation = None if colour.validation is None else grey(colour.validation)
    data = TrainingData(grey(colour.train), validation, f"{colour.source}, grey, {SIDE}x{SIDE}, standardised")
    epochs = QUICK_EPOCHS if options.quick else EPOCHS
    settings = {
        title: TrainingSettings(
            article_network(parse_initializer(rule)), epochs=epochs, learning_rate=LEARNING_RATE, batch=BATCH
        )
        for title, rule in RULES.items()
    }
    found: dict[str, list[TrainingResult]] = {title: [] for title in RULES}
    for name, result in train_all(options, settings, data):
        found[name].append(result)
    rows = []
    for title, results in found.items():
        # The article's starting point: how much of the gradient reaches the first layer.
        norms = [record.gradient_norm for record in results[0].records.layers if record.gradient_norm is not None]
        rows.append({**summary_row(title, results), "first layer's gradient at the start": norms[0]})
    torch_rule, article = (validation_accuracies(found[title]) for title in RULES)
    ahead = difference(torch_rule, article)
    verdict = [f"trained for {epochs} epochs on {data.source}, torch's default is ahead of a = 5 by {ahead.judged()}"]
    title = f"trained: {data.source}, {len(data.train):,} images, {epochs} epochs, rate {LEARNING_RATE}"
    return Trained([Section("trained", title, rows)], verdict, quick=options.quick)


def grey(images: Labelled) -> Labelled:
    """Return colour images as rows of 784 numbers, of mean 0 and variance 1 over each image."""
    mean = images.inputs.to(torch.float32).mean(dim=1, keepdim=True)
    small = functional.interpolate(mean, (SIDE, SIDE), mode="bilinear", antialias=True).reshape(-1, WIDTHS[0])
    centred = small - small.mean(dim=1, keepdim=True)
    return Labelled(centred / centred.std(dim=1, keepdim=True).clamp_min(1.0), images.targets)
