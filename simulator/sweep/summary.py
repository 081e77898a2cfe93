"""What a configuration comes to: factors from end to end, where signal and gradient leave a usable range, a verdict."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from statistics import median

from varprop.simulator.activations import activation
from varprop.simulator.compare import end_to_end
from varprop.simulator.errors import UserError
from varprop.simulator.initializers import bias_law, weight_law
from varprop.simulator.mean_field import TRAINABLE, phase_diagram
from varprop.simulator.network import Activation, Add, BatchNorm, Network
from varprop.simulator.propagate import Run
from varprop.simulator.report import Moments, Report

Row = dict[str, float | int | str | bool | None]

USABLE = 1e6
"""Factor of a second moment, up or down, within which signal and gradient are called usable: a thousandfold change of
their size, beyond which neither the first nor the last layers learn at one learning rate."""

_HEAVY_TAIL = 1.0  # deviation over draws of the log of a second moment
_UNLIMITED = 1e6  # layers; what is predicted beyond is no limit


def summary(run: Run) -> Row:
    """Return a run's row: natural logs of second moments, typical where it says so (mean over draws of the log).

    Depths count hidden weighted layers, the signal's from the input, the gradient's from the last of them back. The
    trainable depth is that at which, at the mean rate of the hidden layers, signal or gradient leaves the usable range,
    or 6 xi_c of a plain chain if that is less. None where something is not known, or where a depth is without limit.
    """
    row: Row = {}
    weighted = [index for index, node in enumerate(run.network.nodes) if node.fan_in is not None]
    row["weighted_layers"] = len(weighted)
    if run.theory is not None:
        row |= _prediction(run.network, run.theory, weighted)
    if run.monte_carlo is not None:
        forward, backward = end_to_end(run.monte_carlo)
        row["monte_carlo_log_forward_factor"] = _finite(forward)
        row["monte_carlo_log_backward_factor"] = _finite(backward)
        row["agrees"] = None if run.comparison is None else run.comparison.agrees
    return row


def _prediction(network: Network, theory: Report, weighted: Sequence[int]) -> Row:
    first, last = theory.layers[0], theory.layers[-1]
    forward, backward = end_to_end(theory)
    # Pooling and the head act once, whatever the depth: they are left out of what is said about depth.
    hidden = [theory.layers[i] for i in weighted[:-1]] or [last]
    signal = [_typical(layer.forward) - first.forward.log_second_moment for layer in hidden]
    gradient = [_typical(layer.backward) - _typical(hidden[-1].backward) for layer in reversed(hidden)]
    signal_leaves, gradient_leaves = _leaves(signal), _leaves(gradient)
    steps = len(hidden) - 1
    rates = [(signal[-1] - signal[0]) / steps, gradient[-1] / steps] if steps else []
    limits = [math.log(USABLE) / abs(rate) for rate in rates if rate]
    xi = correlation_depth(network)
    if xi is not None:
        limits.append(TRAINABLE * xi)
    trainable = min((limit for limit in limits if limit < _UNLIMITED), default=None)
    spread = [moments.log_second_moment_sd for moments in (last.forward, first.backward)]
    return {
        "log_forward_factor": _finite(forward),
        "log_backward_factor": _finite(backward),
        "log_forward_factor_typical": _finite(_typical(last.forward) - first.forward.log_second_moment),
        "log_backward_factor_typical": _finite(_typical(first.backward) - last.backward.log_second_moment),
        "log_forward_sd": None if spread[0] is None else _finite(spread[0]),
        "log_backward_sd": None if spread[1] is None else _finite(spread[1]),
        "signal_leaves_after": signal_leaves,
        "gradient_leaves_after": gradient_leaves,
        "correlation_depth": xi,
        "trainable_depth": trainable,
        "verdict": _verdict(signal, gradient, signal_leaves, gradient_leaves, trainable, spread),
    }


def correlation_depth(network: Network) -> float | None:
    """Return xi_c of a plain chain of layers, Schoenholz 2017's depth scale at which inputs stop to be told apart.

    None where correlations do not settle exponentially, and for networks with normalisation or shortcuts, which mean
    field of plain nets does not describe.
    """
    if any(isinstance(node.operation, BatchNorm | Add) for node in network.nodes):
        return None
    functions = {node.operation.function for node in network.nodes if isinstance(node.operation, Activation)}
    hidden = [node for node in network.nodes if node.fan_in is not None][1:-1]
    if len(functions) != 1 or not hidden:
        return None
    laws = [(weight_law(node, network.framework), bias_law(node, network.framework), node.fan_in) for node in hidden]
    w = median(law.variance * (fan_in or 0) for law, _, fan_in in laws)
    b = median(0.0 if bias is None else bias.second_moment for _, bias, _ in laws)
    return _xi_c(functions.pop(), w, b)


@lru_cache(maxsize=1024)  # nets that differ in depth alone have it in common
def _xi_c(function: str, sigma_w2: float, sigma_b2: float) -> float | None:
    try:
        found = float(phase_diagram(activation(function), [sigma_w2], [sigma_b2]).xi_c[0, 0])
    except UserError:  # a variance that mean field does not take: zero, or absurd
        return None
    return _finite(found)


def _typical(moments: Moments) -> float:
    typical = moments.log_second_moment_mean
    return moments.log_second_moment if typical is None else typical


def _leaves(logs: Sequence[float]) -> int | None:
    """Return after how many layers a log leaves the usable range, None if it does not."""
    return next((count for count, log in enumerate(logs, 1) if not abs(log) <= math.log(USABLE)), None)


def _verdict(
    signal: Sequence[float],
    gradient: Sequence[float],
    signal_leaves: int | None,
    gradient_leaves: int | None,
    trainable: float | None,
    spread: Sequence[float | None],
) -> str:
    found = []
    for logs, count, what, place in (
        (signal, signal_leaves, "signal", "of the input"),
        (gradient, gradient_leaves, "gradient", "of the last hidden one"),
    ):
        if count is not None:
            found.append(f"{what} {'explodes' if logs[count - 1] > 0 else 'vanishes'} within {count} layers {place}")
    if not found and trainable is not None and trainable < len(signal):
        found.append(f"in range, but deeper than the predicted trainable depth of {trainable:.0f} layers")
    if max((sd for sd in spread if sd is not None), default=0.0) > _HEAVY_TAIL:
        found.append("draws differ by more than a factor e: means are not typical")
    return "; ".join(found) or "healthy: signal and gradient stay in range"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
