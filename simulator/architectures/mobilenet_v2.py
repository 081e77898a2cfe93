"""MobileNetV2 for ten classes, padded as the framework does it.

References
----------
.. [1] M. Sandler et al., "MobileNetV2: inverted residuals and linear bottlenecks", CVPR 2018, tables 1 and 2.
"""

from __future__ import annotations

from varprop.simulator.architectures.plan import Family, Plan, classify, share, unit
from varprop.simulator.network import NetworkBuilder, Padding

_EXPANSION = 6
# (output channels, blocks, stride of the first block) of the stages after the stem.
_STAGES = ((24, 2, 2), (32, 3, 2), (64, 4, 2), (96, 3, 1), (160, 3, 2), (320, 1, 1))
_STANDARD = tuple(blocks for _, blocks, _ in _STAGES)


def assemble(net: NetworkBuilder, plan: Plan) -> None:
    """Add the stem, the inverted residual blocks and the head; no convolution has a bias."""
    unit(net, plan, "stem.conv", 32, 3, stride=2)
    unit(net, plan, "stem.depthwise", 32, 3, groups=32)
    unit(net, plan, "stem.project", 16, 1, activated=False)
    block = 0
    for (channels, _, first_stride), blocks in zip(_STAGES, share(plan.depth, _STANDARD), strict=False):
        for position in range(blocks):
            block += 1
            _inverted_residual(net, plan, f"block{block}", channels, 1 if position else first_stride)
    unit(net, plan, "head.conv", 1280, 1)
    classify(net)


def _inverted_residual(net: NetworkBuilder, plan: Plan, name: str, channels: int, stride: int) -> None:
    source = net.last
    expanded = _EXPANSION * net.shape()[0]
    unit(net, plan, f"{name}.expand", expanded, 1)
    padding: Padding | None = None
    if stride == 2 and plan.framework == "keras":
        _, height, width = net.shape()
        net.zero_pad((*_keras_pad(height), *_keras_pad(width)), name=f"{name}.pad")
        padding = (0, 0, 0, 0)
    unit(net, plan, f"{name}.depthwise", expanded, 3, stride=stride, padding=padding, groups=expanded)
    projected = unit(net, plan, f"{name}.project", channels, 1, activated=False)
    if net.shape(source) == net.shape(projected):
        net.add((source, projected), name=f"{name}.add")


def _keras_pad(size: int) -> tuple[int, int]:
    """Return the zeros before and after an axis ahead of a stride-2 3x3 kernel: as Keras Applications pads."""
    return (0, 1) if size % 2 == 0 else (1, 1)


MOBILENET_V2 = Family(
    "MobileNetV2 (Sandler 2018); depth counts inverted residual blocks, standard 16",
    assemble,
    depth=sum(_STANDARD),
    activation="relu6",
    normalised=True,
)
