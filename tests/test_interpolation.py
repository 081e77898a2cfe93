"""Tables at equal steps, against the functions that they hold."""

from __future__ import annotations

import numpy as np
import pytest

from varprop.simulator.interpolation import UniformTable


@pytest.mark.parametrize(("function", "slope"), [(np.sin, np.cos), (np.exp, np.exp)])
def test_error_falls_as_the_fourth_power_of_the_step(function, slope) -> None:
    x = np.linspace(-1.0, 1.0, 1001)
    steps = np.array([1 / 4, 1 / 8, 1 / 16, 1 / 32])
    tables = [UniformTable(-1.0, h, function(np.arange(-1.0, 1.0 + h / 2, h))) for h in steps]
    values = [np.abs(table(x) - function(x)).max() for table in tables]
    slopes = [np.abs(table(x, slope=True) - slope(x)).max() for table in tables]
    assert np.polyfit(np.log(steps), np.log(values), 1)[0] > 3.8
    assert np.polyfit(np.log(steps), np.log(slopes), 1)[0] > 2.8


def test_cubics_are_exact() -> None:
    points = 0.5 + 0.25 * np.arange(6)
    cubic = np.polynomial.Polynomial([1.0, -2.0, 0.5, 3.0])
    between = np.linspace(0.3, 2.0, 50)  # beyond both ends, too
    table = UniformTable(0.5, 0.25, cubic(points))
    np.testing.assert_allclose(table(between), cubic(between), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(table(between, slope=True), cubic.deriv()(between), rtol=1e-12, atol=1e-12)
