"""The torch engine: with equal weights the naive and the compiled engine's numbers, with its own their averages."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

from varprop.cli import main
from varprop.simulator.activations import NAMES as ACTIVATIONS
from varprop.simulator.activations import activation
from varprop.simulator.architectures import NAMES as NETWORKS
from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import parse_initializer, weight_law
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate, simulate_trials
from varprop.simulator.montecarlo.aggregate import trial_moments
from varprop.simulator.montecarlo.draws import COTANGENT, Draws
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.report import Batch
from varprop.simulator.theory import predict

torch = pytest.importorskip("torch")

from varprop.simulator.torch_backend.engine import measure, moments  # noqa: E402
from varprop.simulator.torch_backend.module import TorchNetwork  # noqa: E402

spec = importlib.util.spec_from_file_location("naive_engine", Path(__file__).with_name("naive_engine.py"))
naive = importlib.util.module_from_spec(spec)
spec.loader.exec_module(naive)

SAME_WEIGHTS = 1e-10  # two float64 engines that sum up to thousands of terms in other orders, through up to 160 layers
SAME_WEIGHTS_FLOAT32 = 1e-5  # float32 rounds by 6e-8; a map's moments average over its rounding errors
WEIGHT = parse_initializer("normal(0.4)")
SIZES = {"mlp": None, "vgg": 32, "mobilenet_v2": 32}  # the smallest that their strides and pools leave something of
BIAS = parse_initializer("uniform(0.5)")


def everything(framework):
    """One of each operation, with uneven paddings, strides and groups, and nodes read by several others."""
    net = NetworkBuilder("everything", framework, (4, 11, 10))
    net.conv2d(6, (3, 2), WEIGHT, stride=(2, 1), padding=(0, 2, 1, 0), bias=BIAS)
    stem = net.activation("leaky_relu(0.2)")
    net.conv2d(6, 3, WEIGHT, groups=2, padding=(1, 0, 2, 1))
    net.conv2d(12, 3, WEIGHT, groups=6, stride=2)  # depthwise, two outputs a channel
    block = net.batch_norm(eps=0.0)
    net.zero_pad((1, 0, 2, 1))
    net.max_pool(3, stride=2)
    net.conv2d(12, 1, WEIGHT, source=block)  # the pools lead nowhere
    net.add((block, net.last, block))
    net.activation("tanh")
    net.average_pool((2, 1), stride=1)
    pooled = net.global_average_pool()
    net.flatten(source=net.max_pool(2, source=stem))
    net.linear(12, WEIGHT, bias=BIAS)
    net.batch_norm()
    net.add((pooled, net.last))
    net.activation("selu")
    net.linear(3, WEIGHT)
    return net.build()


def with_draws(network, draws, dtype=torch.float64):
    """The network's module with the weights that the compiled engine draws."""
    module = TorchNetwork(network).to(dtype)
    for index, node, _ in module.weighted:
        drawn = draws.parameters(index, node, network.framework)
        module.load(index, drawn.weight[0], None if drawn.bias is None else drawn.bias[0])
    return module


def assert_close(found, expected, tolerance):
    scale = np.sqrt(np.mean(expected**2))
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * scale)


