"""Files that are whole or not there, and refused before any work where they cannot be written."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from varprop.simulator.errors import UserError


def require_writable(path: Path, what: str = "--out") -> None:
    """Refuse a file that cannot be written, before any work is done.

    Raises
    ------
    UserError
        The parent folder is missing or read-only, or the path is a folder.
    """
    if not path.parent.is_dir():
        raise UserError(what, path, "a file in a folder that exists", f"make the folder {path.parent} first")
    if path.is_dir():
        raise UserError(what, path, "a file, not a folder")
    special = path.exists() and not path.is_file()
    if not os.access(path if special else path.resolve().parent, os.W_OK):
        raise UserError(what, path, "a folder that can be written to")


def make_folder(path: Path, what: str = "--out") -> None:
    """Make a folder for results unless it is there.

    Raises
    ------
    UserError
        The parent folder is missing or read-only, or the path is a file.
    """
    if not path.parent.is_dir():
        raise UserError(what, path, "a folder whose parent exists", f"make the folder {path.parent} first")
    if path.exists() and not path.is_dir():
        raise UserError(what, path, "a folder, not a file")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UserError(what, path, "a folder that can be written to")
    path.mkdir(exist_ok=True)


def write_whole(path: Path, content: str | bytes) -> None:
    """Write a file so that a crash leaves the old one, or none, but never half of the new one.

    Devices and pipes (/dev/stdout, what a shell makes of >(...)) are written to as they are, links followed.
    """
    raw = content.encode() if isinstance(content, str) else content
    if path.exists() and not path.is_file():
        path.write_bytes(raw)
        return
    with whole_file(path.resolve()) as file:
        file.write(raw)


@contextmanager
def whole_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file to be written piece by piece, which takes its name when all is written."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            yield file
        umask = os.umask(0)
        os.umask(umask)
        Path(name).chmod(0o666 & ~umask)  # mkstemp's files are private, a result is not
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
