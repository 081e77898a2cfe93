"""Initializers against torch.nn.init, Keras's published rules worked out by hand, and their own laws."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from varprop.simulator.errors import UserError
from varprop.simulator.initializers import (
    NAMES,
    TRUNCATION_FACTOR,
    bias_law,
    draw,
    draw_bias,
    framework_fans,
    parse_initializer,
    weight_law,
)
from varprop.simulator.network import Initializer, NetworkBuilder, Node

Z_LIMIT = 4.5  # two-sided probability 7e-6 of a false alarm a comparison; a few hundred comparisons, fixed seeds


def linear(n_in: int, n_out: int, init: str, framework: str = "torch", bias: str | None = None) -> Node:
    net = NetworkBuilder("one", framework, (n_in,))
    net.linear(n_out, parse_initializer(init), bias=bias and parse_initializer(bias), name="layer")
    return net.build().nodes[-1]


def conv(n_in: int, n_out: int, init: str, framework: str = "torch", groups: int = 1, kernel=3) -> Node:
    net = NetworkBuilder("one", framework, (n_in, 9, 9))
    net.conv2d(n_out, kernel, parse_initializer(init), groups=groups, name="layer")
    return net.build().nodes[-1]


def depthwise(channels: int, init: str, framework: str, multiplier: int = 1) -> Node:
    return conv(channels, channels * multiplier, init, framework, groups=channels)


def law_of(node: Node, framework: str = "torch"):
    return weight_law(node, framework)


def variance_z(sample: np.ndarray, law) -> float:
    """z-score of independent draws' mean square about the law's mean; its variance is (kurtosis + 2) sigma^4 / n."""
    ratio = np.mean((sample - law.mean) ** 2) / law.variance
    return (ratio - 1) / math.sqrt((law.excess_kurtosis + 2) / sample.size)


LAYERS = {
    "linear": lambda init: linear(300, 200, init),
    "conv": lambda init: conv(48, 64, init),
    "grouped": lambda init: conv(64, 128, init, groups=4),
    "depthwise": lambda init: conv(2048, 2048, init, groups=2048),
    "multiplier": lambda init: conv(1024, 2048, init, groups=1024),
}


def torch_rules(init):
    return {
        "he_normal": init.kaiming_normal_,
        "he_uniform": init.kaiming_uniform_,
        "kaiming_normal(mode=fan_out)": lambda w: init.kaiming_normal_(w, mode="fan_out"),
        "kaiming_uniform(a=0.5, mode=fan_out)": lambda w: init.kaiming_uniform_(w, a=0.5, mode="fan_out"),
        "kaiming_normal(gain=1)": lambda w: init.kaiming_normal_(w, nonlinearity="linear"),
        "glorot_normal": init.xavier_normal_,
        "xavier_uniform(1.5)": lambda w: init.xavier_uniform_(w, gain=1.5),
        "lecun_normal": lambda w: init.kaiming_normal_(w, nonlinearity="linear"),
        "lecun_uniform": lambda w: init.kaiming_uniform_(w, nonlinearity="linear"),
        "normal(0.3)": lambda w: init.normal_(w, std=0.3),
        "uniform(0.3)": lambda w: init.uniform_(w, -0.3, 0.3),
        "truncated_normal(std=0.3)": lambda w: init.trunc_normal_(w, std=0.3, a=-0.6, b=0.6),
        "default": lambda w: init.kaiming_uniform_(w, a=math.sqrt(5)),
    }


@pytest.mark.parametrize("layer", LAYERS)
def test_laws_are_those_of_torch(layer):
    torch = pytest.importorskip("torch")
    for text, rule in torch_rules(torch.nn.init).items():
        node = LAYERS[layer](text)
        law = law_of(node)
        ours = draw(law, node, np.random.default_rng(1))
        torch.manual_seed(2)
        theirs = rule(torch.empty(ours.shape, dtype=torch.float64)).numpy()
        for sample in (ours, theirs):
            assert abs(variance_z(sample, law)) < Z_LIMIT, text
            assert abs(sample.mean()) < Z_LIMIT * law.std / math.sqrt(sample.size), text
            assert np.abs(sample).max() <= law.limit * (1 + 1e-12), text
            if law.distribution == "uniform":
                # P(no draw in the outer share 30 / n) = e^-30.
                assert np.abs(sample).max() > law.limit * (1 - 30 / sample.size), text
        assert stats.ks_2samp(ours.ravel(), theirs.ravel()).pvalue > 1e-5, text


@pytest.mark.parametrize("layer", LAYERS)
def test_torch_modules_start_as_default_says(layer):
    torch = pytest.importorskip("torch")
    node = LAYERS[layer]("default")
    torch.manual_seed(3)
    operation = node.operation
    if layer == "linear":
        module = torch.nn.Linear(operation.in_features, operation.out_features, dtype=torch.float64)
    else:
        module = torch.nn.Conv2d(
            operation.in_channels, operation.out_channels, 3, groups=operation.groups, dtype=torch.float64
        )
    law = law_of(node)
    assert abs(variance_z(module.weight.detach().numpy(), law)) < Z_LIMIT
    assert law.variance == pytest.approx(1 / (3 * node.fan_in), rel=1e-14)
    with_bias = Node(node.name, replace(operation, bias=Initializer("default")), node.inputs, node.shape)
    bias = bias_law(with_bias, "torch")
    assert bias.limit == pytest.approx(1 / math.sqrt(node.fan_in), rel=1e-14)
    assert abs(variance_z(module.bias.detach().numpy(), bias)) < Z_LIMIT
    ours = draw_bias(bias, with_bias, np.random.default_rng(4))
    assert ours.shape == tuple(module.bias.shape)
    assert abs(variance_z(ours, bias)) < Z_LIMIT


@pytest.mark.parametrize("shape", [(40, 20), (20, 40), (30, 30)])
def test_orthogonal_is_that_of_torch(shape):
    torch = pytest.importorskip("torch")
    n_out, n_in = shape
    node = linear(n_in, n_out, "orthogonal(1.5)")
    law = law_of(node)
    torch.manual_seed(5)
    theirs = torch.nn.init.orthogonal_(torch.empty(shape, dtype=torch.float64), gain=1.5).numpy()
    ours = draw(law, node, np.random.default_rng(5))
    for sample in (ours, theirs):
        # The mean square over a whole orthogonal matrix is not random.
        assert np.mean(sample**2) == pytest.approx(law.variance, rel=1e-12)
    small = ours if n_out <= n_in else ours.T
    np.testing.assert_allclose(small @ small.T, 1.5**2 * np.eye(min(shape)), atol=1e-12)


@pytest.mark.parametrize("channels", [4, 9, 64])
def test_depthwise_orthogonal_is_that_of_torch(channels):
    torch = pytest.importorskip("torch")
    node = depthwise(channels, "orthogonal", "torch")
    theirs = torch.nn.init.orthogonal_(torch.empty(channels, 1, 3, 3, dtype=torch.float64)).numpy()
    assert law_of(node).variance == pytest.approx(np.mean(theirs**2), rel=1e-12)
    assert law_of(node).variance == pytest.approx(1 / max(channels, 9), rel=1e-12)


@pytest.mark.parametrize("framework", ["torch", "keras"])
@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("zeros", "constant")])
def test_draws_follow_their_law(framework, name):
    init = "orthogonal(0.7)" if name == "orthogonal" else name
    node = conv(12, 16, init, framework)
    law = weight_law(node, framework)
    rng = np.random.default_rng(6)
    squares, fourths, means = [], [], []
    for _ in range(200):
        weights = draw(law, node, rng)
        assert weights.shape == (16, 12, 3, 3)
        assert np.abs(weights).max() <= law.limit * (1 + 1e-12)
        means.append(weights.mean())
        squares.append(np.mean(weights**2))
        fourths.append(np.mean(weights**4))
    fourth = (law.excess_kurtosis + 3) * law.variance**2
    for sample, expected in ((means, 0.0), (squares, law.variance), (fourths, fourth)):
        # The mean square of an orthogonal matrix is exact: the tiny floor stands for rounding.
        error = np.std(sample, ddof=1) / math.sqrt(len(sample)) + 1e-12 * law.limit**2
        assert abs(np.mean(sample) - expected) < Z_LIMIT * error


def test_constant_and_zeros():
    for text, value in (("constant(5)", 5.0), ("constant(value=-0.25)", -0.25), ("zeros", 0.0)):
        node = conv(3, 4, text)
        law = law_of(node)
        assert (law.distribution, law.mean, law.std, law.limit) == ("constant", value, 0.0, 0.0)
        assert law.second_moment == value**2
        assert (draw(law, node, np.random.default_rng(0)) == value).all()


# Keras 3 documentation: VarianceScaling draws with variance scale / n, n = fan_in, or (fan_in + fan_out) / 2 in
# Glorot's; "normal" is truncated at two deviations, with stddev = sqrt(scale / n) / .87962566103423978; a kernel's
# fans are (shape[-2] * taps, shape[-1] * taps). Worked out by hand: (layer, init, distribution, n, scale).
KERAS = [
    (lambda init: conv(16, 32, init, "keras"), "he_normal", "truncated_normal", 144, 2),
    (lambda init: conv(16, 32, init, "keras"), "he_uniform", "uniform", 144, 2),
    (lambda init: conv(16, 32, init, "keras"), "glorot_normal", "truncated_normal", 216, 1),
    (lambda init: conv(16, 32, init, "keras"), "lecun_normal", "truncated_normal", 144, 1),
    (lambda init: conv(16, 32, init, "keras"), "lecun_uniform", "uniform", 144, 1),
    (lambda init: conv(16, 32, init, "keras", groups=4), "he_normal", "truncated_normal", 36, 2),
    (lambda init: conv(16, 32, init, "keras", groups=4), "glorot_uniform", "uniform", 162, 1),
    (lambda init: depthwise(96, init, "keras"), "he_normal", "truncated_normal", 864, 2),
    (lambda init: depthwise(96, init, "keras"), "glorot_normal", "truncated_normal", 436.5, 1),
    (lambda init: depthwise(96, init, "keras"), "default", "uniform", 436.5, 1),
    (lambda init: depthwise(96, init, "keras"), "lecun_normal", "truncated_normal", 864, 1),
    (lambda init: depthwise(10, init, "keras", 4), "glorot_normal", "truncated_normal", 63, 1),
    (lambda init: linear(784, 256, init, "keras"), "default", "uniform", 520, 1),
    (lambda init: linear(784, 256, init, "keras"), "kaiming_normal(mode=fan_out)", "truncated_normal", 256, 2),
]


@pytest.mark.parametrize(("layer", "init", "distribution", "n", "scale"), KERAS)
def test_laws_are_those_of_keras(layer, init, distribution, n, scale):
    law = weight_law(layer(init), "keras")
    assert law.distribution == distribution
    assert law.variance == pytest.approx(scale / n, rel=1e-14)
    if distribution == "uniform":
        assert law.limit == pytest.approx(math.sqrt(3 * scale / n), rel=1e-14)
    else:
        assert law.limit == pytest.approx(2 * math.sqrt(scale / n) / 0.87962566103423978, rel=1e-14)


def test_keras_stem_of_mobilenet_stays_inside_its_glorot_bound():
    assert weight_law(conv(3, 32, "default", "keras"), "keras").limit == pytest.approx(math.sqrt(6 / 315), rel=1e-14)


def test_keras_default_bias_is_zero():
    law = bias_law(linear(5, 4, "default", "keras", bias="default"), "keras")
    assert (law.distribution, law.mean, law.std) == ("constant", 0.0, 0.0)


def test_keras_orthogonal_depthwise_shares_one_unit_vector():
    node = depthwise(20, "orthogonal", "keras")
    law = weight_law(node, "keras")
    weights = draw(law, node, np.random.default_rng(7))
    assert law.variance == pytest.approx(1 / 180, rel=1e-14)
    assert np.sum(weights**2) == pytest.approx(1, rel=1e-12)


def test_keras_orthogonal_depthwise_multiplier_columns_are_orthonormal():
    channels, multiplier = 5, 3
    node = depthwise(channels, "orthogonal", "keras", multiplier)
    weights = draw(weight_law(node, "keras"), node, np.random.default_rng(8))
    # Output channel c * multiplier + j reads channel c; Keras's matrix has a column for each j.
    columns = weights.reshape(channels, multiplier, 9).transpose(0, 2, 1).reshape(channels * 9, multiplier)
    np.testing.assert_allclose(columns.T @ columns, np.eye(multiplier), atol=1e-12)


def test_framework_fans_of_a_depthwise_kernel():
    operation = depthwise(96, "zeros", "torch").operation
    assert framework_fans(operation, "torch") == (9, 864)
    assert framework_fans(operation, "keras") == (864, 9)
    grouped = conv(16, 32, "zeros", groups=4).operation
    assert framework_fans(grouped, "torch") == framework_fans(grouped, "keras") == (36, 288)


@pytest.mark.parametrize("channels", [9, 32, 96, 960])
def test_result_3_depthwise_second_moment_factors(channels):
    """What one depthwise 3x3 layer does to the second moment, away from the border: nine weights a channel."""
    expected = {
        ("torch", "default"): 1 / 3,
        ("torch", "he_normal"): 2,
        ("torch", "he_normal(mode=fan_out)"): 2 / channels,
        ("torch", "glorot_normal"): 2 / (channels + 1),
        ("keras", "glorot_normal"): 2 / (channels + 1),
        ("keras", "glorot_uniform"): 2 / (channels + 1),
        ("keras", "he_normal"): 2 / channels,
        ("keras", "lecun_normal"): 1 / channels,
        ("torch", "orthogonal"): 9 / channels,
        ("keras", "orthogonal"): 1 / channels,
    }
    for (framework, init), factor in expected.items():
        node = depthwise(channels, init, framework)
        assert node.fan_in * weight_law(node, framework).second_moment == pytest.approx(factor, rel=1e-13)


def test_result_2_truncated_normal_against_scipy():
    reference = stats.truncnorm(-2, 2)
    assert reference.std() == pytest.approx(TRUNCATION_FACTOR, rel=1e-12)
    assert pytest.approx(0.87962566103423978, rel=1e-15) == TRUNCATION_FACTOR
    before = law_of(linear(4, 4, "truncated_normal(0.1)"))
    after = law_of(linear(4, 4, "truncated_normal(std=0.1, after=true)"))
    assert before.variance == pytest.approx(0.1**2 * 0.7737413, rel=1e-7)
    assert before.limit == pytest.approx(0.2, rel=1e-15)
    assert after.std == 0.1
    assert after.limit == pytest.approx(0.2 / 0.87962566103423978, rel=1e-14)
    # scipy integrates the fourth moment numerically.
    assert before.excess_kurtosis == pytest.approx(float(reference.stats("k")), abs=1e-8)


def test_negative_slope_of_five_in_place_of_its_root():
    assert law_of(linear(784, 256, "kaiming_uniform(a=5)")).variance == pytest.approx(1 / (13 * 784), rel=1e-14)
    assert law_of(linear(784, 256, "default")).limit == pytest.approx(1 / 28, rel=1e-14)


def test_delta_orthogonal_preserves_norms_of_pixels():
    node = conv(5, 8, "delta_orthogonal", kernel=(3, 5))
    law = law_of(node)
    weights = draw(law, node, np.random.default_rng(9))
    centre = weights[:, :, 1, 2]
    np.testing.assert_allclose(centre.T @ centre, np.eye(5), atol=1e-12)
    assert np.sum(weights**2) == pytest.approx(np.sum(centre**2), rel=1e-15)
    assert law.variance == pytest.approx(np.mean(weights**2), rel=1e-12)


@pytest.mark.parametrize(
    ("node", "told"),
    [
        (lambda: conv(8, 5, "delta_orthogonal"), "8 -> 5 channels"),
        (lambda: conv(5, 8, "delta_orthogonal", kernel=2), "kernel 2x2"),
        (lambda: conv(8, 8, "delta_orthogonal", groups=2), "2 groups"),
        (lambda: linear(8, 5, "delta_orthogonal"), "8 -> 5 channels"),
    ],
)
def test_delta_orthogonal_is_refused_where_it_is_not_defined(node, told):
    with pytest.raises(UserError, match=f"layer: delta_orthogonal: got .*{told}.*odd kernel"):
        law_of(node())


@pytest.mark.parametrize("bias", ["he_normal", "orthogonal", "delta_orthogonal", "glorot_uniform"])
def test_bias_has_no_fans(bias):
    with pytest.raises(UserError, match=r"layer: bias initializer: got .*random_normal.*constant, default"):
        bias_law(linear(4, 3, "he_normal", bias=bias), "torch")


def test_bias_of_its_own_law():
    assert bias_law(linear(4, 3, "he_normal"), "torch") is None
    assert bias_law(linear(4, 3, "he_normal", bias="normal(0.2)"), "torch").std == 0.2
    assert bias_law(linear(4, 3, "he_normal", bias="constant(2)"), "keras").mean == 2


def test_layers_without_weights_have_no_law():
    net = NetworkBuilder("none", "torch", (4,))
    net.activation("relu")
    with pytest.raises(TypeError, match="no weights"):
        weight_law(net.build().nodes[-1], "torch")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("he_normal", "he_normal"),
        (" He_Normal ( ) ", "he_normal"),
        ("kaiming_uniform(a=2.236, mode=fan_in)", "he_uniform(a=2.236, mode=fan_in)"),
        ("xavier_normal(1.5)", "glorot_normal(gain=1.5)"),
        ("normal(0.05)", "random_normal(std=0.05)"),
        ("normal(std=5e-2)", "random_normal(std=0.05)"),
        ("uniform(.1)", "random_uniform(bound=0.1)"),
        ("constant(5)", "constant(value=5.0)"),
        ("truncated_normal(0.1, true)", "truncated_normal(after=true, std=0.1)"),
    ],
)
def test_texts_and_their_canonical_form(text, canonical):
    parsed = parse_initializer(text)
    assert str(parsed) == canonical
    assert parse_initializer(str(parsed)) == parsed
    assert parsed.name in NAMES


@given(st.sampled_from(["random_normal", "random_uniform", "orthogonal"]), st.floats(1e-30, 1e30))
def test_parameters_survive_the_round_trip_exactly(name, value):
    parsed = parse_initializer(f"{name}({value!r})")
    assert parsed.parameters[0][1] == value
    assert parse_initializer(str(parsed)) == parsed


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("he_norml", "did you mean 'he_normal'"),
        ("", "he_normal"),
        ("he_normal(", "got 'he_normal\\('"),
        ("he_normal(0.1", "parentheses"),
        ("__import__('os')", "--init"),
        ("normal(std=nan)", "std: got nan, expected a number from 1e-30 to 1e30"),
        ("normal(inf)", "std: got inf"),
        ("normal(-1)", "std: got -1"),
        ("normal(0)", "std: got 0"),
        ("normal(1e300)", "std: got 1e300"),
        ("normal(two)", "std: got 'two', expected a number"),
        ("normal(1, 2)", "2 values, expected at most 1: std"),
        ("normal(sd=1)", "got 'sd', expected one of std"),
        ("normal(std=1, std=2)", "std twice"),
        ("zeros(1)", "expected none"),
        ("zeros(std=1)", "expected no parameters"),
        ("constant(nan)", "value: got nan"),
        ("kaiming_normal(mode=fan_avg)", "one of fan_in, fan_out"),
        ("kaiming_normal(a=1, gain=2)", "both a and gain"),
    ],
)
def test_texts_that_are_refused(text, told):
    with pytest.raises(UserError, match="(?i)" + told):
        parse_initializer(text)


def test_the_error_names_the_option_it_came_from():
    with pytest.raises(UserError, match=r"layers\[2\]\.init: got 'hee'"):
        parse_initializer("hee", "layers[2].init")
