"""What every part of the package rests on: topics and works of networks, initializers, activations and commands."""

from __future__ import annotations

from collections.abc import Iterable

from varprop.derivations import TOPICS, derivation
from varprop.derivations.references import REFERENCES, Reference

_NETWORKS = {
    "mlp": ("linear", "bias"),
    "plain_conv": ("conv2d", "zero_padding"),
    "vgg": ("conv2d", "zero_padding", "max_pool"),
    "resnet": ("conv2d", "zero_padding", "batch_norm", "add", "residual", "average_pool"),
    "mobilenet_v2": ("conv2d", "depthwise_conv2d", "depthwise_fans", "batch_norm", "relu6", "add", "average_pool"),
    "two_layer": ("conv2d", "batch_norm", "relu"),
}

_INITIALIZERS = {
    "default": ("he", "glorot"),
    "he_normal": ("he",),
    "he_uniform": ("he",),
    "glorot_normal": ("glorot",),
    "glorot_uniform": ("glorot",),
    "lecun_normal": ("lecun",),
    "lecun_uniform": ("lecun",),
    "random_normal": (),
    "random_uniform": (),
    "truncated_normal": ("truncated_normal",),
    "orthogonal": ("orthogonal",),
    "delta_orthogonal": ("orthogonal", "conv2d"),
    "zeros": (),
    "constant": (),
}

_ACTIVATIONS = {"linear": ("linear", "identity")}
"""Other activations have the name of their topic."""

_THEORY = ("linear", "conv2d", "depthwise_conv2d", "batch_norm", "mean_field", "finite_width_relu")
_COMMANDS = {
    "propagate": _THEORY,
    "sweep": _THEORY,
    "figure": _THEORY,
    "experiment": (*_THEORY, "truncated_normal", "weight_decay", "batch_norm_weight_decay"),
    "train": ("weight_decay", "batch_norm_weight_decay"),
    "derive": (),
    "gain": ("critical_variance",),
    "phase": ("mean_field", "relu_correlation"),
    "data": (),
}

_WORKS = {
    "vgg": ("simonyan2015",),
    "resnet": ("he2016",),
    "mobilenet_v2": ("sandler2018",),
    "delta_orthogonal": ("xiao2018",),
    "random_normal": ("salmon2011",),
    "random_uniform": ("salmon2011",),
    "propagate": ("lam2015", "salmon2011"),
    "sweep": ("lam2015", "salmon2011"),
    "experiment": ("lam2015", "salmon2011", "krizhevsky2009"),
    "train": ("krizhevsky2009",),
    "derive": ("meurer2017",),
    "data": ("krizhevsky2009",),
}
"""Works beyond those of the topics."""

SUBJECTS: dict[str, tuple[str, ...]] = {
    **{topic: (topic,) for topic in TOPICS},
    **_INITIALIZERS,
    **_ACTIVATIONS,
    **_NETWORKS,
    **_COMMANDS,
}
"""Every name that can be asked for, and the topics it rests on."""


def works(subjects: Iterable[str] = ()) -> list[Reference]:
    """Return the works that subjects rest on, by key; without a subject, all works.

    Raises
    ------
    KeyError
        If a name is not in `SUBJECTS`.
    """
    names = list(subjects)
    if not names:
        return list(REFERENCES.values())
    topics = dict.fromkeys(topic for name in names for topic in SUBJECTS[name])
    keys = {citation.reference.key for topic in topics for citation in derivation(topic).references}
    keys.update(key for name in names for key in _WORKS.get(name, ()))
    return [work for key, work in REFERENCES.items() if key in keys]
