"""JSON that every reader takes: no NaN, no infinity."""

from __future__ import annotations

import json


def indented(data: object) -> str:
    """Return lines of JSON for people and programs alike; a number that is not finite is a ValueError."""
    return json.dumps(data, indent=1, allow_nan=False) + "\n"
