"""Every step of every derivation holds, a broken one is found, and documents and exported code say what was derived."""

import ast
import ctypes
import html
import json
import math
import re
import runpy
import shutil
import subprocess
from dataclasses import replace
from functools import cache
from xml.etree import ElementTree

import mpmath
import numpy as np
import pytest
import sympy as sp
from markdown_it import MarkdownIt

from varprop.derivations import TOPICS, derivation
from varprop.derivations.checking import check
from varprop.derivations.citing import SUBJECTS, works
from varprop.derivations.expectation import E, evaluate
from varprop.derivations.printing import FORMATS, render
from varprop.derivations.printing.bibtex import entry
from varprop.derivations.references import REFERENCES
from varprop.derivations.special_functions import elementary
from varprop.simulator.activations import activation

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
        ("relu6", "inside"),
        ("sigmoid", "stable"),
        ("gelu", "price"),
        ("truncated_normal", "variance"),
        ("zero_padding", "slowest"),
        ("tanh", "small_below"),
        ("image_kernel", "kernel_gradient_1_2"),
        ("batch_norm_weight_decay", "momentum_velocity"),
        ("mean_field", "correlation_heat"),
        ("relu_correlation", "leading"),
        ("finite_width_linear", "log_variance"),
        ("orthogonal", "forward"),
    ],
)
def test_a_broken_step_is_found_by_name(topic, name):
    theorem = derivation(topic)
    # Beside two sound steps: checking all of them is another test's task.
    at = [step.name for step in theorem.steps].index(name)
    steps = [*theorem.steps[max(0, at - 1) : at], _broken(theorem.steps[at]), *theorem.steps[at + 1 : at + 2]]
    checks = check(replace(theorem, steps=tuple(steps)))
    assert [found.step for found in checks if not found.holds] == [name]


def _broken(step):
    """An equation off by a millionth; a bound the other way round."""
    left, right = step.equation.args
    if isinstance(step.equation, sp.Le):
        return replace(step, equation=sp.Le(right, left, evaluate=False))
    return replace(step, equation=sp.Eq(left, right * sp.Rational(1000001, 1000000), evaluate=False))


@pytest.mark.parametrize("topic", TOPICS)
def test_no_step_says_that_something_is_itself(topic):
    """SymPy simplifies as it builds: a step whose two sides end up the same shows the reader nothing."""
    assert not [step.name for step in derivation(topic).steps if step.equation.lhs == step.equation.rhs]


def test_expectation_under_independence():
    x, y, sigma2 = sp.symbols("x y sigma2")
    laws = {x: (sp.Integer(0), sigma2, sp.Integer(0), 3 * sigma2**2)}
    assert evaluate(E((x + y) ** 2), laws) == sigma2 + y**2
    assert evaluate(E(x**4 * y), laws) == 3 * sigma2**2 * y
    with pytest.raises(ValueError, match="order 5"):
        evaluate(E(x**5), laws)


def test_result_4_selu_constants_are_klambauers():
    values = [float(value.evalf(20)) for value in derivation("selu").constants.values()]
    assert values == pytest.approx([1.0507009873554805, 1.6732632423543778], rel=1e-15)


def test_result_2_truncation_at_two_deviations():
    results = derivation("truncated_normal").results
    limit = results["variance"].arguments[0]
    assert float(results["variance"].expression.subs(limit, 2)) == pytest.approx(0.7737413, abs=5e-8)
    assert float(results["deviation"].expression.subs(limit, 2)) == pytest.approx(0.87962566103423978, rel=1e-15)


def test_result_14_max_of_four():
    results = derivation("max_pool").results
    q = results["mean_of_four"].arguments[0]
    mean, second = (float(results[name].expression.subs(q, 1)) for name in ("mean_of_four", "second_moment_of_four"))
    assert mean == pytest.approx(1.0293754, abs=5e-8)
    assert second - mean**2 == pytest.approx(0.4917152, abs=5e-8)


@pytest.mark.parametrize(("n", "decay"), [(4, 0.761567), (8, 0.921207), (16, 0.977426), (32, 0.993972)])
def test_result_10_zero_padding_decay_is_the_leading_eigenvalue(n, decay):
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


@cache
def _expected_moments(topic, q):
    """E[phi^2] and E[phi'^2] by mpmath, from the derivation's value and derivative, cut at kinks and at lengths."""
    theorem = derivation(topic)
    z = theorem.results["value"].arguments[0]
    defaults = {**theorem.constants, **theorem.defaults}
    with mpmath.workdps(30):
        scale = mpmath.sqrt(mpmath.mpf(q))
        lengths = [sign * length for length in (0.5, 3, 6, 20, 60, scale, 4 * scale, 13 * scale) for sign in (-1, 1)]
        cuts = sorted({mpmath.mpf(0), *(mpmath.mpf(cut) for cut in lengths if abs(cut) <= 13 * scale)})
        moments = []
        for name in ("value", "derivative"):
            function = sp.lambdify(z, elementary(theorem.results[name].expression).subs(defaults), "mpmath")
            weighted = mpmath.quad(lambda x, f=function: f(x) ** 2 * mpmath.exp(-x * x / (2 * scale**2)), cuts)
            moments.append(float(weighted / (scale * mpmath.sqrt(2 * mpmath.pi))))
    return moments


