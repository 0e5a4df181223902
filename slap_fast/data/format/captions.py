"""Caption parsing: extracts clean captions from a string, a list, a list printed into a CSV cell, or a JSON object."""

from __future__ import annotations

import ast
import json
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from typing import Any

MAX_CAPTIONS = 65_535  # the index stores the count in 16 bits

_MAX_DEPTH = 8
_PLAIN_NAMES = ("captions", "caption", "texts", "text", "descriptions", "description", "sentences", "sentence")
_NUMBERED = re.compile(r"(caption|text|description|sentence)s?[ _-]?\d+")
_NOT_GIVEN = frozenset({"", "nan", "none", "null", "n/a", "<na>"})
# One element of a list as Python or NumPy prints it, and its separator: NumPy writes no commas.
_ELEMENT = re.compile(
    r"""\s*([uU]?'(?:[^'\\]|\\.)*'|[uU]?"(?:[^"\\]|\\.)*"|None\b|null\b|nan\b|NaN\b)(\s*,|\s+|(?=\]))""", re.DOTALL
)
_LIST = re.compile(r"(?:array\()?\[(.*\])(?:\)|,\s*dtype=\w+\))?", re.DOTALL)


def clean_captions(values: Iterable[Any]) -> list[str]:
    """The strings of `values` in NFC with single spaces, without empty ones and duplicates, in order."""
    cleaned: dict[str, None] = {}
    for value in values:
        if isinstance(value, str):
            # A lone surrogate (from a broken JSON escape) cannot be stored as UTF-8.
            text = unicodedata.normalize("NFC", value.encode("utf-8", "replace").decode("utf-8"))
            cleaned[" ".join(text.replace("\0", " ").split())] = None
    return [text for text in cleaned if text]


def find_caption_columns(names: Iterable[str]) -> list[str]:
    """The columns (or JSON fields) that hold captions: all `caption*` columns; if none, all `text*` columns; and so on.

    The families are caption, text, description, sentence; a name may be plural or numbered (`caption_1`).
    """
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
    """Clean captions of a string, an object with caption fields, or a list of these, nested up to 8 levels."""
    return clean_captions(_strings(value, _MAX_DEPTH))


def _strings(value: Any, depth: int) -> list[Any]:
    if isinstance(value, str):
        return _unpack(value)
    if isinstance(value, dict) and depth:
        return [text for field in find_caption_columns(value) for text in _strings(value[field], depth - 1)]
    if isinstance(value, (list, tuple)) and depth:
        items = _numbers_to_text(value)
        return [text for item in items for text in ([item] if isinstance(item, str) else _strings(item, depth - 1))]
    return []


def _numbers_to_text(values: Sequence[Any]) -> list[Any]:
    """Converts numbers in a list that also has strings, as in ["a dog", 1984]. Numbers alone are not captions."""
    if not any(isinstance(value, str) for value in values):
        return list(values)
    return [str(value) if _is_number(value) else value for value in values]


def is_missing(cell: str) -> bool:
    """Whether a table cell means "no value": empty, or `nan`, `None`, `null`, `n/a`, `<NA>` in any case."""
    return cell.strip().lower() in _NOT_GIVEN


def table_captions(values: Iterable[Any]) -> list[str]:
    """Clean captions of the caption cells of one row, without missing values."""
    return clean_captions(caption for value in values for caption in captions_of(value) if not is_missing(caption))


def _unpack(cell: str) -> list[Any]:
    """Parses a printed list: JSON `["a", "b"]`, Python `['a', None]`, NumPy `['a' 'b']`. Other text is one caption."""
    text = cell.strip()
    if not (text.startswith(("[", "array([")) and text.endswith(("]", ")"))):
        return [cell]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = _unpack_python(text)
    if not isinstance(values, list):
        return [cell]
    strings = _numbers_to_text(values)
    return strings if all(isinstance(value, str) or _is_null(value) for value in strings) else [cell]


def _unpack_python(text: str) -> list[Any] | None:
    """Strings and missing values of a list as Python or NumPy prints it; None if the text is no such list."""
    inside = _LIST.fullmatch(text)
    values: list[Any] = []
    position = 0
    while inside and (element := _ELEMENT.match(inside[1], position)):
        literal, position = element[1], element.end()
        try:
            values.append(ast.literal_eval(literal) if literal[-1] in "'\"" else None)
        except (ValueError, SyntaxError):
            return None
    return values if inside and inside[1][position:].strip() == "]" else None


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not _is_null(value)


def _is_null(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))
