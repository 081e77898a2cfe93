"""Formulas as activations: what is read, what is refused, and what it evaluates to, against mpmath and named ones."""

from __future__ import annotations

import json
import subprocess
import sys

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varprop.cli import main
from varprop.simulator.activations import activation
from varprop.simulator.architectures import build
from varprop.simulator.errors import UserError
from varprop.simulator.formula.calculus import derivative
from varprop.simulator.formula.evaluate import evaluate
from varprop.simulator.formula.function import formula
from varprop.simulator.formula.grammar import FUNCTIONS, parse
from varprop.simulator.gain import gain
from varprop.simulator.inputs import load_batch
from varprop.simulator.montecarlo import simulate
from varprop.simulator.theory import predict

MISH = "x*tanh(log(1+exp(x)))"

SMOOTH = {
    MISH: lambda x: x * mpmath.tanh(mpmath.log(1 + mpmath.exp(x))),
    "x/(1+exp(-x))": lambda x: x / (1 + mpmath.exp(-x)),
    "log(exp(x)+exp(-x))-log(2)": lambda x: mpmath.log(mpmath.cosh(x)),
    "(exp(x)-exp(-x))/(exp(x)+exp(-x))": mpmath.tanh,
    "exp(x)/(1+exp(x))^2": lambda x: mpmath.exp(x) / (1 + mpmath.exp(x)) ** 2,
    "x+sin(x)^2/2": lambda x: x + mpmath.sin(x) ** 2 / 2,
    "2^-abs(x)*cos(3*x)": lambda x: 2 ** -abs(x) * mpmath.cos(3 * x),
    "sqrt(1+x^2)-1": lambda x: mpmath.sqrt(1 + x * x) - 1,
    "x^3*exp(-x^2)": lambda x: x**3 * mpmath.exp(-x * x),
    "log1p(x^2)*erf(x)": lambda x: mpmath.log(1 + x * x) * mpmath.erf(x),
}

EQUAL = {
    "x": "linear",
    "max(0, x)": "relu",
    "x*where(x>=0, 1, 0)": "relu",
    "max(x, 0.2*x)": "leaky_relu(0.2)",
    "min(6, max(x, 0))": "relu6",
    "relu6(x)": "relu6",
    "piecewise((x, x > 0), exp(x) - 1)": "elu",
    "elu(x)": "elu",
    "1/(1+exp(-x))": "sigmoid",
    "exp(x)/(exp(x)+1)": "sigmoid",
    "tanh(x)": "tanh",
    "erf(x)": "erf",
    "0.5*x*(1+erf(x/sqrt(2)))": "gelu",
    "gelu(x)": "gelu",
    "x*sigmoid(x)": "silu",
    "silu(x)": "silu",
    "x*min(max(x+3,0),6)/6": "hard_swish",
    "hard_swish(x)": "hard_swish",
}

REFUSED = {
    "x)": "no more",
    "(x": "at the end",
    "x +": "something more",
    "2x": "an operator",
    "x x": "an operator",
    "x,": "no more",
    "max(x)": "two or more",
    "exp(x, 2)": "one value",
    "where(x, 1, 2)": "comparison",
    "x > 0": "an operator",
    "foo(x)": "one of",
    "x.real": "not '.'",
    "x[0]": r"not '\['",
    "'x'": "not",
    "lambda: x": "not ':'",
    "__import__(x)": "one of",
    "exp.__class__(x)": "not '.'",
    "x; x": "not ';'",
    "\N{MATHEMATICAL ITALIC SMALL X} + x": "not",
    "x\N{MULTIPLICATION SIGN}2": "not",
    "x\0": "not",
    "x + 1e999": "finite",
    "x*10^10^10": "finite",
    "x*exp(1000)": "finite",
    "x^1000": "exponents",
    "x^(60+60)": "exponents",
    "(" * 100_000 + "x" + ")" * 100_000: "at most 1,000",
    "(" * 90 + "x" + ")" * 90: "inside one another",
    "-" * 90 + "x": "inside one another",
    "x^" * 90 + "x": "inside one another",
    "gelu(" * 30 + "x" + ")" * 30: "at most 500 terms",
    "piecewise(x<0, 0, x)": "values with their conditions",
    "log(x)": "real number",
    "sqrt(x)": "real number",
    "x^0.5": "real number",
    "x^x": "real number",
    "x/0": "real number|finite",
    "exp(x^2)": "finite Gaussian",
    "exp(0.001*x^2)": "finite Gaussian",
    "exp(exp(x))": "finite Gaussian",
    "1/x": "finite Gaussian",
    "log(abs(x))": "finite Gaussian",
    "abs(x)^0.5": "finite Gaussian",
    "1/(x-0.3)^2": "finite Gaussian",
    "abs(sin(x))": "kinks",
    "sin(1000*x)": "resolves",
    "exp(30*x)": "resolves",
}


