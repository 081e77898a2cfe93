"""What a result was made with."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

_DISTRIBUTIONS = ("varprop", "numpy", "scipy", "numba", "matplotlib")


def provenance(command: Sequence[str], settings: object, *also: str) -> Mapping[str, object]:
    """Return what is needed to make a result again: command, settings, versions (of `also` too), commit."""
    return {
        "command": list(command),
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{name: _version(name) for name in (*_DISTRIBUTIONS, *also)},
        },
        "commit": _commit(),
    }


@cache
def source_digest(folder: Path = Path(__file__).parent) -> str:
    """Return a hash of the simulator's own source, generated files included: of all that computes results."""
    digest = hashlib.sha256()
    for file in sorted(folder.rglob("*.py")):
        digest.update(file.relative_to(folder).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


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
