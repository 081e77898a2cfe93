"""Symbols and steps that every activation shares: z ~ N(0, q) enters, phi(z) leaves."""

from __future__ import annotations

import sympy as sp

from varprop.derivations.special_functions import normal
from varprop.derivations.theorem import Result, Step, step

z = sp.Symbol("z", real=True)
a = sp.Symbol("a", real=True)
q = sp.Symbol("q", positive=True)
q1, q2 = sp.symbols("q1 q2", positive=True)
c = sp.Symbol("c", real=True)
CORRELATION = {c: (-0.95, 0.95)}

ASSUMPTIONS = (
    "the pre-activation $z$ is $N(0, q)$: exact for Gaussian weights given the input, else the limit of infinite width",
    "backward: the gradient that arrives is independent of $z$ (infinite width)",
)


def density(x: sp.Expr, variance: sp.Expr) -> sp.Expr:
    """Return the density of N(0, variance) at x."""
    return normal(x, variance).rewrite(sp.exp)


def mean_over(function: sp.Expr) -> sp.Integral:
    """Return E[function(z)] for z ~ N(0, q), unevaluated."""
    return sp.Integral(function * normal(z, q), (z, -sp.oo, sp.oo))


def derivative_step(value: sp.Expr, derivative: sp.Expr) -> Step:
    """Return the step that differentiates the activation."""
    return step(
        "derivative",
        "Away from kinks; at a kink the value from the left is used (0 at the origin for rectifiers).",
        "differentiation, piece by piece",
        sp.Derivative(value, z),
        derivative,
    )


def mean_step(value: sp.Expr, mean: sp.Expr, reason: str) -> Step:
    """Return the step for E[phi]."""
    return step("mean", "Mean of the output.", reason, mean_over(value), mean)


def forward_step(value: sp.Expr, second_moment: sp.Expr, reason: str) -> Step:
    """Return the step for E[phi^2], the activation's forward recurrence."""
    return step("forward", "Forward: second moment of the output.", reason, mean_over(value**2), second_moment)


def backward_step(derivative: sp.Expr, second_moment: sp.Expr, reason: str) -> Step:
    """Return the step for E[phi'^2], the factor of the gradient's second moment."""
    return step(
        "backward",
        "Backward: factor of the gradient's second moment.",
        reason,
        mean_over(derivative**2),
        second_moment,
    )


def function_results(value: sp.Expr, derivative: sp.Expr) -> dict[str, Result]:
    """Return the results every activation has."""
    return {
        "value": Result((z, a), value, "value of the activation"),
        "derivative": Result((z, a), derivative, "derivative of the activation"),
    }


def moment_results(
    *,
    mean: sp.Expr | None = None,
    second_moment: sp.Expr | None = None,
    derivative_second_moment: sp.Expr | None = None,
    dual: sp.Expr | None = None,
    derivative_dual: sp.Expr | None = None,
) -> dict[str, Result]:
    """Return results for the closed forms that an activation has."""
    forms = {
        "mean": ((q, a), mean, "mean of the output"),
        "second_moment": ((q, a), second_moment, "second moment of the output"),
        "derivative_second_moment": ((q, a), derivative_second_moment, "second moment of the derivative"),
        "dual": ((q1, q2, c, a), dual, "mean product of two outputs, variances q1 and q2, correlation c"),
        "derivative_dual": ((q1, q2, c, a), derivative_dual, "mean product of two derivatives"),
    }
    return {
        name: Result(arguments, expression, meaning)
        for name, (arguments, expression, meaning) in forms.items()
        if expression is not None
    }


def price_step(dual: sp.Expr, derivative_dual: sp.Expr) -> Step:
    """Return the step that ties the two duals: d/dc E[phi phi] = sqrt(q1 q2) E[phi' phi']."""
    return step(
        "price",
        "The dual of the derivative is the derivative of the dual.",
        "Price's theorem: integrate by parts twice under the Gaussian of correlation $c$",
        sp.Derivative(dual, c),
        sp.sqrt(q1 * q2) * derivative_dual,
        domain=CORRELATION,
    )
