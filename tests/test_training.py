"""Training: the arithmetic of a step against NumPy, what is recorded against theory, and runs that are killed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
import pickle
import signal
import subprocess
import sys
import time
import types
from collections import OrderedDict
from itertools import pairwise

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.errors import UserError
from varprop.simulator.images import resize
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.network import ZEROS, NetworkBuilder
from varprop.simulator.weight_decay import Sgd, motion

torch = pytest.importorskip("torch")

from varprop.simulator.torch_backend import checkpoint  # noqa: E402
from varprop.simulator.torch_backend.cuda_graph import GraphedStep  # noqa: E402
from varprop.simulator.torch_backend.data import Labelled, TrainingData  # noqa: E402
from varprop.simulator.torch_backend.measuring import angle, first_weights  # noqa: E402
from varprop.simulator.torch_backend.module import TorchNetwork  # noqa: E402
from varprop.simulator.torch_backend.training import Run, TrainingSettings, finish, train  # noqa: E402

ROUNDING = 1e-12  # float64, a dozen steps of a small network
FLOAT32 = 1e-6  # float32 rounds each of the steps by 6e-8, of which some hundreds add up like a random walk
NORMAL = parse_initializer("normal(0.5)")


def samples(count, shape, classes, seed=0):
    """Inputs of a few classes that can be told apart."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(classes, size=count)
    centres = rng.standard_normal((classes, *shape))
    inputs = centres[labels] + 0.5 * rng.standard_normal((count, *shape))
    return Labelled(torch.from_numpy(inputs), torch.from_numpy(labels))


def two_layers(features=5, hidden=4, classes=3):
    net = NetworkBuilder("two layers", "torch", (features,))
    net.linear(hidden, NORMAL, bias=NORMAL)
    net.activation("tanh")
    net.linear(classes, NORMAL, bias=ZEROS)
    return net.build()


def normalised(framework="torch", eps=0.0):
    """Convolutions whose kernels are scale-invariant, then a classifier."""
    net = NetworkBuilder("normalised", framework, (3, 6, 6))
    for _ in range(2):
        net.conv2d(4, 3, NORMAL)
        net.batch_norm(eps=eps)
        net.activation("relu")
    net.global_average_pool()
    net.linear(3, NORMAL, bias=ZEROS)
    return net.build()


@pytest.mark.parametrize(
    "options", [{}, {"momentum": 0.9, "weight_decay": 0.01}, {"l2": 0.02, "momentum": 0.5}, {"clear_gradients": False}]
)
def test_steps_are_those_of_a_loop_in_numpy(options):
    network, data = two_layers(), TrainingData(samples(10, (5,), 3), None, "clusters")
    settings = TrainingSettings(
        network, epochs=3, batch=4, learning_rate=0.3, seed=5, precision="float64", watch="linear2", **options
    )
    result = train(settings, data, device="cpu")

    start = TorchNetwork(network).double()
    start.draw_weights(5)
    w1, b1, w2, b2 = (parameter.detach().numpy().copy() for parameter in start.parameters())
    velocity, total = [0.0] * 4, [0.0] * 4
    inputs, labels = data.train.inputs.numpy(), data.train.targets.numpy()
    kernel_decay = options.get("weight_decay", 0.0) + 2 * options.get("l2", 0.0)
    for epoch in range(3):
        order = data.order(5, epoch)
        assert sorted(order) == list(range(10))
        loss = 0.0
        for picked in (order[:4], order[4:8], order[8:]):  # the last batch is smaller
            x, y = inputs[picked], labels[picked]
            hidden = np.tanh(x @ w1.T + b1)
            logits = hidden @ w2.T + b2
            probability = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
            loss -= np.log(probability[np.arange(len(y)), y]).sum()
            back = (probability - np.eye(3)[y]) / len(y)
            inner = (back @ w2) * (1 - hidden**2)
            for k, gradient in enumerate([inner.T @ x, inner.sum(0), back.T @ hidden, back.sum(0)]):
                total[k] = gradient if options.get("clear_gradients", True) else total[k] + gradient
            decays = (kernel_decay, options.get("weight_decay", 0.0)) * 2
            for k, (weight, decay) in enumerate(zip((w1, b1, w2, b2), decays, strict=True)):
                velocity[k] = options.get("momentum", 0.0) * velocity[k] + total[k] + decay * weight
                weight -= 0.3 * velocity[k]
        np.testing.assert_allclose(result.records.epochs[epoch].loss, loss / 10, rtol=ROUNDING)
    for found, expected in zip(result.module.parameters(), (w1, b1, w2, b2), strict=True):
        np.testing.assert_allclose(found.detach().numpy(), expected, rtol=0, atol=ROUNDING)
    np.testing.assert_allclose(result.last.penalty, options.get("l2", 0.0) * (np.sum(w1**2) + np.sum(w2**2)))
    assert [record.step for record in result.records.weights] == [0, 3, 6, 9]
    np.testing.assert_allclose(result.records.weights[-1].weights, w2.ravel()[:10], rtol=0, atol=ROUNDING)


