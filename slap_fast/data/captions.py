"""Captions in whatever shape people store them: a string, a list, a list written into a CSV cell, a JSON object."""

from __future__ import annotations

import ast
import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any

MAX_CAPTIONS = 65_535  # the index counts them in 16 bits

_PLAIN_NAMES = ("captions", "caption", "texts", "text", "descriptions", "description", "sentences", "sentence")
_NUMBERED = re.compile(r"(caption|text|description|sentence)s?[ _-]?\d+")


def clean_captions(values: Iterable[Any]) -> list[str]:
    """Strings only, in NFC, white space collapsed to single spaces; empty ones and repetitions dropped, order kept."""
    cleaned: dict[str, None] = {}
    for value in values:
        if isinstance(value, str):
            # A lone surrogate, as broken JSON escapes give, could not be stored as UTF-8.
            text = unicodedata.normalize("NFC", value.encode("utf-8", "replace").decode("utf-8"))
            cleaned[" ".join(text.replace("\0", " ").split())] = None
    return [text for text in cleaned if text]


def caption_columns(names: Iterable[str]) -> list[str]:
    """The columns (or JSON fields) that hold captions: all called `caption*`, if any; else `text*`, and so on."""
    by_name = [(name, name.strip().lower()) for name in names if isinstance(name, str)]
    for family in ("caption", "text", "description", "sentence"):
        found = [
            name
            for name, lower in by_name
            if lower.startswith(family) and (lower in _PLAIN_NAMES or _NUMBERED.fullmatch(lower))
        ]
        if found:
            return found
    return []


def captions_of(value: Any) -> list[str]:
    """Clean captions of a string, a list of strings, or an object with caption fields; `[]` where there are none."""
    if isinstance(value, dict):
        fields = caption_columns(value)
        return clean_captions(caption for field in fields for caption in captions_of(value[field]))
    if isinstance(value, str):
        return clean_captions(_unpack(value))
    if isinstance(value, (list, tuple)):
        return clean_captions(value)
    return []


def _unpack(cell: str) -> list[Any]:
    """`["a", "b"]` and `['a', 'b']` are lists that a spreadsheet turned into text; anything else is one caption."""
    text = cell.strip()
    if text.startswith("[") and text.endswith("]"):
        for parse in (json.loads, ast.literal_eval):
            try:
                values = parse(text)
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue
            if isinstance(values, list) and all(isinstance(item, str) for item in values):
                return values
    return [cell]
