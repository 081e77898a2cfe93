"""The gradient's way back through a batch normalisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from varprop.simulator.generated.layers import batch_norm_gradient
from varprop.simulator.network import BatchNorm
from varprop.simulator.theory.depthwise import excess
from varprop.simulator.theory.drawn import Drawn
from varprop.simulator.theory.gradient import Gradient, known_at, stepped_back
from varprop.simulator.theory.levels import power
from varprop.simulator.theory.levels import projected as projected_levels
from varprop.simulator.theory.opposition import in_common, projected
from varprop.simulator.theory.sample import channel_squares
from varprop.simulator.theory.signal import Signal


def through_normalisation(op: BatchNorm, gradient: Gradient, source: Signal, output: Signal) -> Gradient:
    """Return the gradient before a batch normalisation, which takes two projections of it."""
    own = output.law
    assert own is not None
    kernel = gradient.kernel
    alignment = gradient.alignment
    if alignment is None:
        alignment = kernel.pair_product_mean(output.kernel) * float(np.exp(output.kernel.log_scale))
    centred = kernel.centred
    before = centred.second_moment + kernel.pair_mean
    # The scalar recurrence gives the size; the two projections take their part out of the kernel.
    size = float(batch_norm_gradient(before, kernel.pair_mean, alignment, own.mean, op.eps)) * (own.mean + op.eps)
    if gradient.lost is not None:
        size = before * (1.0 - gradient.lost)
    opposition, left = gradient.opposition, centred.second_moment
    if own.modes is not None and 0 < size < left:
        opposition = opposition * projected(own.modes, float(opposition.max()), 1.0 - size / left, output.width)
    shape = centred.values
    if own.ratio > 0:
        unit = float(np.exp(output.kernel.log_scale)) / own.ratio
        shape = shape - (2.0 - own.ratio) * alignment * unit * output.kernel.values
    kernel = replace(centred, values=shape)
    left = kernel.second_moment
    if left > 0 and size > 0:
        kernel = kernel.scaled(size / left)
    # Behind a depthwise layer `tilt` says how slopes and 1 / (v + eps) go together; of other channels that are not
    # Gaussian their sample does.
    sampled = output.sample is not None and output.behind is None
    tilt = _together(gradient, output) if sampled else gradient.tilt
    left_of_it, kernel = kernel, kernel.scaled(own.inverse * tilt)
    given = None
    if output.cubature is not None:
        given = known_at(gradient, output.cubature).back()
        kernel = given.kernel(kernel).scaled(1.0, gradient.kernel.log_scale)

    def divided(found: Drawn) -> Drawn:
        inverse, found = output.draw().inverse, found.centred(left_of_it)
        return (found if inverse is None else found.times(np.sqrt(inverse)[None, None])).like(kernel)

    draws = stepped_back(gradient, divided)
    tied = 1.0 if sampled else gradient.tied
    back = replace(gradient, kernel=kernel, alignment=None, tilt=1.0, lost=None, selection=1.0, drawn=draws, tied=tied)
    leant = in_common(gradient.leaning, own.spots)
    leaning = gradient.leaning
    if leant:
        leaning = leaning * (projected_levels(leant, own.levels, kernel.share, own.parts) / leant)
    if source.weighted is not None:
        leaning = leaning * power(source.weighted.strays.levels, own.levels)
    crossings = tuple(part.kept(size / before) for part in gradient.crossings) if before > 0 else ()
    return replace(back, given=given, opposition=opposition, leaning=leaning, crossings=crossings)


def _together(gradient: Gradient, output: Signal) -> float:
    """Return E[g^2 / (v + eps)] over sampled channels, over the product of the two means."""
    inverse = output.draw().inverse
    if inverse is None or gradient.drawn is None or not gradient.tied:
        return 1.0
    squares = channel_squares(gradient.drawn().values)
    count = min(len(squares), len(inverse))
    return excess(squares[:count], inverse[:count])
