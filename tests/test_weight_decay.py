"""Motion of scale-invariant weights: the recurrence against simulated descent, closed forms against the recurrence."""

from __future__ import annotations

import math

import numpy as np
import pytest

from varprop.simulator.architectures import build
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.network import NetworkBuilder
from varprop.simulator.scale_invariance import effective_learning_rates, scale_invariant
from varprop.simulator.weight_decay import (
    Sgd,
    angular_update,
    effective_learning_rate,
    equilibrium_squared_norm,
    exponential_schedule,
    keras_l2,
    motion,
    pure_decay,
    relaxation_steps,
    squared_norm_after,
)
from varprop.tests.tolerances import BEYOND, ROUNDING

FEATURES, BATCH = 30, 4
NOISE_GRADIENT = 8 * (FEATURES - 1) / BATCH
"""E |g|^2 at |w| = 1 of the mean of (x.w/|w| - y)^2 over a batch with y independent of x, all N(0, 1):
4 / B times the d - 1 directions across w times the variance 2 of the residual."""
SGDS = [Sgd(0.1, 0.01), Sgd(0.1, 0.01, 0.9), Sgd(0.05, 0.0), Sgd(0.02, 0.0, 0.8)]


def gradients(w, x, y):
    """Gradients of the mean squared error of x.w/|w| in replicas: w (replicas, d), x (replicas, batch, d)."""
    norm = np.linalg.norm(w, axis=1, keepdims=True)
    unit = w / norm
    residual = np.einsum("rbd,rd->rb", x, unit) - y
    plain = 2 * np.mean(residual[:, :, None] * x, axis=1)
    return (plain - np.sum(plain * unit, axis=1, keepdims=True) * unit) / norm


def descend(sgd, w, gradient_of, steps, rates=None, buffer=0.0):
    """Squared norms, angles and last weights of gradient descent, momentum as torch has it."""
    norms, angles, v = [np.sum(w**2, axis=1)], [], buffer
    for step in range(steps):
        v = sgd.momentum * v + gradient_of(w) + sgd.weight_decay * w
        after = w - (sgd.lr if rates is None else rates[step]) * v
        cosine = np.sum(w * after, axis=1) / np.sqrt(norms[-1] * np.sum(after**2, axis=1))
        angles.append(np.arccos(cosine))
        w = after
        norms.append(np.sum(w**2, axis=1))
    return np.array(norms), np.array(angles), w


def test_regression_gradient_is_invariant_to_scale():
    """Orthogonal to w, and 1/c of itself at c w: what everything here rests on."""
    rng = np.random.default_rng(0)
    w, x, y = rng.standard_normal((5, 6)), rng.standard_normal((5, 4, 6)), rng.standard_normal((5, 4))
    g = gradients(w, x, y)
    assert np.sum(g * w, axis=1) == pytest.approx(0, abs=ROUNDING)
    assert gradients(3 * w, x, y) == pytest.approx(g / 3, rel=ROUNDING)


@pytest.mark.parametrize("sgd", [SGDS[0], SGDS[2]])
def test_recurrence_is_exact_for_gradients_of_constant_size(sgd):
    rng = np.random.default_rng(1)

    def tangent(w):
        g = rng.standard_normal(w.shape)
        g -= np.sum(g * w, axis=1, keepdims=True) / np.sum(w**2, axis=1, keepdims=True) * w
        return g * 1.7 / np.linalg.norm(g, axis=1, keepdims=True) / np.linalg.norm(w, axis=1, keepdims=True)

    norms, angles, _ = descend(sgd, rng.standard_normal((1, 5)), tangent, 300)
    found = motion(sgd, norms[0, 0], 1.7**2, 300)
    assert found.squared_norm == pytest.approx(norms[:, 0], rel=ROUNDING)
    assert found.angle == pytest.approx(angles[:, 0], rel=1e-9)  # the test's own arccos loses digits


