"""Constant and zero starts: every claim held against automatic differentiation in float64."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.degenerate import analyse_start
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import bias_law, draw, draw_bias, parse_initializer, weight_law
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Input,
    Linear,
    MaxPool,
    NetworkBuilder,
    ZeroPad,
)

torch = pytest.importorskip("torch")

ZERO, ONE, FIFTH, HE = map(parse_initializer, ("zeros", "constant(1)", "constant(0.2)", "he_normal"))
SAME = 1e-9
"""Relative: what is equal in exact arithmetic differs by float64's rounding, gathered over a few layers and steps."""
ZERO_GRADIENT = 1e-14
"""Of gradients of order 0.1 to 1e-8 that are not zero: what cancellation leaves of them is 1e-17."""
EPS = 1.0
"""Of batch normalisation that meets constants: the default makes their rounding noise 300 times larger."""
LR, STEPS = 3.0, 5
"""Few steps, and long ones: where a zero is a cancellation, rounding noise grows from step to step."""
ZERO_OUTPUT = LR * STEPS * ZERO_GRADIENT
"""What weights that are zero but for rounding make of inputs of size one: how it rounds, a processor decides."""


class Trained:
    """A network as torch runs it, batch normalisation's scale and shift trained too."""

    def __init__(self, network, seed=0):
        self.network = network
        rng = np.random.default_rng(seed)
        self.parameters = {}
        for index, node in enumerate(network.nodes):
            if node.fan_in is not None:
                self.parameters[index, "weight"] = draw(weight_law(node, network.framework), node, rng)
                law = bias_law(node, network.framework)
                if law is not None:
                    self.parameters[index, "bias"] = draw_bias(law, node, rng)
            elif isinstance(node.operation, BatchNorm):
                self.parameters[index, "weight"] = np.ones(node.shape[0])
                self.parameters[index, "bias"] = np.zeros(node.shape[0])
        self.parameters = {key: torch.tensor(value, requires_grad=True) for key, value in self.parameters.items()}

    def outputs(self, data):
        found = []
        for index, node in enumerate(self.network.nodes):
            sources = [found[source] for source in node.inputs] or [data]
            found.append(self._run(index, node.operation, *sources))
        return found

    def _run(self, index, operation, x, *more):
        functional = torch.nn.functional
        weight, bias = self.parameters.get((index, "weight")), self.parameters.get((index, "bias"))
        match operation:
            case Input():
                return x
            case Conv2d(padding=(top, bottom, left, right)):
                x = functional.pad(x, (left, right, top, bottom))
                return functional.conv2d(x, weight, bias, operation.stride, 0, 1, operation.groups)
            case Linear():
                return functional.linear(x, weight, bias)
            case BatchNorm():
                return functional.batch_norm(x, None, None, weight, bias, training=True, eps=operation.eps)
            case Activation("linear"):
                return x
            case Activation(name):
                return getattr(torch, name, None)(x) if hasattr(torch, name) else getattr(functional, name)(x)
            case Add():
                return x + sum(more)
            case AveragePool(kernel, stride):
                return functional.avg_pool2d(x, kernel, stride)
            case MaxPool(kernel, stride):
                return functional.max_pool2d(x, kernel, stride)
            case GlobalAveragePool():
                return x.mean((2, 3))
            case Flatten():
                return x.flatten(1)
            case ZeroPad((top, bottom, left, right)):
                return functional.pad(x, (left, right, top, bottom))
        raise NotImplementedError(operation)

    def gradients(self, data, target):
        loss = torch.nn.functional.cross_entropy(self.outputs(data)[-1], target)
        keys = list(self.parameters)
        found = torch.autograd.grad(loss, [self.parameters[key] for key in keys], allow_unused=True)
        return dict(zip(keys, found, strict=True)), loss.item()


def distinct_channels(output):
    """Number of channels that differ beyond rounding."""
    rows = output.detach().movedim(1, 0).flatten(1).numpy()
    least = max(SAME * np.abs(rows).max(), ZERO_OUTPUT)
    kept = []
    for row in rows:
        if all(np.abs(row - other).max() > least for other in kept):
            kept.append(row)
    return len(kept)


def data_and_target(network, target=None, samples=60):
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(samples, *network.nodes[0].shape, generator=generator, dtype=torch.float64)
    classes, *places = network.nodes[-1].shape
    if target is None:  # shares of all classes, some much larger: whole labels can be as frequent as each other
        scores = torch.randn(samples, classes, *places, generator=generator, dtype=torch.float64)
        scores += torch.linspace(0, 5, classes, dtype=torch.float64).reshape(-1, *(1,) * len(places))
        return data, torch.softmax(scores, 1)
    return data, torch.full((samples, *places), target)


def mlp(*layers, width=5, function="relu", norm=False, biases=None):
    """Linear layers by their initializers, a function between them."""
    net = NetworkBuilder("mlp", "torch", (4,))
    for number, init in enumerate(layers):
        net.linear(width, init, bias=biases)
        if number + 1 < len(layers):
            if norm:
                net.batch_norm(eps=EPS)
            net.activation(function)
    return net.build()