MOMENTS = ("second_moment", "derivative_second_moment")
WIDE = (1e-8, 1e-3, 2.0, 400.0, 1e8)


@pytest.mark.parametrize("topic", ACTIVATION_TOPICS)
def test_exported_python_agrees_with_quadrature(topic, tmp_path):
    module = _run(render([derivation(topic)], "python"), tmp_path)
    for i, name in enumerate(MOMENTS):
        found = np.broadcast_to(module[name](np.array(WIDE)), len(WIDE))
        np.testing.assert_allclose(found, [_expected_moments(topic, q)[i] for q in WIDE], rtol=1e-12, err_msg=name)
        assert float(module[name](2.0)) == pytest.approx(found[2], rel=1e-14)


@pytest.mark.parametrize("topic", ["relu6", "elu", "hard_swish", "silu"])
def test_exported_numba_agrees_with_quadrature(topic, tmp_path):
    """Every helper is met by these: compiling all of them would take minutes."""
    module = _run(render([derivation(topic)], "numba"), tmp_path)
    for i, name in enumerate(MOMENTS):
        found = [float(module[name](q)) for q in WIDE]
        assert found == pytest.approx([_expected_moments(topic, q)[i] for q in WIDE], rel=1e-12)
    if topic == "relu6":
        np.testing.assert_allclose(module["second_moment"](np.array(WIDE)), [module["second_moment"](q) for q in WIDE])


@pytest.mark.parametrize("topic", ["relu6", "silu"])
def test_exported_python_is_what_the_engine_runs(topic, tmp_path):
    """Closed forms are the same text; integrals are other rules for the same integral."""
    module, engine, q = _run(render([derivation(topic)], "python"), tmp_path), activation(topic), np.logspace(-8, 8, 17)
    for name in MOMENTS:
        np.testing.assert_allclose(module[name](q), getattr(engine, name)(q), rtol=0 if topic == "relu6" else 1e-13)


def test_exported_code_of_several_topics_keeps_names_apart(tmp_path):
    module = _run(render([derivation("relu"), derivation("tanh")], "python"), tmp_path)
    assert module["relu_second_moment"](1.0) == 0.5
    assert module["tanh_second_moment"](1.0) == pytest.approx(0.39429449039784126, rel=1e-12)


def test_exported_functions_of_layers_run_in_python_and_numba(tmp_path):
    """Names that are Python's keywords (lambda), minima and polygamma functions."""
    chosen = [derivation(topic) for topic in ("batch_norm_weight_decay", "orthogonal", "finite_width_linear")]
    plain, compiled = (_run(render(chosen, form), tmp_path) for form in ("python", "numba"))
    for name, arguments in {
        "batch_norm_weight_decay_angular_update": (0.1, 5e-4, 0.9),
        "orthogonal_second_moment": (64.0, 128.0, 1.5, 2.0),
        "finite_width_linear_log_mean": (7.0,),
        "finite_width_linear_log_variance": (7.0,),
    }.items():
        assert compiled[name](*arguments) == pytest.approx(float(plain[name](*arguments)), rel=1e-13)
    assert plain["batch_norm_weight_decay_angular_update"](0.1, 5e-4, 0.9) == pytest.approx(
        math.sqrt(2 * 0.1 * 5e-4 / 1.9), rel=1e-5
    )
    assert float(plain["finite_width_linear_log_mean"](7)) == pytest.approx(
        float(mpmath.digamma(3.5) - mpmath.log(3.5)), rel=1e-13
    )


def _run(source, folder):
    path = folder / "exported.py"
    path.write_text(source)
    return runpy.run_path(str(path))


@pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler")
def test_exported_c_compiles_and_agrees(tmp_path):
    source, library = tmp_path / "moments.c", tmp_path / "moments.so"
    source.write_text(render([derivation(topic) for topic in TOPICS], "c"))
    subprocess.run(
        ["cc", "-std=c99", "-Wall", "-Werror", "-O1", "-shared", "-fPIC", str(source), "-o", str(library), "-lm"],
        check=True,
    )
    compiled = ctypes.CDLL(str(library))

    def run(name, *arguments):
        function = getattr(compiled, name)
        function.restype = ctypes.c_double
        return function(*(ctypes.c_double(argument) for argument in arguments))

    for topic in ACTIVATION_TOPICS:
        for i, name in enumerate(MOMENTS):
            parameter = derivation(topic).defaults.values()
            found = [run(f"{topic}_{name}", q, *parameter) for q in WIDE]
            assert found == pytest.approx([_expected_moments(topic, q)[i] for q in WIDE], rel=1e-12), (topic, name)
    for n in (1.0, 7.0, 300.0):
        assert run("finite_width_linear_log_variance", n) == pytest.approx(float(mpmath.psi(1, n / 2)), rel=1e-14)
        assert run("finite_width_linear_log_mean", n) == pytest.approx(
            float(mpmath.digamma(n / 2) - mpmath.log(n / 2)), rel=1e-14, abs=1e-15
        )


