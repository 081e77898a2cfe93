"""Tables of a sweep: a row a point, and a row a layer."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from varprop.simulator.errors import UserError
from varprop.simulator.export import flat
from varprop.simulator.files import whole_file
from varprop.simulator.sweep.evaluate import Outcome
from varprop.simulator.sweep.points import Point
from varprop.simulator.sweep.store import Store

Row = dict[str, object]

FORMATS = {"csv": "text, every digit of a float", "parquet": "columns, for pandas, polars and the like"}
"""File formats of tables; parquet needs the extra of that name."""


def summary_rows(points: Sequence[Point], outcomes: Sequence[Outcome]) -> list[Row]:
    """Return a row a point: settings, status, and what came of it, with the same columns in every row."""
    columns = dict.fromkeys(name for outcome in outcomes for name in outcome.row)
    return [
        {**_settings(point), "status": outcome.status, "message": outcome.message, **columns, **outcome.row}
        for point, outcome in zip(points, outcomes, strict=True)
    ]


def layer_rows(points: Sequence[Point], store: Store) -> Iterator[Row]:
    """Yield a row a layer of every point that is ok, from the store, one point at a time."""
    for number, point in enumerate(points):
        data = store.get(point.key)
        for layer in Outcome.from_bytes(data).layers if data is not None else []:
            yield {"point": number, **_settings(point), **flat(layer)}


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write rows to a file of the format that its suffix names, whole or not at all.

    Raises
    ------
    UserError
        For parquet, if pyarrow is not installed.
    """
    if path.suffix == ".parquet":
        _write_parquet(path, rows)
        return
    with whole_file(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="", write_through=True) as text:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(text, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow(row)


def require_format(name: str) -> None:
    """Refuse a format whose package is missing, before any work is done."""
    if name == "parquet":
        _pyarrow()


def _write_parquet(path: Path, rows: Iterable[Row]) -> None:
    pyarrow, parquet = _pyarrow()
    with whole_file(path) as file:
        parquet.write_table(pyarrow.Table.from_pylist(list(rows)), file)


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        advice = "pip install 'varprop[parquet]'"
        raise UserError("--table-format", "parquet", "the extra 'parquet' installed", advice) from None
    return pyarrow, parquet


def _settings(point: Point) -> Row:
    found = {name: value for name, value in asdict(point.settings).items() if name != "engines"}
    trials = found["trials"] if "monte-carlo" in point.settings.engines else None
    return {**found, "trials": trials, **({} if point.training is None else asdict(point.training))}
