"""Sums of branches, which may come from the same channels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, reduce
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction
from varprop.simulator.network import Network, Node
from varprop.simulator.theory.corrections import crossed
from varprop.simulator.theory.near import Near, of_sum
from varprop.simulator.theory.pairs import Layout, PairKernel, on_pairs_of, plus
from varprop.simulator.theory.patchwork import Far
from varprop.simulator.theory.sample import alike, position_squares
from varprop.simulator.theory.sampling import of_size
from varprop.simulator.theory.signal import Gaussian, Signal, key_of
from varprop.simulator.theory.strays import NONE, Strays, in_step, together
from varprop.simulator.theory.summands import Summand

Array = NDArray[np.float64]

_VALUES = 2**12  # of a sum that its law at an edge is averaged over; all positions have one law inside
_TOLD_APART = 100  # of the terms' deviations at a position, shares of those inside that are told apart


def added(node: Node, network: Network, inputs: list[Signal]) -> Signal:
    """Return the signal after a sum.

    Branches that share no weights within a channel are independent given the data: their product's mean is that of
    their means. Of others the mean product is that of sampled channels, drawn once for both.
    """
    layout = max((signal.kernel.layout for signal in inputs), key=lambda layout: layout.profiles)
    inputs = [_told_apart(signal, layout) for signal in inputs]
    kernel = reduce(plus, (signal.kernel for signal in inputs))
    related = False
    for (first, one), (second, other) in combinations(zip(node.inputs, inputs, strict=True), 2):
        if network.roots[first] & network.roots[second]:
            related = True
            kernel = plus(kernel, crossed(one.kernel, other.kernel, one.draw(), other.draw()))
        elif one.mean.any() and other.mean.any():
            kernel = plus(kernel, _of_means(one, other))
    shares = [s.kernel.variance * float(np.exp(s.kernel.log_scale - kernel.log_scale)) for s in inputs]
    total = sum(shares)
    origins = [signal.gaussian for signal in inputs]
    origin = sample = None
    if not related and all(o is not None and o.eps is None and o.function is None for o in origins):
        origin = Gaussian(kernel, key_of(node.name), parts=tuple(o for o in origins if o is not None))
    else:
        sample = cache(lambda: of_size(_summed(inputs), kernel))
    return Signal(
        kernel,
        np.sum([signal.mean * kernel.unit(signal.kernel.log_scale) for signal in inputs], axis=0),
        inputs[0].width,
        strays=_strays_of_sum(node, inputs, kernel, [share / total for share in shares]) if total else NONE,
        origin=origin,
        sample=sample,
        amplitude=_edges_of_sum(inputs, kernel),
        common=_common_of_sum(inputs),
        near=_near_of_sum(inputs, kernel),
        far=_far_of_sum(inputs, shares),
        summands=() if related else _summands(inputs, shares),
        terms=() if inputs[0].amplitude is None else tuple(part for s in inputs for part in s.terms or (s,)),
    )


def _told_apart(signal: Signal, layout: Layout) -> Signal:
    """Return a term on the pairs of the one of which most samples are told apart: a depthwise stride merges them."""
    kernel = on_pairs_of(signal.kernel, layout)
    mean = signal.mean if kernel is signal.kernel else np.tile(signal.mean.mean(axis=0), (layout.profiles, 1))
    return replace(signal, kernel=kernel, mean=mean)


def _summands(inputs: list[Signal], shares: list[float]) -> tuple[Summand, ...]:
    """Return what the channels of a sum are sums of, if those of each term are."""
    if not all(signal.summands for signal in inputs) or not sum(shares):
        return ()
    found = zip(inputs, shares, strict=True)
    return tuple(replace(part, share=part.share * s / sum(shares)) for signal, s in found for part in signal.summands)


def _strays_of_sum(node: Node, inputs: list[Signal], kernel: PairKernel, shares: list[float]) -> Strays:
    found = together(shares, [signal.strays for signal in inputs], inputs[0].kernel)
    if not found.sources:
        return found
    # Products of different terms average to zero over channels, but not in one draw.
    pairs = list(combinations(range(len(inputs)), 2))
    mixed = 2.0 * sum(shares[i] * shares[j] for i, j in pairs) / inputs[0].width
    met = 2.0 * sum(shares[i] * shares[j] * in_step(inputs[i].strays, inputs[j].strays) for i, j in pairs)
    return found.plus(node.name, mixed, kernel).walked(node.name, 1.0, 2.0 * met / inputs[0].width, kernel)


def _of_means(one: Signal, other: Signal) -> PairKernel:
    """Mean product of independent summands, both orders."""
    layout = one.kernel.layout
    product = one.mean[layout.left][:, :, None] * other.mean[layout.right][:, None, :]
    product += other.mean[layout.left][:, :, None] * one.mean[layout.right][:, None, :]
    return replace(one.kernel, values=product, log_scale=(one.kernel.log_scale + other.kernel.log_scale) / 2)


def _summed(inputs: list[Signal]) -> Array:
    return reduce(np.add, alike(*[signal.draw().values for signal in inputs]))


def _edges_of_sum(inputs: list[Signal], kernel: PairKernel) -> Array | None:
    """Second moments over a large map after a sum, relative to its inside."""
    fields = [signal.amplitude for signal in inputs if signal.amplitude is not None]
    if not fields or not kernel.second_moment:
        return inputs[0].amplitude
    # What branches have in common is taken to fall off at the edges as the branches do.
    return np.average(fields, axis=0, weights=_sizes(inputs, kernel))


def _sizes(inputs: list[Signal], kernel: PairKernel) -> list[float]:
    """Return the terms' second moments inside."""
    return [s.kernel.second_moment * float(np.exp(s.kernel.log_scale - kernel.log_scale)) for s in inputs]


