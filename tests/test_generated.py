"""The checked-in formulas are the derived ones, and the simulator runs without SymPy."""

import ast
import math
import subprocess
import sys

import numba
import numpy as np
import pytest

from varprop.derivations.generate import ACTIVATIONS, FOLDER, sources
from varprop.simulator.generated import activations, arrays, layers

SOURCES = sources()

# One rounding of the argument moves exp(-z^2/2) by z^2 of its last digits: 1600 at |z| = 40, where erfc ends.
TAIL = 1600 * 2 * np.finfo(float).eps


@pytest.mark.parametrize("name", SOURCES)
def test_generated_file_is_not_stale(name):
    assert (FOLDER / name).read_text(encoding="utf-8") == SOURCES[name], "run python -m varprop.derivations.generate"


def test_nothing_else_lies_in_the_folder():
    assert {path.name for path in FOLDER.glob("*.py")} == {*SOURCES, "__init__.py"}


def test_lines_fit_and_scalars_need_only_math():
    assert all(len(line) <= 120 for text in SOURCES.values() for line in text.splitlines())
    names = [
        alias.name
        for node in ast.walk(ast.parse(SOURCES["activations.py"]))
        if isinstance(node, ast.Import)
        for alias in node.names
    ]
    assert names == ["math"]


def test_simulator_does_not_import_sympy():
    code = (
        "import sys, varprop.simulator.activations, varprop.simulator.gain, varprop.simulator.generated.layers;"
        "assert 'sympy' not in sys.modules and not any(name.startswith('varprop.derivations') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_derivations_import_nothing_else_of_the_project():
    for path in (FOLDER.parents[1] / "derivations").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            foreign = [name for name in names if name.startswith("varprop") and "varprop.derivations" not in name]
            assert not foreign, path.name


@pytest.mark.parametrize("family", ACTIVATIONS)
def test_scalar_array_and_compiled_forms_agree(family):
    z = np.concatenate([np.linspace(-40, 40, 801), [-1e200, -800.0, -3.0, 0.0, 3.0, 6.0, 800.0, 1e200]])
    for part in ("value", "derivative"):
        scalar = getattr(activations, f"{family}_{part}")
        compiled = numba.njit(scalar)
        plain = np.array([scalar(float(x), 0.3) for x in z])
        with np.errstate(all="ignore"):
            array = np.broadcast_to(arrays.TABLE[part][family](z, 0.3), z.shape)
        jitted = np.array([compiled(float(x), 0.3) for x in z])
        assert np.all(np.isfinite(plain))
        np.testing.assert_allclose(array, plain, rtol=TAIL, atol=1e-300)
        np.testing.assert_allclose(jitted, plain, rtol=TAIL, atol=1e-300)


def test_layer_formulas_by_hand():
    assert layers.linear_second_moment(100, 0.02, 3.0) == pytest.approx(6.0)
    assert layers.linear_gradient(50, 0.02, 3.0) == pytest.approx(3.0)
    assert layers.bias_second_moment(3.0, 0.5) == 3.5
    assert layers.batch_norm_second_moment(0.5, 0.5) == 0.5
    assert layers.batch_norm_gradient(2.0, 0.25, 0.5, 3.0, 1.0) == pytest.approx((2 - 0.25 - 1.25 * 0.5) / 4)
    assert layers.add_second_moment(1.0, 2.0, -0.25) == 2.5
    assert layers.average_pool_second_moment(4, 1.0, 0.5) == pytest.approx(0.625)
    assert layers.average_pool_gradient(4, 1.0) == 0.0625
    assert layers.truncated_normal_variance(2.0) == pytest.approx(0.7737413, abs=5e-8)
    assert layers.truncated_normal_deviation(2.0) == pytest.approx(0.87962566103423978, rel=1e-15)
    shape = layers.batch_norm_gradient(np.ones(3), np.zeros(3), np.zeros(3), np.ones(3), 1e-3).shape
    assert shape == (3,)


def test_truncated_normal_variance_by_simulation():
    draws = np.random.default_rng(11).standard_normal(400_000)
    kept = draws[np.abs(draws) <= 1.3]
    squares = kept**2
    error = squares.std() / math.sqrt(squares.size)
    assert abs(squares.mean() - layers.truncated_normal_variance(1.3)) < 4 * error
