"""Moments: the results of a search, each a stretch of a recording with its score."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, overload

if TYPE_CHECKING:
    from slap_fast.library.notebook import Curve


@dataclass(frozen=True)
class Moment:
    """A stretch of a recording that a search found.

    Attributes:
        path: absolute path of the file, or of the prepared dataset that has the clip.
        member: key of the clip in the dataset; empty for a file.
        start: seconds from the start of the recording.
        end: seconds from the start of the recording.
        score: inner product of the best window's embedding and the query; the cosine similarity for a single text or
            sound.
        seconds: duration of the recording.
        window: id of the best window in the library.
    """

    path: str
    member: str
    start: float
    end: float
    score: float
    seconds: float
    window: int

    @property
    def name(self) -> str:
        """The path; of a clip in a dataset, `path#key`."""
        return f"{self.path}#{self.member}" if self.member else self.path

    @property
    def exists(self) -> bool:
        """Whether the file, or the dataset, is still there."""
        return os.path.exists(self.path)

    def _repr_html_(self) -> str:
        from slap_fast.library.notebook import moment_html

        return moment_html(self)


class SearchResults(Sequence[Moment]):
    """The moments that a search found, best first. In Jupyter, each is shown with a player and a picture.

    Args:
        query: what was looked for.
        moments: best first.
        curve: similarity with the query over time, for the pictures.
    """

    def __init__(self, query: str, moments: Sequence[Moment], curve: Curve | None = None) -> None:
        self.query = query
        self._moments = tuple(moments)
        self._curve = curve

    @overload
    def __getitem__(self, position: int) -> Moment: ...
    @overload
    def __getitem__(self, position: slice) -> Sequence[Moment]: ...
    def __getitem__(self, position: int | slice) -> Moment | Sequence[Moment]:
        return self._moments[position]

    def __len__(self) -> int:
        return len(self._moments)

    def __iter__(self) -> Iterator[Moment]:
        return iter(self._moments)

    def _repr_html_(self) -> str:
        from slap_fast.library.notebook import results_html

        return results_html(self.query, self, self._curve)