@pytest.mark.parametrize("sgd", SGDS, ids=str)
def test_recurrence_holds_for_regression(sgd):
    """Mean over 400 runs of a regression on noise, on the way to equilibrium and there, in standard errors."""
    rng = np.random.default_rng(2)
    runs, steps = 400, 600

    def fresh(w):
        return gradients(w, rng.standard_normal((runs, BATCH, FEATURES)), rng.standard_normal((runs, BATCH)))

    w = rng.standard_normal((runs, FEATURES))
    w *= 3 / np.linalg.norm(w, axis=1, keepdims=True)
    norms, angles, _ = descend(sgd, w, fresh, steps)
    found = motion(sgd, 9.0, NOISE_GRADIENT, steps)
    times = np.array([1, 10, 50, 150, 300, 600])
    error = norms[times].std(axis=1, ddof=1) / math.sqrt(runs)
    z = (norms[times].mean(axis=1) - found.squared_norm[times]) / error
    assert np.abs(z).max() < BEYOND
    # Of the squared tangent, which is what the recurrence gives the mean of.
    square = np.tan(angles[times - 1]) ** 2
    z = (square.mean(axis=1) - np.tan(found.angle[times - 1]) ** 2) / (square.std(axis=1, ddof=1) / math.sqrt(runs))
    assert np.abs(z).max() < BEYOND


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_equilibrium_is_the_recurrence_s_fixed_point(momentum):
    sgd = Sgd(0.2, 0.05, momentum)
    found = motion(sgd, 3.0, 7.0, 20 * math.ceil(relaxation_steps(sgd)) + 500)
    assert found.squared_norm[-1] == pytest.approx(equilibrium_squared_norm(sgd, 7.0), rel=1e-10)
    assert found.angle[-1] == pytest.approx(angular_update(sgd), rel=1e-10)


def slope(x, y):
    return np.polyfit(np.log(x), np.log(y), 1)[0]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_closed_forms_are_first_order_in_the_rate(momentum):
    """Norm after a fixed time, and the square-root law of the angle: errors fall as the learning rate does."""
    rates = np.array([0.04, 0.02, 0.01, 0.005]) * (1 - momentum) ** 2  # long after the buffer forgot its start
    path, angle = [], []
    for rate in rates:
        sgd = Sgd(rate, 0.1, momentum)
        steps = round(0.7 * relaxation_steps(sgd))
        gradient = 5 / rate  # keeps the equilibrium where it is
        norm = motion(sgd, 3.0, gradient, steps).squared_norm[-1]
        path.append(abs(squared_norm_after(sgd, 3.0, gradient, steps) / norm - 1))
        angle.append(abs(math.sqrt(2 * rate * 0.1 / (1 + momentum)) / angular_update(sgd) - 1))
    assert slope(rates, path) == pytest.approx(1, abs=0.15)
    assert slope(rates, angle) == pytest.approx(1, abs=0.05)


def test_norm_without_decay_grows_as_the_fourth_root_of_time():
    sgd = Sgd(0.1)
    times = np.array([1e4, 1e5, 1e6])
    assert slope(times, np.sqrt(squared_norm_after(sgd, 1.0, 50.0, times))) == pytest.approx(0.25, abs=1e-3)
    assert motion(sgd, 1.0, 50.0, 10_000).squared_norm[-1] == pytest.approx(
        squared_norm_after(sgd, 1.0, 50.0, 10_000), rel=2e-3
    )
    assert equilibrium_squared_norm(sgd, 50.0) == relaxation_steps(sgd) == math.inf


@pytest.mark.parametrize("momentum", [0.0, 0.6])
def test_decay_is_an_exponential_rate(momentum):
    """A regression with decay, and one without it at rates that grow: the same directions, step for step."""
    rng = np.random.default_rng(3)
    sgd, steps = Sgd(0.05, 0.4, momentum), 60
    x = rng.standard_normal((steps, 1, BATCH, 6))
    y = x @ rng.standard_normal(6)
    w = rng.standard_normal((1, 6))
    rates, start = exponential_schedule(sgd, steps)

    def over_batches():
        batches = iter(zip(x, y, strict=True))
        return lambda w: gradients(w, *next(batches))

    _, angles, decayed = descend(sgd, w, over_batches(), steps)
    _, others, grown = descend(Sgd(1.0, 0.0, momentum), w, over_batches(), steps, rates, start * w)
    assert others == pytest.approx(angles, abs=1e-7)  # arccos of nearly one
    alpha = math.sqrt(rates[0] / rates[1])
    assert grown * alpha**steps == pytest.approx(decayed, rel=1e-10)


