"""What a wheel holds, and what an import costs."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from pathlib import Path

import pytest

import varprop

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("derivations", "figures", "simulator")
HEAVY = ("numpy", "scipy", "numba", "sympy", "matplotlib", "torch", "rich")


def _tracked() -> set[str]:
    listing = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return {name for name in listing.stdout.splitlines() if (ROOT / name).is_file()}


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="compares with git's list of files")
def test_wheel_holds_the_package_and_nothing_else(tmp_path) -> None:
    """An unlisted subpackage would be missing without a word, and a stray file at the root would be shipped."""
    tracked = _tracked()
    for name in tracked:
        (tmp_path / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "tree" / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(tmp_path)]
    subprocess.run([*command, str(tmp_path / "tree")], check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    code = {name for name in tracked if name.endswith(".py") and name.startswith(ROOMS)}
    data = {name for name in tracked if name.startswith("figures/results/")}  # measured numbers that figures show
    assert shipped == {f"varprop/{name}" for name in code | data | {"__init__.py", "__main__.py", "cli.py", "py.typed"}}


def test_every_public_name_is_what_its_module_has() -> None:
    assert sorted(varprop.__all__) == sorted(varprop._HOME)
    assert dir(varprop) == sorted(varprop.__all__)
    for name, home in varprop._HOME.items():
        assert getattr(varprop, name) is getattr(import_module(f"varprop.simulator.{home}"), name)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = varprop.nothing


def test_command_line_imports_nothing_heavy() -> None:
    code = f"import sys, varprop.cli; print([name for name in {HEAVY} if name in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_simulator_does_not_import_sympy() -> None:
    modules = sorted(
        name.removesuffix("/__init__.py").removesuffix(".py").replace("/", ".")
        for name in (str(path.relative_to(ROOT)) for path in (ROOT / "simulator").rglob("*.py"))
    )
    imports = "; ".join(f"import varprop.{name}" for name in modules)
    code = f"import sys; {imports}; print('sympy' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"


def test_version_and_pins_cover_every_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["version"] == varprop.__version__
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    wanted = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    for requirement in wanted:
        match = re.match(r"[A-Za-z0-9_-]+", requirement)
        assert match is not None
        assert match[0] in pins


def test_ci_runs_what_the_readme_says() -> None:
    commands = [line.strip() for line in (ROOT / "README.md").read_text().splitlines() if ".venv/bin/pytest" in line]
    assert len(commands) == 1
    assert commands[0] in (ROOT / ".ci" / "run").read_text().replace("install -q", "install").splitlines()
