"""Captions of labeled clips: the class names in a template."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from slap_fast.data.format.captions import is_missing
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.labeled.labeled_set import in_words
from slap_fast.data.labeled.tables import MULTI_LABEL_COLUMN, class_column, label_separator, split_labels

CAPTION_TEMPLATE = "the sound of {}"
NAMES_COLUMN = "human_labels"
"""The column of class names in AudioSet on the hub, where `labels` has ids."""
TEMPLATE_SOURCE = {"caption_source": "template"}
"""Metadata of a clip whose caption was made from its labels."""


def check_template(template: str) -> str:
    """The template.

    Raises:
        DatasetError: it does not have exactly one `{}`.
    """
    if template.count("{}") != 1:
        raise DatasetError(f"--caption-template {template!r}: it needs {{}} once, for the class names")
    return template


def find_label_column(names: Iterable[str]) -> str | None:
    """The column of class names."""
    names = list(names)
    return NAMES_COLUMN if NAMES_COLUMN in names else class_column(names)


def captions_of_labels(
    template: str, column: str, cell: Any, classes: Sequence[str] | None
) -> tuple[list[str], dict[str, Any]]:
    """The caption of a cell of class names, or none if it is empty, and the metadata of the clip.

    Args:
        classes: the names, if the cell has their numbers.

    Raises:
        DatasetError: the cell has a number without a name.
    """
    several = isinstance(cell, (list, tuple)) or column == MULTI_LABEL_COLUMN
    labels = list(cell) if isinstance(cell, (list, tuple)) else [cell]
    if classes is not None:
        if not all(one is None or (isinstance(one, int) and 0 <= one < len(classes)) for one in labels):
            raise DatasetError(f"{column} is {cell!r:.100}; there are {len(classes)} classes")
        labels = [classes[one] for one in labels if one is not None]
    elif isinstance(cell, str) and several:
        labels = list(split_labels(cell, label_separator([cell])))
    words = [word for one in labels if one is not None and (word := in_words(str(one))) and not is_missing(word)]
    if numbers := [word for word in words if word.isdecimal()]:
        raise DatasetError(f"{column} is {numbers[0]}, a number without a name; give a table with the names of classes")
    metadata = {column: words if several else "".join(words[:1])} | TEMPLATE_SOURCE
    return [caption_of(template, words)] if words else [], metadata


def caption_of(template: str, names: Sequence[str]) -> str:
    """`the sound of dog`, `the sound of dog, rain and wind`."""
    *first, last = names
    return template.replace("{}", f"{', '.join(first)} and {last}" if first else last)
