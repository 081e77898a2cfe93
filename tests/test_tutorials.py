"""The tutorials run as they stand, and print what their text says they do."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "tutorials"
PRINTED = {
    "what_if_sweep": ["glorot_normal", "trainable depth", "healthy"],
    "paper_figure": ["gradients.csv gradients.json gradients.pdf phase-diagram.csv"],
    "derivation_export": ["holds", "latex: relu.tex"],
    "own_activation": ["gain = ", "they agree"],
    "own_network": ["branch.bn", "head"],
}


def test_every_tutorial_is_run() -> None:
    assert {path.stem for path in FOLDER.glob("*.py")} == set(PRINTED)


@pytest.mark.parametrize("name", PRINTED)
def test_tutorial(name, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    runpy.run_path(str(FOLDER / f"{name}.py"), run_name="__main__")
    told = capsys.readouterr().out
    assert all(text in told for text in PRINTED[name])
    assert "FAILS" not in told
