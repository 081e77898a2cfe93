"""MobileNetV2 with BN: theory within its documented accuracy of Monte Carlo, forward and one step back at a time."""

from __future__ import annotations

import math
from statistics import median

import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.theory import predict
from varprop.tests.tolerances import ACCUMULATED, BEYOND, MOBILENET


def worst(agreements):
    """Largest relative difference of those that sampling noise does not explain."""
    return max((abs(row.relative) for row in agreements if abs(row.z) > BEYOND), default=0.0)


@pytest.mark.parametrize("source", ["gaussian", "photo"])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_documented_accuracy(framework, source):
    """he_normal, relu6, 32x32, batch 64, 60 draws; medians are over all layers and over all pairs of weighted layers.

    Noise only adds to a median of absolute differences; the largest of a hundred differences it would decide alone.
    """
    network = build("mobilenet_v2", framework=framework)
    batch = load_batch(source, (3, 32, 32), 64, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=60, seed=1))
    steps = [step.agreement for step in found.steps]
    assert len(steps) == 52  # 35 convolutions, 17 depthwise layers and the classifier
    assert median(abs(row.relative) for row in found.forward) < MOBILENET["forward median"]
    assert worst(found.forward) < MOBILENET["forward worst"]
    assert median(abs(row.relative) for row in steps) < MOBILENET["step median"]
    assert worst(steps) < MOBILENET["step worst"]
    assert max(abs(found.backward[step.to].relative) for step in found.steps) < ACCUMULATED[source]


def test_selu_accumulates_no_bias():
    """Back through 52 normalised layers: SELU's slopes go with the depthwise weights, and theory knows it.

    Taking them as independent is off by 80% at the stem; 25% is four times what the draws leave open.
    """
    network = build("mobilenet_v2", framework="keras", activation="selu", init=parse_initializer("lecun_normal"))
    batch = load_batch("gaussian", (3, 32, 32), 64, 0)
    found = compare(predict(network, batch), simulate(network, batch, trials=60, seed=1))
    assert abs(found.accumulated) < 0.25
    assert worst([step.agreement for step in found.steps]) < MOBILENET["step worst"]


def test_signal_dies_without_normalisation():
    """Pixels in [0, 1] at 224 x 224 with Keras's defaults and no normalisation: logits of 1e-12 to 1e-11."""
    network = build("mobilenet_v2", framework="keras", init=parse_initializer("default"), norm="none", size=224)
    report = predict(network, load_batch("photo", (3, 224, 224), 4, 0))
    assert 1e-12 < math.sqrt(report.layers[-1].forward.second_moment) < 1e-11


def test_nothing_comes_back_from_a_zero_start():
    """Normalising a constant gives zero, and there the slope of ReLU is zero."""
    network = build("two_layer", framework="torch", init=parse_initializer("zeros"), size=16)
    *before, last = predict(network, load_batch("gaussian", (3, 16, 16), 1, 0)).layers
    assert all(layer.backward.second_moment == 0.0 for layer in before)
    assert all(layer.forward.second_moment == 0.0 for layer in [*before[1:], last])