def convolutional():
    """Constant grouped, depthwise and padded convolutions, pools, a shortcut whose branch starts at zero."""
    net = NetworkBuilder("conv", "torch", (4, 7, 7))
    net.conv2d(6, 3, FIFTH, groups=2, padding="valid")
    net.activation("tanh")
    net.zero_pad((0, 1, 1, 0))
    start = net.conv2d(12, 3, FIFTH, groups=6, stride=2)
    net.activation("silu")
    net.conv2d(12, 3, HE)
    net.batch_norm()
    net.activation("relu")
    net.conv2d(12, 1, ZERO)
    net.add((start, net.last))
    net.max_pool(2, stride=1)
    net.average_pool(2, stride=1)
    net.flatten()
    net.linear(3, FIFTH, bias=ZERO)
    return net.build()


def normalised():
    """A bias before BN, a constant that BN meets, and a constant under a centred gradient."""
    net = NetworkBuilder("normalised", "torch", (3, 4, 4))
    net.conv2d(4, 3, HE, bias=ZERO)
    net.batch_norm(eps=EPS)
    net.activation("tanh")
    source = net.last
    net.conv2d(4, 1, ZERO, bias=ONE)
    net.batch_norm(eps=EPS)
    net.activation("sigmoid")
    net.conv2d(4, 1, HE, padding="valid")
    net.batch_norm(eps=EPS)
    net.add((source, net.last))
    net.global_average_pool()
    net.linear(3, HE, bias=ZERO)
    return net.build()


