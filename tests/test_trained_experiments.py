"""Training the experiments, cut down to seconds: what is predicted exactly holds exactly, and the face."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

pytest.importorskip("torch")

import torch

from varprop.cli import main
from varprop.simulator.errors import UserError
from varprop.simulator.experiments import train
from varprop.simulator.experiments.mobilenet_initializers import GLOROT, HE
from varprop.simulator.experiments.outcome import Outcome, Trained, extended
from varprop.simulator.experiments.trained import (
    batchnorm_and_l2,
    mobilenet_initializers,
    torch_linear_default,
    truncated_normal,
    zero_and_constant_init,
)
from varprop.simulator.experiments.trained.runs import Difference, Options, difference
from varprop.simulator.torch_backend.data import Labelled, TrainingData


@pytest.fixture(autouse=True)
def images(monkeypatch) -> None:
    """Random images in place of CIFAR-10's, and a few steps of each training."""

    def fake(data_dir, count):
        rng = np.random.default_rng(0)
        coarse = rng.integers(0, 256, (2 * count, 3, 8, 8), np.uint8)
        smooth = torch.from_numpy(np.repeat(np.repeat(coarse, 4, 2), 4, 3))
        labels = torch.from_numpy(rng.integers(0, 10, 2 * count))
        train, validation = (Labelled(smooth[part], labels[part]) for part in (slice(count), slice(count, None)))
        return TrainingData(train, validation, "random images")

    for module in (batchnorm_and_l2, mobilenet_initializers, torch_linear_default, truncated_normal):
        monkeypatch.setattr(module, "cifar10_data", fake)
    for module, images in ((batchnorm_and_l2, 96), (truncated_normal, 96), (torch_linear_default, 320)):
        monkeypatch.setattr(module, "QUICK_IMAGES", images)
        monkeypatch.setattr(module, "QUICK_EPOCHS", 1)
    monkeypatch.setattr(batchnorm_and_l2, "QUICK_RECORDED", 1)
    monkeypatch.setattr(zero_and_constant_init, "SIZE", 16)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Bitwise the same on any machine, and faster for small maps."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def rows(trained: Trained, name: str) -> list[dict[str, object]]:
    (section,) = (section for section in trained.sections if section.name == name)
    return [dict(row) for row in section.rows]


def test_without_batch_norm_only_decay_moves_the_weights() -> None:
    """And with it norms follow from the gradients' sizes: exactly so where every step is recorded."""
    found = train("batchnorm-and-l2", Options(quick=True, seeds=1))
    (dead,) = rows(found, "dead")
    assert dead["logits at the start"] < 1e-9
    assert dead["largest gradient / decay"] < 1e-6
    assert dead["largest difference from pure decay"] < dead["rounding allows"] < 1e-6
    moved = rows(found, "moved")
    assert {row["role"] for row in moved} == {"conv", "expand", "depthwise", "project"}
    for row in moved:
        assert row["predicted"] == pytest.approx(row["growth"], rel=0.1)
        assert row["predicted angle"] > 0
    assert "within float32's rounding" in found.verdict[0]
    assert "NOT" not in found.verdict[0]


def test_zero_start_stays_and_constant_start_keeps_one_filter(monkeypatch) -> None:
    from varprop.simulator.experiments import zero_and_constant_init as predicted

    monkeypatch.setattr(predicted, "SIZE", 16)
    found = train("zero-and-constant-init", Options(quick=True, seeds=1))
    assert not found.quick
    for row in rows(found, "traces"):
        if row["start"] == "zero":
            assert row["conv1 mean"] == row["conv1 variance"] == row["conv2 mean"] == row["conv2 variance"] == 0
            assert row["loss"] is None or row["loss"] == pytest.approx(math.log(3), abs=1e-6)
    filters = {(row["start"], row["loop"]): row for row in rows(found, "filters")}
    for loop in ("cleared", "added up"):
        assert (filters["constant 5", loop]["conv1"], filters["constant 5", loop]["conv2"]) == (1, 2)
        assert (filters["kaiming normal", loop]["conv1"], filters["kaiming normal", loop]["conv2"]) == (3, 3)
    bare = [row["loss"] for row in rows(found, "traces") if row["start"] == "zero, one bare conv"]
    assert bare[1] < bare[0]
    assert len(found.data["traces"]) == 8


def test_truncation_lowers_the_signal_as_predicted() -> None:
    found = train("truncated-normal", Options(quick=True, seeds=2))
    full, lost = rows(found, "trained")
    ratio = lost["second moment at the start"] / full["second moment at the start"]
    assert ratio == pytest.approx(0.77374130355**24, rel=1e-4)  # float32
    assert len(rows(found, "curves")) == 1


