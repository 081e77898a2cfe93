"""What training comes to, as a table, JSON and CSV."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean, stdev

from varprop.simulator.export import table_csv
from varprop.simulator.strict_json import indented
from varprop.simulator.torch_backend.records import Records, Row, plain

SHOWN = {
    "loss": "loss",
    "accuracy": "accuracy",
    "validation_loss": "val loss",
    "validation_accuracy": "val accuracy",
    "images_per_second": "images/s",
}
"""Columns of the table, and their headings."""


def to_json(settings: Mapping[str, object], found: Mapping[int, Records]) -> str:
    """Return all epochs of all seeds as ``varprop.train/1``."""
    runs = [{"seed": seed, "epochs": plain(records.epochs)} for seed, records in found.items()]
    data = {"schema": "varprop.train/1", "settings": settings, "runs": runs}
    return indented(data)


def to_csv(found: Mapping[int, Records]) -> str:
    """Return a row per seed and epoch."""
    rows: list[Row] = [{"seed": seed, **row} for seed, records in found.items() for row in plain(records.epochs)]
    return table_csv(rows)


def to_table(found: Mapping[int, Records]) -> str:
    """Return a line per seed, its last epoch, and the mean and deviation over seeds."""
    last = {seed: records.epochs[-1] for seed, records in found.items()}
    columns = [
        (heading, [getattr(record, name) for record in last.values()])
        for name, heading in SHOWN.items()
        if all(getattr(record, name) is not None for record in last.values())
    ]
    lines = [_line("seed", "epoch", [heading for heading, _ in columns])]
    for number, (seed, record) in enumerate(last.items()):
        lines.append(_line(str(seed), str(record.epoch), [_number(values[number]) for _, values in columns]))
    if len(last) > 1:
        lines.append(_line("mean", "", [_number(fmean(values)) for _, values in columns]))
        lines.append(_line("sd", "", [_number(_deviation(values)) for _, values in columns]))
    return "".join(line + "\n" for line in lines)


def _line(seed: str, epoch: str, cells: Sequence[str]) -> str:
    return f"{seed:>6} {epoch:>6} " + " ".join(f"{cell:>12}" for cell in cells)


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"


def _deviation(values: Sequence[float]) -> float:
    return stdev(values) if all(map(math.isfinite, values)) else math.nan
