"""Closed forms of written activations: exact integrals, the bounded search, and the derivation that comes out."""

from __future__ import annotations

import json
import subprocess
import time

import mpmath
import pytest
import sympy as sp

from varprop.cli import main
from varprop.derivations.checking import check
from varprop.derivations.formula import expression, formula_derivation
from varprop.derivations.gaussian import density, q, z
from varprop.derivations.gaussian_integral import gaussian_integral
from varprop.derivations.printing import render
from varprop.derivations.search import Found, search
from varprop.derivations.special_functions import elementary
from varprop.simulator.activations import activation
from varprop.simulator.formula.grammar import parse

HALF = sp.Rational(1, 2)


@pytest.mark.parametrize(
    ("function", "low", "high"),
    [
        (z**4, -sp.oo, sp.oo),
        (z**3 * sp.exp(2 * z), -sp.oo, 0),
        (sp.exp(-z), 1, sp.oo),
        ((z + 1) ** 2 * sp.exp(z), -2, 3),
        (sp.exp(-(z**2) + z / 3) * z, -1, sp.oo),
        (sp.sin(2 * z) ** 2 + z * sp.sin(z), -sp.oo, sp.oo),
        (sp.exp(z + 1) - 1, -sp.oo, HALF),
    ],
)
@pytest.mark.parametrize("variance", [0.05, 3.0])
def test_exact_integrals(function, low, high, variance):
    form = gaussian_integral(function, low, high)
    reach = 13 * mpmath.sqrt(variance)
    ends = [max(-reach, float(low)), min(reach, float(high))]
    with mpmath.workdps(20):
        integrand = sp.lambdify(z, function * density(z, sp.Float(variance, 20)), "mpmath")
        expected = mpmath.quad(integrand, mpmath.linspace(*ends, 9))
    assert complex(elementary(form).subs(q, variance).evalf(20)) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize("function", [sp.tanh(z), sp.erf(z), sp.exp(z**2), sp.exp(z**3), 1 / (1 + z**2)])
def test_no_exact_integral(function):
    assert gaussian_integral(function, -sp.oo, sp.oo) is None


def test_search_finds_what_there_is_and_stops():
    relu = search(expression(parse("max(x, 0)")[0]))
    assert relu.forms["second_moment"] == q / 2
    start = time.monotonic()
    mish = search(expression(parse("x*tanh(log(1+exp(x)))")[0]), seconds=4)
    assert time.monotonic() - start < 8
    assert "second_moment" not in mish.forms


def test_tree_to_sympy_is_what_the_simulator_evaluates():
    text = "where(x^2<2,min(x,0.3),abs(x-1))+sqrt(1+x^2)-softplus(x)*sigmoid(x)+expm1(x/9)*log1p(x^2)-cos(pi*x)/3"
    value = sp.lambdify(z, expression(parse(text)[0]), "mpmath")
    phi = activation(text)
    for x in (-3.0, -1.2, 0.1, 0.7, 2.5):
        assert phi.value(x) == pytest.approx(float(value(mpmath.mpf(x))), rel=1e-14)


def test_every_step_holds_and_a_wrong_form_does_not():
    value = sp.Piecewise((z / 10, z <= 0), (z, True))
    right = {"mean": 9 * sp.sqrt(q / (2 * sp.pi)) / 10, "second_moment": 101 * q / 200}
    assert all(one.holds for one in check(formula_derivation("mine", Found(value, right), "numbers")))
    wrong = check(formula_derivation("mine", Found(value, {"second_moment": q / 2}), "numbers"))
    assert [one.step for one in wrong if not one.holds] == ["forward", "gain"]


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (sp.Piecewise((0, z < -1), (sp.tanh(z), True)), "where(x < -1, 0, tanh(x))"),
        (z * sp.tanh(sp.log(1 + sp.exp(z))), "x*tanh(log(1+exp(x)))"),
    ],
)
def test_exported_code_without_a_closed_form(value, text, tmp_path):
    """Python and C split at the kinks and give the simulator's moments."""
    theorem = formula_derivation(text, Found(value, {}), "numbers")
    module: dict[str, object] = {}
    exec(render([theorem], "python"), module)
    source, program = tmp_path / "mine.c", tmp_path / "mine"
    source.write_text(
        render([theorem], "c") + "#include <stdio.h>\nint main(void) {\n"
        'printf("%.17g %.17g", second_moment(2.0), derivative_second_moment(2.0));\nreturn 0;\n}\n'
    )
    subprocess.run(["cc", "-O1", "-o", str(program), str(source), "-lm"], check=True)
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout.split()
    phi = activation(text)
    for name, number in zip(("second_moment", "derivative_second_moment"), printed, strict=True):
        expected = float(getattr(phi, name)(2.0))
        assert module[name](2.0) == pytest.approx(expected, rel=1e-12)
        assert float(number) == pytest.approx(expected, rel=1e-12)


def test_derive_expr(capsys):
    assert main(["derive", "--expr", "piecewise((x, x>0), exp(x) - 1)", "--format", "json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)["derivations"]
    assert {"value", "derivative", "mean", "second_moment", "derivative_second_moment", "gain"} <= set(found["results"])
    assert any("C(1/2)" in assumption for assumption in found["assumptions"])
    assert main(["derive", "--expr", "x^3", "--check"]) == 0
    assert "FAILS" not in capsys.readouterr().out


def test_gain_closed_form(capsys):
    assert main(["gain", "max(x, 0.5*x)", "--format", "json"]) == 0
    plain = json.loads(capsys.readouterr().out)
    assert (plain["closed_form"], plain["method"]) == (None, "quadrature")
    assert main(["gain", "max(x, 0.5*x)", "--closed-form", "--format", "json"]) == 0
    searched = json.loads(capsys.readouterr().out)
    assert searched["method"] == "closed form"
    assert searched["closed_form"]["second_moment"] == "5*q/8"
    assert {**searched, "closed_form": None, "method": "quadrature"} == plain


@pytest.mark.parametrize(
    "arguments",
    [
        ["--expr", "__import__('os')"],
        ["--expr", "relu"],
        ["--expr", "exp(x^2)"],
        ["relu", "--expr", "x"],
        ["--expr", ""],
    ],
)
def test_mistakes(arguments, capsys):
    assert main(["derive", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
