"""What stands behind an option of the command line: words, whole numbers, numbers, ranges of both, and shares.

Every function takes the option's name, for its errors, and the texts that were given.

Raises
------
UserError
    A text that cannot be read.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from varprop.simulator.errors import UserError

MOST_STEPS = 2000
"""Numbers in one range."""


def read_words(option: str, texts: Sequence[str] | None) -> list[str]:
    """Split values at commas outside parentheses, and drop repetitions."""
    found: list[str] = []
    for text in texts or ():
        start, inside = 0, 0
        for position, letter in enumerate(text + ","):
            inside += (letter == "(") - (letter == ")")
            if letter == "," and (inside <= 0 or position == len(text)):
                found.append(text[start:position].strip())
                start = position + 1
    if "" in found:
        raise UserError(option, repr(",".join(texts or ())), "a value on both sides of each comma")
    return list(dict.fromkeys(found))


def read_integers(option: str, texts: Sequence[str] | None) -> list[int]:
    """Read whole numbers, steps ``10:50:10`` (the end included), and ranges as `read_reals` has them."""
    found: list[int] = []
    for text in read_words(option, texts):
        if ":" in text:
            found += _whole_range(option, text)
            continue
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) < 16):
            raise UserError(option, repr(text), "a whole number, or several with commas")
        found.append(int(text))
    return list(dict.fromkeys(found))


def _whole_range(option: str, text: str) -> list[int]:
    """Read a range of whole numbers; rounded ones that coincide move up to the next, so that none is lost."""
    ends = text.split(":")
    if len(ends) != 3 or not all(end.isascii() and end.isdigit() and len(end) < 16 for end in ends[:2]):
        raise UserError(option, repr(text), "whole numbers with a step like 10:50:10, or a range like 1:100:log12")
    low, high, step = int(ends[0]), int(ends[1]), ends[2]
    if step.isascii() and step.isdigit():
        whole = range(low, high + 1, max(int(step[:15]), 1))
        if int(step[:15]) == 0 or not 1 <= len(whole) <= MOST_STEPS:
            raise UserError(option, repr(text), f"an increasing range of 1 to {MOST_STEPS} numbers")
        return list(whole)
    found: list[int] = []
    for number in read_reals(option, [text]):
        found.append(max(round(number), found[-1] + 1 if found else 0))
    if found != sorted(found) or found[-1] > max(low, high):
        raise UserError(option, repr(text), "an increasing range that has so many whole numbers")
    return found


def read_reals(option: str, texts: Sequence[str] | None) -> list[float]:
    """Read numbers and ranges ``from:to:linN`` or ``from:to:logN`` of N evenly or geometrically spaced ones."""
    found = []
    for text in read_words(option, texts):
        first, *more = text.split(":")
        spacing, count = (more[1][:3], more[1][3:]) if len(more) == 2 else ("lin", "1")
        if len(more) not in (0, 2) or spacing not in ("lin", "log") or not (count.isascii() and count.isdigit()):
            raise UserError(option, repr(text), "a number, or a range like 0.5:4:lin20 or 0.1:10:log20")
        try:
            low, high = float(first), float(more[0] if more else first)
        except ValueError:
            raise UserError(option, repr(text), "numbers") from None
        steps = int(count[:9])
        if not 1 <= steps <= MOST_STEPS or not (-math.inf < low < math.inf and -math.inf < high < math.inf):
            raise UserError(option, repr(text), f"finite numbers, and 1 to {MOST_STEPS} of them")
        if spacing == "log" and not (low > 0 and high > 0):
            raise UserError(option, repr(text), "a logarithmic range between numbers above 0")
        for step in range(steps):
            share = step / max(steps - 1, 1)
            found.append(low + share * (high - low) if spacing == "lin" else low * (high / low) ** share)
    return found


def read_share(option: str, text: str) -> float:
    """Read 1% or 0.01."""
    number, percent = text.strip().removesuffix("%"), text.strip().endswith("%")
    try:
        share = float(number) / (100 if percent else 1)
    except ValueError:
        share = 0.0
    if not 0 < share < 1:
        raise UserError(option, repr(text), "a share between 0 and 1, or per cent: 0.01 or 1%")
    return share
