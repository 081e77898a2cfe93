"""What a training run writes down: epochs, layers at chosen steps, and some weights of one layer."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from varprop.simulator.export import table_csv
from varprop.simulator.files import write_whole

Row = Mapping[str, object]


@dataclass(frozen=True, slots=True)
class EpochRecord:
    """One epoch, or the part of it that was run.

    `loss` and `accuracy` are means over the samples as they were trained on, in training mode; `penalty` is the L2 term
    that is added to the loss, at the epoch's end. Those of validation are in evaluation mode, None without such data.
    """

    epoch: int
    """From 1."""
    step: int
    """Steps done since the start."""
    loss: float
    accuracy: float
    penalty: float
    validation_loss: float | None
    validation_accuracy: float | None
    seconds: float
    """Spent on the epoch's steps, without validation."""
    images_per_second: float


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """One node at one step: the weights before the step, the signal and the gradients of its batch.

    Weight statistics are None where a node has no weights, and all but them at the end of the run, where no step
    follows. The gradients are those of the data's mean loss, without any decay.
    """

    step: int
    """Steps done before."""
    epoch: int
    """Of this step, from 1."""
    index: int
    layer: str
    kind: str
    weight_mean: float | None = None
    weight_variance: float | None = None
    weight_norm: float | None = None
    gradient_norm: float | None = None
    """Of the kernel's gradient."""
    angle: float | None = None
    """Between the kernel before the step and after it, in radians."""
    mean: float | None = None
    """Of the output, over batch, channels and positions."""
    second_moment: float | None = None
    variance: float | None = None
    """Per channel over batch and positions, averaged over channels."""
    gradient_second_moment: float | None = None
    """Of the gradient with respect to the output."""


@dataclass(frozen=True, slots=True)
class WeightsRecord:
    """The first weights of one layer, in the order in which its framework stores a kernel."""

    step: int
    epoch: int
    layer: str
    weights: tuple[float, ...]


@dataclass
class Records:
    """All that a run has recorded so far, in order."""

    epochs: list[EpochRecord] = field(default_factory=list)
    layers: list[LayerRecord] = field(default_factory=list)
    weights: list[WeightsRecord] = field(default_factory=list)

    def to_json(self) -> str:
        """Return text from which `from_json` makes the same records."""
        return json.dumps(asdict(self))  # NaN and infinity stay: a run that diverges is resumed like any other

    @staticmethod
    def from_json(text: str) -> Records:
        """Return the records of a text that `to_json` made."""
        data = json.loads(text)
        weights = [WeightsRecord(**{**row, "weights": tuple(row["weights"])}) for row in data["weights"]]
        return Records(
            [EpochRecord(**row) for row in data["epochs"]], [LayerRecord(**row) for row in data["layers"]], weights
        )

    def write(self, folder: Path) -> None:
        """Write ``epochs.csv``, ``layers.csv``, ``weights.csv`` and all of them as JSON lines in ``log.jsonl``."""
        weights: list[Row] = [
            {"step": row.step, "epoch": row.epoch, "layer": row.layer}
            | {f"weight_{number}": _finite(value) for number, value in enumerate(row.weights)}
            for row in self.weights
        ]
        tables: dict[str, list[Row]] = {name: plain(getattr(self, name)) for name in ("epochs", "layers", "weights")}
        for name, rows in {**tables, "weights": weights}.items():
            write_whole(folder / f"{name}.csv", table_csv(rows))
        lines = [json.dumps({"record": name, **row}, allow_nan=False) for name, rows in tables.items() for row in rows]
        write_whole(folder / "log.jsonl", "".join(line + "\n" for line in lines))


def plain(rows: Sequence[Any]) -> list[Row]:
    """Return records as dictionaries; numbers that are not finite become None."""
    return [{each.name: _finite(getattr(row, each.name)) for each in fields(row)} for row in rows]


def _finite(value: object) -> object:
    if isinstance(value, tuple):
        return tuple(map(_finite, value))
    return None if isinstance(value, float) and not math.isfinite(value) else value