def test_a_run_that_is_too_short_to_learn_says_so() -> None:
    say = truncated_normal.guessing
    (both,) = say({"he_normal": 2.301, "truncated_normal": 2.302}, 2)
    assert "he_normal and truncated_normal still guess after 2 epochs" in both
    assert "says nothing" in both
    (one,) = say({"he_normal": 1.9, "truncated_normal": 2.302}, 10)
    assert "truncated_normal still guesses" in one
    assert "nothing" not in one
    assert say({"he_normal": 1.9, "truncated_normal": 2.1}, 10) == []


def test_torch_linear_default() -> None:
    found = train("torch-linear-default", Options(quick=True, seeds=1))
    torch_rule, article = rows(found, "trained")
    assert torch_rule["first layer's gradient at the start"] > 2 * article["first layer's gradient at the start"]
    assert found.quick
    outcome = extended(Outcome("x", (), ("predicted",)), found)
    assert outcome.data["quick"] is True
    assert outcome.sections[0].title.startswith("quick, ")
    assert outcome.verdict[0] == "predicted"
    assert outcome.verdict[1].startswith("quick, ")


@pytest.mark.slow
def test_mobilenet_initializers(monkeypatch) -> None:
    monkeypatch.setattr(mobilenet_initializers, "QUICK_IMAGES", 64)
    monkeypatch.setattr(mobilenet_initializers, "QUICK_EPOCHS", 1)
    found = train("mobilenet-initializers", Options(quick=True, seeds=1))
    assert [row["run"] for row in rows(found, "trained")] == [
        "random_normal",
        "glorot_normal",
        "he_normal",
        "lecun_normal",
    ]
    assert [row["steps"] for row in rows(found, "trained")] == [2] * 4
    assert "he_normal" in found.verdict[0]


def test_a_difference_has_its_error() -> None:
    found = difference([0.5, 0.6, 0.7], [0.4, 0.4, 0.4])
    assert found.mean == pytest.approx(20)
    assert found.error == pytest.approx(10 / math.sqrt(3))
    assert found.z_of(20.0) == pytest.approx(0)
    assert str(found) == "20.0 +- 5.8 points over 3 seeds"
    assert "noise" not in found.judged()
    assert "noise" in Difference(1.0, 10.0, 4).judged()
    assert difference([0.5], [0.4]).error is None
    assert difference([0.5], [0.4]).z_of(1.0) is None


def test_sentences_follow_the_numbers() -> None:
    say = mobilenet_initializers.sentence
    assert "he_normal loses to glorot_normal by 1.1 +- 0.6 points over 4 seeds" in say(
        HE, GLOROT, "validation", Difference(-1.1, 1.2, 4), quick=False
    )
    assert "more than the spread" in say(HE, GLOROT, "validation", Difference(-1.1, 1.2, 4), quick=False)
    assert "which the spread" in say(HE, GLOROT, "validation", Difference(-6.0, 4.0, 4), quick=False)
    assert "in training he_normal loses to glorot_normal by 1.0" in say(
        HE, GLOROT, "train", Difference(-1.0, 1.2, 4), quick=False
    )
    assert "beats" in say(HE, GLOROT, "validation", Difference(2.0, 1.2, 4), quick=False)
    assert "one seed" in say(HE, GLOROT, "validation", Difference(2.0, None, 1), quick=False)
    assert "explains" not in say(HE, GLOROT, "validation", Difference(2.0, 1.0, 2), quick=True)


def test_records_are_kept_and_continued(tmp_path) -> None:
    options = Options(quick=True, seeds=1, folder=tmp_path / "records")
    first = train("torch-linear-default", options)
    assert sorted(path.name for path in (tmp_path / "records").iterdir()) == [
        "a-=-5,-the-article-seed-0",
        "a-=-sqrt(5),-torch-seed-0",
    ]
    assert rows(train("torch-linear-default", options), "trained") == rows(first, "trained")


@pytest.mark.parametrize("seeds", [0, -1, 10**9])
def test_a_wrong_number_of_seeds(seeds) -> None:
    with pytest.raises(UserError, match="--seeds"):
        train("torch-linear-default", Options(quick=True, seeds=seeds))


def test_command(capsys, monkeypatch) -> None:
    from varprop.simulator.experiments import torch_linear_default as predicted

    monkeypatch.setattr(predicted, "TRIALS", 5)
    command = [
        "experiment",
        "torch-linear-default",
        "--train",
        "--quick",
        "--seeds",
        "1",
        "--quiet",
        "--format",
        "json",
    ]
    assert main(command) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["quick"] is True
    assert data["sections"][-1]["title"].startswith("quick, trained")


@pytest.mark.parametrize("option", [["--quick"], ["--seeds", "2"], ["--data-dir", "."], ["--records", "x"]])
def test_options_of_training_without_it_are_refused(option, capsys) -> None:
    assert main(["experiment", "truncated-normal", *option]) == 2
    assert "add --train" in capsys.readouterr().err.lower()