@pytest.mark.parametrize("text", SMOOTH)
def test_values_and_derivatives(text):
    phi = activation(text)
    x = np.array([-745.0, -30.0, -3.0, -0.7, -1e-5, 1e-9, 0.3, 1.0, 5.0, 40.0, 720.0])
    with mpmath.workdps(400):  # exp(745) beside 1
        values = [float(SMOOTH[text](mpmath.mpf(z))) for z in x]
        slopes = [float(mpmath.diff(SMOOTH[text], mpmath.mpf(z), h=mpmath.mpf(10) ** -60)) for z in x]
    np.testing.assert_allclose(phi.value(x), values, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(phi.derivative(x), slopes, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize("text", SMOOTH)
@pytest.mark.parametrize("q", [1e-3, 20.0])
def test_moments(text, q):
    phi = activation(text)

    def mean(function):
        with mpmath.workdps(18):
            s = mpmath.sqrt(mpmath.mpf(q))
            cuts = [s * k for k in range(-10, 11)]
            weighted = mpmath.quad(lambda z: function(z) * mpmath.exp(-z * z / (2 * s * s)), cuts)
            return float(weighted / (s * mpmath.sqrt(2 * mpmath.pi)))

    second = mean(lambda z: SMOOTH[text](z) ** 2)
    assert phi.second_moment(q) == pytest.approx(second, rel=1e-11)
    assert phi.mean(q) == pytest.approx(mean(SMOOTH[text]), rel=1e-11, abs=1e-12 * second**0.5)


@pytest.mark.parametrize(("text", "name"), EQUAL.items())
def test_a_named_activation_written_out(text, name):
    """Same values, slopes (from the left at kinks), moments, duals and germs as the closed forms."""
    phi, named = activation(text), activation(name)
    z = np.concatenate([np.linspace(-8, 8, 64), [-1e3, 0.0, 1e3]])
    np.testing.assert_allclose(phi.value(z), named.value(z), rtol=1e-14, atol=1e-15)
    np.testing.assert_allclose(phi.derivative(z), named.derivative(z), rtol=1e-13, atol=1e-15)
    assert phi.homogeneous == named.homogeneous
    q = np.array([1e-6, 0.1, 1.0, 30.0, 1e4, 1e8])
    for moment in ("second_moment", "derivative_second_moment"):
        np.testing.assert_allclose(getattr(phi, moment)(q), getattr(named, moment)(q), rtol=1e-12)
    for dual in ("dual", "derivative_dual"):
        expected = getattr(named, dual)(1.0, 3.0, [-0.9, 0.2, 0.999])
        np.testing.assert_allclose(getattr(phi, dual)(1.0, 3.0, [-0.9, 0.2, 0.999]), expected, rtol=1e-8)
    assert phi.germ_zero == pytest.approx(named.germ_zero, abs=1e-15)
    for found, expected in zip(phi.germ_infinity, named.germ_infinity, strict=True):
        assert found == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("text", "kinks"),
    [
        (MISH, ()),
        ("max(x-1/3,0.3)+abs(x+2)", (-2.0, 19 / 30)),
        ("abs(x^2-2)", (-(2**0.5), 2**0.5)),
        ("abs((x-0.3)^2)", (0.3,)),
        ("where(exp(x) < 2, x, 0)", (np.log(2),)),
        ("max(max(x,0), 1) + min(x, -20)", (-20.0, 0.0, 1.0)),
        ("x*log(abs(x))", (0.0,)),
    ],
)
def test_kinks(text, kinks):
    assert formula(text).kinks == pytest.approx(kinks, abs=1e-12)


def test_precedence():
    for text, expected in (
        ("-x^2", -4.0),
        ("2^-x", 0.25),
        ("x^2^2/4", 4.0),
        ("x**3-1-1", 6.0),
        ("12/x/3*2", 4.0),
        ("-(-x)--x", 4.0),
        (".5e1 + +x", 7.0),
        ("cos(pi*x)+log(e)", 2.0),
    ):
        assert evaluate(parse(text)[0], 2.0) == pytest.approx(expected, rel=1e-15)


def test_gaps_are_filled():
    phi = activation("sin(x)/x")
    assert phi.value(0.0) == pytest.approx(1.0, abs=1e-15)
    assert activation("x*log(abs(x))").value(0.0) == 0.0


def test_discontinuous_functions_have_a_derivative_almost_everywhere():
    step = gain(activation("where(x > 0, 1, -1)"))
    assert step.second_moment == pytest.approx(1.0, rel=1e-14)
    assert step.derivative_second_moment == 0.0
    clipped = activation("where(abs(x) < 1, x^3, 2)")
    assert clipped.kinks == (-1.0, 0.0, 1.0)  # abs may bend at 0
    inside = float(mpmath.erf(mpmath.sqrt(0.5)))
    expected = mpmath.quad(lambda z: z**6 * mpmath.npdf(z), [-1, 0, 1]) + 4 * (1 - inside)
    assert clipped.second_moment(1.0) == pytest.approx(float(expected), rel=1e-12)


@pytest.mark.parametrize(("text", "said"), REFUSED.items(), ids=lambda value: value[:30].encode("ascii", "replace"))
def test_refused(text, said):
    with pytest.raises(UserError, match=said):
        activation(text if "x" in text else f"{text}*x")


@pytest.mark.parametrize(
    "text", ["__import__('os').system('touch hacked')", "10^10^10", "(" * 100_000, "", " ", "x" * 100_000, "x,x", "1"]
)
def test_hostile_text_on_the_command_line(text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for arguments in (["gain", text], ["propagate", "mlp", "--activation", text, "--depth", "2"]):
        if text == "x,x" and arguments[0] == "propagate":
            continue  # two values, the same one
        assert main(arguments) == 2
        printed = capsys.readouterr()
        assert printed.out == ""
        assert printed.err.count("\n") == 1
        assert len(printed.err) < 1000
    assert list(tmp_path.iterdir()) == []


@settings(max_examples=300, deadline=None, derandomize=True)
@given(st.text(st.sampled_from("x01.e+-*/^(),<> _os'\"\\[]{}:;=\n\té"), max_size=60).map(lambda text: text + "x"))
def test_any_text_is_read_or_refused(text):
    try:
        term, canonical = parse(text)
    except UserError:
        return
    again, same = parse(canonical)
    assert same == canonical
    assert again == term


_LEAVES = st.sampled_from(["x", "1", "0.5", "pi", "-2", "x/3"])
_BOUNDED = [name for name in FUNCTIONS if name not in ("where", "piecewise", "min", "max", "log", "log1p", "sqrt")]


def _grown(children):
    return st.one_of(
        st.tuples(st.sampled_from(_BOUNDED), children).map(lambda t: f"{t[0]}({t[1]})"),
        st.tuples(children, st.sampled_from("+-*/"), children).map(lambda t: f"({t[0]}){t[1]}({t[2]})"),
        st.tuples(children, children, children).map(lambda t: f"where({t[0]}<{t[1]},{t[2]},max({t[0]},{t[1]}))"),
        children.map(lambda text: f"({text})^2"),
    )


@settings(max_examples=100, deadline=None, derandomize=True)
@given(text=st.recursive(_LEAVES, _grown, max_leaves=6), x=st.floats(-3, 3))
def test_derivative_against_differences(text, x):
    term, _ = parse(text)
    step = 1e-5
    near = evaluate(term, x + step * np.array([-2.0, -1.0, 0.0, 1.0, 2.0]))
    slope = evaluate(derivative(term), x + step * np.array([-2.0, 0.0, 2.0]))
    if not (np.isfinite(near).all() and np.isfinite(slope).all() and np.abs(near).max() < 1e6):
        return
    # A kink, a jump or a pole nearby shows in differences of differences, or of slopes.
    size = 1 + np.abs(near).max()
    if np.ptp(np.diff(near, 2)) > 1e-9 * size or np.ptp(slope) > 1e-2 * (1 + abs(slope[1])):
        return
    difference = (near[0] - 8 * near[1] + 8 * near[3] - near[4]) / (12 * step)
    assert slope[1] == pytest.approx(difference, rel=1e-5, abs=1e-5 * size)


def test_canonical_name_round_trip():
    for text in ("x * tanh( x )", "x**2", "piecewise((x, x>0), (-x))", "max(x, 0)"):
        phi = activation(text)
        assert activation(phi.name) == phi
        assert " " not in phi.name


def test_large_arrays_are_worked_on_in_blocks():
    x = np.random.default_rng(0).normal(size=(3, 50_000)) * 400
    phi = activation("log(exp(x)+exp(-x))")
    np.testing.assert_allclose(phi.value(x), np.logaddexp(x, -x), rtol=1e-13)


@pytest.mark.parametrize(("text", "name"), [("max(x,0)", "relu"), ("gelu(x)", "gelu"), ("min(max(x,0),6)", "relu6")])
def test_engines_take_formulas(text, name):
    """Both engines give what they give for the same function by name, forward and backward."""
    reports = []
    for function in (text, name):
        network = build("plain_conv", depth=3, width=8, size=8, activation=function)
        batch = load_batch("gaussian", network.nodes[0].shape, 4, 0, None)
        reports.append((predict(network, batch), simulate(network, batch, trials=3, seed=1)))
    for written, named in zip(*reports, strict=True):
        for ours, theirs in zip(written.layers, named.layers, strict=True):
            for direction in ("forward", "backward"):
                found, expected = getattr(ours, direction), getattr(theirs, direction)
                assert found.second_moment == pytest.approx(expected.second_moment, rel=2e-6)


def test_theory_agrees_with_monte_carlo():
    network = build("mlp", depth=4, width=256, activation=MISH)
    batch = load_batch("gaussian", network.nodes[0].shape, 16, 0, None)
    theory, measured = predict(network, batch), simulate(network, batch, trials=40, seed=0)
    for predicted, found in zip(theory.layers, measured.layers, strict=True):
        for direction in ("forward", "backward"):
            exact, sampled = getattr(predicted, direction), getattr(found, direction)
            # Infinite width against width 256: depth / width, times an order-one constant.
            assert abs(sampled.second_moment - exact.second_moment) < (
                4.5 * (sampled.standard_error or 0) + 0.02 * exact.second_moment
            )


def test_a_signal_beyond_every_slope_is_refused():
    """x^2 squares what is already beyond float range; leaving it unsaid would be a wrong number."""
    for init, depth in (("he_normal", 40), ("random_normal", 40)):
        from varprop.simulator.initializers import parse_initializer

        network = build("mlp", depth=depth, width=64, activation="x^2", init=parse_initializer(init))
        batch = load_batch("gaussian", network.nodes[0].shape, 4, 0, None)
        with pytest.raises(UserError, match=r"slope|finite numbers"):
            predict(network, batch)


def test_one_sided_germs_carry_a_signal_out_of_range():
    """x sigmoid(-x) mirrors silu: a deep net with large weights follows its left line."""
    reports = []
    for function in ("x*sigmoid(-x)", "silu"):
        from varprop.simulator.initializers import parse_initializer

        network = build("mlp", depth=60, width=64, activation=function, init=parse_initializer("normal(20)"))
        batch = load_batch("gaussian", network.nodes[0].shape, 4, 0, None)
        reports.append(predict(network, batch).layers[-1].forward.log_second_moment)
    assert reports[0] > 400
    assert reports[0] == pytest.approx(reports[1], rel=1e-3)


def test_formula_in_a_network_file(tmp_path, capsys):
    file = tmp_path / "mine.toml"
    file.write_text(
        'input_shape = [8]\n[[layers]]\ntype = "linear"\nout_features = 8\n'
        '[[layers]]\ntype = "activation"\nfunction = "max(x, 0.1 * x)"\n'
    )
    assert main(["propagate", str(file), "--trials", "4", "--batch", "4"]) == 0
    assert "act1" in capsys.readouterr().out
    file.write_text(file.read_text().replace("max(x, 0.1 * x)", "open(x)"))
    assert main(["propagate", str(file)]) == 2
    assert "layers[1].function" in capsys.readouterr().err


def test_several_formulas_in_one_option(capsys):
    command = ["propagate", "mlp", "--depth", "2", "--width", "8", "--batch", "4", "--engine", "theory"]
    assert main([*command, "--activation", "max(x,0),where(x<0,0,x)", "--format", "csv"]) == 0
    assert {"max(x", "where(x<0"} <= {cell.split(",")[0].strip('"') for cell in capsys.readouterr().out.split(',"')}


@pytest.mark.parametrize(("text", "q_star"), [("tanh(x)", 0.570048), ("x^2", None), ("exp(x)", None)])
def test_phase_of_a_formula(text, q_star, capsys):
    """Schoenholz 2017's tanh; and functions that grow faster than a line have no chi far away."""
    assert main(["phase", text, "--sigma-w2", "1.760955", "--sigma-b2", "0.05", "--format", "json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["q_star"] == (None if q_star is None else pytest.approx(q_star, abs=5e-7))
    assert (found["chi"] is None) == (q_star is None)


def test_formulas_import_no_sympy():
    code = "import sys; from varprop.simulator.activations import activation; activation('x*exp(-x^2)')"
    found = subprocess.run(
        [sys.executable, "-c", f"{code}; print('sympy' in sys.modules)"], capture_output=True, text=True
    )
    assert found.stdout == "False\n", found.stderr
