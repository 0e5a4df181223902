"""Located: events that were found in one recording, and the files that a user takes away."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Located:
    """What was found in one recording.

    Attributes:
        picture: PNG.
        files: what can be downloaded: content by ending, such as `csv`.
        name: of the recording, without its folder, for the names of the files.
    """

    picture: bytes
    files: dict[str, bytes]
    name: str
