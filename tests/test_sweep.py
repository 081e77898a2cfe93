"""Sweeps: points, summaries, a store that survives anything, and executors of every kind."""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import Executor, Future
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from varprop.cli import main
from varprop.simulator.activations import activation
from varprop.simulator.errors import UserError
from varprop.simulator.mean_field import phase
from varprop.simulator.option_values import read_integers
from varprop.simulator.propagate import Settings, prepare, propagate
from varprop.simulator.provenance import source_digest
from varprop.simulator.sweep import cost
from varprop.simulator.sweep.evaluate import Outcome, evaluate
from varprop.simulator.sweep.executors import _Slurm
from varprop.simulator.sweep.points import Point, points
from varprop.simulator.sweep.run import sweep
from varprop.simulator.sweep.store import Store
from varprop.simulator.sweep.summary import USABLE, summary
from varprop.tests.dying_workers import MARK, dies, dies_once

GRID = ["mlp", "--depth", "2:5:1", "--width", "8,16", "--batch", "8", "--activation", "relu,tanh"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("1,2,5", [1, 2, 5]),
        ("10:50:10", [10, 20, 30, 40, 50]),
        ("1:10:4", [1, 5, 9]),
        ("1:1000:log4", [1, 10, 100, 1000]),
        ("1:100:log12", [1, 2, 3, 4, 5, 8, 12, 19, 28, 43, 66, 100]),
        ("2:8:lin3,5", [2, 5, 8]),
        ("7:7:lin1", [7]),
    ],
)
def test_ranges_of_wholeread_integers(text, numbers):
    assert read_integers("--depth", [text]) == numbers


@pytest.mark.parametrize(
    "text", ["1:2", "1:2:3:4", "9:1:1", "1:9:0", "1:3:log9", "9:1:lin3", "1:x:2", "0:9:log3", "1:9:log"]
)
def test_ranges_that_are_none(text):
    with pytest.raises(UserError, match="--depth"):
        read_integers("--depth", [text])


def test_points_are_the_product_and_keys_tell_them_apart():
    axes = {"framework": ["torch", "keras"], "activation": ["relu", "max(x,0)"], "depth": [1, 2, 3], "seed": [3]}
    found = points(["mlp", "vgg"], axes)
    assert len(found) == 24
    assert [point.settings.depth for point in found[:4]] == [1, 2, 3, 1]
    assert {point.settings.seed for point in found} == {3}
    assert found[0].settings.engines == ("theory",)
    assert len({point.key for point in found}) == 24
    again = points(["mlp", "vgg"], axes)
    assert [point.key for point in again] == [point.key for point in found]
    for other in (points(["mlp", "vgg"], {**axes, "seed": [4]}), points(["mlp", "vgg"], axes, trials=10)):
        assert not {point.key for point in other} & {point.key for point in found}


def test_key_of_a_network_file_is_its_content(tmp_path):
    file = tmp_path / "mine.toml"
    text = 'input_shape = [8]\n[[layers]]\ntype = "linear"\nout_features = 8\n'
    keys = []
    for content in (text, text, text.replace("out_features = 8", "out_features = 9")):
        file.write_text(content)
        keys.append(points([str(file)], {})[0].key)
    assert keys[0] == keys[1] != keys[2]


def test_keys_change_with_the_code(tmp_path, monkeypatch):
    (tmp_path / "room").mkdir()
    digests = []
    for name, text in (("a.py", "1"), ("a.py", "2"), ("room/b.py", ""), ("a.py", "1"), ("notes.txt", "")):
        (tmp_path / name).write_text(text)
        source_digest.cache_clear()
        digests.append(source_digest(tmp_path))
    assert len(set(digests)) == 4
    assert digests[3] == digests[4]
    (point,) = points(["mlp"], {})
    before = point.key
    monkeypatch.setattr("varprop.simulator.sweep.points.source_digest", lambda: digests[0])
    assert point.key != before