@pytest.mark.parametrize("form", FORMATS)
def test_documents_of_all_topics(form):
    text = render([derivation(topic) for topic in TOPICS], form)
    if form == "json":
        document = json.loads(text)
        assert [one["topic"] for one in document["derivations"]] == list(TOPICS)
        assert all(one["references"] and one["assumptions"] and one["results"] for one in document["derivations"])
    if form in ("python", "numba"):
        names = [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
        assert len(names) == len(set(names))
        assert len(names) > sum(len(derivation(topic).results) for topic in TOPICS)
    if form == "latex":
        assert text.count(r"\begin{equation}") == text.count(r"\end{equation}") > 300
        assert text.count(r"\section{") == len(TOPICS) + 2
        labels = re.findall(r"\\label\{([^}]*)\}", text)
        assert len(labels) == len(set(labels))
        assert set(re.findall(r"\\(?:eq)?ref\{([^}]*)\}", text)) <= set(labels)
        cited, listed = (
            set(re.findall(pattern, text)) for pattern in (r"\\cite\[.*?\]\{(\w+)\}", r"\\bibitem\{(\w+)\}")
        )
        assert cited == listed
        assert set(re.findall(r"@\w+\{(\w+),", text)) == cited
        assert text.count("{") - text.count(r"\{") == text.count("}") - text.count(r"\}")
    if form == "markdown":
        displays = re.findall(r"\$\$\n(.*?)\n\$\$", text, flags=re.DOTALL)
        inline = re.findall(r"\$([^$\n]+)\$", re.sub(r"\$\$\n.*?\n\$\$", "", text, flags=re.DOTALL))
        # A host that reads Markdown first must find the mathematics untouched.
        page = html.unescape(re.sub(r"<[^>]+>", "", MarkdownIt("commonmark").enable("table").render(text)))
        assert len(displays) > 300
        assert not [formula for formula in (*displays, *inline) if formula not in page]
        assert not [formula for formula in (*displays, *inline) if re.search(r"\\operatorname|[<>]", formula)]


@pytest.mark.skipif(shutil.which("pdflatex") is None, reason="no pdflatex")
@pytest.mark.parametrize("topics", [[*TOPICS], ["selu"], ["image_kernel(5x5,3x3)"]], ids=["all", "one", "sized"])
def test_latex_compiles_without_warnings(topics, tmp_path):
    """Three runs, for references behind a table of contents; nothing runs into the margin, every reference is found."""
    (tmp_path / "all.tex").write_text(render([derivation(topic) for topic in topics], "latex"), encoding="utf-8")
    compiler = ["pdflatex", "-halt-on-error", "all.tex"]
    # Alone, then with BibTeX between.
    for commands in ([compiler] * 3, [["bibtex", "all"], compiler]):
        for command in commands:
            found = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True, errors="replace")
        log = (tmp_path / "all.log").read_text(encoding="latin-1") + found.stdout
        assert not re.findall(r".*(?:Warning|Overfull|undefined).*", log)
    assert "@" in (tmp_path / "all.bib").read_text(encoding="utf-8")


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


def test_notebooks_show_derivations():
    """HTML is well-formed, with mathematics between dollars; LaTeX is displays alone."""
    theorem = derivation("tanh")
    page = theorem._repr_html_()
    ElementTree.fromstring(f"<div>{page}</div>")
    assert theorem.title in page
    assert page.count("$$") == 2 * sum(1 + len(step.where) for step in theorem.steps)
    assert page.count("$") % 2 == 0
    equations = theorem._repr_latex_()
    assert equations.startswith("$$")
    assert equations.count("$$") == 2 * len(theorem.steps)
    step = next(step for step in theorem.steps if step.where)
    assert step._repr_latex_().count("$$") == 2 + 2 * len(step.where)
    assert derivation("relu").results["second_moment"]._repr_latex_() == r"$$\frac{q}{2}$$"


def test_bibtex_of_every_work():
    for work in REFERENCES.values():
        text = entry(work)
        assert text.count("{") == text.count("}")
        assert text.startswith(f"@{work.kind}{{{work.key},\n  author = {{")
        assert text.isascii()
    assert 'M{\\"u}ller' in entry(REFERENCES["lecun1998"])
    assert "A. Howard and others" in entry(REFERENCES["howard2019"])
    assert "journal = {SIAM Review},\n  volume = {50}" in entry(REFERENCES["trefethen2008"])


def test_works_of_subjects():
    assert works() == list(REFERENCES.values())
    assert {work.key for work in works(["he_normal"])} == {"he2015"}
    assert {"sandler2018", "ioffe2015"} <= {work.key for work in works(["mobilenet_v2"])}
    used = {key for name in SUBJECTS for key in (work.key for work in works([name]))}
    assert used == set(REFERENCES), "a work that nothing rests on"
    with pytest.raises(KeyError):
        works(["mobilenet"])
