"""README's table of speed: ``python -m varprop.figures.benchmarks``, from the repository's root.

Peers do the same work: draw every weight, run the batch forward and a random cotangent back to the input (no weight
gradients), and take mean, second moment and variance of all nodes both ways. They run in turns with varprop, each on
one thread, and times are processor time, which a busy machine disturbs least: with one process a core, it is what a
trial costs. Reported are medians of times and of their ratios.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median

import numpy as np

from varprop.figures.readme import ROOT, fill
from varprop.simulator.architectures import build
from varprop.simulator.files import write_whole
from varprop.simulator.inputs import load_batch
from varprop.simulator.limits import weight_count
from varprop.simulator.montecarlo import simulate_trials
from varprop.simulator.network import Network
from varprop.simulator.report import Batch

ROUNDS = 5
Clock = Callable[[], float]


@dataclass(frozen=True)
class Work:
    """A network with its batch, and how many trials a round takes of each engine."""

    name: str
    network: Network
    batch: Batch
    trials: int
    peer_trials: int


def mobilenet(trials: int = 16, peer_trials: int = 4) -> Work:
    """Return the direct engine's work."""
    network = build("mobilenet_v2")
    return Work(
        "MobileNetV2, 32x32, batch 64", network, load_batch("gaussian", (3, 32, 32), 64, 0), trials, peer_trials
    )


def mlp(width: int, depth: int, batch: int, trials: int = 8, peer_trials: int = 1) -> Work:
    """Return work for the engine without weights."""
    network = build("mlp", width=width, depth=depth)
    name = f"ReLU MLP, width {width}, depth {depth}, batch {batch}"
    return Work(name, network, load_batch("gaussian", network.nodes[0].shape, batch, 0), trials, peer_trials)


def ours(work: Work, threads: int = 1, clock: Clock = time.process_time) -> float:
    """Return varprop's seconds a trial."""
    start = clock()
    simulate_trials(work.network, work.batch, trials=work.trials, seed=0, threads=threads)
    return (clock() - start) / work.trials


def torch_eager(work: Work, threads: int = 1, clock: Clock = time.process_time) -> Callable[[], float]:
    """Return a function that gives torch's seconds a trial, with its own draws, in float32."""
    import torch

    from varprop.simulator.initializers import weight_law
    from varprop.simulator.torch_backend.module import TorchNetwork

    torch.set_num_threads(threads)
    module = TorchNetwork(work.network).float().requires_grad_(False)
    data = torch.from_numpy(work.batch.data).float().requires_grad_()
    framework = work.network.framework
    laws = [(layer, weight_law(node, framework)) for _, node, layer in module.weighted]
    found: list[torch.Tensor] = []

    def moments(x: torch.Tensor) -> None:
        axes = (0, *range(2, x.ndim))
        mean = x.mean(axes)
        # torch's var_mean takes six times as long as these two sums.
        square = torch.linalg.vector_norm(x, dim=axes).square() * (len(mean) / x.numel())
        found.append(torch.stack([mean.mean(), square.mean(), (square - mean.square()).mean()]))

    def observe(index: int, output: torch.Tensor) -> None:
        moments(output.detach())
        output.register_hook(moments)  # type: ignore[no-untyped-call]

    def trial() -> None:
        found.clear()
        with torch.no_grad():
            for layer, law in laws:
                if law.distribution == "normal":
                    layer.weight.normal_(0.0, law.std)
                else:
                    layer.weight.uniform_(-law.limit, law.limit)
                if layer.bias is not None:
                    layer.bias.zero_()
        output = module(data, observe)
        torch.autograd.backward(output, torch.randn_like(output), inputs=[data])

    def seconds() -> float:
        start = clock()
        for _ in range(work.peer_trials):
            trial()
        return (clock() - start) / work.peer_trials

    trial()
    return seconds