def test_a_class_at_every_pixel_and_one_fixed_batch():
    network = build("two_layer", size=8)
    data = TrainingData(
        Labelled(torch.randn((1, 3, 8, 8), generator=torch.Generator().manual_seed(0)), torch.full((1, 8, 8), 2)),
        None,
        "one image",
    )
    result = train(TrainingSettings(network, epochs=40, batch=1, learning_rate=0.05), data, device="cpu")
    losses = [record.loss for record in result.records.epochs]
    assert len(losses) == 40
    assert losses[-1] < losses[0] - 0.1
    zero = build("two_layer", size=8, init=ZEROS)
    dead = train(TrainingSettings(zero, epochs=5, batch=1, learning_rate=0.05), data, device="cpu").records
    np.testing.assert_allclose([record.loss for record in dead.epochs], math.log(3), rtol=FLOAT32)
    kernels = [row for row in dead.layers if row.kind == "conv2d" and row.gradient_norm is not None]
    assert len(kernels) == 10
    assert all(row.gradient_norm == row.weight_norm == row.angle == 0 for row in kernels)


def test_a_dead_network_decays_and_learns_nothing():
    net = NetworkBuilder("dead", "keras", (5,))
    net.linear(4, NORMAL, bias=parse_initializer("constant(-100)"))
    net.activation("relu")
    net.linear(3, NORMAL, bias=ZEROS)
    data = TrainingData(samples(20, (5,), 3), None, "clusters")
    settings = TrainingSettings(net.build(), epochs=7, batch=8, l2=0.001, precision="float64")
    records = train(settings, data, device="cpu").records
    (start, *_, end) = records.weights
    np.testing.assert_allclose(end.weights, np.array(start.weights) * (1 - 2 * 0.001 * 0.1) ** 21, rtol=ROUNDING)
    gradients = [row.gradient_norm for row in records.layers if row.step < 21 and row.kind == "linear"]
    assert gradients == [0.0] * 14
    # Only the last bias sees the labels: the loss falls to the entropy of the classes.
    shares = np.bincount(data.train.targets) / 20
    assert records.epochs[-1].loss < records.epochs[0].loss
    assert records.epochs[-1].loss > -np.sum(shares * np.log(shares))


@pytest.mark.parametrize("decay", [0.0, 0.05])
def test_norms_and_angles_follow_from_scale_invariance(decay):
    """Gradients are orthogonal to the weights, so that |w| and |g| before a step give |w| after it and the angle."""
    data = TrainingData(samples(32, (3, 6, 6), 3), None, "clusters")
    settings = TrainingSettings(
        normalised(),
        epochs=2,
        batch=8,
        learning_rate=0.5,
        weight_decay=decay,
        precision="float64",
        record_steps=tuple(range(8)),
    )
    rows = train(settings, data, device="cpu").records.layers
    for layer in ("conv1", "conv2"):
        own = [row for row in rows if row.layer == layer]
        assert [row.step for row in own] == list(range(9))
        for before, after in pairwise(own):
            square = before.weight_norm**2
            predicted = motion(Sgd(0.5, decay), square, before.gradient_norm**2 * square, steps=1)
            np.testing.assert_allclose(after.weight_norm**2, predicted.squared_norm[1], rtol=ROUNDING)
            np.testing.assert_allclose(before.angle, predicted.angle[0], rtol=1e-9)
        assert own[-1].angle is None  # no step follows
    output = [row for row in rows if row.layer == "input"]
    np.testing.assert_allclose(
        output[0].second_moment, data.train.inputs[data.order(0, 0)[:8]].square().mean(), rtol=ROUNDING
    )


