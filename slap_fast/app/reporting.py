"""Errors of an event of the page, as a sentence in place of its results."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import gradio as gr

from slap_fast.app import markup
from slap_fast.errors import SlapFastError, one_line


def reported(others: int) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., tuple[Any, ...]]]:
    """Decorator of an event whose first output is HTML: an error that a user can mend takes its place.

    Args:
        others: number of further outputs, which keep what they show.
    """

    def decorate(event: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        @functools.wraps(event)
        def answered(*values: Any, **options: Any) -> tuple[Any, ...]:
            try:
                return event(*values, **options)
            except (SlapFastError, OSError, MemoryError) as error:
                text = one_line(error, 600)
                return (markup.message(text[:1].upper() + text[1:], error=True), *[gr.skip()] * others)

        return answered

    return decorate
