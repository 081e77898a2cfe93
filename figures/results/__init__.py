"""Results of trainings, kept so that figures and README come out without training: tables and their provenance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from varprop.simulator.export import table_csv
from varprop.simulator.files import write_whole
from varprop.simulator.provenance import provenance
from varprop.simulator.strict_json import indented

FOLDER = Path(__file__).parent


def write_result(path: Path, rows: Sequence[Mapping[str, object]], command: Sequence[str], settings: object) -> None:
    """Write a table, FILE.csv, and its provenance, FILE.json, torch's version included."""
    write_whole(path, table_csv(rows))
    origin = indented(provenance(command, settings, "torch"))
    write_whole(path.with_suffix(".json"), origin)
