"""Fetching the data set from a server of our own: whole, in pieces, broken off, and wrong."""

from __future__ import annotations

import errno
import hashlib
import io
import shutil
import socket
import tarfile
import threading
from collections import namedtuple
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from varprop.cli import main
from varprop.simulator import cifar10, download
from varprop.simulator.download import Archive, fetch_cifar10
from varprop.simulator.errors import UserError

NAMES = [*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin"]


def packed(members):
    """A tar archive of (name, content)."""
    text = io.BytesIO()
    with tarfile.open(fileobj=text, mode="w:gz", compresslevel=1) as tar:
        for name, content in members:
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return text.getvalue()


@pytest.fixture(scope="module")
def content():
    """An archive like the official one: images of one grey, of which a hundred kilobytes are left."""
    file = np.full((10_000, 3073), 7, np.uint8).tobytes()
    return packed([(f"{cifar10.FOLDER}/{name}", file) for name in NAMES])


@pytest.fixture
def server(content):
    """An address that serves the archive; `cut` breaks an answer off, `ranges` says whether parts can be asked for."""

    class Handler(BaseHTTPRequestHandler):
        body, cut, ranges, asked = content, None, True, []

        def do_GET(self):
            wanted = self.headers.get("Range")
            Handler.asked.append(wanted)
            start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and Handler.ranges else 0
            if self.path.endswith("nothing.tar.gz"):
                self.send_error(404)
                return
            if start >= len(Handler.body):
                self.send_error(416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(Handler.body) - start))
            self.end_headers()
            self.wfile.write(Handler.body[start : Handler.cut])

        def log_message(self, *arguments):
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    Handler.url = f"http://127.0.0.1:{web.server_port}/cifar-10-binary.tar.gz"
    yield Handler
    web.shutdown()
    thread.join()
    web.server_close()


