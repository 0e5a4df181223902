"""Moments: the results of a search, each a stretch of a recording with its score."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import overload


@dataclass(frozen=True)
class Moment:
    """A stretch of a recording that a search found.

    Attributes:
        path: absolute path of the file, or of the prepared dataset that has the clip.
        member: key of the clip in the dataset; empty for a file.
        start: seconds from the start of the recording.
        end: seconds from the start of the recording.
        score: cosine similarity of the best window with the query.
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
        return f"{self.path}#{self.member}" if self.member else self.path

    def to_json(self) -> str:
        return json.dumps(asdict(self), ensure_ascii=False)


class SearchResults(Sequence[Moment]):
    """The moments that a search found, best first."""

    def __init__(self, query: str, moments: Sequence[Moment]) -> None:
        self.query = query
        self._moments = tuple(moments)

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
