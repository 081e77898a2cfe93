"""VGG-16 without its large dense layers, as used on CIFAR.

References
----------
.. [1] K. Simonyan, A. Zisserman, "Very deep convolutional networks for large-scale image recognition", ICLR 2015,
   table 1, column D.
"""

from __future__ import annotations

from varprop.simulator.architectures.plan import Family, Plan, classify, share, unit
from varprop.simulator.network import NetworkBuilder

_CHANNELS = (64, 128, 256, 512, 512)
_STANDARD = (2, 2, 3, 3, 3)


def assemble(net: NetworkBuilder, plan: Plan) -> None:
    """Add five stages of 3x3 convolutions, 2x2 max pooling after each, then global pooling and the classifier."""
    for stage, layers in enumerate(share(plan.depth, _STANDARD)):
        for layer in range(layers):
            unit(net, plan, f"conv{stage + 1}_{layer + 1}", _CHANNELS[stage], 3, bias=plan.plain_bias)
        net.max_pool(2, name=f"pool{stage + 1}")
    classify(net)


VGG = Family(
    "VGG-16 with one classifier layer (Simonyan 2015); depth counts convolutions, standard 13",
    assemble,
    depth=sum(_STANDARD),
)
