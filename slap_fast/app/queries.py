"""Queries of the page: what was asked for, as one vector, and the moments that answer it."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from slap_fast.app.errors import PageError
from slap_fast.app.folders import folder_of
from slap_fast.app.listener import Listener
from slap_fast.app.names import shown
from slap_fast.app.pictures import clock
from slap_fast.app.typed_seconds import typed_seconds
from slap_fast.app.uploads import read_upload
from slap_fast.library.database import Database
from slap_fast.library.library import Library
from slap_fast.library.moments import Moment
from slap_fast.library.search import combine, find_moments
from slap_fast.library.text_tower import TextTower
from slap_fast.library.vector_index import VectorIndex

MAX_TEXT = 500
"""Characters of a query."""

MAX_QUERY_SECONDS = 600.0
"""Length of a sound that is searched for."""

MAX_RESULTS = 200
"""Results of one query, however often more are asked for."""


@dataclass(frozen=True)
class Query:
    """What a search looks for.

    Attributes:
        vector: `[D]` float32; the score of a window is its inner product with it.
        text: for people.
        folder: only recordings below this path; empty: all.
        shortest: seconds; only recordings of at least this duration.
        longest: seconds; only recordings of at most this duration.
        taken: recording, begin and end of a moment that is not among the results, because they should resemble it.
        notes: sentences about what was not searched for, or is odd about the sound.
    """

    vector: np.ndarray
    text: str
    folder: str = ""
    shortest: float = 0.0
    longest: float = math.inf
    taken: tuple[tuple[int, float, float], ...] = ()
    notes: tuple[str, ...] = ()


class Finder:
    """Turns what the page sends into queries, and finds their moments. Checks every value: a client can send any."""

    def __init__(self, library: Library, database: Database, listener: Listener) -> None:
        self._library = library
        self._database = database
        self._listener = listener
        self._texts = TextTower(library.path, library.identity, lambda: library.model)
        self._index = VectorIndex(database)

    def of_words_and_sound(self, text: Any, upload: str | None, unlike: Any) -> Query:
        """A query of words, a sound, or both, and words that the results should not resemble.

        Raises:
            PageError: there is neither, or one of them cannot be used.
        """
        text, unlike = typed_text(text), typed_text(unlike)
        if not text and not upload:
            raise PageError("type what to look for, or drop a sound that the results should resemble")
        positive = [self.embed_text(text)] if text else []
        parts = [f"“{text}”"] if text else []
        notes: tuple[str, ...] = ()
        if upload:
            rate = int(self._database.meta["sample_rate"])
            samples, notes = read_upload(upload, rate, MAX_QUERY_SECONDS)
            positive.append(self._listener.embed(samples))
            parts.append(f"the sound {shown(os.path.basename(upload))}")
        negative = np.stack([self.embed_text(unlike)]) if unlike else np.empty((0, 0), np.float32)
        cut = [each for each in (text, unlike) if each and self._texts.is_cut(each)]
        left_out = [
            f"“{each[:40]}…” is longer than the model takes: its end was left out; use fewer words." for each in cut
        ]
        return Query(
            combine(np.stack(positive), negative),
            " and ".join(parts) + (f", not “{unlike}”" if unlike else ""),
            notes=(*left_out, *notes),
        )

    def of_window(self, window: Any) -> Query:
        """A query for what resembles a moment, by the id of its window.

        Raises:
            PageError: the library has no such window.
        """
        number = int(window) if isinstance(window, str) and window.isascii() and window.isdecimal() else -1
        found = self._database.vectors_of([number]) if 0 <= number < 1 << 63 else {}
        place = self._database.places([number]).get(number) if found else None
        if place is None:
            raise PageError("this moment is no longer in the library; search again")
        recording = self._database.recordings_of([place.recording])[place.recording]
        name = shown(os.path.basename(recording.name))
        taken = ((place.recording, place.start, place.end),)
        of = f"{clock(place.start)} to {clock(place.end)} of {name}"
        if not place.whole:
            of += ", the best window of that moment"
        return Query(found[number], of, taken=taken)

    def embed_text(self, text: str) -> np.ndarray:
        """`[D]` float32, unit length."""
        return self._texts.encode([text])[0]

    def narrowed(self, query: Query, folder: Any, shortest: Any, longest: Any) -> Query:
        """The query with filters.

        Raises:
            PageError: a duration is not a number, or none can be both.
        """
        low, high = typed_seconds(shortest, 0.0), typed_seconds(longest, math.inf)
        if low > high:
            raise PageError(f"no duration is at least {low:g} s and at most {high:g} s; exchange the two")
        return replace(query, folder=folder_of(folder) if isinstance(folder, str) else "", shortest=low, longest=high)

    def moments(self, query: Query, count: int) -> list[Moment]:
        """The best moments, at most `count`."""
        among = None
        if query.folder or query.shortest or query.longest < math.inf:
            among = self._database.window_ids(
                below=[query.folder] if query.folder else [],
                min_seconds=query.shortest,
                max_seconds=None if query.longest == math.inf else query.longest,
            )
        return find_moments(self._database, self._index, query.vector, top=count, among=among, taken=query.taken)


def count_of(value: Any) -> int:
    """A number of results as the page sends it.

    Raises:
        PageError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= MAX_RESULTS:
        raise PageError(f"the number of results must be 1 to {MAX_RESULTS}")
    return int(value)


def typed_text(value: Any) -> str:
    """A text as the page sends it, in valid Unicode, without spaces around it; empty if it is none.

    Raises:
        PageError: it is longer than `MAX_TEXT`.
    """
    text = " ".join(value.split()) if isinstance(value, str) else ""
    text = text.encode("utf-8", "replace").decode()  # half of a character pair is none
    if len(text) > MAX_TEXT:
        raise PageError(f"the text has {len(text)} characters; write at most {MAX_TEXT}")
    return text