def _near_of_sum(inputs: list[Signal], kernel: PairKernel) -> Near | None:
    """Return `Signal.near` of a sum, whose terms have their share of its second moment."""
    terms = [(s.near, s.amplitude) for s in inputs if s.near is not None and s.amplitude is not None]
    if len(terms) < len(inputs) or not kernel.second_moment:
        return None
    fields, amplitudes = zip(*terms, strict=True)
    return of_sum(fields, amplitudes, _sizes(inputs, kernel))


def _common_of_sum(inputs: list[Signal]) -> Array | None:
    """Return `Signal.common` of a sum, each term counted with its mean product."""
    if any(signal.amplitude is None for signal in inputs):
        return None
    top = max(signal.kernel.log_scale for signal in inputs)
    sizes = [abs(s.kernel.pair_mean) * float(np.exp(s.kernel.log_scale - top)) for s in inputs]
    fields = [signal.common_root * float(signal.common_root.mean()) for signal in inputs]
    return np.average(fields, axis=0, weights=sizes) if any(sizes) else None


def _far_of_sum(inputs: list[Signal], shares: list[float]) -> Far | None:
    """Return `Signal.far` of a sum, whose terms have these variances."""
    fields = [signal.far for signal in inputs if signal.far is not None]
    return Far.together(fields, shares) if len(fields) == len(inputs) and any(shares) else None


def edges_after_sum(function: ActivationFunction, terms: Sequence[Signal]) -> tuple[Array, Array, Array]:
    """Return E phi^2 and E phi'^2 of a sum on a large map, over those inside, and E phi less that inside over the rms.

    The sampled channels of each term are brought to its size at the position: where edges take more from one term than
    from another, the sum has another law there, not just another size. A single term is a sum, too.
    """
    known = [np.ones(1) if term.amplitude is None else term.amplitude for term in terms]
    fields = np.sqrt(np.broadcast_arrays(*known))
    rounded = np.rint(fields.reshape(len(terms), -1) * _TOLD_APART).astype(np.intp)
    where = np.zeros(rounded.shape[1], dtype=np.intp)
    for level in rounded:  # numbers are sorted faster than columns
        _, place, where = np.unique(where * (level.max() + 1) + level, return_index=True, return_inverse=True)
    levels = rounded[:, place] / _TOLD_APART
    # Draws of one law are alike, images are not.
    first = slice(1) if terms[0].kernel.layout.profiles == 1 else slice(None)
    drawn = alike(*[term.draw().values[:, first] for term in terms])
    some = slice(None, None, max(drawn[0].size // _VALUES, 1))
    total = np.column_stack([np.ones(len(terms)), levels]).T @ [values[some].ravel() for values in drawn]
    value, slope = function.value(total), function.derivative(total)
    # At every level, that inside first.
    squares, slopes_squared, means = position_squares(value), position_squares(slope), value.mean(axis=1)
    by_level = (
        *(np.divide(size, size[0], out=np.ones_like(size), where=size[0] != 0) for size in (squares, slopes_squared)),
        (means - means[0]) / (np.sqrt(squares[0]) or 1.0),
    )
    values, slopes, shifts = (field[1:][where].reshape(fields[0].shape) for field in by_level)
    return values, slopes, shifts
