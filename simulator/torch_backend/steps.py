"""One step of gradient descent on data that are on the device: eager, replayed as a CUDA graph, or observed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from varprop.simulator.torch_backend.cuda_graph import GraphedStep, capturable
from varprop.simulator.torch_backend.data import Labelled
from varprop.simulator.torch_backend.measuring import LayerWatch
from varprop.simulator.torch_backend.module import TorchNetwork
from varprop.simulator.torch_backend.settings import TrainingSettings

Loss = Callable[[Tensor, Tensor], Tensor]
"""Mean loss of (outputs, targets)."""

EVALUATION_BATCH = 250


class Descent:
    """Stochastic gradient descent on some parameters of equal decay, as `torch.optim.SGD` does it.

    Own code, because that class brings the compiler of torch along: seconds of a short run's start. The gradients and
    velocities are there from the start.
    """

    def __init__(self, parameters: list[nn.Parameter], settings: TrainingSettings, decay: float) -> None:
        self._parameters: list[Tensor] = [*parameters]
        self._settings = settings
        self._decay = decay
        self.gradients = [torch.zeros_like(each) for each in parameters]
        for parameter, gradient in zip(parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self.velocities = [torch.zeros_like(each) for each in parameters if settings.momentum]

    def clear(self) -> None:
        """Set the gradients to zero."""
        if self.gradients:
            torch._foreach_zero_(self.gradients)

    @torch.no_grad()
    def step(self) -> None:
        """Do v <- momentum v + gradient + decay w, then w <- w - learning_rate v."""
        if not self._parameters:
            return
        update: list[Tensor] | tuple[Tensor, ...] = self.gradients
        if self._decay:
            update = torch._foreach_add(update, self._parameters, alpha=self._decay)
        if self._settings.momentum:
            torch._foreach_mul_(self.velocities, self._settings.momentum)
            torch._foreach_add_(self.velocities, update)
            update = self.velocities
        torch._foreach_add_(self._parameters, update, alpha=-self._settings.learning_rate)


class Steps:
    """The module, its parameters' descent and the running sums.

    All of `state` is there from the start and changes in place: a checkpoint and a CUDA graph rely on it.

    Attributes
    ----------
    module
        With weights drawn by the settings' seed.
    kernels
        The weights of convolutions and linear layers.
    sums
        Of losses, hits and samples (or pixels) trained on, since they were last set to zero.
    state
        Every tensor that a step changes, by name.
    """

    def __init__(self, settings: TrainingSettings, device: torch.device, loss: Loss, use_graph: bool) -> None:
        self._settings = settings
        self._loss = loss
        self._dtype = torch.float64 if settings.precision == "float64" else torch.float32
        self.module = TorchNetwork(settings.network).to(device, self._dtype)
        self.module.draw_weights(settings.seed)
        if settings.channels_last:
            self.module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.kernels = [layer.weight for _, _, layer in self.module.weighted]
        self.sums = torch.zeros(3, dtype=torch.float64, device=device)
        self.state: dict[str, Tensor] = {**self.module.state_dict(), "sums": self.sums}
        # What is not a kernel, normalisation's scale and shift among it, has no L2 term.
        others = [each for each in self.module.parameters() if not any(each is kernel for kernel in self.kernels)]
        self._groups = [
            Descent(self.kernels, settings, settings.weight_decay + 2 * settings.l2),
            Descent(others, settings, settings.weight_decay),
        ]
        for number, group in enumerate(self._groups):
            self.state |= {f"gradient.{number}.{k}": tensor for k, tensor in enumerate(group.gradients)}
            self.state |= {f"velocity.{number}.{k}": tensor for k, tensor in enumerate(group.velocities)}
        self._graph: GraphedStep | None = None
        self._use_graph = use_graph and settings.clear_gradients and capturable(settings.network, device)

    def plain(self, data: Labelled, index: Tensor) -> None:
        """Do one step on the samples that `index` picks."""

        def step(index: Tensor) -> None:
            self._backward(data, index)
            self._descend()

        if not self._use_graph or len(index) < self._settings.batch:
            step(index)
            return
        if self._graph is None:
            self._graph = GraphedStep(step, index, list(self.state.values()))
        self._graph(index)

    def observed(self, data: Labelled, index: Tensor) -> LayerWatch:
        """Do one step and return what was seen in it."""
        watch = LayerWatch(self.module)
        before = [kernel.detach().clone() for kernel in self.kernels]
        self._backward(data, index, watch)
        watch.gradients()
        self._descend()
        watch.update(before)
        return watch

    @torch.no_grad()
    def evaluate(self, data: Labelled) -> Tensor:
        """Return the sums over a data set, in evaluation mode."""
        sums = torch.zeros_like(self.sums)
        self.module.eval()
        for index in torch.split(torch.arange(len(data), device=sums.device), EVALUATION_BATCH):
            x, targets = data.fetch(index, self._settings.network.nodes[0].shape, self._dtype)
            logits = self._outputs(x)
            sums += _sums(self._loss(logits, targets), logits, targets)
        self.module.train()
        return sums

    def penalty(self) -> float:
        """Return the L2 term of the loss."""
        squares = sum(float(kernel.detach().double().square().sum()) for kernel in self.kernels)
        return self._settings.l2 * squares

    def _descend(self) -> None:
        for group in self._groups:
            group.step()

    def _outputs(self, x: Tensor, watch: LayerWatch | None = None) -> Tensor:
        if self._settings.channels_last and x.ndim == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        if watch is not None:
            x.requires_grad_()
        half = self._settings.precision == "bfloat16"
        # Every weight is used once a step: a cache of casts would only trouble the graph.
        with torch.autocast(x.device.type, torch.bfloat16, enabled=half, cache_enabled=False):
            logits: Tensor = self.module(x, None if watch is None else watch.observe)
        return logits.to(self._dtype)

    def _backward(self, data: Labelled, index: Tensor, watch: LayerWatch | None = None) -> None:
        x, targets = data.fetch(index, self._settings.network.nodes[0].shape, self._dtype)
        logits = self._outputs(x, watch)
        loss = self._loss(logits, targets)
        if self._settings.clear_gradients:
            for group in self._groups:
                group.clear()
        loss.backward()  # type: ignore[no-untyped-call]
        self.sums += _sums(loss.detach(), logits.detach(), targets)


def _sums(loss: Tensor, logits: Tensor, targets: Tensor) -> Tensor:
    """Return the sums over samples (and pixels) of loss and hits, and their number."""
    hits = (logits.argmax(dim=1) == targets).sum().double()
    return torch.stack([loss.double() * targets.numel(), hits, torch.full_like(hits, targets.numel())])