MISTAKES = {
    "unknown network": ["sweep", "mlp,mobilenet"],
    "unknown activation": ["sweep", "mlp", "--activation", "relu,rleu"],
    "formula that is none": ["sweep", "mlp", "--activation", "relu,x+"],
    "unknown initializer": ["sweep", "mlp", "--init", "he"],
    "unknown framework": ["sweep", "mlp", "--framework", "jax"],
    "zero depth": ["sweep", "mlp", "--depth", "0"],
    "negative seed": ["sweep", "mlp", "--seed=-1"],
    "learning rate without training": ["sweep", "mlp", "--lr", "0.1"],
    "training without images": ["sweep", "mlp", "--train"],
    "training on noise": ["sweep", "mlp", "--train", "--input", "gaussian", "--data-dir", "."],
    "training of no steps": ["sweep", "mlp", "--train", "--steps", "0"],
    "layers without a folder": ["sweep", "mlp", "--layers"],
    "table format": ["sweep", "mlp", "--table-format", "xls"],
    "scheduler": ["sweep", "mlp", "--depth", "1", "--scheduler", "nowhere"],
    "scheduler that does not answer": ["sweep", "mlp", "--depth", "1", "--scheduler", "tcp://127.0.0.1:9"],
    "slurm where there is none": ["sweep", "mlp", "--depth", "1", "--scheduler", "slurm"],
    "folder in a missing folder": ["sweep", "mlp", "--out", "missing/there"],
    "folder that is a file": ["sweep", "mlp", "--out", "file"],
    "missing network file": ["sweep", "missing.toml"],
    "too many points": ["sweep", "mlp", "--depth", "1:2000:lin2000", "--width", "1:2000:lin2000"],
}


@pytest.mark.parametrize("arguments", MISTAKES.values(), ids=MISTAKES.keys())
def test_a_mistake_is_one_line_and_exit_code_2(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")  # some machines have Slurm
    (tmp_path / "file").write_text("")
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err


def test_what_does_not_fit_together_is_a_row(tmp_path):
    out = tmp_path / "out"
    arguments = ["sweep", "vgg,mlp", "--size", "8,32", "--depth", "2", "--width", "16", "--activation", "relu,exp(x^2)"]
    assert main([*arguments, "--out", str(out), "--workers", "1", "--quiet"]) == 0
    rows = _read(out / "summary.csv")
    assert [row["status"] for row in rows] == ["invalid"] * 4 + ["ok", "ok", "invalid", "invalid"]
    assert "--width" in rows[0]["message"]
    assert "finite Gaussian moments" in rows[-1]["message"]


def _read(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def _row(**settings: object) -> dict[str, object]:
    run = propagate(prepare(Settings(engines=("theory",), **settings)))  # type: ignore[arg-type]
    return dict(summary(run))


def test_where_a_signal_leaves_the_usable_range():
    """Weights of deviation s multiply q by width s^2 / 2 a ReLU layer, but for the finite width's slow drift."""
    width, std, depth = 4096, 0.01, 30
    row = _row(network="mlp", depth=depth, width=width, init=f"normal({std})", batch=4)
    factor = width * std**2 / 2
    expected = 1 + math.ceil((math.log(USABLE) + math.log(2 * factor)) / -math.log(factor) - 1e-9)
    assert abs(int(row["signal_leaves_after"]) - expected) <= 1  # type: ignore[call-overload]
    assert row["trainable_depth"] == pytest.approx(math.log(USABLE) / -math.log(factor), rel=0.01)
    assert "signal vanishes" in str(row["verdict"])
    assert "gradient vanishes" in str(row["verdict"])
    assert row["log_forward_factor"] == pytest.approx(depth * math.log(factor) + math.log(2), rel=1e-6)
    healthy = _row(network="mlp", depth=depth, width=width, batch=4)
    assert healthy["signal_leaves_after"] is None
    assert str(healthy["verdict"]).startswith("healthy")


def test_correlation_depth_of_a_chain():
    """tanh at sigma_w^2 = 2.5 is chaotic: xi_c as mean field has it by quadrature, and 6 of them as a limit."""
    row = _row(network="mlp", depth=6, width=100, activation="tanh", init=f"normal({math.sqrt(2.5 / 100)})", batch=4)
    expected = phase(activation("tanh"), 2.5).xi_c
    assert expected is not None
    assert row["correlation_depth"] == pytest.approx(expected, rel=1e-2)
    assert float(row["trainable_depth"]) <= 6 * float(row["correlation_depth"])  # type: ignore[arg-type]
    assert _row(network="resnet", depth=1, size=8, batch=4)["correlation_depth"] is None


def test_batch_normalised_gradients_explode():
    """pi / (pi - 1) a layer (Yang 2019): a plain BN net of ReLU leaves the range within 36 layers."""
    row = _row(network="mlp", depth=45, width=512, norm="batch", batch=128)
    assert row["signal_leaves_after"] is None
    expected = math.log(USABLE) / math.log(math.pi / (math.pi - 1))
    assert abs(int(row["gradient_leaves_after"]) - expected) <= 4  # type: ignore[call-overload]
    assert "gradient explodes" in str(row["verdict"])


def test_monte_carlo_beside_theory():
    (point,) = points(["mlp"], {"depth": [3], "width": [32], "batch": [8]}, trials=20)
    row = evaluate(point).row
    assert row["agrees"] is True
    assert row["monte_carlo_log_forward_factor"] == pytest.approx(row["log_forward_factor"], abs=0.5)


def test_store_gives_back_what_it_got(tmp_path):
    store = Store(tmp_path / "store")
    assert store.get("ab12") is None
    store.put("ab12", b"first")
    store.put("ab12", b"second")
    store.put("cd34", b"")
    assert (store.get("ab12"), store.get("cd34"), len(store)) == (b"second", b"", 2)
    assert Store(tmp_path / "store").get("ab12") == b"second"


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "deleted", "of another"])
def test_a_damaged_entry_is_not_there(tmp_path, damage):
    store = Store(tmp_path)
    store.put("ab12", b"x" * 1000)
    store.put("ab99", b"y")
    file = tmp_path / "ab" / "ab12"
    data = file.read_bytes()
    if damage == "deleted":
        file.unlink()
    elif damage == "of another":
        file.write_bytes((tmp_path / "ab" / "ab99").read_bytes())
    else:
        file.write_bytes({"cut": data[:-3], "flipped": data[:-1] + bytes([data[-1] ^ 1]), "empty": b""}[damage])
    assert store.get("ab12") is None
    store.put("ab12", b"again")
    assert store.get("ab12") == b"again"


def test_a_store_that_is_a_file_is_refused(tmp_path):
    (tmp_path / "store").write_text("")
    with pytest.raises(UserError, match="expected a folder, not a file"):
        Store(tmp_path / "store")


def test_an_entry_whose_writer_died_before_listing_it_is_there(tmp_path):
    store = Store(tmp_path)
    store.put("ab12", b"kept")
    with sqlite3.connect(tmp_path / "index.sqlite") as index:
        index.execute("DELETE FROM entries")
    assert store.get("ab12") == b"kept"
    assert len(store) == 1


def test_a_damaged_index_is_begun_anew(tmp_path):
    Store(tmp_path).put("ab12", b"kept")
    for suffix in ("-wal", "-shm"):
        (tmp_path / f"index.sqlite{suffix}").unlink(missing_ok=True)
    (tmp_path / "index.sqlite").write_bytes(b"no database" * 1000)
    store = Store(tmp_path)
    assert store.get("ab12") == b"kept"
    assert len(store) == 1


def test_a_damaged_point_is_computed_again(tmp_path):
    grid = points(["mlp"], {"depth": [2, 3], "width": [8], "batch": [4]})
    store = Store(tmp_path)
    first = sweep(grid, store=store)
    file = tmp_path / grid[1].key[:2] / grid[1].key
    whole = file.read_bytes()
    file.write_bytes(whole[:40])
    assert sweep(grid, store=store) == first
    assert file.read_bytes() == whole


def _command(out: Path, *more: str) -> list[str]:
    return [sys.executable, "-m", "varprop", "sweep", *GRID, "--out", str(out), "--layers", "--quiet", *more]


def _tables(out: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in out.glob("*.csv")}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(_command(out, "--workers", "1"), check=True)
    return _tables(out)


def test_killed_and_run_again_the_table_is_the_same(undisturbed, tmp_path):
    """kill -9 of the sweep and its workers, at moments when some points are done; twice, then to the end."""
    out = tmp_path / "out"
    for enough in (3, 9):
        process = subprocess.Popen(_command(out, "--workers", "2"), start_new_session=True)
        deadline = time.monotonic() + 60
        while len(list(out.glob("store/*/*"))) < enough and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.002)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    kept = len(list(out.glob("store/*/*")))
    assert kept >= 3
    subprocess.run(_command(out, "--workers", "2"), check=True)
    assert _tables(out) == undisturbed
    assert set(undisturbed) == {"summary.csv", "layers.csv"}


def test_workers_leave_with_a_sweep_that_is_killed(tmp_path):
    process = subprocess.Popen(_command(tmp_path / "out", "--depth", "200", "--workers", "2"))
    try:
        deadline = time.monotonic() + 60
        while len(children := _children(process.pid)) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()
    assert len(children) >= 2
    deadline = time.monotonic() + 20
    while any(map(_alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(_alive, children))


def test_an_interruption_ends_at_once_without_tracebacks(tmp_path):
    command = _command(tmp_path / "out", "--depth", "300", "--workers", "2")
    # Jobs that a script puts into the background ignore Ctrl-C, and so does what they start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, before)
    deadline = time.monotonic() + 60
    while not list((tmp_path / "out").glob("store/*/*")) and time.monotonic() < deadline:
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in said


def _children(pid: int) -> list[int]:
    return [int(child) for file in Path(f"/proc/{pid}/task").glob("*/children") for child in file.read_text().split()]


def _alive(pid: int) -> bool:
    status = Path(f"/proc/{pid}/status")
    return status.exists() and "zombie" not in status.read_text()


def test_two_processes_on_one_store(undisturbed, tmp_path):
    out = tmp_path / "out"
    both = [subprocess.Popen(_command(out, "--workers", "1")) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert _tables(out) == undisturbed
    assert len(Store(out / "store")) == 16


def test_a_lost_worker_process_costs_nothing(tmp_path, monkeypatch):
    grid = points(["mlp"], {"depth": list(range(2, 6)), "width": [8], "batch": [4]})
    monkeypatch.setenv(MARK, str(tmp_path / "died"))
    monkeypatch.setattr("varprop.simulator.sweep.run.evaluate_all", dies_once)
    assert sweep(grid, workers=2) == [evaluate(point) for point in grid]
    assert (tmp_path / "died").exists()


def test_workers_that_always_die_are_reported(monkeypatch):
    monkeypatch.setattr("varprop.simulator.sweep.run.evaluate_all", dies)
    with pytest.raises(UserError, match="workers that die"):
        sweep(points(["mlp"], {"depth": [2], "width": [8], "batch": [4]}))


@pytest.mark.parametrize(("losses", "status"), [(3, "ok"), (4, "failed")])
def test_a_point_that_a_cluster_loses_is_sent_again(monkeypatch, tmp_path, losses, status):
    """And called failed, and not kept, when it is lost once too often."""

    class Lossy(Executor):
        sent = 0

        def submit(self, function, /, *args, **kwargs):  # type: ignore[no-untyped-def]
            self.sent += 1
            future: Future[list[Outcome]] = Future()
            if self.sent <= losses:
                future.set_exception(ConnectionError("lost"))
            else:
                future.set_result(function(*args, **kwargs))
            return future

    monkeypatch.setattr("varprop.simulator.sweep.run.executor", lambda *_: nullcontext((Lossy(), 1, 1)))
    store = Store(tmp_path)
    (outcome,) = sweep(points(["mlp"], {"depth": [2], "width": [8], "batch": [4]}), store=store)
    assert outcome.status == status
    assert len(store) == (status == "ok")


def test_points_are_dealt_to_no_more_tasks_than_a_cluster_takes(monkeypatch):
    """Each task has long points and short ones, and the result has the order of the points."""
    sent: list[list[int | None]] = []

    class Few(Executor):
        def submit(self, function, points, /):  # type: ignore[no-untyped-def,override]
            sent.append([point.settings.depth for point in points])
            future: Future[list[Outcome]] = Future()
            future.set_result(function(points))
            return future

    monkeypatch.setattr("varprop.simulator.sweep.run.executor", lambda *_: nullcontext((Few(), math.inf, 2)))
    grid = points(["mlp"], {"depth": [1, 2, 3, 4, 5], "width": [8], "batch": [4]})
    assert sweep(grid) == [evaluate(point) for point in grid]
    assert sent == [[5, 3, 1], [4, 2]]


def test_an_error_of_ours_is_a_failed_row_that_is_not_kept(tmp_path, monkeypatch):
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("division by zero")

    (point,) = points(["mlp"], {"depth": [2]})
    monkeypatch.setattr("varprop.simulator.sweep.evaluate.propagate", broken)
    outcome = evaluate(point)
    assert (outcome.status, outcome.message) == ("failed", "ZeroDivisionError: division by zero")


def test_dry_run_says_how_many_and_how_long(tmp_path, capsys):
    arguments = ["sweep", "mlp", "--depth", "2,4", "--width", "8", "--batch", "4", "--out", str(tmp_path / "out")]
    assert main([*arguments, "--dry-run", "--format", "json"]) == 0
    before = json.loads(capsys.readouterr().out)
    assert (before["points"], before["kept"]) == (2, 0)
    assert 0 < before["seconds"] < 60
    assert main([*arguments, "--workers", "1"]) == 0
    assert main([*arguments, "--dry-run"]) == 0
    assert "2 kept" in capsys.readouterr().out


def test_cost_model_recovers_what_depends_on_the_kind_of_point():
    """Of three kinds, each with a price of its own, a few points tell the sum of all; so of training's two prices."""
    rng = np.random.default_rng(0)
    price = np.repeat([3e-3, 5e-4, 1e-4], 40)
    work = np.zeros((120, 4))
    work[:, 0] = rng.uniform(10, 300, 120)
    work[:, 2], work[:, 3] = 100 * work[:, 0], rng.uniform(1e9, 1e10, 120)
    places = cost.chosen_places(work[:, 0], 16)
    assert {*places // 40} == {0, 1, 2}
    short = work[places] / [2, 1, 5, 9]
    rates = np.array([2e-4, 3e-10])
    seconds = np.column_stack([price[places] * short[:, 0], np.zeros(len(places)), short[:, 2:] @ rates])
    exact = price * work[:, 0] + work[:, 2:] @ rates
    assert cost.extrapolated(work, places, short, seconds) == pytest.approx(exact, rel=0.35)
    assert cost.extrapolated(work, places, short, seconds).sum() == pytest.approx(exact.sum(), rel=0.05)


def test_estimates_of_points_that_differ_in_price(monkeypatch):
    """What a node costs depends on the network and the activation here; points with no network cost nothing."""
    grid = points(["plain_conv", "mlp"], {"depth": [3, 10, 40, 200_000], "activation": ["relu", "tanh"]}, trials=9)

    def law(point: Point) -> tuple[float, ...]:
        settings, (nodes, products, *_) = point.settings, cost._work(point)
        price = {"plain_conv": 5e-3, "mlp": 1e-3}[settings.network] * {"relu": 1.0, "tanh": 1.5}[settings.activation]
        return price * nodes, 1e-9 * products, 0.0

    monkeypatch.setattr(cost, "_measured", lambda few, workers: [law(point) for point in few])
    exact = sum(sum(law(point)) for point in grid)
    assert cost.estimate(grid, 1) == pytest.approx(exact, rel=0.05)
    assert cost.estimate(grid, 2) == pytest.approx(exact / 2, rel=0.05)


def test_parquet_holds_what_csv_does(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    for form in ("csv", "parquet"):
        arguments = ["sweep", *GRID, "--out", str(tmp_path / "out"), "--layers", "--table-format", form, "--quiet"]
        assert main([*arguments, "--workers", "2"]) == 0
    for name in ("summary", "layers"):
        rows = parquet.read_table(tmp_path / "out" / f"{name}.parquet").to_pylist()
        lines = _read(tmp_path / "out" / f"{name}.csv")
        assert [{key: "" if value is None else str(value) for key, value in row.items()} for row in rows] == lines


def test_sweep_to_stdout(capsys):
    arguments = ["sweep", "mlp", "--depth", "2,3", "--width", "8", "--batch", "4", "--workers", "1"]
    assert main([*arguments, "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["schema"] == "varprop.sweep/1"
    assert [point["depth"] for point in data["points"]] == [2, 3]
    assert main([*arguments, "--format", "csv"]) == 0
    assert len(list(csv.DictReader(capsys.readouterr().out.splitlines()))) == 2
    assert main(arguments) == 0
    assert "verdict" in capsys.readouterr().out


def _await_connection(address: str) -> None:
    host, port = address.removeprefix("tcp://").split(":")
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
        except OSError:
            time.sleep(0.2)
        else:
            return


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.mark.slow
def test_dask_goes_on_when_a_worker_is_killed(tmp_path):
    """A real scheduler and two worker processes; one is killed once points are done, and none is missing in the end."""
    pytest.importorskip("distributed")
    address = f"tcp://127.0.0.1:{_free_port()}"
    environment = {**os.environ, "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    quiet: dict[str, object] = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "env": environment}
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler"]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    processes = [
        subprocess.Popen([*scheduler, "--host", address, "--no-dashboard"], **quiet)  # type: ignore[call-overload]
    ]
    try:
        for name in ("first", "second"):
            command = [*worker, "--no-dashboard", "--name", name, "--local-directory", str(tmp_path / name)]
            processes.append(subprocess.Popen(command, **quiet))  # type: ignore[call-overload]
        _await_connection(address)
        grid = points(["mlp"], {"depth": list(range(2, 32)), "width": [64], "batch": [16]})
        killed = []

        def kill_one(done: int, total: int) -> None:
            if done > 2 and not killed:
                processes[1].kill()
                killed.append(done)

        found = sweep(grid, store=Store(tmp_path / "store"), scheduler=address, progress=kill_one)
        assert killed
        assert killed[0] < len(grid) - 10
        assert found == [evaluate(point) for point in grid]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_slurm_jobs_are_futures(tmp_path):
    """With submitit's own local jobs in Slurm's place."""
    pytest.importorskip("submitit")
    pool = _Slurm(tmp_path, cluster="local")
    with pytest.raises(Exception, match="ZeroDivisionError"):
        pool.submit(divmod, 1, 0).result(timeout=60)


def test_a_sweep_through_slurm_is_kept_like_any_other(tmp_path, monkeypatch):
    """The whole path, jobs local again: points become jobs, their outcomes go to the store and come back from it."""
    pytest.importorskip("submitit")
    monkeypatch.setattr("varprop.simulator.sweep.executors._Slurm", partial(_Slurm, cluster="local"))
    out = tmp_path / "out"
    arguments = ["sweep", "mlp", "--depth", "2,3", "--width", "8", "--batch", "4", "--out", str(out), "--quiet"]
    assert main([*arguments, "--scheduler", "slurm"]) == 0
    table = (out / "summary.csv").read_bytes()
    assert len(list((out / "slurm").glob("*_result.pkl"))) == 2
    assert len(Store(out / "store")) == 2
    assert main([*arguments, "--scheduler", "nowhere"]) == 0  # nothing is left to be run
    arguments[arguments.index(str(out))] = str(tmp_path / "here")
    assert main([*arguments, "--workers", "1"]) == 0
    assert (tmp_path / "here" / "summary.csv").read_bytes() == table
