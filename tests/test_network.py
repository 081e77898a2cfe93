"""The network builder: shapes, padding, fans and what it refuses."""

import pytest

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.network import Initializer, NetworkBuilder, same_padding

HE = Initializer("he_normal")


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, (1, 3)])
@pytest.mark.parametrize("stride", [1, 2, 3, (1, 2)])
@pytest.mark.parametrize("size", [7, 8, 12])
def test_convolution_and_pooling_shapes_are_those_of_torch(kernel, stride, size):
    torch = pytest.importorskip("torch")
    image = torch.zeros(1, 4, size, size + 1)
    net = NetworkBuilder("one", "torch", (4, size, size + 1))
    start = net.last
    net.conv2d(6, kernel, HE, stride=stride, padding="valid", groups=2, source=start)
    assert net.shape() == tuple(torch.nn.Conv2d(4, 6, kernel, stride, groups=2)(image).shape[1:])
    net.max_pool(kernel, stride=stride, source=start)
    assert net.shape() == tuple(torch.nn.MaxPool2d(kernel, stride)(image).shape[1:])
    net.average_pool(kernel, source=start)
    assert net.shape() == tuple(torch.nn.AvgPool2d(kernel)(image).shape[1:])
    if isinstance(kernel, int) and kernel % 2:
        net.conv2d(6, kernel, HE, stride=stride, source=start)
        assert net.shape() == tuple(torch.nn.Conv2d(4, 6, kernel, stride, padding=kernel // 2)(image).shape[1:])


# TensorFlow's documented rule: ceil(size / stride) outputs, the smallest sufficient padding, the odd zero at the end.
@pytest.mark.parametrize(
    ("size", "kernel", "stride", "zeros"),
    [
        (32, 3, 1, (1, 1)),
        (32, 3, 2, (0, 1)),
        (33, 3, 2, (1, 1)),
        (8, 2, 1, (0, 1)),
        (7, 2, 2, (0, 1)),
        (5, 5, 3, (1, 2)),
        (9, 1, 2, (0, 0)),
    ],
)
def test_keras_same_padding(size, kernel, stride, zeros):
    assert same_padding("keras", size, kernel, stride) == zeros
    net = NetworkBuilder("one", "keras", (1, size, size))
    net.conv2d(1, kernel, HE, stride=stride)
    assert net.shape() == (1, -(-size // stride), -(-size // stride))


def test_fans_kinds_and_graph():
    net = NetworkBuilder("graph", "torch", (4, 8, 8))
    entrance = net.conv2d(8, 3, HE, groups=2)
    net.conv2d(8, 3, HE, groups=8)
    net.batch_norm()
    net.activation("relu")
    net.add((entrance, net.last))
    net.zero_pad((0, 1, 2, 3))
    net.global_average_pool()
    net.linear(5, HE)
    network = net.build()
    assert [node.kind for node in network.nodes] == [
        "input",
        "conv2d",
        "depthwise_conv2d",
        "batch_norm",
        "activation",
        "add",
        "zero_pad",
        "global_average_pool",
        "linear",
    ]
    assert [(node.fan_in, node.fan_out) for node in network.nodes if node.fan_in] == [(18, 36), (9, 9), (8, 5)]
    assert network.consumers == ((1,), (2, 5), (3,), (4,), (5,), (6,), (7,), (8,), ())
    assert network.nodes[6].shape == (8, 9, 13)


def test_batch_norm_constants_are_the_frameworks():
    for framework, constants in (("torch", (1e-5, 0.1)), ("keras", (1e-3, 0.99))):
        net = NetworkBuilder("bn", framework, (3,))
        net.batch_norm()
        operation = net.build().nodes[-1].operation
        assert (operation.eps, operation.momentum) == constants


def builder(*shape):
    return NetworkBuilder("bad", "torch", shape or (4, 8, 8))


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        (lambda: builder(3, 4), "input shape: got"),
        (lambda: builder(0), "input shape: got"),
        (lambda: builder(4).conv2d(3, 3, HE), r"conv1: input shape: got \(4,\)"),
        (lambda: builder().linear(3, HE), "flatten"),
        (lambda: builder().conv2d(3, 9, HE, padding="valid"), "conv1: kernel"),
        (lambda: builder().conv2d(3, 3, HE, stride=0), "stride"),
        (lambda: builder().conv2d(6, 3, HE, groups=3), "groups: got 3 for 4 -> 6"),
        (lambda: builder().conv2d(0, 3, HE), "conv1"),
        (lambda: builder(4).linear(-1, HE), "out_features: got -1"),
        (lambda: builder().batch_norm(eps=float("nan")), "bn1: eps: got nan"),
        (lambda: builder().batch_norm(eps=-1.0), "bn1: eps: got -1.0"),
        (lambda: builder().max_pool(16), "maxpool1: kernel"),
        (lambda: builder().zero_pad((0, -1, 0, 0)), "pad1: padding"),
        (lambda: builder().add([0]), "two or more equal shapes"),
        (lambda: builder().activation("relu", name="input"), "used once"),
    ],
)
def test_what_does_not_fit_is_refused(attempt, told):
    with pytest.raises(UserError, match=told):
        attempt()


def test_sums_of_different_shapes_are_refused():
    net = builder()
    net.conv2d(4, 3, HE, stride=2)
    with pytest.raises(UserError, match="equal shapes"):
        net.add((0, 1))


def test_messages_say_what_got_expected_and_do():
    error = UserError("--depth", -1, "at least 1", "try 10")
    assert str(error) == "--depth: got -1, expected at least 1. Try 10"
    assert "did you mean 'resnet'" in did_you_mean("network", "resent", ["mlp", "resnet"]).do
    assert did_you_mean("network", "zzz", ["mlp"]).do == ""
