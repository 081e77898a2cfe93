"""A sweep's tables, as pandas, polars or xarray have them; each package is imported when it is asked for."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.sweep.tables import FORMATS

if TYPE_CHECKING:
    import pandas
    import polars
    import xarray

TABLES = ("summary", "layers")


@dataclass(frozen=True)
class SweepResults:
    """Tables of a finished sweep.

    Attributes
    ----------
    folder
        The sweep's ``--out``. The ``.parquet`` of a table is read where there is one, else its ``.csv``.
    """

    folder: Path

    def to_pandas(self, table: str = "summary") -> pandas.DataFrame:
        """Return a table, ``summary`` (a row a point) or ``layers`` (a row a layer).

        Raises
        ------
        UserError
            There is no such table, or pandas is not installed.
        """
        _require("pandas")
        import pandas

        path = self._path(table)
        if path.suffix == ".parquet":
            _require("pyarrow", "parquet")
            return pandas.read_parquet(path)
        return pandas.read_csv(path, keep_default_na=False, na_values=[""])

    def to_polars(self, table: str = "summary") -> polars.LazyFrame:
        """Return a table that is read when it is collected, and of which only the columns and rows asked for are kept.

        Raises
        ------
        UserError
            There is no such table, or polars is not installed.
        """
        _require("polars")
        import polars

        path = self._path(table)
        if path.suffix == ".parquet":
            return polars.scan_parquet(path)
        return polars.scan_csv(path, infer_schema_length=None)  # a column may begin with a thousand empty fields

    def to_xarray(self, table: str = "summary") -> xarray.Dataset:
        """Return an array for each result, with an axis for each setting that has several values.

        The table of layers has the layer's index as one more axis. Settings with one value are the attributes.

        Raises
        ------
        UserError
            There is no such table, or xarray or pandas is not installed.
        """
        _require("xarray")
        frame = self.to_pandas(table)
        settings = list(frame.columns[: frame.columns.get_loc("status" if table == "summary" else "index")])
        varying = [name for name in settings if name != "point" and frame[name].nunique(dropna=False) > 1]
        axes = varying + ["index"] * (table == "layers")
        fixed = frame[[name for name in settings if name not in (*varying, "point")]].iloc[0].dropna().to_dict()
        results = frame.drop(columns=[name for name in settings if name not in varying])
        arrays: xarray.Dataset = (
            results.set_index(axes).to_xarray() if axes else results.to_xarray().isel(index=0, drop=True)
        )
        return arrays.assign_attrs(fixed)

    def _path(self, table: str) -> Path:
        if table not in TABLES:
            raise did_you_mean("table", table, list(TABLES))
        for form in sorted(FORMATS, reverse=True):
            if (path := self.folder / f"{table}.{form}").is_file():
                return path
        advice = f"run varprop sweep ... --out {self.folder}" + (" --layers" if table == "layers" else "")
        raise UserError("sweep", f"no table {table!r} in {self.folder}", "the folder of a finished sweep", advice)


def open_sweep(folder: Path | str) -> SweepResults:
    """Return the tables that ``varprop sweep --out`` left in a folder; they are read when they are asked for.

    Raises
    ------
    UserError
        There are none.
    """
    results = SweepResults(Path(folder))
    results._path("summary")
    return results


def _require(package: str, extra: str | None = None) -> None:
    try:
        import_module(package)
    except ImportError:
        advice = f"run pip install 'varprop[{extra or package}]'"
        raise UserError(package, "not installed", "what the extra brings", advice) from None
