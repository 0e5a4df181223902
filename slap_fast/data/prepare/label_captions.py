"""Captions of labeled clips: the class names in a template."""

from __future__ import annotations

from collections.abc import Sequence

from slap_fast.data.format.dataset_files import DatasetError

CAPTION_TEMPLATE = "the sound of {}"
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


def caption_of(template: str, names: Sequence[str]) -> str:
    """`the sound of dog`, `the sound of dog, rain and wind`."""
    *first, last = names
    return template.replace("{}", f"{', '.join(first)} and {last}" if first else last)
