"""Every step of every derivation holds, a broken one is found, and documents and exported code say what was derived."""

import ctypes
import json
import math
import runpy
import shutil
import subprocess
from dataclasses import replace

import mpmath
import numpy as np
import pytest
import sympy as sp

from varprop.derivations import TOPICS, derivation
from varprop.derivations.checking import check
from varprop.derivations.expectation import E, evaluate
from varprop.derivations.printing import FORMATS, render
from varprop.derivations.special_functions import elementary

ACTIVATION_TOPICS = [topic for topic in TOPICS if "derivative" in derivation(topic).results]


@pytest.mark.parametrize("topic", TOPICS)
def test_every_step_holds(topic):
    failed = [f"{found.step}: {found.detail}" for found in check(derivation(topic)) if not found.holds]
    assert not failed


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        ("linear", "forward"),
        ("depthwise_conv2d", "fluctuation"),
        ("batch_norm", "gradient"),
        ("batch_norm", "backward"),
        ("relu6", "inside"),
        ("sigmoid", "stable"),
        ("gelu", "price"),
        ("truncated_normal", "variance"),
        ("zero_padding", "slowest"),
    ],
)
def test_a_broken_step_is_found_by_name(topic, name):
    theorem = derivation(topic)
    broken = tuple(
        replace(step, equation=sp.Eq(step.equation.lhs, step.equation.rhs * sp.Rational(1000001, 1000000)))
        if step.name == name
        else step
        for step in theorem.steps
    )
    checks = check(replace(theorem, steps=broken))
    assert [found.step for found in checks if not found.holds] == [name]


def test_expectation_under_independence():
    x, y, sigma2 = sp.symbols("x y sigma2")
    laws = {x: (sp.Integer(0), sigma2, sp.Integer(0), 3 * sigma2**2)}
    assert evaluate(E((x + y) ** 2), laws) == sigma2 + y**2
    assert evaluate(E(x**4 * y), laws) == 3 * sigma2**2 * y
    with pytest.raises(ValueError, match="order 5"):
        evaluate(E(x**5), laws)


def test_selu_constants_are_klambauers():
    values = [float(value.evalf(20)) for value in derivation("selu").constants.values()]
    assert values == pytest.approx([1.0507009873554805, 1.6732632423543778], rel=1e-15)


def test_truncation_at_two_deviations():
    results = derivation("truncated_normal").results
    limit = results["variance"].arguments[0]
    assert float(results["variance"].expression.subs(limit, 2)) == pytest.approx(0.7737413, abs=5e-8)
    assert float(results["deviation"].expression.subs(limit, 2)) == pytest.approx(0.87962566103423978, rel=1e-15)


def test_max_of_four():
    results = derivation("max_pool").results
    q = results["mean_of_four"].arguments[0]
    mean, second = (float(results[name].expression.subs(q, 1)) for name in ("mean_of_four", "second_moment_of_four"))
    assert mean == pytest.approx(1.0293754, abs=5e-8)
    assert second - mean**2 == pytest.approx(0.4917152, abs=5e-8)


@pytest.mark.parametrize(("n", "decay"), [(4, 0.761567), (8, 0.921207), (16, 0.977426), (32, 0.993972)])
def test_zero_padding_decay_is_the_leading_eigenvalue(n, decay):
    result = derivation("zero_padding").results["decay"]
    found = float(result.expression.subs(result.arguments[0], n))
    taps = (np.abs(np.subtract.outer(np.arange(n), np.arange(n))) <= 1) / 3
    assert found == pytest.approx(np.linalg.eigvalsh(taps).max() ** 2, rel=1e-13)
    assert found == pytest.approx(decay, abs=5e-7)


def test_batch_norm_gradient_against_finite_differences():
    """The derived second moment, with a plain numerical derivative as oracle."""
    random = np.random.default_rng(5)
    z, g, eps, step = random.normal(size=7), random.normal(size=7), 0.1, 1e-6

    def output(values):
        return (values - values.mean()) / np.sqrt(values.var() + eps)

    numerical = [(g @ output(z + e) - g @ output(z - e)) / (2 * step) for e in step * np.eye(7)]
    result = derivation("batch_norm").results["gradient"]
    y = output(z)
    values = ((g**2).mean(), g.mean() ** 2, (g * y).mean() ** 2, z.var(), eps)
    found = float(result.expression.subs(dict(zip(result.arguments, values, strict=True))))
    assert found == pytest.approx(np.mean(np.square(numerical)), rel=1e-7)


