"""`SharedLibrary`: searches the windows that libraries exported to a URL, from any machine.

The same search as `Library.search`: the same query vector, and the same moments where the table finds the same windows.
Paths in the results are those of the machine that exported them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.moment_merging import ScoredWindow, merge_windows
from slap_fast.library.moments import Moment, SearchResults
from slap_fast.library.search import combine
from slap_fast.library.shared_table import SharedTable, SharedWindow
from slap_fast.models.texts import split_texts

if TYPE_CHECKING:
    from slap_fast.models.arguments import Audio
    from slap_fast.models.slap import SLAP

_FIRST_DEPTH = 256  # windows that are asked for at first: of a few moments each


class SharedLibrary:
    """A table of exported windows, and the model for queries.

    Args:
        url: as of `Library.export_to`.
        model: folder or hub id of the model, for a machine that does not have it where the library was made; it is
            compared with the model of the table. None: by the name that the table has.

    Raises:
        LibraryError: there is no table, it cannot be read, or `model` is another one.
        ModelError: there is no such model.
        MissingExtraError: lancedb is not installed.
    """

    def __init__(self, url: str, *, model: str | os.PathLike[str] | None = None) -> None:
        self.url = url
        self._table = SharedTable(url)
        self.identity = self._table.identity
        if model is not None:
            given = ModelIdentity.of(os.fspath(model))
            if given.weights != self.identity.weights:
                raise LibraryError(
                    f"{url}: its embeddings are of the model {self.identity.name} ({self.identity.weights}), not of "
                    f"{given.name} ({given.weights}); pass the model that indexed the recordings"
                )
            self.identity = given
        self._model: SLAP | None = None

    def __len__(self) -> int:
        """Number of windows."""
        return len(self._table)

    @property
    def model(self) -> SLAP:
        """The model, loaded at the first use.

        Raises:
            LibraryError: the name that the table has means another model now.
            ModelError: there is no such model here; pass `model`.
        """
        if self._model is None:
            from slap_fast.models.slap import SLAP

            self.identity.require_folder(self.url, "pass the folder where it is now (`--model`)")
            found = ModelIdentity.of(self.identity.name)
            if found.weights != self.identity.weights:
                raise LibraryError(
                    f"{self.url}: the model {self.identity.name} has other weights ({found.weights}) than the table's "
                    f"({self.identity.weights}); pass the model that indexed the recordings"
                )
            self._model = SLAP.from_pretrained(self.identity.name)
        return self._model

    def search(
        self,
        text: str | Iterable[str] | None = None,
        *,
        audio: Audio | Iterable[Audio] | None = None,
        unlike: str | Iterable[str] = (),
        folders: Iterable[str | os.PathLike[str]] = (),
        min_score: float | None = None,
        min_seconds: float | None = None,
        max_seconds: float | None = None,
        top: int = 10,
        sampling_rate: float | None = None,
    ) -> SearchResults:
        """The moments that sound most like texts and sounds, best first.

        Args:
            text: what to look for; of several texts and sounds, the mean counts.
            audio: sounds to look for, as `SLAP.encode_audio` takes them.
            unlike: texts that the results must not sound like.
            folders: search only in these, as of `Library.search`: paths on the machine that exported them; a relative
                one is one of this machine.
            min_score: least score of a result.
            min_seconds: least duration of the recording.
            max_seconds: greatest duration of the recording.
            top: largest number of results.
            sampling_rate: Hz, of samples in `audio` without their own rate.

        Raises:
            ValueError: nothing to look for, an empty text, or another invalid argument.
            AudioError: a file of `audio` cannot be read.
            LibraryError: a folder has no recording of the table; the table cannot be read, or the model is not the one
                of the table.
            ModelError: the model cannot be loaded.
        """
        texts, negatives = split_texts(() if text is None else text), split_texts(unlike)
        if any(not one.strip() for one in (*texts, *negatives)):
            raise ValueError("a text to search for is empty; describe a sound")
        if top < 1:
            raise ValueError(f"top is {top}; it must be at least 1")
        if not texts and audio is None:
            raise ValueError("nothing to search for; pass a text or audio")
        if isinstance(folders, str | bytes | os.PathLike):
            raise ValueError(f"folders is {folders!r}; pass a list of folders")
        below = [os.path.abspath(os.fsdecode(folder)) for folder in folders]
        for folder in below:
            if not self._table.has(_below(os.fsencode(folder))):
                raise LibraryError(f"{folder}: the table {self.url} has no recording there")
        wanted = [self.model.encode_text(texts).numpy()] if texts else []
        if audio is not None:
            wanted.append(self.model.encode_audio(audio, sampling_rate=sampling_rate).numpy())
        unwanted = self.model.encode_text(negatives).numpy() if negatives else np.empty((0, 0), np.float32)
        where = search_condition([os.fsencode(folder) for folder in below], min_seconds, max_seconds)
        moments = self.find(combine(np.concatenate(wanted), unwanted), top=top, where=where, min_score=min_score)
        parts = [*texts, *(["audio"] if audio is not None else [])]
        return SearchResults(" + ".join(parts) + "".join(f" - {one}" for one in negatives), moments)

    def find(
        self, query: np.ndarray, *, top: int = 10, where: str | None = None, min_score: float | None = None
    ) -> list[Moment]:
        """The `top` best moments for a query vector `[D]` float32, with `where` as of `SharedTable.search`."""
        depth = max(_FIRST_DEPTH, 8 * top)
        while True:
            found = self._table.search(query, depth, where=where)
            recordings = _Recordings(found)
            near = self._near(query, recordings)
            moments = []
            for span in islice(merge_windows(recordings.windows(found), near), top):
                if min_score is not None and span.best.score < min_score:
                    break
                recording = recordings.of(span.best.recording).recording
                place = (recording.path, recording.member, span.start, span.end)
                moments.append(Moment(*place, span.best.score, recording.seconds, span.best.id))
            below = min_score is not None and bool(found) and found[-1].score < min_score
            if len(moments) == top or len(found) < depth or below:
                return moments
            depth *= 8  # most windows overlap few moments: of a long recording of the same sound

    def _near(
        self, query: np.ndarray, recordings: _Recordings
    ) -> Callable[[int, float, float], Sequence[ScoredWindow]]:
        def near(number: int, start: float, end: float) -> list[ScoredWindow]:
            one = recordings.of(number)
            found = self._table.near(query, one.library, one.recording.id, start, end)
            return list(recordings.windows(found))

        return near


class _Recordings:
    """Numbers for the recordings of several libraries, whose ids may be equal."""

    def __init__(self, windows: Iterable[SharedWindow]) -> None:
        self._first: list[SharedWindow] = []
        self._numbers: dict[tuple[str, int], int] = {}
        for window in windows:
            if (window.library, window.recording.id) not in self._numbers:
                self._numbers[window.library, window.recording.id] = len(self._first)
                self._first.append(window)

    def of(self, number: int) -> SharedWindow:
        """A window of the recording."""
        return self._first[number]

    def windows(self, windows: Iterable[SharedWindow]) -> Iterator[ScoredWindow]:
        for window in windows:
            number = self._numbers[window.library, window.recording.id]
            yield ScoredWindow(window.id, number, window.start, window.end, window.whole, window.score)


def search_condition(
    folders: Sequence[bytes], min_seconds: float | None = None, max_seconds: float | None = None
) -> str | None:
    """The condition in SQL on recordings at or below one of `folders` and of these durations; None: all.

    Args:
        folders: absolute paths, or `path#key`, a clip of a prepared dataset, as of `Database.recordings_below`.
        min_seconds: least duration.
        max_seconds: greatest duration.
    """
    parts = []
    if folders:
        parts.append(f"({' OR '.join(map(_below, folders))})")
    if min_seconds is not None:
        parts.append(f"seconds >= {float(min_seconds)!r}")
    if max_seconds is not None:
        parts.append(f"seconds <= {float(max_seconds)!r}")
    return " AND ".join(parts) or None


def _below(folder: bytes) -> str:
    """A recording at or below a folder: bytes are compared, and `/` + 1 is `0`; or a clip of a dataset."""
    name, folder = folder, folder.rstrip(b"/")
    first, end = (folder + b"/").hex(), (folder + b"0").hex()
    parts = [f"path = X'{folder.hex()}'", f"(path >= X'{first}' AND path < X'{end}')"]
    # Both a path and a key may have a #, so each one is tried. A key is valid text.
    for position in (position for position, byte in enumerate(name) if byte == ord("#")):
        with suppress(UnicodeDecodeError):
            if key := name[position + 1 :].decode():
                quoted = key.replace("'", "''")
                parts.append(f"(path = X'{name[:position].hex()}' AND member = '{quoted}')")
    return " OR ".join(parts)
