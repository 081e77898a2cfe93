"""A sweep's tables in pandas, polars and xarray."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest

from varprop import UserError, open_sweep
from varprop.cli import main

GRID = ["mlp", "--depth", "2,3", "--width", "8", "--batch", "4", "--init", "he_normal,zeros", "--norm", "none"]


@pytest.fixture(scope="module", params=["csv", "parquet"])
def folder(request, tmp_path_factory) -> Path:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    out = tmp_path_factory.mktemp("sweep")
    command = ["sweep", *GRID, "--out", str(out), "--layers", "--quiet", "--workers", "1"]
    assert main([*command, "--table-format", request.param]) == 0
    assert main(command) == 0  # the rows that the tests hold the others against
    (out / "lines.csv").write_text((out / "summary.csv").read_text())
    if request.param == "parquet":
        (out / "summary.csv").unlink()
    return out


@pytest.fixture
def lines(folder) -> list[dict[str, str]]:
    with (folder / "lines.csv").open() as file:
        return list(csv.DictReader(file))


def test_pandas_has_every_value_and_its_kind(folder, lines):
    pytest.importorskip("pandas")
    frame = open_sweep(folder).to_pandas()
    assert frame["depth"].tolist() == [2, 3, 2, 3]
    assert frame["norm"].tolist() == ["none"] * 4  # a word of ours, not a missing value
    told = [float(line["log_forward_factor"] or "nan") for line in lines]
    assert frame["log_forward_factor"].tolist() == pytest.approx(told, nan_ok=True, rel=0)
    assert len(open_sweep(folder).to_pandas("layers")) == 2 * (4 + 6)


def test_polars_reads_nothing_until_it_is_asked(folder, lines):
    polars = pytest.importorskip("polars")
    lazy = open_sweep(folder).to_polars()
    assert isinstance(lazy, polars.LazyFrame)
    found = lazy.filter(polars.col("depth") == 3).select("init", "verdict").collect().rows()
    assert found == [(line["init"], line["verdict"]) for line in lines if line["depth"] == "3"]
    assert open_sweep(folder).to_polars("layers").select(polars.len()).collect().item() == 2 * (4 + 6)


def test_xarray_has_an_axis_a_setting_that_varies(folder, lines):
    pytest.importorskip("xarray")
    arrays = open_sweep(folder).to_xarray()
    assert dict(arrays.sizes) == {"depth": 2, "init": 2}
    assert (arrays.attrs["network"], arrays.attrs["width"]) == ("mlp", 8)
    for line in lines:
        here = arrays.sel(depth=int(line["depth"]), init=line["init"])
        assert str(here["verdict"].item()) == line["verdict"]
    layers = open_sweep(folder).to_xarray("layers")
    assert dict(layers.sizes) == {"depth": 2, "init": 2, "index": 6}
    short = layers["forward_theory_second_moment"].sel(depth=2, init="he_normal")
    assert short.isnull().values.tolist() == [False] * 4 + [True] * 2


def test_xarray_of_one_point_has_no_axis(tmp_path):
    pytest.importorskip("xarray")
    assert main(["sweep", "mlp", "--depth", "2", "--width", "8", "--out", str(tmp_path), "--workers", "1"]) == 0
    arrays = open_sweep(tmp_path).to_xarray()
    assert not arrays.sizes
    assert arrays["weighted_layers"].item() == 2


@pytest.mark.parametrize("package", ["pandas", "polars", "xarray"])
def test_a_missing_package_is_named_with_its_extra(folder, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}: got not installed.*varprop\[{package}\]"):
        getattr(open_sweep(folder), f"to_{package}")()


def test_a_folder_without_a_sweep_and_a_table_that_is_none(folder, tmp_path):
    with pytest.raises(UserError, match="no table 'summary'"):
        open_sweep(tmp_path)
    with pytest.raises(UserError, match="Did you mean 'layers'"):
        open_sweep(folder).to_polars("layer")
    (tmp_path / "summary.csv").write_text("network,status\n")
    with pytest.raises(UserError, match="--layers"):
        open_sweep(tmp_path).to_pandas("layers")
