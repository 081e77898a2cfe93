"""Every example in a docstring runs and gives what it says."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULES = sorted(
    "varprop." + ".".join(path.relative_to(ROOT).with_suffix("").parts)
    for room in ("derivations", "figures", "simulator")
    for path in (ROOT / room).rglob("*.py")
    if ">>> " in path.read_text()
)


@pytest.mark.parametrize("module", MODULES)
def test_examples(module) -> None:
    found = doctest.testmod(import_module(module.removesuffix(".__init__")))
    assert found.attempted > 0
    assert found.failed == 0
