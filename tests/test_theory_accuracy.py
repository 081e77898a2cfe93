"""Theory of networks with batch normalisation against Monte Carlo, within the bounds that the README states."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.compare import weighted_layers
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate_trials
from varprop.simulator.theory import predict
from varprop.tests.tolerances import BEYOND, MOBILENET

TRIALS = 60


def errors(network, batch):
    """Relative errors of theory and relative standard errors of the run: of q at every node, of g's steps back."""
    theory = predict(network, batch)
    forward, backward = simulate_trials(network, batch, trials=TRIALS, seed=1)
    q = np.exp(forward.log_second_moment)[:, 1:]
    g = np.exp(backward.log_second_moment)[:, list(weighted_layers(theory))]
    predicted_q = np.array([layer.forward.second_moment for layer in theory.layers])[1:]
    predicted_g = np.array([theory.layers[i].backward.second_moment for i in weighted_layers(theory)])
    step = g[:, :-1].mean(axis=0) / g[:, 1:].mean(axis=0)
    noise = np.std(g[:, :-1] / g[:, :-1].mean(axis=0) - g[:, 1:] / g[:, 1:].mean(axis=0), axis=0)
    return (
        predicted_q / q.mean(axis=0) - 1,
        q.std(axis=0) / q.mean(axis=0) / np.sqrt(TRIALS),
        predicted_g[:-1] / predicted_g[1:] / step - 1,
        noise / np.sqrt(TRIALS),
    )


def worst(error, noise):
    """Largest relative error beyond what the run's own noise explains."""
    return float(np.max(np.abs(error) - BEYOND * noise))


@pytest.mark.parametrize("source", ["gaussian", "photo"])
@pytest.mark.parametrize("framework", ["torch", "keras"])
def test_mobilenet_with_batch_norm(framework, source):
    network = build("mobilenet_v2", framework=framework, init=parse_initializer("he_normal"), size=32)
    q, q_noise, step, step_noise = errors(network, load_batch(source, (3, 32, 32), 64, 0))
    assert np.median(np.abs(q)) < MOBILENET["forward median"]
    assert worst(q, q_noise) < MOBILENET["forward worst"]
    assert np.median(np.abs(step)) < MOBILENET["step median"]
    assert worst(step, step_noise) < MOBILENET["step worst"]


def test_selu_mobilenet_accumulates_no_bias():
    """52 normalised layers back to the stem: the slopes of SELU go with the depthwise weights, and theory knows."""
    network = build(
        "mobilenet_v2", framework="keras", init=parse_initializer("lecun_normal"), activation="selu", size=32
    )
    q, _, step, step_noise = errors(network, load_batch("gaussian", (3, 32, 32), 64, 0))
    assert np.median(np.abs(q)) < MOBILENET["forward median"]
    assert np.median(np.abs(step)) < MOBILENET["step median"]
    assert worst(step, step_noise) < MOBILENET["step worst"]
    assert abs(np.sum(np.log1p(step))) < 0.25


def test_signal_dies_without_batch_norm():
    """Pixels in [0, 1] through MobileNetV2 with Keras's defaults and no normalisation: logits of 1e-12 to 1e-11."""
    network = build("mobilenet_v2", framework="keras", init=parse_initializer("default"), norm="none", size=224)
    report = predict(network, load_batch("photo", (3, 224, 224), 4, 0))
    assert 1e-12 < np.sqrt(report.layers[-1].forward.second_moment) < 1e-11


def test_zero_start_has_zero_gradients():
    """Batch normalisation of a constant is zero, and so is the slope of ReLU there: nothing comes back."""
    network = build("two_layer", framework="torch", init=parse_initializer("zeros"), size=16)
    report = predict(network, load_batch("gaussian", (3, 16, 16), 1, 0))
    assert [layer.backward.second_moment for layer in report.layers[:-1]] == [0.0] * (len(report.layers) - 1)
    assert all(layer.forward.second_moment == 0.0 for layer in report.layers[1:])
