"""torch doing what a Monte Carlo trial does: the peers of `varprop.figures.benchmarks`.

A trial draws every weight, runs the batch forward and a random cotangent back to the input (no weight gradients), and
takes mean, second moment and variance of all nodes both ways, in float32.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor

from varprop.figures.workloads import Clock, Work
from varprop.simulator.torch_backend.module import TorchNetwork
from varprop.simulator.weight_law import weight_law


def eager(work: Work, threads: int = 1, clock: Clock = time.process_time) -> Callable[[], float]:
    """Return a function that gives eager torch's seconds a trial, with moments by hooks."""
    torch.set_num_threads(threads)
    module, data = _prepared(work)
    found: list[Tensor] = []

    def observe(index: int, output: Tensor) -> None:
        found.append(_moments(output.detach()))
        output.register_hook(lambda gradient: found.append(_moments(gradient)))  # type: ignore[no-untyped-call]

    def trial() -> None:
        found.clear()
        _draw(module)
        output = module(data, observe)
        torch.autograd.backward(output, torch.randn_like(output), inputs=[data])

    trial()
    return _timed(trial, work, clock)


def compiled(work: Work) -> tuple[Callable[[], float], float]:
    """Return the same of torch.compile on one thread, in processor time, and the seconds that compilation took.

    Hooks break a graph, so gradients' moments come out as the gradients of an unused input of every node.
    """
    torch.set_num_threads(1)
    module, data = _prepared(work)
    slots = torch.zeros(len(work.network), 3, requires_grad=True)

    def graph(x: Tensor, slots: Tensor) -> tuple[Tensor, Tensor]:
        outputs: list[Tensor] = []
        for index, (node, layer) in enumerate(zip(work.network.nodes, module.layers, strict=True)):
            output = layer(*(outputs[source] for source in node.inputs)) if node.inputs else x
            outputs.append(_Watch.apply(output, slots[index]))  # type: ignore[no-untyped-call]
        return outputs[-1], torch.stack([_moments(output.detach()) for output in outputs])

    run = torch.compile(graph)

    def trial() -> None:
        _draw(module)
        output, _ = run(data, slots)
        torch.autograd.grad(output, [data, slots], torch.randn_like(output))

    start = time.perf_counter()
    trial()
    return _timed(trial, work, time.process_time), time.perf_counter() - start


def two_processes(work: Work) -> Callable[[], float]:
    """Return a function that gives the wall seconds a trial of two processes with one thread each."""
    executor = ProcessPoolExecutor(2, get_context("spawn"))

    def seconds() -> float:
        first, second = executor.map(_alone, [work, work])
        return 1 / (1 / first + 1 / second)

    return seconds


def _alone(work: Work) -> float:
    return eager(work, clock=time.perf_counter)()


class _Watch(torch.autograd.Function):
    """Passes a map on; on the way back a slot's gradient is the moments of the map's."""

    @staticmethod
    def forward(x: Tensor, slot: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        """Nothing is kept."""

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, _moments(gradient)


def _prepared(work: Work) -> tuple[TorchNetwork, Tensor]:
    module = TorchNetwork(work.network).float().requires_grad_(False)
    return module, torch.from_numpy(work.batch.data).float().requires_grad_()


@torch.no_grad()
def _draw(module: TorchNetwork) -> None:
    for _, node, layer in module.weighted:
        law = weight_law(node, module.network.framework)
        if law.distribution == "normal":
            layer.weight.normal_(0.0, law.std)
        else:
            layer.weight.uniform_(-law.limit, law.limit)
        if layer.bias is not None:
            layer.bias.zero_()


def _moments(x: Tensor) -> Tensor:
    axes = (0, *range(2, x.ndim))
    mean = x.mean(axes)
    # torch's var_mean takes six times as long as these two sums.
    square = torch.linalg.vector_norm(x, dim=axes).square() * (len(mean) / x.numel())
    return torch.stack([mean.mean(), square.mean(), (square - mean.square()).mean()])


def _timed(trial: Callable[[], None], work: Work, clock: Clock) -> Callable[[], float]:
    def seconds() -> float:
        start = clock()
        for _ in range(work.peer_trials):
            trial()
        return (clock() - start) / work.peer_trials

    return seconds
