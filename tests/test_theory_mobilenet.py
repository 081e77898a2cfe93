"""MobileNetV2 with BN: theory within its documented accuracy of Monte Carlo, forward and one step back at a time."""

from __future__ import annotations

from statistics import median

import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import compare
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.theory import predict
from varprop.tests.tolerances import BEYOND, MOBILENET


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