def roofline(work: Work) -> float:
    """Return the seconds that a trial's products, passes and draws take one thread at the machine's own rates.

    Products: forward and back, at the rate of a matrix product of 512 (BLAS, one thread). Passes: every number is
    written and read once each way, at the rate of a copy. Draws: a normal for every weight, at our own rate.
    """
    from threadpoolctl import threadpool_limits

    from varprop.simulator.montecarlo.draws import WEIGHT, Draws

    nodes, batch = work.network.nodes, len(work.batch.data)
    numbers = batch * sum(int(np.prod(node.shape)) for node in nodes)
    products = 2 * batch * sum((node.fan_in or 0) * int(np.prod(node.shape)) for node in nodes)
    weights = sum(map(weight_count, nodes))
    a, b = np.ones((2, 512, 512), np.float32)
    x, y = np.ones((2, 2**22), np.float32)
    draws = Draws(0, 0, 1, np.float32)
    with threadpool_limits(1, user_api="blas"):
        product = _best(lambda: np.matmul(a, b)) / 512**3
    copy = _best(lambda: np.copyto(y, x)) / x.size
    normal = _best(lambda: draws.normals(0, WEIGHT, x[np.newaxis])) / x.size
    return products * product + 2 * numbers * copy + weights * normal


def growth(values: Sequence[int], times: Sequence[float]) -> float:
    """Return the exponent of time in a size, by least squares of logs."""
    return float(np.polyfit(np.log(values), np.log(times), 1)[0])


def in_turns(*engines: Callable[[], float]) -> list[tuple[float, ...]]:
    """Return one tuple of times a round, after a round that is not counted."""
    return [tuple(engine() for engine in engines) for _ in range(ROUNDS + 1)][1:]


def speed_table() -> str:
    """Measure, and return README's block."""
    direct, wide, peer = mobilenet(), mlp(4096, 100, 8), mlp(4096, 10, 8)
    rounds = in_turns(lambda: ours(direct), torch_eager(direct))
    share = median(roofline(direct) / own for own, _ in rounds)
    ten_times = torch_eager(peer)
    long = mlp(1024, 1000, 1, trials=256)
    seconds = 10_000 * median(ours(long) for _ in range(3))
    lines = [
        "| work | varprop | torch eager | ratio |",
        "|---|---|---|---|",
        _row(direct.name, rounds),
        _row(f"{wide.name} (torch: depth 10, times ten)", in_turns(lambda: ours(wide), lambda: 10 * ten_times())),
        f"| {long.name}, 10,000 trials (measured: {long.trials}) | {seconds:.0f} s | | |",
        "",
        f"MobileNetV2 runs at {share:.0%} of the machine's own rates for its products, one copy of every number each "
        f"way and its draws. Without weights, time grows as width^{_exponent('width'):.2f} (1024 to 8192) and "
        f"depth^{_exponent('depth'):.2f} (25 to 200). Processor time of one thread, medians of {ROUNDS} rounds in "
        f"turns, {_machine()}.",
    ]
    return "\n".join(lines)


def _exponent(size: str) -> float:
    values = (1024, 2048, 4096, 8192) if size == "width" else (25, 50, 100, 200)
    works = [mlp(value, 50, 8) if size == "width" else mlp(2048, value, 8) for value in values]
    return growth(values, [median(ours(work) for _ in range(3)) for work in works])


def main() -> None:
    """Measure and fill in README's table."""
    readme = ROOT / "README.md"
    write_whole(readme, fill(readme.read_text(), "speed", speed_table()))


def _row(name: str, rounds: Sequence[tuple[float, ...]]) -> str:
    mine, peer = (median(times) for times in zip(*rounds, strict=True))
    ratio = median(other / own for own, other in rounds)
    return f"| {name} | {1000 * mine:.1f} ms | {1000 * peer:.0f} ms | {ratio:.1f} |"


def _best(work: Callable[[], object]) -> float:
    def once() -> float:
        start = time.process_time()
        work()
        return time.process_time() - start

    return min(once() for _ in range(10))


def _machine() -> str:
    model = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        named = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = named[0] if named else model
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "numba", "torch"))
    return f"{os.cpu_count()} cores of {model}, Python {platform.python_version()}, {packages}"


if __name__ == "__main__":
    main()
