"""Networks of one's own, described in a TOML file.

A file gives the input's shape and the layers in order; a layer reads the one before it, or those that `from` names:

.. code-block:: toml

    framework = "torch"           # optional; keras
    input_shape = [3, 32, 32]     # or [features]

    [[layers]]
    type = "conv2d"
    name = "first"                # optional
    out_channels = 3
    kernel = 3                    # or [rows, columns]; stride too
    padding = "same"              # the default; valid; [top, bottom, left, right]
    init = "he_normal"            # the default
    bias = "zeros"                # left out: the layer has none

    [[layers]]
    type = "activation"
    function = "leaky_relu(0.2)"

    [[layers]]
    type = "add"
    from = ["input", "act1"]

Layers without a name are called after their type and counted (conv1, act1, bn1 ...), the input is called input.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varprop.simulator.activations import activation as activation_function
from varprop.simulator.architectures import FRAMEWORKS
from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.initializers import check_initializers, parse_initializer
from varprop.simulator.limits import refuse_absurd_size
from varprop.simulator.network import FrameworkName, Initializer, Network, NetworkBuilder

_LARGEST_FILE = 2**24
_HE_NORMAL = Initializer("he_normal")


def load(path: Path, framework: FrameworkName | None = None) -> Network:
    """Read a network from a TOML file; nothing in it is executed.

    Parameters
    ----------
    path
        The file.
    framework
        Takes the place of the file's own, which is torch where it says nothing.

    Returns
    -------
    Network
        Named after the file, unless it has a `name`.

    Raises
    ------
    UserError
        The file cannot be read, is not TOML or does not describe a network; the message has the file, the key, the
        value and what was expected.
    """
    table = _read(path)
    try:
        known = {"name": _text, "framework": _framework, "input_shape": _shape, "layers": _layers}
        values = _values(table, known, ("input_shape", "layers"), "")
        net = NetworkBuilder(
            values.get("name", path.stem), framework or values.get("framework", "torch"), values["input_shape"]
        )
        indices = {"input": 0}
        for number, layer in enumerate(values["layers"]):
            index = _add_layer(net, layer, f"layers[{number}]", indices)
            indices[net.name(index)] = index
        network = refuse_absurd_size(net.build(), "layers", "use fewer channels or a smaller input")
        _refuse_dead_ends(network)
        check_initializers(network)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.got, error.expected, error.do) from None
    return network


def _read(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise UserError(str(path), "no such file", "a TOML file that describes a network")
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise UserError(str(path), f"{path.stat().st_size:,} bytes", f"at most {_LARGEST_FILE:,}")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(str(path), error.strerror or error, "a file that can be read") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UserError(str(path), f"{error}", "valid TOML in UTF-8") from None
    except RecursionError:
        raise UserError(str(path), "arrays nested too deeply", "a list of layers") from None


Reader = Callable[[object, str], Any]
"""Turns a TOML value into what the builder takes; the second argument is the key's path, for messages."""


def _values(table: object, known: Mapping[str, Reader], required: tuple[str, ...], path: str) -> dict[str, Any]:
    """Return the table's values, read; `path` is the table's own, empty for the file."""
    if not isinstance(table, dict):
        raise _wrong(path, table, "a table")
    for key in table:
        if key not in known:
            raise did_you_mean(f"{path}: unknown key" if path else "unknown key", key, list(known))
    for key in required:
        if key not in table:
            raise UserError(f"{path}.{key}".lstrip("."), "nothing", "a value", "add the key")
    return {key: known[key](value, f"{path}.{key}".lstrip(".")) for key, value in table.items()}


def _wrong(path: str, value: object, expected: str) -> UserError:
    return UserError(path, repr(value), expected)


def _text(value: object, path: str) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise _wrong(path, value, "a text of one line")
    return value


