"""Five published experiments: what varprop predicts of each, beside what was reported."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING

from varprop.simulator.errors import did_you_mean
from varprop.simulator.experiments.outcome import Outcome, Trained

if TYPE_CHECKING:  # torch is needed for training only
    from varprop.simulator.experiments.trained.runs import Options

__all__ = ["NAMES", "Outcome", "Trained", "check_name", "predict", "train"]

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
    check_name(name)
    found: Outcome = import_module(f"{__name__}.{name.replace('-', '_')}").predict(seed, progress)
    return found


def train(name: str, options: Options) -> Trained:
    """Train an experiment in torch; `extended` joins the result with the prediction.

    Raises
    ------
    UserError
        Unknown name, or options, data or a device that cannot be used.
    """
    check_name(name)
    found: Trained = import_module(f"{__name__}.trained.{name.replace('-', '_')}").train(options)
    return found


def check_name(name: str) -> None:
    """Raise UserError if there is no such experiment."""
    if name not in NAMES:
        raise did_you_mean("experiment", name, list(NAMES))