def test_recorded_gradients_are_those_of_the_mean_loss():
    network, data = two_layers(), TrainingData(samples(6, (5,), 3), None, "clusters", shuffle=False)
    row = train(TrainingSettings(network, epochs=1, batch=6, precision="float64"), data, device="cpu").records.layers[3]
    module = TorchNetwork(network).double()
    module.draw_weights(0)
    logits = module(data.train.inputs).detach()
    gradient = (logits.softmax(1) - torch.eye(3)[data.train.targets]) / 6
    assert row.layer == "linear2"
    np.testing.assert_allclose(row.gradient_second_moment, gradient.square().mean(), rtol=ROUNDING)
    np.testing.assert_allclose(row.second_moment, logits.square().mean(), rtol=ROUNDING)
    np.testing.assert_allclose(row.variance, logits.var(0, correction=0).mean(), rtol=ROUNDING)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_running_averages_follow_the_frameworks_momentum(framework):
    data = TrainingData(samples(8, (3, 6, 6), 3), None, "clusters", shuffle=False)
    settings = TrainingSettings(normalised(framework), epochs=1, batch=8, precision="float64")
    module = train(settings, data, device="cpu").module
    start = TorchNetwork(settings.network).double()
    start.draw_weights(0)
    outputs = start.layers[1](data.train.inputs)
    weight = 0.1 if framework == "torch" else 0.01
    expected = (1 - weight) + weight * outputs.var((0, 2, 3), correction=1)
    np.testing.assert_allclose(module.layers[2].running_var, expected.detach(), rtol=ROUNDING)


def test_several_runs_in_turn_are_each_what_it_is_alone():
    data = TrainingData(samples(20, (3, 6, 6), 3), samples(7, (3, 6, 6), 3, seed=1), "clusters")
    settings = [TrainingSettings(normalised(), epochs=2, batch=8, seed=seed) for seed in (0, 1)]
    together = [Run(each, data, device="cpu") for each in settings]
    calls = []
    finish(together, lambda done, total: calls.append((done, total)))
    assert calls == [(2, 12), (4, 12), (6, 12), (8, 12), (10, 12), (12, 12)]
    for each, run in zip(settings, together, strict=True):
        alone = train(each, data, device="cpu")
        assert same_weights(alone.module, run.result().module)
        assert 0 <= alone.last.validation_accuracy <= 1
    assert not same_weights(together[0].result().module, together[1].result().module)


