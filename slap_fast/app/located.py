"""Files of what was located in one recording, which a user takes away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class LocatedFiles:
    """What was located in one recording, kept for as long as the page may ask for it.

    Attributes:
        picture: PNG.
        narrow: the same for phones.
        tables: what can be downloaded: content by ending, such as `csv`.
        name: of the recording, without its folder and ending, for the names of the files.
    """

    picture: bytes
    narrow: bytes
    tables: dict[str, bytes]
    name: str
