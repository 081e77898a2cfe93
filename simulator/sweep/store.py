"""Results on disk: a file an outcome, written whole, and an index of their checksums.

Any number of processes may share a store. A file is put in place before the index knows of it, so that a crash between
the two leaves an entry that is whole and not yet listed; whatever does not match its checksum is not there.
"""

from __future__ import annotations

import hashlib
import sqlite3
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from varprop.simulator.files import make_folder, write_whole

Answer = TypeVar("Answer")

_WAIT = 60.0  # seconds for another process that writes to the index
_DIGEST = hashlib.sha256().digest_size


class Store:
    """Bytes by key.

    Parameters
    ----------
    folder
        Made if it is missing.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / "index.sqlite"
        make_folder(folder, "store")
        self._ask(lambda index: None)

    def get(self, key: str) -> bytes | None:
        """Return an entry, or None where there is none or it is damaged."""
        try:
            packed = self._file(key).read_bytes()
        except OSError:
            return None
        digest, body = packed[:_DIGEST], packed[_DIGEST:]
        if hashlib.sha256(body).digest() != digest:
            return None
        listed = self._ask(lambda index: index.execute("SELECT digest FROM entries WHERE key = ?", (key,)).fetchone())
        if listed is None:
            self._list(key, digest)  # whole, but its writer did not come to list it
        elif listed[0] != digest:
            return None
        return zlib.decompress(body)

    def put(self, key: str, data: bytes) -> None:
        """Keep an entry."""
        body = zlib.compress(data, 1)
        digest = hashlib.sha256(body).digest()
        file = self._file(key)
        file.parent.mkdir(exist_ok=True)
        write_whole(file, digest + body)
        self._list(key, digest)

    def __len__(self) -> int:
        return int(self._ask(lambda index: index.execute("SELECT COUNT(*) FROM entries").fetchone())[0])

    def _file(self, key: str) -> Path:
        return self._folder / key[:2] / key

    def _list(self, key: str, digest: bytes) -> None:
        self._ask(lambda index: index.execute("INSERT OR REPLACE INTO entries VALUES (?, ?)", (key, digest)))

    def _ask(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        """Ask the index; one that is damaged is begun anew, as the files say all that it knew."""
        try:
            return self._asked(question)
        except sqlite3.OperationalError:
            raise  # locked for a minute, or a full disk: not a matter of its contents
        except sqlite3.DatabaseError:
            for suffix in ("", "-wal", "-shm"):
                Path(f"{self._index}{suffix}").unlink(missing_ok=True)
            return self._asked(question)

    def _asked(self, question: Callable[[sqlite3.Connection], Answer]) -> Answer:
        index = sqlite3.connect(self._index, timeout=_WAIT, isolation_level=None)
        try:
            index.execute("PRAGMA journal_mode = WAL")
            index.execute("CREATE TABLE IF NOT EXISTS entries (key TEXT PRIMARY KEY, digest BLOB NOT NULL)")
            return question(index)
        finally:
            index.close()
