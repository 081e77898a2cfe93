"""What defines a training run."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.network import Network

Precision = Literal["float32", "float64", "bfloat16"]


@dataclass(frozen=True, slots=True)
class TrainingSettings:
    """One run of stochastic gradient descent.

    Attributes
    ----------
    network
        What is trained; its initializers draw the weights, keyed by `seed`.
    epochs, steps
        Length of the run; `steps`, if given, caps it.
    learning_rate, momentum
        v <- momentum v + gradient, w <- w - learning_rate v, as torch has it.
    weight_decay
        Times w, added to the gradient of every parameter.
    l2
        Keras's l2: the loss has the term l2 sum w^2 of every kernel (not of biases, nor of normalisation's scale and
        shift), the gradient 2 l2 w.
    clear_gradients
        Without it gradients add up from step to step.
    precision
        ``bfloat16`` keeps weights in float32 and runs the layers in bfloat16 by autocast.
    record_steps
        Steps (from 0) at which every layer is measured, besides every epoch's first and the end.
    watch
        Layer of which the first ten weights are recorded; default: the first that has weights.
    """

    network: Network
    epochs: int = 10
    steps: int | None = None
    learning_rate: float = 0.1
    momentum: float = 0.0
    batch: int = 32
    weight_decay: float = 0.0
    l2: float = 0.0
    seed: int = 0
    clear_gradients: bool = True
    precision: Precision = "float32"
    channels_last: bool = False
    record_steps: tuple[int, ...] = ()
    watch: str | None = None

    def check(self) -> None:
        """Raise UserError if a number is out of range or the watched layer is not there."""
        for what, count in (("--epochs", self.epochs), ("--batch", self.batch), ("--steps", self.steps)):
            if count is not None and not 1 <= count <= 10**9:
                raise UserError(what, count, "a whole number from 1 to 1,000,000,000")
        if not 0 <= self.seed < 2**63:
            raise UserError("--seed", self.seed, "a whole number of at least 0")
        for what, value, most in (
            ("--lr", self.learning_rate, math.inf),
            ("--momentum", self.momentum, 1.0),
            ("--weight-decay", self.weight_decay, math.inf),
            ("--l2", self.l2, math.inf),
        ):
            if not 0 <= value < most:
                raise UserError(what, value, "a number of at least 0" + (" and below 1" if most == 1 else ""))
        if not self._weighted:
            raise UserError(self.network.name, "no layer with weights", "something to train")
        if self.watch is not None and self.watch not in self._weighted:
            raise did_you_mean("--watch", self.watch, self._weighted)

    @property
    def watched(self) -> str:
        """Name of the layer whose weights are recorded."""
        return self.watch or self._weighted[0]

    @property
    def _weighted(self) -> list[str]:
        return [node.name for node in self.network.nodes if node.fan_in is not None]

    def describe(self) -> dict[str, object]:
        """Return the settings fit for JSON; the network by its name and, in full, as text."""
        values = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "network"}
        values["record_steps"] = list(self.record_steps)
        return {"network": self.network.name, **values, "nodes": repr(self.network)}