def same_weights(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def test_steps_cap_and_the_cheaper_formats():
    data = TrainingData(samples(20, (3, 6, 6), 3), None, "clusters")
    plain = TrainingSettings(normalised(), epochs=5, batch=8, steps=4)
    result = train(plain, data, device="cpu")
    assert [(record.epoch, record.step) for record in result.records.epochs] == [(1, 3), (2, 4)]
    for options, tolerance in (({"channels_last": True}, FLOAT32), ({"precision": "bfloat16"}, 2**-8)):
        other = train(dataclasses.replace(plain, **options), data, device="cpu")
        # bfloat16 has 8 digits; they err independently over samples and layers.
        np.testing.assert_allclose(other.records.epochs[0].loss, result.records.epochs[0].loss, rtol=4 * tolerance)
        assert other.module.layers[1].weight.dtype == torch.float32


@pytest.mark.parametrize("size", [32, 48, 20])
def test_bytes_become_pixels_of_the_networks_size(size):
    images = np.random.default_rng(0).integers(0, 256, (3, 3, 32, 32), dtype=np.uint8)
    data = Labelled(torch.from_numpy(images), torch.arange(3))
    x, targets = data.fetch(torch.tensor([2, 0]), (3, size, size), torch.float64)
    np.testing.assert_allclose(x.numpy(), resize(images[[2, 0]] / 255, size, size), rtol=0, atol=1e-12)
    assert targets.tolist() == [2, 0]


def test_first_weights_come_in_the_frameworks_order():
    net = NetworkBuilder("order", "keras", (2, 5, 5))
    net.conv2d(3, 2, NORMAL)
    net.flatten()
    net.linear(4, NORMAL)
    module = TorchNetwork(net.build())
    module.draw_weights(0)
    kernel = module.layers[1].weight.detach()  # (out, in, rows, columns)
    expected = [*kernel[:, 0, 0, 0], *kernel[:, 1, 0, 0], *kernel[:, 0, 0, 1], kernel[0, 1, 0, 1]]
    assert first_weights(module, "conv1") == tuple(float(value) for value in expected)
    assert first_weights(module, "linear1") == tuple(module.layers[3].weight.detach().T.flatten()[:10].tolist())


def test_small_angles_keep_their_digits():
    before = torch.tensor([1.0, 0.0], dtype=torch.float64)
    for turn in (1e-9, 1e-3, 1.0, 3.0):
        after = 7 * torch.tensor([math.cos(turn), math.sin(turn)], dtype=torch.float64)
        np.testing.assert_allclose(angle(before, after), turn, rtol=1e-12)
    assert angle(before, torch.zeros(2, dtype=torch.float64)) == 0


def test_a_graphed_step_leaves_what_eager_steps_leave(monkeypatch):
    """The logic around a capture, with a stand-in for CUDA that replays by calling the step."""
    stream = types.SimpleNamespace(wait_stream=lambda other: None)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", types.SimpleNamespace)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, capture_error_mode: contextlib.nullcontext())
    monkeypatch.setattr("varprop.simulator.torch_backend.steps.capturable", lambda network, device: True)
    prepare, replays = GraphedStep.__init__, []

    def capture(self, step, index, state):
        prepare(self, step, index, state)
        self._graph.replay = lambda: replays.append(step(self._index))

    monkeypatch.setattr(GraphedStep, "__init__", capture)
    data = TrainingData(samples(20, (3, 6, 6), 3), samples(7, (3, 6, 6), 3, seed=1), "clusters")
    settings = TrainingSettings(normalised(), epochs=3, batch=4, momentum=0.9, l2=1e-3, record_steps=(7,))
    graphed = train(settings, data, device="cpu")
    eager = train(settings, data, device="cpu", use_graph=False)
    assert len(replays) == 3 * 4 - 1  # all but each epoch's first step and the one that is recorded
    assert same_weights(graphed.module, eager.module)
    assert graphed.records.layers == eager.records.layers
    assert [row.loss for row in graphed.records.epochs] == [row.loss for row in eager.records.epochs]


SCRIPT = """
import sys
from pathlib import Path
import test_training
test_training.long_run(Path(sys.argv[1]))
"""


def long_run(folder):
    """Train with a checkpoint after every step."""
    torch.set_num_threads(1)
    data = TrainingData(samples(50, (3, 6, 6), 3), samples(9, (3, 6, 6), 3, seed=1), "clusters")
    settings = TrainingSettings(
        normalised("keras", 1e-3), epochs=8, batch=8, momentum=0.9, l2=1e-3, seed=3, record_steps=(5, 30)
    )
    return train(settings, data, folder, device="cpu", checkpoint_seconds=0.0)


def written(folder):
    """All that a run leaves, without the times."""
    rows = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if "second" not in key.split("_")[-1]} for row in rows]


@pytest.mark.slow
def test_a_run_that_is_killed_again_and_again_ends_in_the_same_bits(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    whole.mkdir()
    cut.mkdir()
    long_run(whole)
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([os.path.dirname(__file__), *sys.path])}
    kills, steps = 0, [0]
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(cut)], env=environment, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        # Killed some steps after the point where it went on, wherever in a step that is.
        while process.poll() is None and time.monotonic() < deadline and progress(cut) < steps[-1] + 9:
            time.sleep(0.01)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
        steps.append(progress(cut))
    assert kills == 2
    assert steps == sorted(steps)
    assert 0 < steps[1] < steps[-1]
    long_run(cut)
    assert written(cut) == written(whole)
    one, other = (torch.load(folder / checkpoint.FILE, weights_only=True) for folder in (whole, cut))
    assert one["tensors"].keys() == other["tensors"].keys()
    assert all(torch.equal(one["tensors"][name], other["tensors"][name]) for name in one["tensors"])
    again = long_run(cut)  # finished: nothing is left to do
    assert again.last.step == 56


def progress(folder):
    """Steps done according to the checkpoint, 0 without one."""
    path = folder / checkpoint.FILE
    return torch.load(path, weights_only=True)["step"] if path.exists() else 0


