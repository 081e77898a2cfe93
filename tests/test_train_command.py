"""`varprop train`: what it leaves, prints and refuses, and how several seeds are shared out."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from varprop.cli import main
from varprop.simulator import cifar10
from varprop.simulator.architectures import build
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.network import ZEROS, NetworkBuilder

torch = pytest.importorskip("torch")

from varprop.simulator.torch_backend import devices, seeds  # noqa: E402
from varprop.simulator.torch_backend.data import Labelled, TrainingData, cifar10_data  # noqa: E402
from varprop.simulator.torch_backend.start import compare_start, first_batch  # noqa: E402
from varprop.simulator.torch_backend.training import TrainingSettings, train  # noqa: E402

QUICK = ["--subset", "40", "--epochs", "1", "--batch", "16", "--device", "cpu"]


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_a_run_leaves_its_records_and_prints_a_line_a_seed(data_dir, tmp_path, capsys):
    out = tmp_path / "run"
    command = ["train", "plain_conv", "--depth", "2", "--width", "4", "--size", "8", "--data-dir", str(data_dir)]
    command += ["--out", str(out), "--seeds", "2", "--seed", "5", "--check-start", "--record", "1", "--watch", "conv2"]
    assert main([*command, *QUICK]) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()] == ["seed", "5", "6", "mean", "sd"]
    assert printed.err.count("images/s\n") == 2
    assert sorted(path.name for path in out.iterdir()) == ["run.json", "seed-5", "seed-6"]
    provenance = json.loads((out / "run.json").read_text())
    assert provenance["settings"]["seeds"] == [5, 6]
    assert provenance["data"]["source"] == "CIFAR-10 (a copy of unknown origin)"
    assert provenance["data"]["train"] == 40
    assert provenance["data"]["validation"] == 8
    assert len(provenance["data"]["sha256"]) == 64
    assert provenance["versions"]["torch"] == torch.__version__
    folder = out / "seed-6"
    layers = rows(folder / "layers.csv")
    assert sorted({int(row["step"]) for row in layers}) == [0, 1, 3]
    assert {row["layer"] for row in rows(folder / "weights.csv")} == {"conv2"}
    start = rows(folder / "start.csv")
    assert [row["layer"] for row in start] == [row["layer"] for row in layers[: len(start)]]
    assert max(abs(float(row["z"])) for row in start if row["z"]) < 5

    again = ["train", "plain_conv", "--depth", "2", "--width", "4", "--size", "8", "--data-dir", str(data_dir)]
    again += ["--out", str(out), "--seeds", "2", "--seed", "5", "--record", "1", "--watch", "conv2", "--quiet"]
    assert main([*again, *QUICK, "--format", "json"]) == 0  # finished: read back
    printed = capsys.readouterr()
    data = json.loads(printed.out)
    assert printed.err == ""
    assert data["schema"] == "varprop.train/1"
    assert [run["seed"] for run in data["runs"]] == [5, 6]
    assert (
        f"{data['runs'][0]['epochs'][0]['loss']:.17g}"
        == f"{float(rows(out / 'seed-5' / 'epochs.csv')[0]['loss']):.17g}"
    )
    assert main([*again, *QUICK, "--format", "csv"]) == 0
    assert capsys.readouterr().out.startswith("seed,epoch,step,loss,accuracy,")
    assert main([*again, *QUICK, "--lr", "0.2"]) == 2
    assert "learning_rate is 0.1 there, here 0.2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--epochs", "0"], "--epochs: got 0"),
        (["--seeds", "0"], "--seeds: got 0"),
        (["--side-by-side", "0"], "--side-by-side: got 0"),
        (["--subset", "50001"], "--subset: got 50001"),
        (["--device", "tpu"], "--device: got 'tpu'"),
        (["--device", "cuda:77"], "--device: got cuda:77"),
        (["--watch", "conv9"], "--watch: got 'conv9'"),
        (["--record", "x"], "--record: got 'x'"),
        (["--out", "missing/run"], "--out: got missing/run, expected a folder whose parent exists"),
        (["--data-dir", "missing"], "--data-dir: got missing"),
        (["--init", "constant(1)", "--check-start"], "weights"),
        (["--init", "he_norml"], "Did you mean 'he_normal'?"),
    ],
)
def test_mistakes_are_one_line_and_leave_nothing(data_dir, tmp_path, monkeypatch, capsys, words, told):
    monkeypatch.chdir(tmp_path)
    command = ["train", "plain_conv", "--depth", "2", "--width", "4", "--data-dir", str(data_dir), "--out", "run"]
    assert main([*command, *QUICK, *words]) == 2
    printed = capsys.readouterr()
    assert told in printed.err
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_network_without_classes_is_refused(data_dir, tmp_path, capsys):
    command = ["train", "two_layer", "--size", "8", "--data-dir", str(data_dir), "--out", str(tmp_path / "run")]
    assert main([*command, *QUICK]) == 2
    assert "two_layer: output shape: got (3, 8, 8), expected (at least 10)" in capsys.readouterr().err


def test_a_network_of_ones_own_is_trained_and_an_experiment_is_sent_on(data_dir, tmp_path, capsys):
    network = tmp_path / "own.toml"
    network.write_text(
        'input_shape = [3, 8, 8]\n[[layers]]\ntype = "conv2d"\nout_channels = 2\nkernel = 3\n'
        '[[layers]]\ntype = "activation"\nfunction = "x*tanh(log(1+exp(x)))"\n'
        '[[layers]]\ntype = "flatten"\n[[layers]]\ntype = "linear"\nout_features = 10\n'
    )
    command = ["--data-dir", str(data_dir), "--out", str(tmp_path / "run"), *QUICK]
    assert main(["train", str(network), *command, "--quiet"]) == 0
    assert [row["layer"] for row in rows(tmp_path / "run" / "seed-0" / "layers.csv")][:5] == [
        "input",
        "conv1",
        "act1",
        "flatten1",
        "linear1",
    ]
    capsys.readouterr()
    assert main(["train", "batchnorm-and-l2", *command]) == 2
    assert "Use varprop experiment batchnorm-and-l2 --train" in capsys.readouterr().err


def test_every_seed_sees_the_same_subset_in_an_order_of_its_own(data_dir):
    small, large = cifar10_data(data_dir, 30), cifar10_data(data_dir, 60)
    assert torch.equal(small.train.inputs, large.train.inputs[:30])
    orders = [tuple(small.order(seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert len(cifar10_data(data_dir, 1).validation) == 1
    everything = cifar10_data(data_dir)
    assert len(everything.train) == 50_000
    assert len(everything.validation) == 10_000
    images, labels = cifar10.read(data_dir, "train", np.array([49_999, 0]))
    assert (everything.train.inputs[[49_999, 0]].numpy() == images).all()
    assert (everything.train.targets[[49_999, 0]].numpy() == labels).all()


def clusters():
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=24)
    inputs = rng.standard_normal((3, 6))[labels] + 0.5 * rng.standard_normal((24, 6))
    return TrainingData(Labelled(torch.from_numpy(inputs), torch.from_numpy(labels)), None, "clusters")


def test_processes_of_torchrun_share_the_seeds(tmp_path):
    settings = TrainingSettings(build("mlp", depth=2, width=6), epochs=1, batch=8, seed=10)
    shares = [
        seeds.plan(settings, 5, clusters(), tmp_path, device="cpu", environment={"RANK": str(r), "WORLD_SIZE": "2"})
        for r in (0, 1)
    ]
    assert [share.seeds for share in shares] == [(10, 12, 14), (11, 13)]
    found = {}
    for share in shares:
        found |= seeds.train_seeds(share)
    assert sorted(path.name for path in tmp_path.iterdir()) == [f"seed-{seed}" for seed in range(10, 15)]
    alone = train(TrainingSettings(settings.network, epochs=1, batch=8, seed=13), clusters(), device="cpu")
    assert alone.last.loss == found[13].epochs[-1].loss


def test_start_is_what_theory_predicts_over_seeds():
    """Every score is of one draw of the weights; over seeds they have mean 0 and deviation 1."""
    net = NetworkBuilder("plain", "torch", (6,))
    for _ in range(3):
        net.linear(200, parse_initializer("he_normal"))
        net.activation("relu")
    net.linear(3, parse_initializer("he_normal"), bias=ZEROS)
    forward, backward = [], []
    for seed in range(40):
        settings = TrainingSettings(net.build(), epochs=1, steps=1, batch=24, seed=seed, precision="float64")
        records = train(settings, clusters(), device="cpu").records.layers
        start = compare_start(settings, first_batch(settings, clusters()), records)
        assert start[-1].gradient_predicted == pytest.approx(start[-1].gradient_measured, rel=1e-12)
        forward.append(start[5].z)
        backward.append(start[1].gradient_z)
    for scores in (forward, backward):
        assert abs(np.mean(scores)) < 4 / np.sqrt(40)
        assert 0.5 < np.std(scores) < 1.6  # four of its standard errors


def test_progress_counts_the_steps_of_all_seeds(tmp_path):
    settings = TrainingSettings(build("mlp", depth=2, width=6), epochs=2, batch=8)
    job = seeds.plan(settings, 3, clusters(), tmp_path, device="cpu", side_by_side=2, environment={})
    seen = []
    seeds.train_seeds(job, lambda done, total: seen.append((done, total)))
    assert seen == [(done, 18) for done in (2, 4, 6, 8, 10, 12, 13, 14, 15, 16, 17, 18)]


def test_memory_of_the_host_that_runs_out_is_the_users_error():
    told = r"memory: got \d+ bytes asked for, expected what this machine has. Lower --batch"
    with pytest.raises(UserError, match=told), devices.out_of_memory("lower --batch"):
        torch.empty(10**16)
    with pytest.raises(RuntimeError, match="shape"), devices.out_of_memory("lower --batch"):
        torch.zeros(3).reshape(2, 2)


def test_memory_of_the_gpu_that_runs_out_is_the_users_error():
    told = r"GPU memory: got CUDA out of memory, expected enough of it. Lower --batch"
    with pytest.raises(UserError, match=told), devices.out_of_memory("lower --batch"):
        raise torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
