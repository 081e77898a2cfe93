"""Reports and gains as notebooks show them, and numbers as every table prints them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # they know this module
    from varprop.simulator.gain import Gain
    from varprop.simulator.report import Report


def exponential(log: float) -> str:
    """Return exp(log) in four digits, also where no float holds it.

    Examples
    --------
    >>> exponential(math.log(2)), exponential(-5000.0), exponential(-math.inf)
    ('2', '3.37e-2172', '0')
    """
    if math.isnan(log):
        return "-"
    if math.isinf(log):
        return "0" if log < 0 else "inf"
    if -7 < log < 9.2:
        return f"{math.exp(log):.4g}"
    decades = log / math.log(10)
    exponent = math.floor(decades)
    mantissa = 10 ** (decades - exponent)
    if mantissa >= 9.995:
        mantissa, exponent = 1.0, exponent + 1
    return f"{mantissa:.2f}e{exponent:+03d}"


def report_html(report: Report) -> str:
    """Return a report as a table: a row a node, second moments forward and backward."""
    rows = [
        [
            node.name,
            node.kind,
            " x ".join(map(str, node.shape)),
            exponential(layer.forward.log_second_moment),
            exponential(layer.backward.log_second_moment),
        ]
        for node, layer in zip(report.network.nodes, report.layers, strict=True)
    ]
    return _table(
        f"{report.network.name}, {report.engine}", ["layer", "kind", "shape", "forward q", "backward g"], rows
    )


def gain_html(gain: Gain) -> str:
    """Return moments and gains as a table."""
    rows = [
        ["E[φ]", f"{gain.mean:.10g}"],
        ["E[φ²]", f"{gain.second_moment:.10g}"],
        ["Var[φ]", f"{gain.variance:.10g}"],
        ["E[φ′²]", f"{gain.derivative_second_moment:.10g}"],
        ["1/√E[φ²]", f"{gain.gain_second_moment:.10g}"],
        ["1/sd(φ)", f"{gain.gain_variance:.10g}"],
        *(["fixed point q*, χ", f"{point.q:.6g}, {point.chi:.6g}"] for point in gain.fixed_points),
    ]
    return _table(f"{gain.activation}, z ~ N(0, {gain.q:g}), {gain.method}", [], rows)


def _table(caption: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    from html import escape  # which every other table does without

    titles = f"<tr>{''.join(f'<th>{escape(cell)}</th>' for cell in head)}</tr>" if head else ""
    body = "".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><caption>{escape(caption)}</caption>{titles}{body}</table>"
