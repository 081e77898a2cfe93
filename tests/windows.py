"""Windows that tests of convolutions go through: paddings, strides, kernels of one tap."""

from __future__ import annotations

from varprop.simulator.theory.maps import Window

WINDOWS = {
    "same": Window((3, 3), (1, 1), (1, 1, 1, 1)),
    "valid": Window((3, 3), (1, 1)),
    "stride": Window((3, 3), (2, 2), (1, 1, 1, 1)),
    "keras": Window((3, 3), (2, 2), (0, 1, 0, 1)),
    "odd": Window((2, 3), (1, 2), (2, 0, 1, 3)),
    "pointwise": Window((1, 1), (1, 1)),
    "pointwise stride": Window((1, 1), (2, 2)),
}
