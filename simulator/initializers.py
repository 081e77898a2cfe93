"""Weight initializers by name, each as PyTorch and as Keras define it.

Facade of `weight_law` (rules, fans and laws) and `weight_draw` (reference sampler); here is how a text such as
``kaiming_uniform(a=2.236, mode=fan_in)`` becomes an `Initializer`.
"""

from __future__ import annotations

import math
import re

from varprop.simulator.errors import UserError, did_you_mean
from varprop.simulator.network import Initializer
from varprop.simulator.weight_draw import draw, draw_bias
from varprop.simulator.weight_law import (
    ALIASES,
    RULES,
    TRUNCATION_FACTOR,
    TRUNCATION_POINT,
    Distribution,
    Rule,
    WeightLaw,
    bias_law,
    bias_square,
    check_initializers,
    framework_fans,
    rule,
    weight_law,
)

__all__ = [
    "NAMES",
    "TRUNCATION_FACTOR",
    "TRUNCATION_POINT",
    "Distribution",
    "WeightLaw",
    "bias_law",
    "bias_square",
    "check_initializers",
    "draw",
    "draw_bias",
    "framework_fans",
    "parse_initializer",
    "weight_law",
]


def _description(name: str, known: Rule) -> str:
    others = [alias for alias, canonical in ALIASES.items() if canonical == name]
    return known.description + (f" (also {', '.join(others)})" if others else "")


NAMES: dict[str, str] = {name: _description(name, known) for name, known in RULES.items()}
"""Every initializer's canonical name and one line on it."""

_SMALLEST, _LARGEST = 1e-30, 1e30  # squares and fourth powers of these stay inside float64's normal range
_CALL = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*")


def parse_initializer(text: str, what: str = "--init") -> Initializer:
    """Return the initializer that a text names.

    Parameters
    ----------
    text
        A name or alias, with parameters by position or by key: ``he_normal``, ``normal(0.05)``,
        ``truncated_normal(std=0.1, after=true)``, ``kaiming_uniform(a=2.236, mode=fan_in)``.
    what
        The option or key that the text comes from, for messages.

    Returns
    -------
    Initializer
        With the canonical name and the parameters that were given.

    Raises
    ------
    UserError
        Unknown name or parameter, or a value that is not finite or out of range.

    Examples
    --------
    >>> str(parse_initializer("kaiming_uniform(2.5, mode=fan_out)"))
    'he_uniform(a=2.5, mode=fan_out)'
    """
    call = _CALL.fullmatch(text)
    if call is None:
        raise UserError(what, repr(text), "a name, or a name with parameters in parentheses", "try he_normal")
    name, inside = call[1].lower(), call[2]
    known = rule(name, what)
    given: dict[str, float | str] = {}
    for position, part in enumerate(inside.split(",") if inside and inside.strip() else []):
        key, value = _key_and_value(part, position, known, f"{what}: {name}")
        if key in given:
            raise UserError(f"{what}: {name}", f"{key} twice", "every parameter once")
        given[key] = _checked(value, key, known, f"{what}: {name}: {key}")
    if "a" in given and "gain" in given:
        raise UserError(f"{what}: {name}", "both a and gain", "one of them", "a sets gain = sqrt(2 / (1 + a^2))")
    return Initializer(ALIASES.get(name, name), tuple(sorted(given.items())))


def _key_and_value(part: str, position: int, known: Rule, what: str) -> tuple[str, str]:
    keys = list(known.defaults)
    before, equals, after = part.partition("=")
    if equals:
        key, value = before.strip(), after.strip()
        if key not in keys:
            raise did_you_mean(what, key, keys) if keys else UserError(what, repr(key), "no parameters")
        return key, value
    if position >= len(keys):
        raise UserError(what, f"{position + 1} values", f"at most {len(keys)}: {', '.join(keys)}" if keys else "none")
    return keys[position], part.strip()


def _checked(text: str, key: str, known: Rule, what: str) -> float | str:
    if key in known.choices:
        if text not in known.choices[key]:
            raise did_you_mean(what, text, list(known.choices[key]))
        return text
    try:
        value = float(text)
    except ValueError:
        raise UserError(what, repr(text), "a number") from None
    signed = key in ("value", "a")
    if not math.isfinite(value) or abs(value) > _LARGEST or (not signed and value < _SMALLEST):
        raise UserError(what, text, f"a number {'within +-' if signed else 'from 1e-30 to '}1e30")
    return value
