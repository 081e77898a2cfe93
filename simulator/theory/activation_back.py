"""The gradient's way back through an activation, whose slopes know channels and levels as it does."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from varprop.simulator.activations import activation
from varprop.simulator.network import Activation
from varprop.simulator.theory.coherence import known_by_slopes
from varprop.simulator.theory.corrections import averages
from varprop.simulator.theory.drawn import Drawn, corrected, missed
from varprop.simulator.theory.gradient import Gradient, known_at, of_field, stepped_back
from varprop.simulator.theory.maps import here
from varprop.simulator.theory.opposition import added, in_common, reduced, within
from varprop.simulator.theory.pair_series import mean_square_correlation
from varprop.simulator.theory.signal import Signal, variance_ratio


def through_activation(op: Activation, gradient: Gradient, source: Signal, output: Signal) -> Gradient:
    """Return the gradient before an activation."""
    if source.data is not None:
        assert source.known is not None
        slope = activation(op.function).derivative(source.known)
        field = np.mean(slope**2, axis=(0, 1))
        return of_field(gradient.kernel, field if gradient.amplitude is None else gradient.amplitude * field)
    assert output.duals is not None
    slopes, tilted = output.duals.derivative, output.duals.tilted
    values = gradient.kernel.values * slopes.values
    levels, squared = output.duals.levels, slopes.second_moment * float(np.exp(slopes.log_scale))
    # The covariance that two channels' gradients oppose has one part in so many from the very point.
    share = slopes.share
    point = share * gradient.opposition * (opposed_unit(max(here(gradient.opposition), 0.0), output) * output.width / 2)
    coherence = added(gradient.coherence, -point)
    spots = source.strays.spots_on(source.kernel) if source.law is None else source.law.spots
    leant = in_common(gradient.leaning, spots)
    together = source.kernel.correlation(source.kernel.pair_mean)
    odd, even = (in_common(gradient.leaning, part) for part in (together, together**2))
    along = 2.0 * (here(coherence) + gradient.alone)
    # Behind a depthwise layer sampled channels know their own squares.
    own = even + along if source.behind is None else even
    factor, heard, left, more = levels.passed(leant, own, odd - even, output.width)
    leaning = added(gradient.leaning * levels.bent, np.full((1, 1), left - leant * levels.bent))
    lost = 0.0 if source.law is None else share
    new = np.zeros((2, 1, 1))
    if levels.slopes is not None and source.behind is None:
        known = levels.known(lost)
        new = known_by_slopes(activation(op.function), gradient.kernel, source.kernel, squared, known)
    related = output.relations(gradient.kernel.alike(), _opposed(gradient, output), along / output.width)
    met = gradient.selection * factor * heard * related.met
    kernel = replace(gradient.kernel, values=values).scaled(met, slopes.log_scale)
    alignment = None
    if tilted is not None:
        with np.errstate(over="ignore"):  # no normalisation comes next then, and nobody asks
            unit = float(np.exp(tilted.log_scale + gradient.kernel.log_scale - kernel.log_scale))
        # Levels go with the gradient's at the very point.
        points = float(np.mean(gradient.kernel.diagonal * tilted.diagonal))
        alignment = (gradient.kernel.pair_product_mean(tilted) + share * (more - 1.0) * points) * (unit * related.met)
    tilt = gradient.tilt * related.tilt
    # Of a product of slopes, and of covariances, only what is linear in each channel is opposed.
    linear = output.duals.linear
    spread = variance_ratio(source, output) * squared
    alike = left = linear**2 * spread
    coherent = float(np.sqrt(levels.coherent(0.0) * spread))
    if source.law is not None and source.law.modes is not None:
        left = reduced(source.law.modes, float(gradient.opposition.max()), left, output.width)
    # Coherence does not oppose what both channels are on the mean.
    kept = gradient.coherence * (levels.coherent(0.0) - alike)
    opposition, held = added(gradient.opposition * left, -kept), added(gradient.held * left, kept)
    coherence = added(coherence * levels.coherent(lost), alike * point)

    def gated(found: Drawn) -> Drawn:
        gates = output.draw().slopes
        assert gates is not None
        return found.times(gates)

    draws = stepped_back(gradient, gated)
    if gradient.tied > 0.0 and draws is not None and gradient.drawn is not None:
        behind = draws()
        gaps = missed(gradient.kernel, gradient.drawn().part(*behind.values.shape[1:]))
        kernel = corrected(kernel, behind, [gap * product for gap, product in zip(gaps, averages(slopes), strict=True)])
        # Slopes were drawn at levels of their own, but what came through weights was not.
        kernel = kernel.scaled(heard * (1.0 + (1.0 - gradient.tied) * (factor - 1.0)))
    given, cubature = None, output.cubature if gradient.given is None else gradient.given.at
    if cubature is not None:
        given = known_at(gradient, cubature).back()
        if gradient.given is not None:
            kernel = given.kernel(kernel).scaled(met, gradient.kernel.log_scale)
    amplitude = gradient.amplitude
    gates = output.slopes if gradient.gates is None else gradient.gates
    if gates is not None:
        amplitude = gates if amplitude is None else amplitude * gates
    return replace(
        gradient,
        kernel=kernel,
        alignment=alignment,
        tilt=tilt,
        selection=1.0,
        relations=related,
        amplitude=amplitude,
        gates=None,
        drawn=draws,
        given=given,
        tied=1.0,
        opposition=opposition,
        leaning=leaning,
        coherence=coherence,
        alone=0.0,
        own=new,
        held=held,
        crossings=tuple(part.gated(linear * spread, coherent) for part in gradient.crossings),
    )


def _opposed(gradient: Gradient, output: Signal) -> float:
    """Return w of E[g_c^2] ~ 1 / (1 + w v_c), v_c being a channel's variance over that of all."""
    opposition = max(here(gradient.opposition), 0.0)
    return opposition * opposed_unit(opposition, output)


def opposed_unit(opposition: float, output: Signal) -> float:
    """Return w of E[g_c^2] ~ 1 / (1 + w v_c), v_c being a channel's variance over that of all, over the opposition."""
    centred = output.kernel.centred
    if not centred.second_moment:
        return 0.0
    return within(opposition, output.width, mean_square_correlation(centred) + output.together)