NETWORKS = {
    "two_layer, zero": build("two_layer", init=ZERO, size=6),
    "two_layer, zero, single": build("two_layer", init=ZERO, size=6, depth=1, norm="none", activation="linear"),
    "two_layer, constant": build("two_layer", init=parse_initializer("constant(5)"), size=6),
    "two_layer, kaiming": build("two_layer", init=HE, size=6),
    "zero tanh without biases": mlp(ZERO, ZERO, ZERO, function="tanh"),
    "zero relu with biases": mlp(ZERO, ZERO, ZERO, biases=ZERO),
    "zero tanh with biases": mlp(ZERO, ZERO, ZERO, function="tanh", biases=ZERO),
    "zero sigmoid": mlp(ZERO, ZERO, ZERO, ZERO, function="sigmoid", biases=ZERO),
    "zero sigmoid with BN": mlp(ZERO, ZERO, ZERO, function="sigmoid", norm=True),
    "constant": mlp(FIFTH, FIFTH, FIFTH, function="tanh", biases=ZERO),
    "constant classifier": mlp(HE, HE, FIFTH),
    "constant middle": mlp(HE, FIFTH, HE),
    "zero classifier": mlp(HE, HE, ZERO),
    "zero first": mlp(ZERO, HE, HE, function="tanh"),
    "random": mlp(HE, HE, HE, function="tanh", biases=parse_initializer("normal(0.1)")),
    "convolutional": convolutional(),
    "normalised": normalised(),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_claims_hold_in_training_and_nothing_else_is_zero_or_equal(name):
    """Zero gradients, first steps and numbers of different channels, exactly as claimed: no fewer and no more."""
    network = NETWORKS[name]
    claimed = analyse_start(network)
    trained = Trained(network)
    data, target = data_and_target(network)
    first_steps = {}
    for step in range(1, STEPS + 1):
        gradients, loss = trained.gradients(data, target)
        outputs = trained.outputs(data)
        for layer in claimed.layers:
            gradient = gradients[layer.index, "weight"]
            size = 0.0 if gradient is None else float(gradient.abs().max())
            if size > ZERO_GRADIENT:
                first_steps.setdefault(layer.index, step)
            if step == 1:
                zeros = layer.weights if gradient is None else int((gradient.abs() < ZERO_GRADIENT).sum())
                assert zeros == layer.zero_gradients, layer
                assert distinct_channels(outputs[layer.index]) == layer.distinct_at_start, layer
        if step == 1:
            assert claimed.equal_logits == (distinct_channels(outputs[-1]) == 1)
        if claimed.plateau is not None:
            assert loss == pytest.approx(claimed.plateau, abs=1e-15)
        with torch.no_grad():
            for key, gradient in gradients.items():
                if gradient is not None:
                    trained.parameters[key] -= LR * gradient
    outputs = trained.outputs(data)
    for layer in claimed.layers:
        assert first_steps.get(layer.index) == layer.first_step, layer
        assert distinct_channels(outputs[layer.index]) == layer.distinct_in_training, layer
        assert bool(layer.reasons) == (layer.zero_gradients == layer.weights)


def random_network(seed):
    """A small graph of any operations and starts; what does not fit together is left out."""
    rng = random.Random(seed)
    net = NetworkBuilder("random", "torch", (rng.choice([2, 3, 4]), 5, 5))
    for _ in range(rng.randint(2, 7)):
        source = rng.choice([net.last, max(net.last - 1, 0)])
        channels = net.shape(source)[0]
        init = rng.choice([ZERO, FIFTH, HE, HE])
        match rng.choice("cccdgbbaaampz+"):
            case "c":
                bias, padding = rng.choice([None, ZERO, FIFTH]), rng.choice(["same", "valid"])
                kernel = 1 if min(net.shape(source)[1:]) < 3 else rng.choice([1, 3])
                net.conv2d(4, kernel, init, padding=padding, bias=bias, source=source)
            case "d":
                net.conv2d(channels * rng.choice([1, 2]), 3, init, groups=channels, source=source)
            case "g" if channels % 2 == 0:
                net.conv2d(4, 3, init, groups=2, source=source)
            case "b":
                net.batch_norm(eps=EPS, source=source)
            case "a":
                net.activation(rng.choice(["relu", "tanh", "sigmoid", "silu", "linear"]), source=source)
            case "m" if min(net.shape(source)[1:]) > 1:
                net.max_pool(2, stride=1, source=source)
            case "p" if min(net.shape(source)[1:]) > 1:
                net.average_pool(2, stride=1, source=source)
            case "z":
                net.zero_pad((0, 1, 1, 0), source=source)
            case "+" if net.shape(source) == net.shape() and source != net.last:
                net.add((source, net.last))
    rng.choice([net.flatten, net.global_average_pool])()
    net.linear(4, rng.choice([ZERO, FIFTH, HE]), bias=rng.choice([None, ZERO]))
    net.activation(rng.choice(["relu", "tanh", "sigmoid"]))
    net.linear(3, rng.choice([ZERO, FIFTH, HE]), bias=rng.choice([None, ZERO]))
    return net.build()


@pytest.mark.parametrize("seed", range(30))
def test_no_claim_is_false_in_random_networks(seed):
    """What is claimed to be zero, equal or at rest is so; that nothing else is, chance does not allow to ask here."""
    network = random_network(seed)
    claimed = analyse_start(network)
    trained = Trained(network, seed)
    data, target = data_and_target(network, samples=20)
    for step in range(1, 4):
        gradients, loss = trained.gradients(data, target)
        outputs = trained.outputs(data)
        if claimed.plateau is not None:
            assert loss == pytest.approx(claimed.plateau, rel=SAME)
        if step == 1 and claimed.equal_logits:
            assert distinct_channels(outputs[-1]) == 1
        for layer in claimed.layers:
            gradient = gradients[layer.index, "weight"]
            zeros = layer.weights if gradient is None else int((gradient.abs() < 1e-12).sum())
            if step == 1:
                assert zeros >= layer.zero_gradients, layer
            if layer.first_step is None or step < layer.first_step:
                assert zeros == layer.weights, layer
            if outputs[layer.index].abs().max() > 1e-12:
                most = layer.distinct_at_start if step == 1 else layer.distinct_in_training
                assert distinct_channels(outputs[layer.index]) <= most, layer
        with torch.no_grad():
            for key, gradient in gradients.items():
                if gradient is not None:
                    trained.parameters[key] -= 0.5 * gradient


def test_channels_that_the_loss_treats_alike_stay_alike():
    """One class everywhere: the two other channels stay one; told nothing, they count as two."""
    network = NETWORKS["two_layer, constant"]
    claimed = analyse_start(network, targets=[0, 0, 1])
    assert [(layer.distinct_at_start, layer.distinct_in_training) for layer in claimed.layers] == [(1, 1), (1, 2)]
    assert analyse_start(network).layers[1].distinct_in_training == 3
    trained = Trained(network)
    data, target = data_and_target(network, 2)
    for _ in range(5):
        gradients, _ = trained.gradients(data, target)
        with torch.no_grad():
            for key, gradient in gradients.items():
                trained.parameters[key] -= LR * gradient
    outputs = trained.outputs(data)
    assert [distinct_channels(outputs[layer.index]) for layer in claimed.layers] == [1, 2]


def test_plateau_is_the_log_of_the_number_of_classes():
    found = analyse_start(NETWORKS["two_layer, zero"])
    assert found.plateau == found.starting_loss == math.log(3)
    assert not found.moves
    assert analyse_start(NETWORKS["two_layer, constant"]).plateau is None
    assert analyse_start(NETWORKS["two_layer, kaiming"]).starting_loss is None


def test_reasons_name_the_place():
    first, second = analyse_start(NETWORKS["two_layer, zero"]).layers
    assert "relu'(0) = 0 at conv2.act" in first.reasons[0]
    assert second.reasons[0] == "its input is exactly zero: all weights of conv1 are zero"
    hidden = analyse_start(NETWORKS["constant classifier"]).layers[0]
    assert "softmax's gradient sums to zero over the equal outputs of linear3" in hidden.reasons[0]


def test_a_deep_stack_wakes_up_from_the_top():
    """Zero weights under sigmoid: each layer waits for the one above it."""
    assert [layer.first_step for layer in analyse_start(NETWORKS["zero sigmoid"]).layers] == [4, 3, 2, 1]


def test_wrong_number_of_targets():
    with pytest.raises(UserError, match="one per output channel of two_layer: 3"):
        analyse_start(NETWORKS["two_layer, zero"], targets=[0, 1])
