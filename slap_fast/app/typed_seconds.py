"""Seconds as a user types them, since Gradio's number fields turn an empty one into 0."""

from __future__ import annotations

import math
from typing import Any

from slap_fast.app.errors import PageError
from slap_fast.app.names import shown


def typed_seconds(value: Any, default: float) -> float:
    """A number of seconds of at least 0, also as minutes:seconds; `default` for an empty field.

    Raises:
        PageError: it is none.
    """
    text = value.strip() if isinstance(value, str) else value
    if text is None or text == "":
        return default
    try:
        parts = [float(part) for part in str(text)[:40].split(":")]
    except ValueError:
        parts = [math.nan]
    seconds = sum(part * 60**place for place, part in enumerate(reversed(parts)))
    if len(parts) > 3 or not 0 <= seconds < math.inf or any(part < 0 for part in parts):
        raise PageError(f"“{shown(str(text)[:40])}” is not a time; write seconds, such as 7.5, or 1:02:03")
    return seconds