def _expected_moments(topic, q):
    """E[phi^2] and E[phi'^2] by mpmath, from the derivation's value and derivative."""
    theorem = derivation(topic)
    z = theorem.results["value"].arguments[0]
    defaults = {**theorem.constants, **theorem.defaults}
    moments = []
    for name in ("value", "derivative"):
        function = sp.lambdify(z, elementary(theorem.results[name].expression).subs(defaults), "mpmath")
        scale = mpmath.sqrt(q)
        cuts = sorted({mpmath.mpf(k) for k in (-12 * scale, -3, 0, 3, 6, 12 * scale) if abs(k) <= 12 * scale})
        moments.append(
            float(
                mpmath.quad(lambda x, f=function: f(x) ** 2 * mpmath.exp(-x * x / (2 * q)), cuts)
                / mpmath.sqrt(2 * mpmath.pi * q)
            )
        )
    return moments


@pytest.mark.parametrize("topic", ACTIVATION_TOPICS)
def test_exported_python_runs(topic, tmp_path):
    module = _run(render([derivation(topic)], "python"), tmp_path)
    for q in (0.3, 2.0):
        found = [float(module[name](q)) for name in ("second_moment", "derivative_second_moment")]
        assert found == pytest.approx(_expected_moments(topic, q), rel=1e-11)


def test_exported_code_of_several_topics_keeps_names_apart(tmp_path):
    module = _run(render([derivation("relu"), derivation("tanh")], "python"), tmp_path)
    assert module["relu_second_moment"](1.0) == 0.5
    assert module["tanh_second_moment"](1.0) == pytest.approx(0.39429449039784126, rel=1e-12)


def _run(source, folder):
    path = folder / "exported.py"
    path.write_text(source)
    return runpy.run_path(str(path))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_exported_c_compiles_and_agrees(tmp_path):
    topics = ["relu6", "elu", "selu", "gelu", "silu", "hard_swish"]
    source, library = tmp_path / "moments.c", tmp_path / "moments.so"
    source.write_text(render([derivation(topic) for topic in topics], "c"))
    subprocess.run(
        ["cc", "-std=c99", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"],
        check=True,
    )
    compiled = ctypes.CDLL(str(library))
    for topic in topics:
        for name, expected in zip(
            ("second_moment", "derivative_second_moment"), _expected_moments(topic, 2.0), strict=True
        ):
            function = getattr(compiled, f"{topic}_{name}")
            function.restype = ctypes.c_double
            arguments = [ctypes.c_double(2.0)] + [ctypes.c_double(1.0)] * (topic == "elu")
            assert function(*arguments) == pytest.approx(expected, rel=1e-11), (topic, name)


@pytest.mark.parametrize("form", FORMATS)
def test_documents_of_all_topics(form):
    text = render([derivation(topic) for topic in TOPICS], form)
    if form == "json":
        document = json.loads(text)
        assert [one["topic"] for one in document["derivations"]] == list(TOPICS)
        assert all(one["references"] and one["assumptions"] and one["results"] for one in document["derivations"])
    if form == "latex":
        assert text.count(r"\begin{equation}") == text.count(r"\end{equation}") > 100
        assert text.count(r"\section{") == len(TOPICS)
        labels = [line.split(r"\label{")[1] for line in text.splitlines() if r"\label{" in line]
        assert len(labels) == len(set(labels))
        assert all(
            line.count("{") - line.count(r"\{") == line.count("}") - line.count(r"\}") for line in text.splitlines()
        )
    if form == "markdown":
        assert text.count("$$") % 2 == 0


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
def test_latex_compiles(tmp_path):
    (tmp_path / "all.tex").write_text(render([derivation(topic) for topic in TOPICS], "latex"), encoding="utf-8")
    subprocess.run(["pdflatex", "-halt-on-error", "all.tex"], cwd=tmp_path, check=True, capture_output=True)


def test_step_names_are_unique_and_topics_are_modules():
    for topic in TOPICS:
        names = [step.name for step in derivation(topic).steps]
        assert len(names) == len(set(names))
        assert derivation(topic).topic == topic
    with pytest.raises(KeyError):
        derivation("no_such_topic")


def test_torch_linear_default_is_a_third():
    """kaiming_uniform(a=sqrt 5): the He variance 2/((1 + a^2) n) times n is 1/3, under ReLU 1/6."""
    result = derivation("he").results["variance"]
    fan, a = result.arguments
    assert result.expression.subs({fan: 784, a: sp.sqrt(5)}) * 784 == sp.Rational(1, 3)
    assert result.expression.subs({fan: 784, a: 5}) * 784 == sp.Rational(1, 13)
    relu = derivation("relu").results["second_moment"]
    assert math.isclose(float(relu.expression.subs(relu.arguments[0], sp.Rational(1, 3))), 1 / 6)