@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_every_map_and_gradient_is_the_naive_engines(framework):
    network = everything(framework)
    data = np.random.default_rng(1).standard_normal((5, *network.nodes[0].shape))
    parameters, cotangent = naive.draw(network, 3, 2, len(data))
    outputs, gradients = naive.run(network, data, parameters, cotangent)
    found, back = {}, {}

    def observe(index, output):
        found[index] = output.detach().numpy()
        output.register_hook(lambda gradient: back.__setitem__(index, gradient.numpy()))

    module = with_draws(network, Draws(3, 2, 1, np.float64))
    module(torch.from_numpy(data).requires_grad_(), observe).backward(torch.from_numpy(cotangent.copy()))
    for index, node in enumerate(network.nodes):
        assert found[index].shape == outputs[index].shape, node.name
        assert_close(found[index], outputs[index], SAME_WEIGHTS)
        assert_close(back.get(index, np.zeros_like(outputs[index])), gradients[index], SAME_WEIGHTS)


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize("function", [*ACTIVATIONS, "elu(0.5)"])
def test_every_activation_and_its_slope_is_the_formulas(function, native, monkeypatch):
    """Torch's own functions, and the way by NumPy that is left to those that it has not."""
    if not native:
        monkeypatch.setattr("varprop.simulator.torch_backend.layers.NATIVE", {})
    net = NetworkBuilder("activation", "torch", (201,))
    net.activation(function)
    z = np.linspace(-8, 8, 201)[None] + 1e-3  # beside the kinks, where frameworks choose a side
    x = torch.from_numpy(z).requires_grad_()
    value = TorchNetwork(net.build())(x)
    value.backward(torch.ones_like(value))
    # torch computes GELU and erf to double precision, SELU's constants agree to 1e-16.
    np.testing.assert_allclose(value.detach().numpy(), activation(function).value(z), rtol=0, atol=1e-14)
    np.testing.assert_allclose(x.grad.numpy(), activation(function).derivative(z), rtol=0, atol=1e-14)


def assert_same_moments(network, batch, dtype, tolerance):
    """Hold one trial's moments, with the compiled engine's own draws, against those it records."""
    draws = Draws(7, 0, 1, dtype)
    cotangent = np.empty((*network.nodes[-1].shape, len(batch.data)), dtype)
    draws.normals(len(network) - 1, COTANGENT, cotangent)
    module = with_draws(network, draws, getattr(torch, dtype))
    data = torch.from_numpy(batch.data.astype(dtype)).requires_grad_()
    records = moments(module, data, torch.from_numpy(np.moveaxis(cotangent, -1, 0).copy()))
    compiled = simulate_trials(network, batch, trials=1, seed=7, dtype=dtype, weightless=False)
    for found, expected in zip(trial_moments(records[None]), compiled, strict=True):
        np.testing.assert_allclose(found.log_second_moment, expected.log_second_moment, rtol=0, atol=tolerance)
        square = np.exp(expected.log_second_moment)
        for mine, theirs, scale in (
            (found.mean * 2.0**found.exponent, expected.mean * 2.0**expected.exponent, np.sqrt(square)),
            (found.variance * 4.0**found.exponent, expected.variance * 4.0**expected.exponent, square),
        ):
            np.testing.assert_allclose(mine / scale, theirs / scale, rtol=0, atol=tolerance)


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("name", NETWORKS)
def test_moments_of_every_network_are_the_compiled_engines(name, framework):
    network = build(name, framework=framework, size=SIZES.get(name, 16))
    assert_same_moments(network, load_batch("gaussian", network.nodes[0].shape, 4, 0), "float64", SAME_WEIGHTS)


@pytest.mark.parametrize("name", ["mlp", "plain_conv", "resnet", "mobilenet_v2"])
def test_in_single_precision_they_agree_to_rounding(name):
    # A smooth activation and no maxima: at a kink rounding decides which branch a value takes, and few take many along.
    # Larger images for MobileNet, whose last maps are 32 times smaller: BN over a handful of values magnifies rounding.
    network = build(name, activation="silu", size={**SIZES, "mobilenet_v2": 64}.get(name, 16))
    assert_same_moments(network, load_batch("gaussian", network.nodes[0].shape, 8, 0), "float32", SAME_WEIGHTS_FLOAT32)


@pytest.mark.parametrize("init", ["he_normal", "glorot_uniform", "default", "orthogonal", "constant(2)"])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_weights_follow_the_layers_law(framework, init):
    net = NetworkBuilder("weights", framework, (64,))
    net.linear(256, parse_initializer(init), bias=BIAS)
    network = net.build()
    module = TorchNetwork(network)
    module.draw_weights(5)
    weight = module.layers[1].weight.detach().numpy().astype(np.float64)
    law = weight_law(network.nodes[1], framework)
    error = law.std * np.sqrt((law.excess_kurtosis + 2) / weight.size)  # of the deviation, half of the variance's
    assert abs(weight.std() - law.std) <= 4 * error
    assert np.abs(weight).max() <= max(law.limit, abs(law.mean)) * (1 + 1e-6)
    assert module.layers[1].bias.std() > 0
    again, other = TorchNetwork(network), TorchNetwork(network)
    again.draw_weights(5)
    other.draw_weights(6)
    assert torch.equal(again.layers[1].weight, module.layers[1].weight)
    assert init == "constant(2)" or not torch.equal(other.layers[1].weight, module.layers[1].weight)


