"""The signal: one rule an operation, from the kernels of its inputs to the kernel of its output."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial, singledispatch

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import ActivationFunction, activation
from varprop.simulator.generated.layers import linear_second_moment
from varprop.simulator.initializers import weight_law
from varprop.simulator.network import (
    Activation,
    Add,
    AveragePool,
    BatchNorm,
    Conv2d,
    Flatten,
    GlobalAveragePool,
    Linear,
    MaxPool,
    Network,
    Node,
    Operation,
    ZeroPad,
)
from varprop.simulator.theory.convolution import convolved, with_bias
from varprop.simulator.theory.corrections import batch_variances, correct, sized, squared_slope
from varprop.simulator.theory.duals import FAR, Duals, apply_activation, hermite_expansion, rounded
from varprop.simulator.theory.few_points import activated_duals
from varprop.simulator.theory.levels import nodes
from varprop.simulator.theory.maps import Size
from varprop.simulator.theory.near import Near
from varprop.simulator.theory.normalisation import batch_normalised
from varprop.simulator.theory.pair_series import log_second_moment
from varprop.simulator.theory.pairs import PairKernel
from varprop.simulator.theory.patchwork import passed
from varprop.simulator.theory.pooling import average_pooled, flattened, globally_averaged, max_pooled, zero_padded
from varprop.simulator.theory.relations import Relations, relations, unrelated
from varprop.simulator.theory.sample import (
    Sample,
    activated,
    channel_means,
    channel_products,
    cropped_piece,
    squares_apart,
)
from varprop.simulator.theory.signal import Gaussian, Signal, Weighted, fixed, key_of
from varprop.simulator.theory.strays import NONE
from varprop.simulator.theory.sums import added, edges_after_sum
from varprop.simulator.theory.variance_law import VarianceLaw

Array = NDArray[np.float64]

_BENT = 25.0  # dimensions from which a sphere's law is closer than an average over sampled channels


@singledispatch
def propagate(operation: Operation, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    """Return the signal after a node."""
    raise NotImplementedError(f"no theory of {node.kind}")


@propagate.register
def _(operation: Conv2d, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return convolved(operation, node, network, inputs[0])


@propagate.register
def _(operation: Linear, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    law = weight_law(node, network.framework)
    kernel = with_bias(
        signal.kernel.scaled(float(linear_second_moment(operation.in_features, law.variance, 1.0))), node, network
    )
    return Signal(
        kernel,
        np.zeros_like(kernel.diagonal),
        operation.out_features,
        strays=signal.strays.plus(node.name, law.fresh(operation.out_features, operation.in_features), kernel)
        if network.has_batch_norm
        else NONE,
        weighted=Weighted(law, operation.in_features, signal.kernel, signal.strays, signal.strays.variance),
        origin=Gaussian(kernel, key_of(node.name)),
    )


@propagate.register
def _(operation: BatchNorm, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return batch_normalised(operation, inputs[0])


@propagate.register
def _(operation: AveragePool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return average_pooled(operation, node, inputs[0])


@propagate.register
def _(operation: GlobalAveragePool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return globally_averaged(node, inputs[0])


@propagate.register
def _(operation: MaxPool, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return max_pooled(operation, node, inputs[0])


@propagate.register
def _(operation: Flatten, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return flattened(node, inputs[0])


@propagate.register
def _(operation: ZeroPad, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return zero_padded(operation, inputs[0])


@propagate.register
def _(operation: Activation, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    (signal,) = inputs
    function = activation(operation.function)
    tilted, strayed = _behind_normalisation(node, network), None
    sphere = own_sphere = np.inf
    if network.has_batch_norm:
        strayed = signal.levels
    if signal.law is not None and signal.behind is None:
        sphere, own_sphere, strayed = signal.law.sphere, signal.law.own_sphere, signal.law.levels
    spots = None if strayed is None else signal.strays.spots_on(signal.kernel)
    duals = apply_activation(function, signal.kernel, sphere, tilted, own_sphere, strayed, spots)
    origin = None
    followed: Callable[[], Sample] | None = None
    related: Callable[[float, float, float], Relations] = unrelated
    gaussian = signal.gaussian
    if gaussian is not None and gaussian.function is None:
        origin = replace(gaussian, function=function)
        if _bent(signal):
            before = gaussian.draw()
            duals = correct(duals, activated(sized(before, signal.kernel), function), signal.kernel, signal.mean)
    elif signal.sample is None and signal.origin is not None and signal.origin.function is None:
        # Zeros around the map are Gaussian too, of variance zero.
        followed = cache(lambda: activated(signal.draw(), function))
    elif signal.sample is not None or signal.origin is not None:
        before = signal.draw()
        sample = activated(sized(before, signal.kernel), function)
        followed = fixed(sample)
        duals = correct(duals, sample, signal.kernel, signal.mean)
        if signal.behind is not None:
            taps, size = signal.behind
            inside = _cropped(sample, signal.kernel.size, taps.window.out_size(size))
            points = signal.kernel.layout.batch * node.shape[1] * node.shape[2]
            images = signal.kernel.layout.profiles > 1
            related = partial(relations, taps, size, inside, points, signal.law, images)
    cubature = None if signal.cubature is None else signal.cubature.activated(function)
    if cubature is not None:
        duals = activated_duals(duals, cubature, signal.kernel)
    out = duals.kernel
    amplitude, slopes, shifts = _edges_after(function, signal)
    strays, far = signal.strays, signal.far
    if far is not None:
        far = far.bent(passed(signal.kernel, out), slopes)
    if network.has_batch_norm:
        # A channel's kernel is another after the activation, and the more so the less linear that is.
        known = followed() if followed is not None and signal.sample is not None else None
        factor = min(_response(function, signal, out, duals, known), 1.0)
        # A line is fitted to sampled channels at all positions, most of all where they vary most.
        varies = signal.kernel.diagonal.mean(axis=0)
        behind = strays.through(factor, duals.derivative, np.ones_like(varies) if known is None else varies)
        left = behind.variance / strays.variance if strays.variance > 0 else 1.0
        uneven = 0.0 if known is None else _uneven(known, signal.kernel.layout.batch)
        strays = behind.plus(node.name, (1.0 - left + uneven) / signal.width, out)
        met, walked = duals.levels, signal.strays
        # Of the weighted layer's own noise, twice its products', the activation passes a part.
        gain = met.gain if known is None else (np.sqrt(met.gain) + lifted(known)) ** 2
        noise = met.noise - 2.0 * gain
        if known is not None and signal.behind is None:
            # Channels of a sum have a mean, and are bent less.
            assert known.inputs is not None
            noise = squares_apart(known.values) - gain * squares_apart(known.inputs)
        walked = walked.walked(node.name, gain, max(noise, 0.0) / signal.width, out)
        lead = min(factor * walked.lead + met.lead, 1.0)
        strays = replace(strays, walk=walked.walk, spots=walked.spots, lead=lead)
    return Signal(
        out,
        duals.mean,
        signal.width,
        strays=strays,
        origin=origin,
        sample=followed,
        amplitude=amplitude,
        common=None if amplitude is None or shifts is None else _common_after(duals, amplitude, shifts),
        near=_near_after(function, signal, amplitude),
        far=far,
        slopes=slopes,
        relations=related,
        cubature=cubature,
        duals=duals,
    )


def _behind_normalisation(node: Node, network: Network) -> bool:
    """Tell whether a normalisation comes next on the way back, which asks how the gradient goes with its output."""
    before = network.nodes[node.inputs[0]]
    while isinstance(before.operation, ZeroPad):
        before = network.nodes[before.inputs[0]]
    return isinstance(before.operation, BatchNorm)


def _bent(signal: Signal) -> bool:
    """Tell whether dividing by their own variances bends the law of channels beyond that of points on a sphere.

    On maps of images a few modes, of very different sizes, decide what a channel is divided by.
    """
    maps = signal.kernel.layout.profiles > 1 and signal.kernel.values.shape[1] > 1
    return maps and signal.law is not None and signal.law.ratio > 0.5 and signal.law.sphere < _BENT


def _cropped(sample: Sample, size: Size, wanted: Size) -> Sample:
    values, *others = (
        None if field is None else cropped_piece(field, size, wanted)
        for field in (sample.values, sample.slopes, sample.inputs)
    )
    assert values is not None
    return Sample(values, sample.inverse, *others)


def _response(
    function: ActivationFunction, signal: Signal, out: PairKernel, duals: Duals, sample: Sample | None
) -> float:
    """Relative change of a kernel's entry after an activation for one before it.

    To first order that is the mean product of the slopes, and behind a normalisation, where points lie on a sphere,
    what is linear in them. Of sampled channels, which need not be Gaussian, it is the squared slope of the line that
    fits what the activation makes of a channel.
    """
    before, after = signal.kernel.variance, out.variance
    if after <= 0.0:
        return 0.0
    log_scale = signal.kernel.log_scale - out.log_scale
    if sample is not None:
        assert sample.inputs is not None
        slope = squared_slope(sample.inputs, sample.values)
    elif signal.law is not None and not function.homogeneous:
        slope = _linear_part(function, signal, signal.law)
    else:
        derivative = duals.derivative
        cross = derivative.values[derivative.layout.profiles :]
        slope = float(cross.mean()) if len(cross) else derivative.pair_mean
        log_scale = log_scale + derivative.log_scale
    return float(np.exp(log_scale)) * slope * before / after


def _linear_part(function: ActivationFunction, signal: Signal, law: VarianceLaw) -> float:
    """Return what is linear in normalised points, as the squared slope of that.

    Of points z = sqrt(q) u on a sphere of d dimensions that is a u with a = E[u phi(z)], and two points of correlation
    c have a^2 c in common, whatever else they have. By parts a / sqrt(q) = (d E phi' - E u^2 phi') / (d - 1), which
    does not cancel where q is small; d are those that a straying entry sees. An entry goes with the roots of both its
    points' levels, and so a^2 is averaged over these.
    """
    levels, weights = nodes(law.levels)
    # Beyond, there is but the germ.
    deviations = np.sqrt(levels * np.exp(np.clip(log_second_moment(signal.kernel), -FAR, FAR)))
    d = rounded(law.strays_sphere, 3)
    (_, slopes, turned), _ = hermite_expansion(function, deviations, d)
    slope = slopes[:, 0] + (slopes[:, 0] - turned[:, 1] / deviations) / (d - 1.0)
    return float(weights @ (levels * slope**2))


def lifted(sample: Sample) -> float:
    """Return by how much more the level behind an activation changes because channels had means before it.

    Behind weights of its own, no sum, a channel of a point of level l is sqrt(l) times what it is at one, its mean
    included, of which the normalisation took the same at all points.
    """
    if sample.lift is None or sample.slopes is None:
        return 0.0
    rest = sample.values - channel_means(sample.values)
    spread = float(np.vdot(rest, rest)) / len(rest) / rest.shape[1]
    return float(channel_products(rest, sample.slopes) @ sample.lift) / spread if spread > 0 else 0.0


def _uneven(sample: Sample, batch: int) -> float:
    """Return the relative variance of the channels' variances over the data.

    A mean of n channels with kernels of squared size E v^2 strays by so much more than one of n alike.
    """
    v = batch_variances(sample.values, sample.normalised, batch)
    mean = float(v.mean())
    return float(v.var()) / mean**2 if mean > 0 else 0.0


def _edges_after(function: ActivationFunction, signal: Signal) -> tuple[Array | None, Array | None, Array | None]:
    """Second moments of phi and phi' over a large map, relative to its inside, and the mean of phi less that inside.

    The last is in units of the inside's root mean square.
    """
    if signal.amplitude is None or not signal.kernel.second_moment:
        return signal.amplitude, None, None
    if signal.terms or signal.origin is None or signal.origin.function is not None:
        return edges_after_sum(function, signal.terms or (signal,))
    if function.homogeneous:
        return signal.amplitude, None, None
    inside = _inside(signal)
    levels, where = np.unique(np.round(signal.amplitude, 6), return_inverse=True)
    # From the table that the kernel itself comes from: quadrature at every level took most of a deep net's time.
    coefficients, moments = hermite_expansion(function, np.sqrt(np.append(levels, 1.0) * inside))
    size = signal.amplitude.shape
    values, slopes = (row[:-1] / row[-1] if row[-1] > 0 else np.ones(len(levels)) for row in moments[:2])
    means = (coefficients[0, :-1, 0] - coefficients[0, -1, 0]) / np.sqrt(moments[0, -1] or 1.0)
    return values[where].reshape(size), slopes[where].reshape(size), means[where].reshape(size)


def _inside(signal: Signal) -> float:
    """Return the second moment inside a large map; beyond what is let through every activation is its germ."""
    log_inside = float(np.log(signal.kernel.second_moment)) + signal.kernel.log_scale
    return float(np.exp(np.clip(log_inside, -FAR, FAR)))


def _near_after(function: ActivationFunction, signal: Signal, amplitude: Array | None) -> Near | None:
    """Return `Signal.near` after an activation, given the second moments there."""
    if signal.near is None or signal.amplitude is None or amplitude is None or not signal.kernel.second_moment:
        return None
    return signal.near.activated(function, signal.amplitude, amplitude, _inside(signal))


def _common_after(duals: Duals, amplitude: Array, shifts: Array) -> Array | None:
    """Return `Signal.common` after an activation: of means the product, the rest falls off as deviations do."""
    whole = duals.kernel.pair_mean
    if whole <= 0.0:
        return None
    mean = float(np.clip(duals.mean.mean(), -np.sqrt(whole), np.sqrt(whole)))
    means, root = mean + shifts * np.sqrt(duals.kernel.second_moment), np.sqrt(amplitude)
    rest = whole - mean**2
    return np.asarray((means * float(means.mean()) + rest * root * float(root.mean())) / whole)


@propagate.register
def _(operation: Add, node: Node, network: Network, inputs: list[Signal]) -> Signal:
    return added(node, network, inputs)
