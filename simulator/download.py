"""Fetching CIFAR-10: resumed where it broke off, checked, unpacked whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import shutil
import tarfile
import tempfile
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

import numpy as np

from varprop.simulator import cifar10
from varprop.simulator.errors import UserError

Progress = Callable[[int, int], None]
"""Called with bytes there and bytes in all."""


@dataclass(frozen=True, slots=True)
class Archive:
    """A file in the net: its address, its MD5 sum, and bytes before and after unpacking."""

    url: str
    md5: str
    size: int
    unpacked: int

    @property
    def name(self) -> str:
        """File name, the address's last part."""
        return self.url.rpartition("/")[2]


CIFAR10 = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
    "c32a1d4ab5d03f1284b67883e8d87530",
    170_052_171,
    184_380_000,
)

_CHUNK = 2**20
_PATIENCE = 30.0  # seconds without a byte


def fetch_cifar10(data_dir: Path, progress: Progress | None = None, archive: Archive = CIFAR10) -> Path:
    """Fetch and unpack CIFAR-10 unless it is there.

    Parameters
    ----------
    data_dir
        Where the folder goes; made if its parent exists. An archive that was put there by hand is taken.
    progress
        Called as the archive arrives.
    archive
        What to fetch.

    Returns
    -------
    Path
        The folder with the binary files.

    Raises
    ------
    UserError
        No network, no space, no permission, or an archive with another MD5 sum. What has arrived so far stays as
        ``NAME.part``, and the next call goes on from there.
    """
    if not data_dir.parent.is_dir():
        raise UserError("--data-dir", data_dir, "a folder whose parent exists", f"make {data_dir.parent} first")
    folder = data_dir / cifar10.FOLDER
    with _told(data_dir):
        if folder.exists():
            _check(data_dir)
            return folder
        data_dir.mkdir(exist_ok=True)
        packed, part = data_dir / archive.name, data_dir / f"{archive.name}.part"
        if not packed.exists():
            here = part.stat().st_size if part.exists() else 0
            _require_space(data_dir, archive.size - here + archive.unpacked)
            _download(archive, part, progress)
            _require_md5(part, archive, "try again: it will be fetched anew")
            part.replace(packed)
        _require_md5(packed, archive, "remove it")
        _require_space(data_dir, archive.unpacked)
        _unpack(packed, folder, archive.md5)
        packed.unlink()
    return folder


@contextmanager
def _told(data_dir: Path) -> Iterator[None]:
    """Turn what the system says about the disk into a user's error."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise UserError("--data-dir", f"no space left on {data_dir}", "room for CIFAR-10", "free some") from None
        raise UserError("--data-dir", f"{data_dir}: {error.strerror}", "a folder that can be written to") from None


def _require_space(data_dir: Path, needed: int) -> None:
    free = shutil.disk_usage(data_dir).free
    if free < needed:
        raise UserError(
            "--data-dir",
            f"{free / 1e6:,.0f} MB free on {data_dir}",
            f"{needed / 1e6:,.0f} MB",
            "free some, or name another folder",
        )


def _require_md5(path: Path, archive: Archive, do: str) -> None:
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "md5").hexdigest()
    if found != archive.md5:
        if path.suffix == ".part":
            path.unlink()  # of no use to anybody
        raise UserError(str(path), f"an archive with MD5 {found}", archive.md5, do)


def _download(archive: Archive, part: Path, progress: Progress | None) -> None:
    """Fetch what `part` lacks, to its end."""
    here = part.stat().st_size if part.exists() else 0
    request = urllib.request.Request(archive.url, headers={"Range": f"bytes={here}-"} if here else {})
    advice = f"try again, it goes on where it stopped; or put {archive.name} into {part.parent} yourself"
    try:
        with urllib.request.urlopen(request, timeout=_PATIENCE) as answer:
            resumed = answer.status == 206
            here = here if resumed else 0
            total = here + int(answer.headers.get("Content-Length", archive.size - here))
            with part.open("ab" if resumed else "wb") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    here += len(chunk)
                    if progress is not None:
                        progress(here, total)
        if here < total:
            raise UserError(archive.url, f"{here:,} bytes, then nothing", f"{total:,} bytes", advice)
    except urllib.error.HTTPError as error:
        if error.code != 416:  # nothing is left to send: the sum decides
            raise UserError(archive.url, f"{error.code} {error.reason}", "the archive", advice) from None
    except (urllib.error.URLError, HTTPException, TimeoutError, ConnectionError) as error:
        reason = getattr(error, "reason", None) or error
        raise UserError(archive.url, f"no answer ({reason})", "the archive", advice) from None


def _unpack(packed: Path, folder: Path, md5: str) -> None:
    """Unpack beside the folder, check, and then give it its name."""
    scratch = Path(tempfile.mkdtemp(prefix=f".{folder.name}.", dir=folder.parent))
    try:
        with tarfile.open(packed, "r:gz") as tar:
            tar.extractall(scratch, filter="data")
        _check(scratch)
        (scratch / folder.name / cifar10.SUM_FILE).write_text(md5 + "\n")
        (scratch / folder.name).replace(folder)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise UserError(str(packed), f"{error}", "a tar archive compressed by gzip", "remove it") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _check(data_dir: Path) -> None:
    """Raise UserError unless all files are there."""
    nothing = np.empty(0, np.intp)
    cifar10.read(data_dir, "train", nothing)
    cifar10.read(data_dir, "test", nothing)