def _whole(value: object, path: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise _wrong(path, value, "a whole number of at least 1")
    return value


def _number(value: object, path: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise _wrong(path, value, "a finite number")
    return float(value)


def _fraction(value: object, path: str) -> float:
    number = _number(value, path)
    if not 0 <= number <= 1:
        raise _wrong(path, value, "a number from 0 to 1")
    return number


def _pair(value: object, path: str) -> tuple[int, int]:
    if isinstance(value, list):
        if len(value) != 2:
            raise _wrong(path, value, "one whole number, or two: [rows, columns]")
        return _whole(value[0], f"{path}[0]"), _whole(value[1], f"{path}[1]")
    size = _whole(value, path)
    return size, size


def _four_sides(value: object, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) != 4:
        raise _wrong(path, value, "[top, bottom, left, right]")
    for side in value:
        if isinstance(side, bool) or not isinstance(side, int) or side < 0:
            raise _wrong(path, value, "four whole numbers of at least 0: [top, bottom, left, right]")
    return tuple(value)


def _padding(value: object, path: str) -> str | tuple[int, ...]:
    if isinstance(value, str):
        if value not in ("same", "valid"):
            raise did_you_mean(path, value, ["same", "valid"])
        return value
    return _four_sides(value, path)


def _shape(value: object, path: str) -> tuple[int, ...]:
    if not isinstance(value, list) or len(value) not in (1, 3):
        raise _wrong(path, value, "[features] or [channels, height, width]")
    return tuple(_whole(size, f"{path}[{axis}]") for axis, size in enumerate(value))


def _framework(value: object, path: str) -> FrameworkName:
    name = _text(value, path)
    if name not in FRAMEWORKS:
        raise did_you_mean(path, name, list(FRAMEWORKS))
    return FRAMEWORKS[name]


def _layers(value: object, path: str) -> list[object]:
    if not isinstance(value, list) or not value:
        raise _wrong(path, value, "one or more [[layers]] tables")
    return value


def _initializer(value: object, path: str) -> Initializer:
    return parse_initializer(_text(value, path), path)


def _activation(value: object, path: str) -> str:
    try:
        return activation_function(_text(value, path)).name
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.got, error.expected, error.do) from None


def _sources(value: object, path: str) -> list[str]:
    if isinstance(value, list):
        return [_text(name, f"{path}[{position}]") for position, name in enumerate(value)]
    return [_text(value, path)]


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer type: the builder's method, and the keys it takes with their readers."""

    add: Callable[..., int]
    required: Mapping[str, Reader]
    optional: Mapping[str, Reader]


def _conv2d(net: NetworkBuilder, *, init: Initializer = _HE_NORMAL, **values: Any) -> int:
    return net.conv2d(weight=init, **values)


def _depthwise_conv2d(
    net: NetworkBuilder, *, init: Initializer = _HE_NORMAL, multiplier: int = 1, source: int | None, **values: Any
) -> int:
    channels = net.shape(source)[0]
    return net.conv2d(channels * multiplier, weight=init, groups=channels, source=source, **values)


def _linear(net: NetworkBuilder, *, init: Initializer = _HE_NORMAL, **values: Any) -> int:
    return net.linear(weight=init, **values)


_WINDOW: dict[str, Reader] = {"kernel": _pair}
_CONVOLUTION: dict[str, Reader] = {"stride": _pair, "padding": _padding, "init": _initializer, "bias": _initializer}

_LAYERS: dict[str, _Layer] = {
    "conv2d": _Layer(_conv2d, {"out_channels": _whole, **_WINDOW}, {**_CONVOLUTION, "groups": _whole}),
    "depthwise_conv2d": _Layer(_depthwise_conv2d, _WINDOW, {**_CONVOLUTION, "multiplier": _whole}),
    "linear": _Layer(_linear, {"out_features": _whole}, {"init": _initializer, "bias": _initializer}),
    "batch_norm": _Layer(NetworkBuilder.batch_norm, {}, {"eps": _number, "momentum": _fraction}),
    "activation": _Layer(NetworkBuilder.activation, {"function": _activation}, {}),
    "add": _Layer(NetworkBuilder.add, {}, {}),
    "average_pool": _Layer(NetworkBuilder.average_pool, _WINDOW, {"stride": _pair}),
    "max_pool": _Layer(NetworkBuilder.max_pool, _WINDOW, {"stride": _pair}),
    "global_average_pool": _Layer(NetworkBuilder.global_average_pool, {}, {}),
    "flatten": _Layer(NetworkBuilder.flatten, {}, {}),
    "zero_pad": _Layer(NetworkBuilder.zero_pad, {"padding": _four_sides}, {}),
}


def _add_layer(net: NetworkBuilder, table: object, path: str, indices: Mapping[str, int]) -> int:
    """Add the layer that a table describes and return its index; `indices` are those of the nodes so far."""
    if not isinstance(table, dict):
        raise _wrong(path, table, "a table")
    kind = _text(table.get("type", "nothing"), f"{path}.type")
    if kind not in _LAYERS:
        raise did_you_mean(f"{path}.type", kind, list(_LAYERS))
    layer = _LAYERS[kind]
    known = {"type": _text, "name": _text, "from": _sources, **layer.required, **layer.optional}
    values = _values(table, known, tuple(layer.required), path)
    del values["type"]
    names = values.pop("from", None)
    for name in names or []:
        if name not in indices:
            raise did_you_mean(f"{path}.from", name, list(indices))
    sources = [net.last] if names is None else [indices[name] for name in names]
    try:
        if kind == "add":
            return layer.add(net, sources, **values)
        if len(sources) != 1:
            raise UserError("from", names, "one layer", "only add takes several")
        return layer.add(net, source=sources[0], **values)
    except UserError as error:
        raise UserError(f"{path}: {error.what}", error.got, error.expected, error.do) from None


def _refuse_dead_ends(network: Network) -> None:
    for node, readers in zip(network.nodes[:-1], network.consumers, strict=False):
        if not readers:
            raise UserError(f"layer {node.name!r}", "no layer that reads it", "one, as it is not the last")
