"""What every family of networks shares: the checked options, and the parts that are built from them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from varprop.simulator.network import ZEROS, FrameworkName, Initializer, NetworkBuilder, Padding

DEFAULT = Initializer("default")
CLASSES = 10


@dataclass(frozen=True, slots=True)
class Plan:
    """The options of one network, checked and with the family's defaults filled in.

    `width` is 0 in families whose widths are fixed.
    """

    framework: FrameworkName
    depth: int
    width: int
    activation: str
    normalised: bool
    init: Initializer

    @property
    def plain_bias(self) -> Initializer | None:
        """Bias of a plain layer: the framework's own under its default rule, else none.

        A published rule such as He's comes with zero biases, which change nothing at initialisation; BN removes them.
        """
        return DEFAULT if self.init == DEFAULT and not self.normalised else None


@dataclass(frozen=True, slots=True)
class Family:
    """One architecture: how its nodes are added, and its defaults.

    `width` is None where the widths are fixed, `depth` is the standard network's, `size` that of a square image
    with three channels, or None where the input is flat with `width` features.
    """

    description: str
    assemble: Callable[[NetworkBuilder, Plan], None]
    depth: int
    width: int | None = None
    activation: str = "relu"
    normalised: bool = False
    size: int | None = 32
    deepest: int = 100_000


def unit(
    net: NetworkBuilder,
    plan: Plan,
    name: str,
    out_channels: int,
    kernel: int,
    *,
    stride: int = 1,
    padding: Padding | None = None,
    groups: int = 1,
    bias: Initializer | None = None,
    activated: bool = True,
    source: int | None = None,
) -> int:
    """Add a convolution, BN if the network has it, and the activation unless told not to; return the last node.

    `padding` defaults to the framework's 'same'.
    """
    net.conv2d(
        out_channels,
        kernel,
        plan.init,
        stride=stride,
        padding="same" if padding is None else padding,
        groups=groups,
        bias=bias,
        name=name,
        source=source,
    )
    return normalise_and_activate(net, plan, name, activated=activated)


def normalise_and_activate(net: NetworkBuilder, plan: Plan, name: str, *, activated: bool = True) -> int:
    """Add what follows a weighted layer, named after it; return the last node."""
    if plan.normalised:
        net.batch_norm(name=f"{name}.bn")
    if activated:
        net.activation(plan.activation, name=f"{name}.act")
    return net.last


def classify(net: NetworkBuilder) -> None:
    """Add global average pooling and a linear classifier with the framework's default weights and a zero bias."""
    net.global_average_pool(name="head.pool")
    net.linear(CLASSES, DEFAULT, bias=ZEROS, name="head.classifier")


def share(depth: int, standard: Sequence[int]) -> list[int]:
    """Share `depth` blocks out over stages in a standard network's proportions.

    Every stage gets one first, in order; the rest goes by Sainte-Lague's divisors, so that a deeper network never
    has fewer blocks in a stage, and multiples of the standard depth are multiples of the standard stages.

    Parameters
    ----------
    depth
        Blocks to share out, at least 1.
    standard
        Blocks of each stage in the standard network.

    Returns
    -------
    list of int
        Blocks of each stage; stages that get none are left out.

    Examples
    --------
    >>> share(18, [3, 3, 3]), share(2, [3, 3, 3]), share(16, [2, 3, 4, 3, 3, 1])
    ([6, 6, 6], [1, 1], [2, 3, 4, 3, 3, 1])
    """
    blocks = [1] * min(depth, len(standard))
    for _ in range(depth - len(blocks)):
        poorest = max(range(len(blocks)), key=lambda stage: standard[stage] / (2 * blocks[stage] + 1))
        blocks[poorest] += 1
    return blocks
