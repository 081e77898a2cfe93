"""What an experiment comes to: tables of rows, a verdict in sentences, and numbers for other programs."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.console import Console
from rich.table import Table

from varprop.simulator.export import table_csv
from varprop.simulator.strict_json import indented

Cell = str | float | None
Row = Mapping[str, Cell]

WIDTH = 160
"""Columns of the text where no terminal says how wide it is."""


@dataclass(frozen=True)
class Section:
    """One table: rows with the same columns, as `name` for programs and `title` for people."""

    name: str
    title: str
    rows: Sequence[Row]
    digits: int = 4
    """Significant digits of numbers in the text; JSON and CSV keep all."""


@dataclass(frozen=True)
class Outcome:
    """Sections in order, then the verdict, a sentence an item; `data` goes into the JSON as it is."""

    experiment: str
    sections: Sequence[Section]
    verdict: Sequence[str]
    data: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Trained:
    """What training adds to an outcome; `quick` where it was cut short, so that it settles nothing."""

    sections: Sequence[Section]
    verdict: Sequence[str]
    data: Mapping[str, object] = field(default_factory=dict)
    quick: bool = False


def extended(outcome: Outcome, trained: Trained) -> Outcome:
    """Return the outcome with what training found after what was predicted; what is quick says so everywhere."""
    mark = "quick, " if trained.quick else ""
    return replace(
        outcome,
        sections=[*outcome.sections, *(replace(one, title=mark + one.title) for one in trained.sections)],
        verdict=[*outcome.verdict, *(mark + sentence for sentence in trained.verdict)],
        data={**outcome.data, "quick": trained.quick, "training": trained.data},
    )


def outcome_table(outcome: Outcome) -> str:
    """Return tables and verdict as text."""
    text = io.StringIO()
    console = Console(file=text, width=WIDTH, color_system=None)
    console.print(outcome.experiment)
    for section in outcome.sections:
        console.print(f"\n{section.title}", markup=False, highlight=False, soft_wrap=True)
        console.print(_grid(section))
    console.print("\nverdict")
    for sentence in outcome.verdict:
        console.print(f"- {sentence}", markup=False, highlight=False, soft_wrap=True)
    return text.getvalue()


def outcome_json(outcome: Outcome) -> str:
    """Return the schema ``varprop.experiment/1``; numbers are finite or null."""
    data: dict[str, object] = {
        "schema": "varprop.experiment/1",
        "experiment": outcome.experiment,
        "sections": [
            {
                "name": section.name,
                "title": section.title,
                "rows": [{key: _finite(cell) for key, cell in row.items()} for row in section.rows],
            }
            for section in outcome.sections
        ],
        "verdict": list(outcome.verdict),
        **outcome.data,
    }
    return indented(data)


def outcome_csv(outcome: Outcome) -> str:
    """Return all sections as one table, the section's name first; a column that a section lacks is empty."""
    return table_csv([{"section": section.name, **dict(row)} for section in outcome.sections for row in section.rows])


def _grid(section: Section) -> Table:
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="bold")
    columns = list(dict.fromkeys(key for row in section.rows for key in row))
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in section.rows)
        table.add_column(column, justify="right" if numeric else "left", overflow="fold")
    for row in section.rows:
        table.add_row(*(_text(row.get(column), section.digits) for column in columns))
    return table


def _text(cell: Cell, digits: int) -> str:
    if cell is None:
        return "-"
    return f"{cell:.{digits}g}" if isinstance(cell, float) else str(cell)


def _finite(cell: Cell) -> Cell:
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell
