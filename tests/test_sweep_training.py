"""Sweeps whose points are trained, too."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from varprop.cli import main
from varprop.simulator.sweep.evaluate import evaluate
from varprop.simulator.sweep.points import points
from varprop.simulator.sweep.training import Training

pytest.importorskip("torch")

QUICK = ["--batch", "16", "--subset", "40", "--epochs", "2", "--lr", "0.05", "--device", "cpu"]
GRID = ["mlp", "--depth", "2,3", "--width", "12", "--size", "8", "--seed", "0,1,2,3"]


def _command(out: Path, data_dir: Path, *more: str) -> list[str]:
    return ["sweep", *GRID, "--train", *QUICK, "--data-dir", str(data_dir), "--out", str(out), "--quiet", *more]


def _rows(file: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(file.read_text().splitlines()))


def test_a_point_is_trained_as_the_train_command_does(data_dir, tmp_path, capsys):
    command = ["plain_conv", "--depth", "2", "--width", "4", "--size", "8", "--seed", "3", *QUICK]
    command += ["--momentum", "0.5", "--l2", "0.01", "--data-dir", str(data_dir)]
    assert main(["sweep", *command, "--train", "--format", "json", "--workers", "1", "--quiet"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["points"]
    assert main(["train", *command, "--out", str(tmp_path / "run"), "--quiet"]) == 0
    last = _rows(tmp_path / "run" / "seed-3" / "epochs.csv")[-1]
    found = [row[name] for name in ("training_loss", "training_accuracy", "validation_loss", "validation_accuracy")]
    told = [float(last[name]) for name in ("loss", "accuracy", "validation_loss", "validation_accuracy")]
    assert found == pytest.approx(told, rel=1e-5)
    assert (row["diverged"], row["input"], row["lr"], row["epochs"]) == (False, "cifar10", 0.05, 2)
    assert row["verdict"]


def test_what_explodes_is_said_to_diverge(data_dir, tmp_path, capsys):
    """At a hundred times the critical deviation theory says so, and the loss of the same net is no number."""
    command = ["mlp", "--depth", "20", "--width", "16", "--size", "8", "--init", "he_normal,he_normal(gain=141)"]
    command += ["--train", *QUICK, "--data-dir", str(data_dir), "--workers", "1", "--quiet"]
    assert main(["sweep", *command, "--format", "json"]) == 0
    healthy, exploding = json.loads(capsys.readouterr().out)["points"]
    assert (healthy["diverged"], exploding["diverged"]) == (False, True)
    assert "signal explodes" in exploding["verdict"]
    assert exploding["training_loss"] is None
    assert main(["sweep", *command]) == 0
    assert "diverged" in capsys.readouterr().out


def test_keys_tell_trainings_apart(data_dir):
    kinds = [None, Training(subset=40), Training(subset=40, lr=0.2), Training(subset=41), Training(subset=40, steps=3)]
    found = [points(["mlp"], {"size": [8]}, data_dir=data_dir, training=training)[0].key for training in kinds]
    assert len(set(found)) == len(kinds)


def test_killed_and_run_again_the_table_is_the_same(data_dir, tmp_path):
    assert main(_command(tmp_path / "undisturbed", data_dir, "--workers", "1")) == 0
    out = tmp_path / "out"
    words = [sys.executable, "-m", "varprop", *_command(out, data_dir, "--workers", "2")]
    process = subprocess.Popen(words, start_new_session=True)
    deadline = time.monotonic() + 120
    while len(list(out.glob("store/*/*"))) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    kept = len(list(out.glob("store/*/*")))
    assert 2 <= kept < 8
    subprocess.run(words, check=True)
    table = (out / "summary.csv").read_bytes()
    assert table == (tmp_path / "undisturbed" / "summary.csv").read_bytes()
    rows = _rows(out / "summary.csv")
    assert len(rows) == 8
    assert len({row["training_loss"] for row in rows}) == 8


def test_an_error_of_the_machine_is_not_kept(data_dir, monkeypatch):
    """Memory that another process uses today is there tomorrow."""
    import torch

    def broken(*_: object, **__: object) -> None:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("varprop.simulator.torch_backend.training.Run", broken)
    (point,) = points(["mlp"], {"size": [8]}, data_dir=data_dir, training=Training(subset=40))
    assert evaluate(point).status == "failed"


def test_work_counts_steps_and_images():
    """3 batches of 16 make an epoch of 40 images; 8 of the test set follow it, forward only."""
    assert Training(subset=40, epochs=2).work(16) == (6, 6 * 16 * 3 + 2 * 8)
    assert Training(subset=40, epochs=2, steps=4).work(16) == (4, 4 * 16 * 3 + 2 * 8)
    assert Training(epochs=1, steps=5).work(32) == (5, 5 * 32 * 3 + 10_000)