def test_pure_decay():
    """Against plain descent without gradient, and the power law without momentum."""
    for sgd in (Sgd(0.1, 0.3), Sgd(0.1, 0.3, 0.9), Sgd(0.5, 1.1, 0.2)):
        w, v = 1.0, 0.0
        for _ in range(37):
            v = sgd.momentum * v + sgd.weight_decay * w
            w -= sgd.lr * v
        assert pure_decay(sgd, 37) == pytest.approx(w, rel=1e-10, abs=1e-15)
    assert pure_decay(Sgd(0.1, keras_l2(0.001)), 14067) == pytest.approx(0.9998**14067, rel=1e-11)
    assert pure_decay(Sgd(0.1), 1000) == 1.0


def test_effective_learning_rate_moves_the_direction():
    """Descent at w and at c w with rates eta and c^2 eta turns the direction alike."""
    rng = np.random.default_rng(4)
    w, x, y = rng.standard_normal((1, 6)), rng.standard_normal((1, 4, 6)), rng.standard_normal((1, 4))
    small, large = Sgd(0.01), Sgd(0.09)
    one = descend(small, w, lambda w: gradients(w, x, y), 5)[1]
    other = descend(large, 3 * w, lambda w: gradients(w, x, y), 5)[1]
    assert one == pytest.approx(other, rel=1e-7)
    assert effective_learning_rate(small, 2.0) == pytest.approx(effective_learning_rate(large, 18.0))


@pytest.mark.parametrize(
    ("lr", "decay", "momentum", "what"),
    [
        (0.0, 0.1, 0.0, "learning rate"),
        (math.nan, 0.1, 0.0, "learning rate"),
        (0.1, -0.1, 0.0, "weight decay"),
        (0.1, 25.0, 0.0, "weight decay"),
        (0.1, 0.1, 1.0, "momentum"),
    ],
)
def test_refused(lr, decay, momentum, what):
    with pytest.raises(UserError, match=what):
        Sgd(lr, decay, momentum)


def test_no_schedule_for_oscillating_decay():
    with pytest.raises(UserError, match="at most"):
        exponential_schedule(Sgd(0.1, 1.0, 0.9), 5)


def test_scale_invariant_layers_are_those_that_meet_a_normalisation():
    """Against the network itself: weights tripled, eps zero, the output stays or not."""
    from varprop.tests import naive_engine

    he = parse_initializer("he_normal")
    net = NetworkBuilder("net", "torch", (3, 6, 6))
    net.conv2d(4, 3, he, bias=parse_initializer("normal(0.5)"))
    net.batch_norm(eps=0)
    net.activation("relu")
    net.conv2d(4, 3, he)
    net.activation("relu")
    net.max_pool(2)
    net.conv2d(4, 3, he)
    net.batch_norm(eps=0)
    source = net.last
    net.conv2d(4, 3, he, bias=parse_initializer("normal(0.5)"))
    net.activation("relu")
    net.conv2d(4, 3, he)
    net.activation("tanh")
    net.conv2d(4, 1, he)
    net.batch_norm(eps=0)
    branch = net.last
    net.conv2d(4, 1, he, source=source)
    net.add((branch, net.last))
    net.batch_norm(eps=0)
    net.global_average_pool()
    net.linear(3, he)
    network = net.build()
    data = np.random.default_rng(0).standard_normal((5, 3, 6, 6))
    parameters, cotangent = naive_engine.draw(network, 0, 0, 5)
    before = naive_engine.run(network, data, parameters, cotangent)[0][-1]
    for index, invariant in enumerate(scale_invariant(network)):
        if parameters[index] is None:
            assert not invariant
            continue
        parameters[index].weight[:] *= 3
        after = naive_engine.run(network, data, parameters, cotangent)[0][-1]
        parameters[index].weight[:] /= 3
        assert invariant == (np.abs(after - before).max() < 1e-9), network.nodes[index].name


def test_effective_rates_of_mobilenet():
    """Every convolution is followed by BN, the classifier is not; Keras's fans set the norms."""
    network = build("mobilenet_v2", framework="keras", init=parse_initializer("he_normal"))
    rows = effective_learning_rates(network, Sgd(0.1))
    assert [row.scale_invariant for row in rows] == [True] * 52 + [False]
    assert rows[-1].effective_lr is None
    # Variance 2 / (9 C) times 9 C weights, and 2 / fan_in times fan_in weights a channel.
    by_name = {row.name: row for row in rows}
    assert by_name["block1.depthwise"].squared_norm == pytest.approx(2)
    assert by_name["block1.expand"].squared_norm == pytest.approx(2 * 96)
    assert by_name["block1.depthwise"].effective_lr == pytest.approx(0.05)
