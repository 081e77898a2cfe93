"""How deep a plain network can be trained: a grid of depths and weight variances against six depth scales.

References
----------
.. [1] S. Schoenholz, J. Gilmer, S. Ganguli, J. Sohl-Dickstein, "Deep information propagation", ICLR 2017, section 5 and
   figure 5.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from varprop.simulator.activations import activation as activation_function
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.mean_field import phase
from varprop.simulator.network import Network, NetworkBuilder, Shape
from varprop.simulator.torch_backend.data import TrainingData
from varprop.simulator.torch_backend.training import TrainingSettings, train


@dataclass(frozen=True, slots=True)
class Point:
    """One network of the grid, trained briefly."""

    depth: int
    """Hidden layers."""
    sigma_w2: float
    trainable_depth: float | None
    """6 xi_c as mean field has it; None where correlations do not settle exponentially: no limit."""
    loss: float
    accuracy: float
    """On the training samples of the last epoch, as they were trained on."""

    @property
    def within(self) -> bool:
        """Whether theory calls the network trainable."""
        return self.trainable_depth is None or self.depth <= self.trainable_depth


def plain_network(
    depth: int, shape: Shape, *, activation: str, sigma_w2: float, sigma_b2: float, width: int, classes: int
) -> Network:
    """Return `depth` hidden layers and a classifier, weights of variance sigma_w2 / fan_in and biases of sigma_b2."""
    weight = parse_initializer(f"he_normal(gain={math.sqrt(sigma_w2)!r})")
    bias = parse_initializer(f"random_normal({math.sqrt(sigma_b2)!r})") if sigma_b2 else parse_initializer("zeros")
    net = NetworkBuilder(f"plain {activation}", "torch", shape)
    if len(shape) > 1:
        net.flatten()
    for _ in range(depth):
        net.linear(width, weight, bias=bias)
        net.activation(activation)
    net.linear(classes, weight, bias=bias)
    return net.build()


def trainability(
    data: TrainingData,
    shape: Shape,
    depths: Sequence[int],
    sigma_w2: Sequence[float],
    *,
    activation: str = "tanh",
    sigma_b2: float = 0.05,
    width: int = 100,
    steps: int = 300,
    batch: int = 64,
    learning_rate: float = 1e-3,
    momentum: float = 0.9,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> list[Point]:
    """Train a plain network of every depth and weight variance and hold it against mean field's depth scale.

    Parameters
    ----------
    data
        What all are trained on.
    shape
        Of a sample as it enters the network; images are resized to it.
    depths, sigma_w2
        The grid.
    activation, sigma_b2, width
        Of every hidden layer.
    steps, batch, learning_rate, momentum, seed
        Of every run. The rate must suit the deepest: a high one hides what initialization decides.
    progress
        Called with networks done and networks in all.

    Raises
    ------
    UserError
        What mean field or training refuses.
    """
    function = activation_function(activation)
    classes = int(data.train.targets.max()) + 1
    epochs = math.ceil(steps / math.ceil(len(data.train) / batch))
    points: list[Point] = []
    for variance in sigma_w2:
        limit = phase(function, variance, sigma_b2).trainable_depth
        for depth in depths:
            network = plain_network(
                depth,
                shape,
                activation=activation,
                sigma_w2=variance,
                sigma_b2=sigma_b2,
                width=width,
                classes=classes,
            )
            settings = TrainingSettings(
                network,
                epochs=epochs,
                steps=steps,
                batch=batch,
                learning_rate=learning_rate,
                momentum=momentum,
                seed=seed,
            )
            last = train(settings, data).last
            points.append(Point(depth, variance, limit, last.loss, last.accuracy))
            if progress is not None:
                progress(len(points), len(depths) * len(sigma_w2))
    return points


def separation(points: Sequence[Point]) -> float | None:
    """Return how often a network within its depth scale beats one beyond it in accuracy, ties counted half.

    1 is a perfect prediction, 1/2 none; None if all networks are on one side.
    """
    within = [point.accuracy for point in points if point.within]
    beyond = [point.accuracy for point in points if not point.within]
    if not within or not beyond:
        return None
    wins = sum((a > b) + (a == b) / 2 for a in within for b in beyond)
    return wins / (len(within) * len(beyond))
