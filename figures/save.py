"""A figure on disk, its table and its provenance beside it."""

from __future__ import annotations

import io
import json
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from matplotlib.figure import Figure

from varprop.figures.style import paper
from varprop.simulator.errors import UserError
from varprop.simulator.files import require_writable, write_whole

FORMATS = ("png", "pdf", "svg")
_DISTRIBUTIONS = ("varprop", "numpy", "scipy", "numba", "matplotlib")
_UNDATED: dict[str, dict[str, str | None]] = {
    "png": {"Software": None},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}


def companions(path: Path) -> tuple[Path, Path, Path]:
    """Return the three files of a figure, (figure, tidy table, provenance), if all can be written.

    Raises
    ------
    UserError
        A format that is not known, or a folder that is missing.
    """
    if path.suffix.lstrip(".") not in FORMATS:
        raise UserError("--plot", path, "a file name that ends in ." + ", .".join(FORMATS))
    files = (path, path.with_suffix(".csv"), path.with_suffix(".json"))
    for file in files:
        require_writable(file, "--plot")
    return files


def save(path: Path, draw: Callable[[], Figure], table: str, command: Sequence[str], settings: object) -> None:
    """Draw in the house style and write the figure, FILE.csv and FILE.json.

    Parameters
    ----------
    path
        Ends in one of `FORMATS`.
    draw
        Makes the figure.
    table
        The data behind it, as CSV.
    command
        Words of the command line that asks for it.
    settings
        What the figure depends on, seed included; must be fit for JSON.
    """
    files = companions(path)
    image = io.BytesIO()
    kind = path.suffix.lstrip(".")
    with paper():
        draw().savefig(image, format=kind, metadata=_UNDATED[kind])
    write_whole(files[0], image.getvalue())
    write_whole(files[1], table)
    write_whole(files[2], json.dumps(provenance(command, settings), indent=1, allow_nan=False) + "\n")


def provenance(command: Sequence[str], settings: object) -> Mapping[str, object]:
    """Return what is needed to make a result again: command, settings, versions, commit."""
    return {
        "command": list(command),
        "settings": settings,
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in _DISTRIBUTIONS}},
        "commit": _commit(),
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    """Return the commit that the package runs from; None where it is no checkout of its own."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        return None
    return found.stdout.strip() if found.returncode == 0 else None