def test_own_draws_agree_with_theory_and_monte_carlo():
    network = build("plain_conv", framework="keras", depth=3, width=16, size=8)
    batch = load_batch("gaussian", network.nodes[0].shape, 8, 0)
    torch_report = measure(network, batch, trials=60, seed=0)
    assert compare(predict(network, batch), torch_report).agrees
    monte_carlo = simulate(network, batch, trials=60, seed=0)
    scores = []
    for mine, other in zip(torch_report.layers, monte_carlo.layers, strict=True):
        for a, b in ((mine.forward, other.forward), (mine.backward, other.backward)):
            error = np.hypot(a.standard_error, b.standard_error)
            scores.append((a.second_moment - b.second_moment) / error if error else 0.0)
    assert max(map(abs, scores)) < 4.5  # of 16 scores: once in 9,000 runs by chance


def test_depth_that_float32_cannot_hold_stays_finite_in_logs():
    network = build("mlp", depth=300, width=8, init=parse_initializer("normal(1e-2)"))
    report = measure(network, load_batch("gaussian", (8,), 4, 0), trials=2, seed=0)
    logs = [layer.forward.log_second_moment for layer in report.layers]
    # Every weighted layer multiplies by 8e-4, every ReLU by a half, and dead units take more.
    assert logs[100] < -300
    assert np.isfinite(logs[:200]).all()


def test_overflow_is_refused_with_the_layers_name():
    network = build("mlp", depth=300, width=8, init=parse_initializer("normal(1e3)"))
    with pytest.raises(UserError, match=r"floating range at linear\d+, expected finite ones. Use --engine monte-carlo"):
        measure(network, load_batch("gaussian", (8,), 4, 0), trials=2, seed=0)


def test_what_is_refused():
    network = build("mlp", depth=2, width=8)
    batch = load_batch("gaussian", (8,), 4, 0)
    with pytest.raises(UserError, match="--device: got 'gpu', expected auto, cpu, cuda"):
        measure(network, batch, trials=2, seed=0, device="gpu")
    with pytest.raises(UserError, match="--device: got cuda:99, expected one of this machine's"):
        measure(network, batch, trials=2, seed=0, device="cuda:99")
    with pytest.raises(UserError, match="batch shape"):
        measure(network, Batch(np.zeros((4, 7)), "gaussian", True), trials=2, seed=0)


def test_command_line_shows_a_third_column(capsys):
    words = ["propagate", "mlp", "--depth", "2", "--width", "8", "--batch", "4", "--trials", "8"]
    assert main([*words, "--engine", "theory,monte-carlo,torch", "--format", "json"]) == 0
    data = json.loads(capsys.readouterr().out)
    for layer in data["layers"]:
        for direction in (layer["forward"], layer["backward"]):
            assert direction["torch"].keys() == direction["monte_carlo"].keys()
            assert {"theory", "z", "torch_z"} < direction.keys()
    assert data["summary"]["torch_agreement"]["compared"] > 0
    assert main([*words, "--engine", "theory,torch"]) == 0
    table = capsys.readouterr().out
    assert "q torch ± se" in table
    assert "MC" not in table
    assert "theory and torch agree" in table
    assert main([*words, "--format", "json"]) == 0
    assert "torch" not in json.loads(capsys.readouterr().out)["layers"][0]["forward"]


def test_torch_that_is_not_installed_is_a_clear_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["propagate", "mlp", "--engine", "torch"]) == 2
    assert "torch: got not installed" in capsys.readouterr().err
