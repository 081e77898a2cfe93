"""The five experiments: figures that are known, verdicts that follow the data, and the face."""

from __future__ import annotations

import csv
import io
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from varprop.cli import main
from varprop.simulator.errors import UserError
from varprop.simulator.experiments import (
    NAMES,
    batchnorm_and_l2,
    mobilenet_initializers,
    predict,
    torch_linear_default,
    truncated_normal,
)
from varprop.simulator.experiments.outcome import Outcome, Section, outcome_csv, outcome_json, outcome_table
from varprop.simulator.experiments.zero_and_constant_init import LEARNING_RATE, MOMENTUM, displacement
from varprop.tests.tolerances import BEYOND


def rows(outcome: Outcome, name: str) -> list[dict[str, object]]:
    """Rows of a section."""
    (section,) = (section for section in outcome.sections if section.name == name)
    return [dict(row) for row in section.rows]


@pytest.fixture
def small(monkeypatch) -> None:
    """Smaller images and fewer draws: the same code in seconds."""
    monkeypatch.setattr(batchnorm_and_l2, "SIZE", 64)
    monkeypatch.setattr(batchnorm_and_l2, "IMAGES_SEEN", 2)
    monkeypatch.setattr(mobilenet_initializers, "AT_FULL_SIZE", mobilenet_initializers.AT_FULL_SIZE | {"size": 64})
    monkeypatch.setattr(
        mobilenet_initializers, "CHECKED", mobilenet_initializers.CHECKED | {"size": 32, "batch": 4, "trials": 4}
    )


@pytest.fixture(scope="module")
def linear_default() -> Outcome:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch_linear_default, "TRIALS", 500)
        return predict("torch-linear-default")


def test_torch_keeps_a_sixth_and_the_article_a_twenty_sixth(linear_default) -> None:
    for row in rows(linear_default, "steps"):
        factor = 1 / 6 if "torch" in str(row["rule"]) else 1 / 26
        assert row["forward"] == pytest.approx(factor, rel=1e-9)
        assert row["backward"] == pytest.approx(factor * row["fan_out"] / row["fan_in"], rel=1e-9)
        assert abs(row["z"]) < BEYOND
        assert abs(row["z back"]) < BEYOND
        assert row["measured"] == pytest.approx(factor, rel=0.1)
    for row in rows(linear_default, "weights"):
        assert row["variance"] * row["fan_in"] == pytest.approx(1 / 3 if "torch" in str(row["rule"]) else 1 / 13)
    assert "agree" in linear_default.verdict[2]


def test_calculate_gain_is_torch_s(linear_default) -> None:
    torch = pytest.importorskip("torch")
    for row in rows(linear_default, "gains"):
        name, _, parameter = str(row["activation"]).rstrip(")").partition("(")
        given = torch.nn.init.calculate_gain(name, float(parameter) if parameter else None)
        assert row["calculate_gain"] == pytest.approx(given, rel=1e-12)


def test_truncated_normal(monkeypatch) -> None:
    monkeypatch.setattr(truncated_normal, "TRIALS", 60)
    found = predict("truncated-normal", seed=1)
    he, cut = rows(found, "weights")
    assert cut["largest |w|"] < 2 < he["largest |w|"] < 2.28
    bins = rows(found, "histogram")
    assert [bins[0]["from"], bins[0]["to"], bins[-1]["to"]] == [-3.0, -2.8, 3.0]
    for row in (he, cut):
        freedom = row["degrees of freedom"]
        assert abs(row["chi^2 of the histogram"] - freedom) < BEYOND * math.sqrt(2 * freedom)
        assert sum(line[row["rule"]] for line in bins) == 100_000
        assert sum(line[f"{row['rule']} expected"] for line in bins) == pytest.approx(100_000)
    full, lost = rows(found, "signal")
    assert lost["theory"] / full["theory"] == pytest.approx(0.7737413035499**24, rel=1e-9)
    assert "confirmed" in found.verdict[-1]
    assert "NOT" not in found.verdict[-1]


def test_zero_and_constant_start() -> None:
    found = predict("zero-and-constant-init")
    assert found.data["plateau"] == math.log(3)
    layers = rows(found, "layers")
    by_start = {row["start"]: [one for one in layers if one["start"] == row["start"]] for row in layers}
    assert [row["zero gradients"] for row in by_start["zero"]] == [81, 81]
    assert all("relu'(0) = 0" in row["why zero"] for row in by_start["zero"])
    assert [row["in training"] for row in by_start["constant 5"]] == [1, 2]
    assert by_start["zero, one bare conv"][0]["first step that moves one"] == 1
    assert "ln 3 = 1.0986123" in found.verdict[0]


@pytest.mark.parametrize("cleared", [True, False])
def test_displacement_is_what_the_loop_does(cleared) -> None:
    w, v, gradient = 0.0, 0.0, 0.0
    for _ in range(7):
        gradient = 1.0 if cleared else gradient + 1.0
        v = MOMENTUM * v + gradient
        w += LEARNING_RATE * v
    assert displacement(7, cleared=cleared) == pytest.approx(w, rel=1e-12)