def archive(server, **changes):
    values = {"url": server.url, "md5": hashlib.md5(server.body).hexdigest(), "size": len(server.body), "unpacked": 1}
    return Archive(**values | changes)


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_fetched_can_be_read_and_is_not_fetched_twice(server, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(download.fetch_cifar10, "__defaults__", (None, archive(server)))
    target = tmp_path / "data"
    for _ in range(2):
        assert main(["data", "cifar10", "--data-dir", str(target)]) == 0
        assert capsys.readouterr().out == f"{target / cifar10.FOLDER}\n"
    assert server.asked == [None]
    assert listing(target) == [cifar10.FOLDER]
    images, labels = cifar10.read(target, "train", np.array([3, 49_999]))
    assert images.shape == (2, 3, 32, 32)
    assert (images == 7).all()
    assert (labels == 7).all()
    (target / cifar10.FOLDER / NAMES[2]).unlink()
    with pytest.raises(UserError, match=r"data_batch_3.bin: got no such file"):
        fetch_cifar10(target)
    shutil.rmtree(target)


@pytest.mark.parametrize("ranges", [True, False])
def test_a_download_that_breaks_off_goes_on(server, tmp_path, ranges):
    server.cut, server.ranges = 30_000, ranges
    with pytest.raises(UserError, match=r"30,000 bytes, then nothing.*Try again, it goes on where it stopped"):
        fetch_cifar10(tmp_path, archive=archive(server))
    assert listing(tmp_path) == ["cifar-10-binary.tar.gz.part"]
    server.cut = None
    seen = []
    folder = fetch_cifar10(tmp_path, lambda done, total: seen.append((done, total)), archive(server))
    assert server.asked == [None, "bytes=30000-"]
    assert seen[-1] == (len(server.body), len(server.body))
    assert listing(tmp_path) == [cifar10.FOLDER]
    assert listing(folder) == [cifar10.SUM_FILE, *NAMES]
    assert cifar10.origin(tmp_path) == cifar10.origin(folder) == "the official archive"
    (folder / cifar10.SUM_FILE).unlink()
    assert cifar10.origin(tmp_path) == "a copy of unknown origin"
    shutil.rmtree(folder)


def test_a_part_that_is_whole_is_only_checked(server, tmp_path):
    server.body = packed([("other", b"text")])
    (tmp_path / "cifar-10-binary.tar.gz.part").write_bytes(server.body)
    with pytest.raises(UserError, match=r"no such file, expected CIFAR-10's binary version"):
        fetch_cifar10(tmp_path, archive=archive(server))
    assert listing(tmp_path) == ["cifar-10-binary.tar.gz"]


def test_an_archive_put_there_by_hand_is_taken_and_checked(server, tmp_path):
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes(server.body[:-1])
    with pytest.raises(UserError, match=r"binary.tar.gz: got an archive with MD5 \w+, expected \w+. Remove it"):
        fetch_cifar10(tmp_path, archive=archive(server))
    assert listing(tmp_path) == ["cifar-10-binary.tar.gz"]  # it is the user's
    assert server.asked == []


def test_wrong_archives_are_refused_and_leave_nothing(server, tmp_path):
    with pytest.raises(UserError, match=r"MD5 \w+, expected 0. Try again: it will be fetched anew"):
        fetch_cifar10(tmp_path, archive=archive(server, md5="0"))
    assert listing(tmp_path) == []
    for members in ([("../outside", b"x")], [(f"{cifar10.FOLDER}/{NAMES[0]}", b"x")]):
        server.body = packed(members)
        with pytest.raises(UserError):
            fetch_cifar10(tmp_path, archive=archive(server))
        assert listing(tmp_path) == ["cifar-10-binary.tar.gz"]
        assert not (tmp_path.parent / "outside").exists()
        (tmp_path / "cifar-10-binary.tar.gz").unlink()
    server.body = b"no archive"
    with pytest.raises(UserError, match="a tar archive compressed by gzip"):
        fetch_cifar10(tmp_path, archive=archive(server))


def test_no_network_is_a_clear_line(server, tmp_path, monkeypatch, capsys):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/x.tar.gz"
    nowhere = Archive(url, "0", 1, 1)
    monkeypatch.setattr(download.fetch_cifar10, "__defaults__", (None, nowhere))
    assert main(["data", "cifar10", "--data-dir", str(tmp_path)]) == 2
    printed = capsys.readouterr().err
    assert "no answer (" in printed
    assert "or put x.tar.gz into" in printed
    assert printed.count("\n") == 1
    with pytest.raises(UserError, match="404 Not Found"):
        fetch_cifar10(tmp_path, archive=archive(server, url=server.url.replace("cifar-10-binary", "nothing")))
    assert listing(tmp_path) == []


def test_no_space_is_told_before_and_while(server, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        usage = namedtuple("usage", "total used free")
        patch.setattr(shutil, "disk_usage", lambda path: usage(2e8, 1e8, 1e8))
        with pytest.raises(UserError, match=r"100 MB free on .*, expected 354 MB"):
            fetch_cifar10(tmp_path)
    monkeypatch.setattr(tarfile.TarFile, "extractall", full_disk)
    with pytest.raises(UserError, match="no space left on"):
        fetch_cifar10(tmp_path, archive=archive(server))
    assert listing(tmp_path) == ["cifar-10-binary.tar.gz"]


def full_disk(*arguments, **options):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_the_command_refuses(tmp_path, capsys):
    assert main(["data", "cifar100", "--data-dir", str(tmp_path)]) == 2
    assert "Did you mean 'cifar10'?" in capsys.readouterr().err
    assert main(["data", "cifar10", "--data-dir", str(tmp_path / "a" / "b")]) == 2
    assert "a folder whose parent exists" in capsys.readouterr().err
    (tmp_path / "file").touch()
    assert main(["data", "cifar10", "--data-dir", str(tmp_path / "file")]) == 2
    assert "a folder that can be written to" in capsys.readouterr().err
