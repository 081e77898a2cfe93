"""Batch normalisation and activations: forward, and the gradient back, each in one pass where that can be."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from varprop.simulator.activations import FORMULA, ActivationFunction, activation
from varprop.simulator.generated import activations as scalar
from varprop.simulator.jit import elementwise
from varprop.simulator.montecarlo.call import Call, in_place_of
from varprop.simulator.montecarlo.pointwise import Passes, compiled_passes, deviations
from varprop.simulator.montecarlo.signal import NONE, RELEASED, Signal, runs, settled, statistics
from varprop.simulator.network import Activation, BatchNorm

Array = NDArray[np.floating]

FAR = 200
"""Beyond 2**+-FAR an activation is its half-lines to the last digit, and up to there float64 holds its values."""


def normalised(operation: BatchNorm, call: Call, out: Array) -> Signal:
    """Write a batch normalisation's output."""
    return _stored(standardized(operation, call), out)


def normalised_back(operation: BatchNorm, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to a batch normalisation's input."""
    back, _ = _through(activation("linear"), standardized(operation, call), gradient)
    return back


def standardized(operation: BatchNorm, call: Call) -> Signal:
    """Return the output without storing it, with its moments: of every row mean 0, and the variance by scale^2."""
    source = call.source
    variance, scale = source.variance.copy(), np.empty_like(source.variance)
    exponent, summary = np.empty_like(source.exponent), np.empty((len(variance), 3))
    deviations(variance, source.exponent, operation.eps, scale, exponent, summary)
    mean, variance = (np.zeros_like(variance), variance) if call.by_channel else (NONE, NONE)
    return settled(Signal(source.values, source.exponent + exponent, summary, mean, variance, source, scale))


def _stored(signal: Signal, out: Array) -> Signal:
    """Write a map that is not stored."""
    moments = statistics(out, False)
    run_forward, _ = _passes(activation("linear"))
    run_forward(*runs(signal.values), signal.center, signal.scale, out.dtype.type(0), out.reshape(-1), *moments)
    return replace(signal, values=out, origin=None, scale=NONE)


def activated(operation: Activation, call: Call, out: Array) -> Signal:
    """Write an activation's output."""
    function, source = activation(operation.function), call.source
    if _in_one_pass(function, source):
        mean, variance, summary = statistics(out, call.by_channel)
        run_forward, _ = _passes(function)
        parameter = out.dtype.type(function.parameter)
        flat = out.reshape(-1)
        run_forward(*runs(source.values), source.center, source.scale, parameter, flat, mean, variance, summary)
        return settled(Signal(out, source.exponent, summary, mean, variance))
    if source.origin is not None:
        source = call.sources[0] = _stored(source, call.pool.take(out.shape))
    if function.homogeneous or not source.exponent.any():
        _apply("value", function, source.values, out)
        return Signal(out, source.exponent)
    trials = zip(source.values, source.exponent.tolist(), out, strict=True)
    return Signal(out, np.array([_value_at_scale(function, z, exponent, y) for z, exponent, y in trials]))


def activated_back(operation: Activation, call: Call, gradient: Signal) -> Signal:
    """Return the gradient with respect to an activation's input, or to the origin of one that is not stored."""
    function, source = activation(operation.function), call.source
    if _in_one_pass(function, source):
        back, call.passed = _through(function, source, gradient)
        return back
    slopes = call.pool.take(call.source_shape)
    if function.homogeneous or not source.exponent.any():
        _apply("derivative", function, source.values, slopes)
    else:
        for z, exponent, out in zip(source.values, source.exponent.tolist(), slopes, strict=True):
            _derivative_at_scale(function, z, exponent, out)
    slopes *= gradient.values
    return in_place_of(gradient, slopes, call.pool)


def _in_one_pass(function: ActivationFunction, source: Signal) -> bool:
    return function.family != FORMULA and (function.homogeneous or not source.exponent.any())


def _through(function: ActivationFunction, source: Signal, gradient: Signal) -> tuple[Signal, Signal | None]:
    """Send a gradient back through an activation, overwriting it, and on to the origin of a source that is not stored.

    Returns
    -------
    back
        The gradient with respect to the source, or else to its origin.
    passed
        That with respect to a source that is not stored, known by its moments alone.
    """
    values, exponent = gradient.values, gradient.exponent
    inner, summary = np.empty((len(values), 3)), np.empty((len(values), 3))
    _, run_backward = _passes(function)
    power = np.ldexp(1.0, 2 * source.exponent * (source.origin is not None))
    parameter = values.dtype.type(function.parameter)
    z, out = runs(source.values), values.reshape(-1)
    run_backward(*z, source.center, source.scale, power, parameter, out, inner, summary)
    if source.origin is None:
        return settled(Signal(values, exponent, inner)), None
    change = source.exponent - source.origin.exponent
    return settled(Signal(values, exponent + change, summary)), Signal(RELEASED, exponent, inner)


def _passes(function: ActivationFunction) -> Passes:
    return compiled_passes(*(getattr(scalar, f"{function.family}_{which}") for which in ("value", "derivative")))


def _value_at_scale(function: ActivationFunction, z: Array, exponent: int, out: Array) -> int:
    """Write phi(z * 2**exponent) for one trial; return the power of two in front of it."""
    if exponent == 0:
        _apply("value", function, z, out)
        return 0
    slopes = _slopes_at_scale(function, z, exponent)
    if slopes is not None:
        np.multiply(z, slopes, out=out)
        return exponent
    plain = _in_float64(z, exponent)
    y = np.empty_like(plain)
    _apply("value", function, plain, y)
    found = int(np.frexp(np.abs(y).max())[1])
    np.ldexp(y, -found, out=out, casting="same_kind")
    return found


def _derivative_at_scale(function: ActivationFunction, z: Array, exponent: int, out: Array) -> None:
    """Write phi'(z * 2**exponent) for one trial."""
    slopes = _slopes_at_scale(function, z, exponent)
    if slopes is None:
        plain = _in_float64(z, exponent)
        slopes = np.empty_like(plain)
        _apply("derivative", function, plain, slopes)
    out[...] = slopes


def _slopes_at_scale(function: ActivationFunction, z: Array, exponent: int) -> Array | None:
    """Return phi(z) / z where z is so small or so large that phi is two half-lines through 0; None elsewhere.

    None too where that leaves nothing: phi(0) is not 0, or phi is bounded.
    """
    if abs(exponent) <= FAR:
        return None
    if exponent < 0:
        at_zero, left, right = function.germ_zero
        lines = at_zero == 0
    else:
        (left, _), (right, _) = function.germ_infinity
        lines = (left != 0 or right != 0) and math.isfinite(left) and math.isfinite(right)
    number = z.dtype.type
    return np.where(z > 0, number(right), number(left)) if lines else None


def _in_float64(z: Array, exponent: int) -> NDArray[np.float64]:
    """Return the map without its power of two, for a function that cannot take it; infinite beyond float64."""
    with np.errstate(over="ignore"):
        return np.ldexp(z.astype(np.float64), exponent)


def _apply(which: str, function: ActivationFunction, z: Array, out: Array) -> None:
    if function.family == FORMULA:
        out[...] = function.value(z) if which == "value" else function.derivative(z)
        return
    compiled = elementwise(getattr(scalar, f"{function.family}_{which}"), z.dtype)
    compiled(z, function.parameter, out)