def test_batchnorm_and_l2_gives_the_printed_weights(small) -> None:
    found = predict("batchnorm-and-l2")
    predicted = np.array(found.data["predicted_weights"])
    assert np.abs(predicted - batchnorm_and_l2.DECAY.after).max() < 1e-8
    bound = math.sqrt(6 / 315)
    assert all(abs(weight) < bound for run in batchnorm_and_l2.PRINTED for weight in run.first)
    assert max(row["data / decay"] for row in rows(found, "gradients")) < 1e-4
    assert all(row["z"] is None or abs(row["z"]) < BEYOND for row in rows(found, "memory"))
    assert "the last printed digit" in found.verdict[1]
    assert "NOT" not in found.verdict[1]


def test_data_gradient_bound_holds(small) -> None:
    """Against the true gradient of the cross-entropy, in torch, of every kernel of the dead network."""
    torch = pytest.importorskip("torch")
    from varprop.simulator.inputs import load_batch
    from varprop.simulator.theory import predict as predict_moments
    from varprop.tests.test_degenerate import Trained

    network = batchnorm_and_l2._network("none")
    batch = load_batch("photo", network.nodes[0].shape, 4, 0)
    trained = Trained(network, seed=3)
    gradients, _ = trained.gradients(torch.tensor(batch.data), torch.tensor([0, 1, 2, 3]))
    decay = batchnorm_and_l2.SGD.weight_decay
    bounds = {row["layer"]: row for row in batchnorm_and_l2._gradient_rows(predict_moments(network, batch))}
    for (index, part), gradient in gradients.items():
        if part == "weight":
            row = bounds[network.nodes[index].name]
            size = float((gradient**2).mean()) ** 0.5
            # A mean of log-normal draws bounds a single draw up to its spread, a factor of a few.
            assert 0 < size < 5 * row["data at most"]
            assert row["decay"] == pytest.approx(
                decay * float((trained.parameters[index, part].detach() ** 2).mean()) ** 0.5, rel=0.2
            )


def test_mobilenet_initializers(small) -> None:
    found = predict("mobilenet-initializers")
    for row in rows(found, "depthwise"):
        # He sets 2 / (9 C) for nine products, of which zero padding takes some away.
        channels = row["Keras's fan_in"] / 9
        assert 0.3 < row["he_normal"] / (2 / channels) < 1.1
        assert row["lecun_normal"] == pytest.approx(row["he_normal"] / 2, rel=0.05)
    restored = {row["initializer"]: row["smallest q after BN"] for row in rows(found, "batch_norm")}
    assert restored["he_normal"] < restored["random_normal"] < 1
    rates = {row["initializer"]: row for row in rows(found, "rates")}
    assert rates["he_normal"]["depthwise"] == pytest.approx(0.05, rel=0.01)
    assert len(found.verdict) == 5


@pytest.mark.parametrize("name", ["zero-and-constant-init", "truncated-normal"])
def test_command(name, capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(truncated_normal, "TRIALS", 5)
    assert main(["experiment", name, "--quiet"]) == 0
    table = capsys.readouterr().out
    assert "verdict" in table
    assert main(["experiment", name, "--quiet", "--format", "json", "--out", str(tmp_path / "found.json")]) == 0
    data = json.loads((tmp_path / "found.json").read_text())
    assert (data["schema"], data["experiment"]) == ("varprop.experiment/1", name)
    assert all(line in table for line in data["verdict"])


def test_list_experiments(capsys) -> None:
    assert main(["list", "experiments", "--format", "json"]) == 0
    listed = json.loads(capsys.readouterr().out)["experiments"]
    assert [one["name"] for one in listed] == list(NAMES)


def test_unknown_experiment(capsys) -> None:
    with pytest.raises(UserError, match="Did you mean 'truncated-normal'"):
        predict("truncated-norml")
    assert main(["experiment", "truncated-norml"]) == 2
    assert main(["experiment", "truncated-normal", "--seed=-1"]) == 2
    assert capsys.readouterr().err.count("\n") == 2


def test_an_outcome_in_three_formats() -> None:
    outcome = Outcome(
        "one",
        (Section("a", "first", [{"x": 1, "y": 2.5}, {"x": 2, "y": math.inf}]), Section("b", "second", [{"z": None}])),
        ("so it is",),
        {"answer": 42},
    )
    data = json.loads(outcome_json(outcome))
    assert data["answer"] == 42
    assert data["sections"][0]["rows"][1] == {"x": 2, "y": None}
    assert [row["section"] for row in csv.DictReader(io.StringIO(outcome_csv(outcome)))] == ["a", "a", "b"]
    text = outcome_table(replace(outcome, verdict=("a [bold] word",)))
    assert "first" in text
    assert "- a [bold] word" in text
