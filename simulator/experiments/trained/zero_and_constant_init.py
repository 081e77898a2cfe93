"""The two small convolutions trained on one image: 40 steps, four starts, gradients cleared or added up."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from varprop.simulator.experiments.outcome import Row, Section, Trained
from varprop.simulator.experiments.trained.runs import Options, train_all
from varprop.simulator.experiments.zero_and_constant_init import LEARNING_RATE, MOMENTUM, SIZE, STARTS, STEPS
from varprop.simulator.torch_backend.data import Labelled, TrainingData
from varprop.simulator.torch_backend.training import TrainingResult, TrainingSettings

TARGET = 2
LOOPS = {"cleared": True, "added up": False}
SHOWN = (0, 1, 2, 5, 10, 20, STEPS)
SAME = 1e-3
"""Filters that differ by less than this share of what they have moved are one: float32 rounds equal ones apart."""


@dataclass(frozen=True)
class Traces:
    """What the article plots of one run, a value a step from 0 (before the first) to the last, and its filters.

    The loss is that of the step's forward pass; there is none after the last step.
    """

    start: str
    loop: str
    loss: list[float]
    layers: dict[str, list[tuple[float, float]]]
    """Mean and variance of each convolution's weights."""
    distinct: dict[str, int]


def train(options: Options) -> Trained:
    """Run the article's experiment in full, in both loops; kaiming normal for several seeds, the image fixed."""
    generator = torch.Generator().manual_seed(options.seed)
    image = torch.randn(1, 3, SIZE, SIZE, generator=generator)
    samples = Labelled(image, torch.full((1, SIZE, SIZE), TARGET))
    data = TrainingData(samples, None, "one N(0, 1) image, class 2 at every pixel", shuffle=False)
    settings = {
        f"{start.name}, {loop}": TrainingSettings(
            start.network,
            epochs=STEPS,
            learning_rate=LEARNING_RATE,
            momentum=MOMENTUM,
            batch=1,
            clear_gradients=cleared,
        )
        for start in STARTS
        for loop, cleared in LOOPS.items()
    }
    # Only the last start is drawn; of the others every seed's run is the same.
    drawn = {name: one for name, one in settings.items() if name.startswith(STARTS[-1].name)}
    fixed = {name: one for name, one in settings.items() if name not in drawn}
    jobs = chain(train_all(replace(options, seeds=1), fixed, data), train_all(options, drawn, data))
    found = [_traces(name, result) for name, result in jobs]
    first = found[: len(settings)]
    sections = [
        Section("traces", f"trained on one image, {STEPS} steps", [row for run in first for row in _rows(run)]),
        Section("filters", "different filters after training", [_filter_row(run) for run in first]),
    ]
    traces = [{"start": run.start, "loop": run.loop, "loss": run.loss, "weights": run.layers} for run in found]
    return Trained(sections, _verdict(found), {"traces": traces})


def _traces(name: str, result: TrainingResult) -> Traces:
    start, _, loop = name.rpartition(", ")
    layers: dict[str, list[tuple[float, float]]] = {}
    for record in result.records.layers:
        if record.weight_mean is not None and record.weight_variance is not None:
            layers.setdefault(record.layer, []).append((record.weight_mean, record.weight_variance))
    begun = type(result.module)(result.settings.network)
    begun.draw_weights(result.settings.seed)
    distinct = {
        node.name: distinct_filters(layer.weight.detach().cpu(), before.weight.detach())
        for (_, node, layer), (_, _, before) in zip(result.module.weighted, begun.weighted, strict=True)
    }
    return Traces(start, loop, [record.loss for record in result.records.epochs], layers, distinct)


def distinct_filters(weight: Tensor, before: Tensor) -> int:
    """Return how many output channels have kernels of their own, up to `SAME` of the largest move since `before`."""
    moved = float((weight - before).abs().max())
    kept: list[Tensor] = []
    for kernel in weight:
        if all(float((kernel - other).abs().max()) > SAME * moved for other in kept):
            kept.append(kernel)
    return len(kept)


def _rows(run: Traces) -> list[Row]:
    rows: list[Row] = []
    for step in SHOWN:
        row: dict[str, str | float | None] = {"start": run.start, "loop": run.loop, "step": step}
        row["loss"] = run.loss[step] if step < len(run.loss) else None
        for layer, values in run.layers.items():
            row[f"{layer} mean"], row[f"{layer} variance"] = values[step]
        rows.append(row)
    return rows


def _filter_row(run: Traces) -> Row:
    return {"start": run.start, "loop": run.loop, **run.distinct}


def _verdict(found: Sequence[Traces]) -> Sequence[str]:
    zero, bare, constant, kaiming = ([run for run in found if run.start == start.name] for start in STARTS)
    off = max(abs(loss - math.log(3)) for run in zero for loss in run.loss)
    weights = max(abs(value) for run in zero for layer in run.layers.values() for pair in layer for value in pair)
    lines = [
        f"zero, trained: the loss stays within {off:.0e} of ln 3 and the weight traces within {weights:.0e} of 0, in "
        "both loops",
        f"zero with one bare convolution, trained: the loss falls from {bare[0].loss[0]:.4f} to {bare[0].loss[-1]:.4f}",
    ]
    for loop in LOOPS:
        one, *_ = (run for run in constant if run.loop == loop)
        others = [run for run in kaiming if run.loop == loop]
        lower = sum(run.loss[-1] < one.loss[-1] for run in others)
        rises = [max(b - a for a, b in zip(run.loss, run.loss[1:], strict=False)) for run in (one, *others)]
        still = [layer for layer, values in one.layers.items() if values[-1][1] <= values[0][1]]
        lines.append(
            f"constant 5, trained, gradients {loop}: {' and '.join(map(str, one.distinct.values()))} distinct filters; "
            + (f"the variance of {' and '.join(still)} does not grow in float32" if still else "both variances grow")
            + f"; the loss ends at {one.loss[-1]:.4f}, kaiming's at "
            + ", ".join(f"{run.loss[-1]:.4f}" for run in others)
            + f" (lower in {lower} of {len(others)}); the largest rise in a step is {rises[0]:.4f} against "
            + ", ".join(f"{rise:.4f}" for rise in rises[1:])
        )
    return lines
