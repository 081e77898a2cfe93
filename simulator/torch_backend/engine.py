"""The torch engine: moments of every node over weight draws, by torch's own kernels and its autograd."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varprop.simulator.checks import check_batch
from varprop.simulator.errors import UserError
from varprop.simulator.montecarlo.aggregate import summarize, trial_moments
from varprop.simulator.network import Network
from varprop.simulator.report import Batch, Report
from varprop.simulator.torch_backend.devices import describe, find_device, out_of_memory
from varprop.simulator.torch_backend.module import TorchNetwork

Progress = Callable[[int, int], None]


def measure(
    network: Network,
    batch: Batch,
    *,
    trials: int,
    seed: int,
    device: str = "auto",
    dtype: torch.dtype = torch.float64,
    progress: Progress | None = None,
) -> Report:
    """Measure every node's moments over random draws of the weights.

    As `varprop.simulator.montecarlo.simulate` does, but by torch's kernels, its automatic differentiation and NumPy's
    draws: what the two engines share is the network and the averages over trials.

    Parameters
    ----------
    network
        What to run.
    batch
        What to feed it; held fixed.
    trials
        Number of independent draws of weights, biases and the cotangent.
    seed
        At least 0.
    device
        ``auto``, ``cpu``, ``cuda``, ``cuda:1`` ...
    dtype
        Type of weights and maps. Sums over a map are in float64 whatever it is. Unlike Monte Carlo this carries no
        exponents: what falls below the type's range is zero.
    progress
        Called as progress(done, trials) after every trial.

    Returns
    -------
    Report
        With standard errors over trials.

    Raises
    ------
    UserError
        A batch that does not fit the network, a device that is not there or whose memory does not suffice, values
        beyond the type's range.
    """
    check_batch(network, batch)
    if trials < 1:
        raise UserError("trials", trials, "a whole number of at least 1")
    where = find_device(device)
    records = np.empty((trials, 2, len(network), 4))
    with out_of_memory("lower --batch or --size, or use --device cpu"):
        module = TorchNetwork(network).to(where, dtype).requires_grad_(False)
        data = torch.from_numpy(batch.data).to(where, dtype).requires_grad_()
        for trial in range(trials):
            module.draw_weights(seed, trial)
            cotangent = _cotangent((len(batch.data), *network.nodes[-1].shape), seed, trial)
            records[trial] = moments(module, data, cotangent.to(where, dtype))
            if progress is not None:
                progress(trial + 1, trials)
    _refuse_overflow(network, records)
    settings: dict[str, object] = {
        "trials": trials,
        "seed": seed,
        "precision": str(dtype).removeprefix("torch."),
        "batch": len(batch.data),
        "input": batch.source,
        "device": describe(where),
    }
    return Report("torch", network, summarize(*trial_moments(records)), settings)


def moments(module: TorchNetwork, data: Tensor, cotangent: Tensor) -> NDArray[np.float64]:
    """Run the data forward and the cotangent back and record every node's moments.

    Parameters
    ----------
    module
        With weights; in training mode, as batch normalisation at initialisation is.
    data
        Shape (batch, *input shape); its gradient must be asked for.
    cotangent
        Of the output's shape.

    Returns
    -------
    ndarray
        Shape (2, nodes, 4): forward and backward; what `tensor_moments` returns.
    """
    record = torch.zeros((2, len(module.network), 4), dtype=torch.float64, device=data.device)

    def observe(index: int, output: Tensor) -> None:
        record[0, index] = tensor_moments(output.detach())

        def note(gradient: Tensor) -> None:
            record[1, index] = tensor_moments(gradient)

        output.register_hook(note)  # type: ignore[no-untyped-call]

    torch.autograd.backward(module(data, observe), cotangent, inputs=[data])
    return np.asarray(record.cpu().numpy())


def tensor_moments(x: Tensor) -> Tensor:
    """Return mean, second moment and mean channel variance of x / 2**exponent, and the exponent, in float64.

    The exponent is that of the largest magnitude, so that squares neither over- nor underflow. The variance is the
    one of batch normalisation: per channel, over batch and positions.
    """
    x = x.double()
    exponent = torch.frexp(x.abs().max()).exponent
    x = torch.ldexp(x, -exponent)
    variance = x.transpose(0, 1).flatten(1).var(dim=1, correction=0).mean()
    return torch.stack([x.mean(), x.square().mean(), variance, exponent.double()])


def _cotangent(shape: tuple[int, ...], seed: int, trial: int) -> Tensor:
    rng = np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(2, trial))))
    return torch.from_numpy(rng.standard_normal(shape))


def _refuse_overflow(network: Network, records: NDArray[np.float64]) -> None:
    forward, backward = (np.flatnonzero(~np.isfinite(records[:, way]).all(axis=(0, 2))) for way in (0, 1))
    if forward.size or backward.size:
        # Signals overflow from the first node on, gradients from the last.
        where = network.nodes[forward[0] if forward.size else backward[-1]].name
        raise UserError(
            "--engine torch", f"values beyond the floating range at {where}", "finite ones", "use --engine monte-carlo"
        )
