"""Where two networks part, and why."""

from __future__ import annotations

from varprop.simulator.architectures import build
from varprop.simulator.differences import Difference, differences
from varprop.simulator.initializers import parse_initializer
from varprop.simulator.network import Network, NetworkBuilder

HE = parse_initializer("he_normal")


def network(framework: str, init: str = "he_normal", eps: float | None = None) -> Network:
    net = NetworkBuilder("small", framework, (8, 6, 6))
    net.conv2d(8, 3, parse_initializer(init), groups=8, stride=2, name="depthwise")
    net.batch_norm(eps=eps)
    net.activation("relu")
    net.global_average_pool()
    net.linear(5, parse_initializer("default"), bias=parse_initializer("default"), name="classifier")
    return net.build()


def test_a_network_does_not_part_from_itself() -> None:
    assert differences(network("torch"), network("torch")) == []


def test_frameworks_part_in_padding_fans_eps_truncation_and_defaults() -> None:
    assert [(part.layer, part.text) for part in differences(network("torch"), network("keras"))] == [
        ("depthwise", "padding (1, 1, 1, 1) against (0, 1, 0, 1)"),
        (
            "depthwise",
            "weight variance 0.222 against 0.0278 (normal against truncated_normal; framework's fan_in, fan_out 9, 72 "
            "against 72, 9)",
        ),
        ("bn1", "eps 1e-05 against 0.001"),
        (
            "classifier",
            "weight variance 0.0417 against 0.154 (torch's default against keras's default)",
        ),
        ("classifier", "second moment of the bias 0.0417 against 0"),
    ]


def test_truncation_alone_is_no_difference_of_variance() -> None:
    parts = differences(*(build("plain_conv", framework=f, depth=2, width=16, init=HE) for f in ("torch", "keras")))
    assert parts[0] == Difference("conv1", "weights", ("normal", "truncated_normal"), "of equal variance")


def test_initializers_part_by_their_rule() -> None:
    nets = [build("mlp", depth=2, width=16, init=parse_initializer(init)) for init in ("he_normal", "constant(0.5)")]
    parts = differences(*nets)
    assert {part.layer for part in parts} == {"linear1", "linear2"}
    assert [(part.what, part.values) for part in parts[:2]] == [
        ("weight mean", ("0", "0.5")),
        ("weight variance", ("0.125", "0")),
    ]
    assert parts[0].reason == "he_normal against constant(value=0.5); normal against constant"


def test_layers_shapes_and_functions() -> None:
    shallow = build("mlp", depth=2, width=16, activation="relu", init=HE)
    deep = build("mlp", depth=3, width=16, activation="relu", init=HE)
    assert [(part.layer, part.values) for part in differences(shallow, deep)] == [
        ("linear2.act", ("none", "activation")),
        ("linear3", ("none", "linear")),
    ]
    assert [part.values for part in differences(deep, shallow)] == [("activation", "none"), ("linear", "none")]
    other = build("mlp", depth=2, width=16, activation="tanh", init=HE)
    assert [(part.layer, part.text) for part in differences(shallow, other)] == [
        ("linear1.act", "function relu against tanh")
    ]
    wide = differences(shallow, build("mlp", depth=2, width=32, activation="relu", init=HE))
    assert (wide[0].layer, wide[0].text) == ("input", "shape 16 against 32")
