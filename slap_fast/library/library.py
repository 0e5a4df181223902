"""`Library`: a folder of indexed recordings, to add to, search and read from Python."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from slap_fast.library.database import FILE_NAME, Database, Recording
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.moments import Moment, SearchResults
from slap_fast.library.text_tower import TextTower
from slap_fast.library.vector_index import VectorIndex
from slap_fast.models.windows import HOP_SECONDS, WINDOW_SECONDS

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP


class Library:
    """A folder of indexed recordings.

    Args:
        path: the folder of the library.
        model: folder or hub id of the model. A library that does not exist is made with it; of one that does, it is
            compared with the library's own. None: the library exists.
        device: for embedding audio: `auto`, `cpu`, `cuda`, ...

    Raises:
        LibraryError: there is no library and no model is given, it is damaged, or its model is another one.
        ModelError: the model cannot be loaded.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, model: str | os.PathLike[str] | None = None, device: str = "auto"
    ) -> None:
        self.path = Path(path)
        self.device = device
        if model is not None and not (self.path / FILE_NAME).exists():
            self._create(os.fspath(model))
        self._database = Database(self.path)
        self.identity = ModelIdentity.from_meta(self._database.meta)
        if model is not None:
            self._check_model(os.fspath(model))
        self._index = VectorIndex(self._database)
        self._text = TextTower(self.path, self.identity.name)
        self._model: SLAP | None = None

    def __enter__(self) -> Library:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the files. Using the library afterwards is an error."""
        self._database.close()

    def __len__(self) -> int:
        """Number of windows."""
        return self._database.count_windows()

    @property
    def model(self) -> SLAP:
        """The whole model, loaded at the first use; text queries do not need it."""
        if self._model is None:
            from slap_fast.models.slap import SLAP

            self._model = SLAP.from_pretrained(self.identity.name)
        return self._model

    def recordings(self) -> list[Recording]:
        """The recordings that can be searched, in the order of their paths."""
        return self._database.recordings(state="complete")

    def embeddings(self) -> tuple[list[Recording], np.ndarray]:
        """The recordings, and the embedding of each, `[N, D]` float32."""
        return self._database.recording_embeddings()

    def search(self, text: str, *, top: int = 10) -> SearchResults:
        """The moments most similar to a text."""
        query = self._text.encode([text])[0]
        found = self._index.search(query, top)
        places = self._database.places(found.ids.tolist())
        recordings = self._database.recordings_of([place.recording for place in places.values()])
        moments = []
        for number, score in zip(found.ids.tolist(), found.scores.tolist(), strict=True):
            place = places[number]
            recording = recordings[place.recording]
            moments.append(
                Moment(recording.path, recording.member, place.start, place.end, score, recording.seconds, number)
            )
        return SearchResults(text, moments)

    def add(self, *paths: str | os.PathLike[str], progress: bool = False) -> Any:
        """Index recordings."""
        raise NotImplementedError

    def remove(self, *paths: str | os.PathLike[str]) -> int:
        """Forget recordings: files, or all below a folder. Files themselves are not touched."""
        raise NotImplementedError

    def _create(self, model: str) -> None:
        from slap_fast.models.slap import SLAP

        loaded = SLAP.from_pretrained(model)
        meta = {
            "model": ModelIdentity.of(model).to_meta(),
            "width": loaded.embedding_dim,
            "sample_rate": loaded.config.mel.sample_rate,
            "window_seconds": WINDOW_SECONDS,
            "hop_seconds": HOP_SECONDS,
        }
        Database.create(self.path, meta).close()

    def _check_model(self, model: str) -> None:
        given = ModelIdentity.of(model)
        if given.weights != self.identity.weights:
            raise LibraryError(
                f"{self.path}: its embeddings are of the model {self.identity.name} ({self.identity.weights}), not of "
                f"{model} ({given.weights}), and cannot be compared; make another library: slap-fast index "
                f"{self.path}-2 --model {model} FOLDER"
            )
