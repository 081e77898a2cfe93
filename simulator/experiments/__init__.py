"""Five published experiments: what varprop predicts of each, beside what was reported."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module

from varprop.simulator.errors import did_you_mean
from varprop.simulator.experiments.outcome import Outcome

__all__ = ["NAMES", "Outcome", "predict"]

NAMES: dict[str, str] = {
    "mobilenet-initializers": "Keras: MobileNetV2 with four initializers; why the accuracies differ",
    "zero-and-constant-init": "PyTorch: two small convolutions that start at zero, at a constant, at random",
    "torch-linear-default": "PyTorch: nn.Linear's default, and what a = 5 in place of sqrt(5) makes of it",
    "truncated-normal": "TensorFlow: he_normal is not truncated_normal with deviation sqrt(2 / fan_in)",
    "batchnorm-and-l2": "Keras: MobileNetV2 with batch normalisation, with l2 on the weights, and with both",
}
"""Every experiment and one line on it."""

Progress = Callable[[int, int], None]


def predict(name: str, seed: int = 0, progress: Progress | None = None) -> Outcome:
    """Predict an experiment by theory and Monte Carlo, without training.

    Parameters
    ----------
    name
        One of `NAMES`.
    seed
        Of batches and weight draws.
    progress
        Called as progress(done, trials) while weights are drawn.

    Raises
    ------
    UserError
        Unknown name.
    """
    if name not in NAMES:
        raise did_you_mean("experiment", name, list(NAMES))
    found: Outcome = import_module(f"{__name__}.{name.replace('-', '_')}").predict(seed, progress)
    return found
