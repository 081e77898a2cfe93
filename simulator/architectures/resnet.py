"""Residual network of basic blocks in its CIFAR form.

References
----------
.. [1] K. He et al., "Deep residual learning for image recognition", CVPR 2016, sections 3.3 (shortcut option B)
   and 4.2.
"""

from __future__ import annotations

from varprop.simulator.architectures.plan import Family, Plan, classify, share, unit
from varprop.simulator.network import NetworkBuilder

_CHANNELS = (16, 32, 64)
_STANDARD = (3, 3, 3)


def assemble(net: NetworkBuilder, plan: Plan) -> None:
    """Add the stem, three stages of basic blocks, global pooling and the classifier.

    Where stride or channels change the shortcut is a 1x1 convolution with that stride (and BN, if any).
    """
    unit(net, plan, "stem.conv", _CHANNELS[0], 3)
    block = 0
    for stage, blocks in enumerate(share(plan.depth, _STANDARD)):
        for position in range(blocks):
            block += 1
            _basic_block(net, plan, f"block{block}", _CHANNELS[stage], 2 if stage and position == 0 else 1)
    classify(net)


def _basic_block(net: NetworkBuilder, plan: Plan, name: str, channels: int, stride: int) -> None:
    source = net.last
    unit(net, plan, f"{name}.conv1", channels, 3, stride=stride)
    branch = unit(net, plan, f"{name}.conv2", channels, 3, activated=False)
    shortcut = source
    if net.shape(source) != net.shape(branch):
        shortcut = unit(net, plan, f"{name}.shortcut", channels, 1, stride=stride, activated=False, source=source)
    net.add((branch, shortcut), name=f"{name}.add")
    net.activation(plan.activation, name=f"{name}.act")


RESNET = Family(
    "CIFAR residual network of basic blocks (He 2016); depth counts blocks, standard 9 (ResNet-20)",
    assemble,
    depth=sum(_STANDARD),
    normalised=True,
)