def test_another_runs_folder_and_damaged_checkpoints_are_refused(tmp_path):
    data = TrainingData(samples(8, (5,), 3), None, "clusters")
    settings = TrainingSettings(two_layers(), epochs=1, batch=4)
    train(settings, data, tmp_path, device="cpu")
    with pytest.raises(UserError, match=r"learning_rate is 0.1 there, here 0.2. Name another one"):
        train(dataclasses.replace(settings, learning_rate=0.2), data, tmp_path, device="cpu")
    with pytest.raises(UserError, match="another network"):
        train(dataclasses.replace(settings, network=two_layers(hidden=3)), data, tmp_path, device="cpu")
    path = tmp_path / checkpoint.FILE
    for content in (b"", path.read_bytes()[:-100], pickle.dumps(OrderedDict)):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"a checkpoint of varprop. Remove it"):
            train(settings, data, tmp_path, device="cpu")


def test_what_a_run_leaves_is_complete_and_finite(tmp_path):
    data = TrainingData(samples(8, (5,), 3), samples(4, (5,), 3), "clusters")
    train(TrainingSettings(two_layers(), epochs=3, batch=4, learning_rate=1e38), data, tmp_path, device="cpu")
    assert "nan" not in (tmp_path / "weights.csv").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint.pt",
        "epochs.csv",
        "layers.csv",
        "log.jsonl",
        "weights.csv",
    ]
    text = (tmp_path / "log.jsonl").read_text()
    assert "NaN" not in text
    assert "Infinity" not in text
    assert {json.loads(line)["record"] for line in text.splitlines()} == {"epochs", "layers", "weights"}
    assert (tmp_path / "layers.csv").read_text().count("\n") == 1 + 4 * 4


def test_tensorboard_gets_the_curves_where_it_is_installed(tmp_path, monkeypatch):
    added = {}

    class SummaryWriter:
        def __init__(self, folder, purge_step):
            assert folder == str(tmp_path / "tensorboard")
            assert purge_step == 1

        def add_scalar(self, name, value, step):
            added.setdefault(name, []).append((step, value))

        def flush(self):
            pass

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = SummaryWriter
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    monkeypatch.setattr("varprop.simulator.torch_backend.board.find_spec", lambda name: True)
    data = TrainingData(samples(8, (5,), 3), None, "clusters")
    result = train(TrainingSettings(two_layers(), epochs=2, batch=4), data, tmp_path, device="cpu")
    assert added["epoch/loss"] == [(2, result.records.epochs[0].loss), (4, result.records.epochs[1].loss)]
    assert [step for step, _ in added["linear1/weight_norm"]] == [0, 2, 4]
    assert "epoch/validation_loss" not in added


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"epochs": 0}, "--epochs: got 0"),
        ({"batch": 0}, "--batch: got 0"),
        ({"steps": -1}, "--steps: got -1"),
        ({"learning_rate": math.nan}, "--lr: got nan"),
        ({"momentum": 1.0}, "--momentum: got 1.0, expected a number of at least 0 and below 1"),
        ({"weight_decay": -1.0}, "--weight-decay: got -1.0"),
        ({"l2": math.inf}, "--l2: got inf"),
        ({"seed": -1}, "--seed: got -1"),
        ({"watch": "linear3"}, "--watch: got 'linear3', expected one of linear1, linear2. Did you mean"),
    ],
)
def test_settings_out_of_range_are_refused(options, told):
    data = TrainingData(samples(8, (5,), 3), None, "clusters")
    with pytest.raises(UserError, match=told):
        train(TrainingSettings(two_layers(), **options), data)


def test_data_that_do_not_fit_are_refused():
    with pytest.raises(UserError, match=r"two layers: input shape: got \(5,\), expected that of clusters, \(4,\)"):
        train(TrainingSettings(two_layers()), TrainingData(samples(8, (4,), 3), None, "clusters"))
    many = Labelled(torch.zeros((8, 5)), torch.full((8,), 6))
    with pytest.raises(UserError, match=r"output shape: got \(3,\), expected \(at least 7\), as many has classes"):
        train(TrainingSettings(two_layers()), TrainingData(many, None, "many"))
    with pytest.raises(UserError, match=r"no layer with weights"):
        train(TrainingSettings(NetworkBuilder("nothing", "torch", (5,)).build()), TrainingData(many, None, "many"))
