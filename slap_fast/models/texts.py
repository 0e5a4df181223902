"""Text arguments, and the warning of texts that are cut: the same with and without torch."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence

logger = logging.getLogger(__name__)


def split_texts(texts: str | Iterable[str]) -> list[str]:
    """The texts of an argument that is one string or an ordered iterable of strings.

    Raises:
        ValueError: it is something else, or an entry is not a valid string.
    """
    if isinstance(texts, str):
        named = {"texts": texts}
    elif isinstance(texts, bytes | bytearray | Mapping | set | frozenset) or not isinstance(texts, Iterable):
        raise ValueError(f"texts is a {type(texts).__name__}; pass a string or a list of strings")
    else:
        try:
            named = {f"texts[{position}]": text for position, text in enumerate(texts)}
        except TypeError as error:  # such as an array without dimensions
            raise ValueError(f"texts is a {type(texts).__name__} that cannot be iterated ({error})") from error
    for name, text in named.items():
        if not isinstance(text, str):
            raise ValueError(f"{name} is a {type(text).__name__}; pass a list of strings")
        if any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError(f"{name} is {text[:40]!r}, which is not valid Unicode; decode it with the right encoding")
    return [str(text) for text in named.values()]


def warn_of_cut_texts(cut: Sequence[str], total: int, max_length: int) -> None:
    """Log a warning if some of `total` texts have more than `max_length` tokens; `cut` are those."""
    if cut:
        logger.warning(
            "%d of %d texts are longer than the model's %d tokens and were cut, the first being %r",
            len(cut),
            total,
            max_length,
            f"{cut[0][:60]}...",
        )
