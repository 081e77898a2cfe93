"""What theory knows of the gradient at a node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, reduce
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.theory.corrections import crossed
from varprop.simulator.theory.crossing import Crossing, met
from varprop.simulator.theory.drawn import Drawn, drawn
from varprop.simulator.theory.drawn import plus as summed_up
from varprop.simulator.theory.few_points import Cubature, Given
from varprop.simulator.theory.maps import Size
from varprop.simulator.theory.opposition import added, average
from varprop.simulator.theory.pairs import PairKernel, merged, plus, regridded, unmerged
from varprop.simulator.theory.relations import UNRELATED, Relations
from varprop.simulator.theory.sample import Sample
from varprop.simulator.theory.sampling import assemble
from varprop.simulator.theory.signal import Signal

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Gradient:
    """Gradient of the loss with respect to one node's output.

    Attributes
    ----------
    kernel
        E[g(x) g(x')] averaged over channels.
    alignment
        E[(mean over x of g(x) z(x))^2] within a channel with the node's own output z, where the consumer knows it
        better than from the product of the two kernels; in units of ``exp(kernel.log_scale)``.
    tilt
        Factor by which E[g^2 / (v + eps)] differs from the product of averages at the normalisation that the gradient
        meets next, because both depend on the channel.
    lost
        Share that the projections of that normalisation take away, where it is known better than from the kernels.
    selection
        As `tilt`, for E[g^2 phi'^2] at the activation that it meets next, before a depthwise layer.
    relations
        What a depthwise layer on the way is going to do of that kind.
    amplitude
        Of a map larger than the kernel's: second moment at every position over that inside.
    gates
        Of such a map, E phi'^2 at the activation that it meets next, as the gradient meets it, over that inside; None
        where that is what all of the map's values have.
    drawn
        The gradient at the channels that the signal is sampled at, drawn when asked for.
    given
        At few points, its covariance there, given the channel.
    tied
        Share of its square that depends on the channels, so that the next slopes are not independent of it.
    opposition
        How far the gradients of two channels c, c' go against the channels themselves: over the weights of later layers
        E[g_c(x) g_c'(x')] = -2 opposition / channels * E[g(x)^2] cov(z_c, z_c') / var(z) where it is small, with one
        entry for each offset of x' from x, none in the middle; `opposition` has the rest. Negative where they go along.
    leaning
        Powers of levels, where these stray, that E[g(x)^2] goes with, by offset of their points as `opposition`.
    coherence
        How far gradients of two channels go along these channels' values at one point, by offset as `opposition`: see
        the module of that name.
    alone
        By how much more a channel's own does.
    own
        At an activation's input, what its slopes know of the weights before them: see `coherence.known_by_slopes`.
    held
        What the opposition would be more if slopes knew nothing of channels: at the data `bending` counts that.
    crossings
        What it has in common with the gradients at sums that it came from, the earliest it met first.
    """

    kernel: PairKernel
    alignment: float | None = None
    tilt: float = 1.0
    lost: float | None = None
    selection: float = 1.0
    relations: Relations = UNRELATED
    amplitude: Array | None = None
    gates: Array | None = None
    drawn: Callable[[], Drawn] | None = None
    given: Given | None = None
    tied: float = 0.0
    opposition: Array = field(default_factory=lambda: np.zeros((1, 1)))
    leaning: Array = field(default_factory=lambda: np.zeros((1, 1)))
    coherence: Array = field(default_factory=lambda: np.zeros((1, 1)))
    alone: float = 0.0
    own: Array = field(default_factory=lambda: np.zeros((2, 1, 1)))
    held: Array = field(default_factory=lambda: np.zeros((1, 1)))
    crossings: tuple[Crossing, ...] = ()

    @property
    def edges(self) -> float:
        """Second moment over the whole map relative to the kernel's."""
        return 1.0 if self.amplitude is None else float(self.amplitude.mean())


def of_field(unit: PairKernel, field: Array) -> Gradient:
    """Return a gradient at data, known by its second moment at every position, in units of a kernel."""
    mean = float(field.mean())
    return Gradient(unit.scaled(mean), amplitude=field / mean if mean > 0 else field)


def untied(gradient: Gradient, key: int) -> Gradient:
    """Return a gradient just behind weights, which is Gaussian whatever the channels; `key` is of its draws."""
    return replace(gradient, drawn=cache(lambda: drawn(gradient.kernel, key)), given=None, tied=0.0)


def total(gradients: list[Gradient], exits: list[frozenset[int]]) -> Gradient:
    """Sum over a node's consumers.

    Gradients are uncorrelated if each passed through weights of its own. Those that share one of the `exits`, the
    layers they came from, are multiplied at sampled channels.
    """
    if len(gradients) == 1:
        return gradients[0]
    kernel = reduce(plus, (gradient.kernel for gradient in gradients))
    for (one, first), (other, second) in combinations(zip(gradients, exits, strict=True), 2):
        if first & second and one.drawn is not None and other.drawn is not None:
            kernel = plus(
                kernel, crossed(one.kernel, other.kernel, *(Sample(g().values) for g in (one.drawn, other.drawn)))
            )
    draws = [gradient.drawn for gradient in gradients if gradient.drawn is not None]
    summed = cache(lambda: summed_up([draw() for draw in draws])) if len(draws) == len(gradients) else None
    sizes = [g.kernel.second_moment * float(np.exp(g.kernel.log_scale - kernel.log_scale)) for g in gradients]
    fields = [gradient.amplitude for gradient in gradients if gradient.amplitude is not None]
    amplitude, leaning = gradients[0].amplitude, gradients[0].leaning
    opposition, coherence = gradients[0].opposition, gradients[0].coherence
    common, crossings = met([gradient.crossings for gradient in gradients], kernel.log_scale)
    if kernel.second_moment:
        opposition = average([gradient.opposition for gradient in gradients], sizes)
        coherence = average([gradient.coherence for gradient in gradients], sizes)
        leaning = average([gradient.leaning for gradient in gradients], sizes)
        amplitude = np.average(fields, axis=0, weights=sizes) if fields else None
        # T = u / (1 + w S): of the two, products with the sums' own gradients change w alone.
        opposition = added(opposition, common.opposition / sum(sizes))
        coherence = added(coherence, common.coherence / sum(sizes))
        kernel = kernel.scaled(1.0 + common.square / kernel.second_moment)
    return Gradient(
        kernel,
        amplitude=amplitude,
        drawn=summed,
        given=_given(gradients, kernel),
        tied=sum(size * g.tied for size, g in zip(sizes, gradients, strict=True)) / (sum(sizes) or 1.0),
        opposition=opposition,
        leaning=leaning,
        coherence=coherence,
        crossings=crossings,
    )


def _given(gradients: list[Gradient], kernel: PairKernel) -> Given | None:
    """Return the covariance, given the channel, of a sum of gradients; `kernel` is its own."""
    at = next((gradient.given.at for gradient in gradients if gradient.given is not None), None)
    if at is None:
        return None
    parts = [known_at(gradient, at) for gradient in gradients]
    scales = [float(np.exp(gradient.kernel.log_scale - kernel.log_scale)) for gradient in gradients]
    return Given(sum((scale * part.covariance for scale, part in zip(scales, parts, strict=True)), np.zeros(1)), at)


def known_at(gradient: Gradient, at: Cubature) -> Given:
    """Return the covariance of a gradient, given the channel."""
    if gradient.given is None:
        return Given(assemble(gradient.kernel)[:, :, None], at)
    return gradient.given.sized(gradient.kernel)


def stepped_back(gradient: Gradient, step: Callable[[Drawn], Drawn]) -> Callable[[], Drawn] | None:
    """Return how to draw a gradient after one more step back."""
    draws = gradient.drawn
    return None if draws is None else cache(lambda: step(draws()))


def cut_inside(gradient: Gradient, size: Size, source: Signal) -> tuple[PairKernel, Array]:
    """Gradient on a cut-out of the given size, and the field of its second moments over that on the whole map."""
    kernel = gradient.kernel
    if gradient.amplitude is not None:
        field = gradient.amplitude
    else:
        field = kernel.diagonal.mean(axis=0).reshape(kernel.size)
        field = field / float(field.mean()) if field.any() else np.ones_like(field)
    if kernel.size != size:
        kernel = regridded(merged(kernel), size)
    return unmerged(kernel, source.kernel.layout), field
