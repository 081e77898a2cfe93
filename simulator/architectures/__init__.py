"""Families of networks, built by name."""

from __future__ import annotations

from typing import TypeVar

from varprop.simulator.activations import activation as activation_function
from varprop.simulator.architectures.mlp import MLP
from varprop.simulator.architectures.mobilenet_v2 import MOBILENET_V2
from varprop.simulator.architectures.plain_conv import PLAIN_CONV
from varprop.simulator.architectures.plan import Family, Plan
from varprop.simulator.architectures.resnet import RESNET
from varprop.simulator.architectures.two_layer import TWO_LAYER
from varprop.simulator.architectures.vgg import VGG
from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.initializers import check_initializers, parse_initializer
from varprop.simulator.limits import refuse_absurd_size
from varprop.simulator.network import FrameworkName, Initializer, Network, NetworkBuilder, Shape

__all__ = ["FRAMEWORKS", "NAMES", "NORMS", "build"]

_FAMILIES: dict[str, Family] = {
    "mlp": MLP,
    "plain_conv": PLAIN_CONV,
    "vgg": VGG,
    "resnet": RESNET,
    "mobilenet_v2": MOBILENET_V2,
    "two_layer": TWO_LAYER,
}
NAMES: dict[str, str] = {name: family.description for name, family in _FAMILIES.items()}
"""Every network's name and one line on it."""

FRAMEWORKS: dict[str, FrameworkName] = {"torch": "torch", "keras": "keras"}
NORMS = {"batch": True, "none": False}

_Value = TypeVar("_Value")

_WIDEST = 65_536
_LARGEST_IMAGE = 4_096


def build(
    name: str,
    *,
    framework: str = "torch",
    depth: int | None = None,
    width: int | None = None,
    activation: str | None = None,
    norm: str | None = None,
    init: Initializer | str | None = None,
    size: int | None = None,
    input_shape: Shape | None = None,
) -> Network:
    """Build a network of a family.

    Parameters
    ----------
    name
        One of `NAMES`.
    framework
        ``torch`` or ``keras``: whose padding, BN constants and initializer rules hold.
    depth
        Number of the family's repeating units, shared out over its stages; default: the standard network's.
    width
        Features or channels of every layer, in families of constant width (mlp 256, plain_conv 64).
    activation
        Default ``relu``, in mobilenet_v2 ``relu6``.
    norm
        ``batch`` or ``none``; default: batch in resnet, mobilenet_v2 and two_layer.
    init
        Initializer, or its text, of every convolution, in mlp of every layer; default he_normal. Classifiers keep the
        framework's default weights and a zero bias. Convolutions and linear layers have no bias, but for those of mlp,
        plain_conv and vgg without BN under ``default``, which have the framework's.
    size
        Height and width of the input image, default 32 (two_layer 224). An mlp flattens it; left out, its input has
        `width` features.
    input_shape
        (channels, height, width), for mlp also (features,), in place of `size`.

    Returns
    -------
    Network

    Raises
    ------
    UserError
        An unknown name, a number out of range, an initializer that a layer's shape rules out, or a network of absurd
        size.

    Examples
    --------
    >>> [node.name for node in build("mlp", depth=2).nodes]
    ['input', 'linear1', 'linear1.act', 'linear2']
    """
    if name not in _FAMILIES:
        raise did_you_mean("network", name, list(_FAMILIES))
    family = _FAMILIES[name]
    plan = Plan(
        framework=_one_of("--framework", framework, FRAMEWORKS),
        depth=_whole("--depth", family.depth if depth is None else depth, family.deepest),
        width=_width(name, family, width),
        activation=activation_function(family.activation if activation is None else activation).name,
        normalised=family.normalised if norm is None else _one_of("--norm", norm, NORMS),
        init=init if isinstance(init, Initializer) else parse_initializer(init or "he_normal"),
    )
    net = NetworkBuilder(name, plan.framework, _input_shape(family, plan.width, size, input_shape))
    family.assemble(net, plan)
    network = refuse_absurd_size(net.build(), "network size", "lower --depth, --width or --size")
    check_initializers(network)
    return network


def _one_of(what: str, name: str, known: dict[str, _Value]) -> _Value:
    if name not in known:
        raise did_you_mean(what, name, list(known))
    return known[name]


def _whole(what: str, value: int, largest: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= largest:
        raise UserError(what, value, f"a whole number from 1 to {largest:,}")
    return value


def _width(name: str, family: Family, width: int | None) -> int:
    if family.width is None:
        if width is not None:
            known = ", ".join(other for other, each in _FAMILIES.items() if each.width is not None)
            raise UserError("--width", width, f"none for {name}, whose widths are fixed", f"use it with {known}")
        return 0
    return _whole("--width", family.width if width is None else width, _WIDEST)


def _input_shape(family: Family, width: int, size: int | None, shape: Shape | None) -> Shape:
    if shape is not None:
        if family.size is not None and len(shape) != 3:
            raise UserError("input shape", shape, "(channels, height, width)")
        return shape
    size = family.size if size is None else size
    if size is None:
        return (width,)
    size = _whole("--size", size, _LARGEST_IMAGE)
    return (3, size, size)
