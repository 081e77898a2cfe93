"""Figures for papers: tidy tables that draw at both widths, nothing cut off, all of it on disk."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from matplotlib.text import Text

from varprop.cli import main
from varprop.figures.gallery import NAMES, recipe
from varprop.figures.gallery.write import write_figures
from varprop.figures.style import WIDTHS, paper
from varprop.simulator.errors import UserError

SMALL: dict[str, dict[str, object]] = {
    "depth-sweep": {"depths": [2, 4], "trials": 4, "width": 8},
    "initializer-map": {"activations": ["relu", "tanh"], "width": 64},
    "mobilenet-v2": {"trials": 2, "batch": 4},
    "correlation-maps": {"points": 5, "layers": 30},
    "phase-diagram": {"sigma_w2": [0.5, 4.0, 15], "sigma_b2": [0.0, 0.3, 7]},
    "padding-profile": {"sizes": [4, 5], "depth": 3, "trials": 2, "width": 4},
    "truncated-normal": {
        "decay": {"depth": 3, "width": 4, "size": 4, "batch": 2, "trials": 2},
        "saturation": {"fan_in": [1, 4], "units": 500, "beyond": 2.0},
    },
    "saturation": {"depth": 3, "width": 16, "trials": 2, "levels": 5},
    "finite-width": {"widths": [8, 16], "histograms": [8], "depth": 3, "trials": 20},
    "batch-norm-gradients": {"width": 16, "depth": 5, "batches": [4, 8], "batches_depth": 5, "trials": 2},
    "residual-growth": {"width": 16, "blocks": 2, "trials": 2},
    "trainability": {},
    "zero-and-constant-init": {},
    "mobilenet-initializers": {"size": 32, "batch": 8},
    "torch-linear-default": {"width": 16, "depth": 3, "trials": 3},
    "batchnorm-and-l2": {"size": 32, "batch": 8},
    "weight-norms": {"steps": 1000, "dimension": 8},
}


@pytest.fixture
def small(monkeypatch):
    """A figure's recipe with settings that compute in a moment."""

    def build(name: str):
        found = recipe(name)
        for key, value in SMALL[name].items():
            assert key in found.settings
            monkeypatch.setitem(found.settings, key, value)
        return found

    return build


def test_every_figure_has_small_settings() -> None:
    assert set(SMALL) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_draws_from_a_finite_table_and_nothing_is_cut_off(small, name) -> None:
    made = small(name)
    rows = made.compute(0)
    numbers = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert numbers
    assert all(math.isfinite(value) for value in numbers)
    for width in WIDTHS.values():
        with paper():
            figure = made.draw(rows, width)
            figure.draw_without_rendering()
            assert figure.get_size_inches()[0] == pytest.approx(width)
            texts = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
            assert all(text.get_fontsize() >= 6 for text in texts)
            height = figure.get_size_inches()[1]
            box = figure.get_tightbbox()
            assert height <= 7.6  # a page of LaTeX's article class
            assert box.x0 >= -0.01
            assert box.y0 >= -0.01
            assert box.x1 <= width + 0.01
            assert box.y1 <= height + 0.01


def test_the_same_seed_gives_the_same_table_and_another_one_another(small) -> None:
    made = small("finite-width")
    assert made.compute(1) == made.compute(1)
    assert made.compute(1) != made.compute(2)


def test_figures_come_with_their_table_and_provenance(small, tmp_path) -> None:
    made, lines = small("phase-diagram"), []
    folder = tmp_path / "new"
    files = write_figures(
        ["phase-diagram"], folder, formats=["svg", "pdf"], width="column", command=["varprop"], announce=lines.append
    )
    assert {file.name for file in files} == {file.name for file in folder.iterdir()}
    assert len(files) == 4
    assert lines == ["figure 1 of 1: phase-diagram"]
    with (folder / "phase-diagram.csv").open() as table:
        assert len(list(csv.DictReader(table))) == len(made.compute(0))
    origin = json.loads((folder / "phase-diagram.json").read_text())
    assert origin["settings"]["sigma_b2"] == [0.0, 0.3, 7]
    assert origin["settings"]["width"] == "column"
    assert origin["command"] == ["varprop"]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_pgf_compiles_where_pgf_alone_is_loaded(small, tmp_path) -> None:
    """Underscores, colour maps (in files of their own), per cent signs and the ticks of logarithmic axes."""
    names = ["initializer-map", "truncated-normal", "padding-profile"]
    for name in names:
        small(name)
    files = write_figures(names, tmp_path, formats=["pgf"], width="column")
    assert {"initializer-map.pgf", "initializer-map-img0.png"} < {file.name for file in files}
    assert set(files) == set(tmp_path.iterdir())
    figures = "\\newpage\n".join(rf"\noindent\input{{{name}.pgf}}" for name in names)
    text = rf"\documentclass{{article}}\usepackage{{pgf,lmodern}}\begin{{document}}{figures}\end{{document}}"
    (tmp_path / "paper.tex").write_text(text)
    command = ["pdflatex", "-halt-on-error", "paper.tex"]
    told = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, errors="replace").stdout
    assert not re.findall(r".*(?:Warning|Overfull|undefined).*", told)
    assert "(3 pages" in told


@pytest.mark.parametrize(
    "given",
    [
        {"names": ["nothing"]},
        {"formats": ["gif"]},
        {"width": "poster"},
        {"folder": Path("missing/deeper")},
    ],
)
def test_what_cannot_be_drawn_is_refused_before_any_work(tmp_path, monkeypatch, given) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = {"names": ["phase-diagram"], "folder": Path("figures"), **given}
    with pytest.raises(UserError):
        write_figures(arguments.pop("names"), arguments.pop("folder"), **arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_names_the_files_it_wrote(tmp_path, capsys) -> None:
    out = tmp_path / "paper"
    assert main(["figure", "correlation-maps", "--out", str(out), "--figure-format", "svg,png", "--quiet"]) == 0
    told = capsys.readouterr()
    assert {Path(line) for line in told.out.splitlines()} == set(out.iterdir())
    assert told.err == ""


@pytest.mark.parametrize("words", [[], ["--all", "saturation"], ["saturaton"], ["saturation", "--width", "poster"]])
def test_bad_figure_commands_end_with_one_line(words, tmp_path, capsys) -> None:
    assert main(["figure", *words, "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
