"""`Library`: a folder of indexed recordings, to add to, search and read from Python."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import numpy as np

from slap_fast.library.database import FILE_NAME, Database, Recording
from slap_fast.library.errors import LibraryError
from slap_fast.library.identity import ModelIdentity
from slap_fast.library.moments import Moment, SearchResults
from slap_fast.library.search import combine, find_moments
from slap_fast.library.text_tower import TextTower
from slap_fast.library.vector_index import VectorIndex
from slap_fast.models.texts import split_texts
from slap_fast.models.windows import window_lengths

if TYPE_CHECKING:
    from slap_fast.library.indexing.indexer import Indexer
    from slap_fast.library.indexing.report import IndexReport, Removed
    from slap_fast.library.moment_export import ExportedMoment
    from slap_fast.library.notebook import Curve
    from slap_fast.library.shared_table import Exported
    from slap_fast.models.arguments import Audio
    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)


def check_new_library(path: Path) -> None:
    """
    Raises:
        LibraryError: a library cannot be made here, because there is something else.
    """
    if path.is_dir():
        others = sorted(entry.name for entry in path.iterdir() if entry.name != "lock")
        if others:
            raise LibraryError(
                f"{path}: this folder is not empty (it has {others[0]!r}) and is not a library; name a new folder"
            )
    elif os.path.lexists(path):
        raise LibraryError(f"{path}: this is a file; a library is a folder: name a new one")


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
            self._take_model(os.fspath(model))
        self._index = VectorIndex(self._database)
        self._text = TextTower(self.path, self.identity, lambda: self.model)
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
        """The whole model, loaded at the first use; text queries do not need it.

        Raises:
            LibraryError: its folder is gone, or has another model by now.
            ModelError: it cannot be loaded.
        """
        if self._model is None:
            import torch

            from slap_fast.models.slap import SLAP

            self._check_model(self.identity.name)
            device = self.device
            if device == "auto":
                device = "cuda" if torch.cuda.is_available() else "cpu"
            self._model = SLAP.from_pretrained(self.identity.name).to(device).eval()
        return self._model

    def recordings(self) -> list[Recording]:
        """The recordings that can be searched, in the order of their paths."""
        return self._database.recordings(state="complete")

    def embeddings(self) -> tuple[list[Recording], np.ndarray]:
        """The recordings, and the embedding of each, `[N, D]` float32."""
        return self._database.recording_embeddings()

    def search(
        self,
        text: str | Iterable[str] | None = None,
        *,
        audio: Audio | Iterable[Audio] | None = None,
        like: Moment | None = None,
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
            audio: sounds to look for, as `SLAP.encode_audio` takes them; they need the whole model, which texts do not.
            like: more like this moment, which is not among the results.
            unlike: texts that the results must not sound like.
            folders: search only in these: absolute or relative paths of folders, files and prepared datasets, or
                `path#key`, a clip of a dataset.
            min_score: least score of a result.
            min_seconds: least duration of the recording.
            max_seconds: greatest duration of the recording.
            top: largest number of results.
            sampling_rate: Hz, of samples in `audio` without their own rate.

        Raises:
            ValueError: nothing to look for, an empty text, or another invalid argument.
            AudioError: a file of `audio` cannot be read.
            LibraryError: a folder has no recording of the library; `like` is not in the library any more; or the model
                is not the one of the library any more.
            ModelError: the model cannot be loaded.
        """
        texts, negatives = split_texts(() if text is None else text), split_texts(unlike)
        if any(not one.strip() for one in (*texts, *negatives)):
            raise ValueError("a text to search for is empty; describe a sound")
        if top < 1:
            raise ValueError(f"top is {top}; it must be at least 1")
        if isinstance(folders, str | bytes | os.PathLike):
            raise ValueError(f"folders is {folders!r}; pass a list of folders")
        wanted, taken = [], []
        if audio is not None:
            wanted.append(self.model.encode_audio(audio, sampling_rate=sampling_rate).numpy())
        if like is not None:
            embedding, recording = self._window(like)
            wanted.append(embedding[None])
            taken.append((recording, like.start, like.end))
        if texts or negatives:
            embedded = self._text.encode([*texts, *negatives])
            wanted.append(embedded[: len(texts)])
        unwanted = embedded[len(texts) :] if negatives else np.empty((0, 0), np.float32)
        if not sum(map(len, wanted)):
            raise ValueError("nothing to search for; pass a text, audio, or a moment as like")
        among = None
        below = [os.path.abspath(os.fsdecode(folder)) for folder in folders]
        if below or min_seconds is not None or max_seconds is not None:
            among = self._database.window_ids(below=below, min_seconds=min_seconds, max_seconds=max_seconds)
        moments = find_moments(
            self._database,
            self._index,
            combine(np.concatenate(wanted), unwanted),
            top=top,
            among=among,
            min_score=min_score,
            taken=taken,
        )
        parts = [*texts, *(["audio"] if audio is not None else []), *([f"like {like.name}"] if like else [])]
        curve = self._curve(texts[0]) if len(parts) == len(texts) == 1 else None
        return SearchResults(" + ".join(parts) + "".join(f" - {one}" for one in negatives), moments, curve)

    def encode_text(self, texts: str | Iterable[str]) -> np.ndarray:
        """`[N, D]` float32 embeddings of texts, of unit length, to compare with `embeddings()`."""
        return self._text.encode(texts)

    def _curve(self, text: str) -> Curve:
        """Similarity with a text over time, for pictures in Jupyter: the model is loaded when one is drawn."""

        def curve(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
            times, similarity = self.model.similarity_over_time(samples, text, sampling_rate=sampling_rate)
            return times.numpy(), similarity.cpu().numpy()

        return curve

    def warm_up(self) -> None:
        """Load what texts need now, for fast answers to many queries, instead of at the first one."""
        self._text.warm_up()
        self._index.search(np.zeros(int(self._database.meta["width"]), np.float32), 1)

    def export_moments(self, moments: Iterable[Moment], folder: str | os.PathLike[str]) -> list[ExportedMoment]:
        """Cut moments out of their recordings into WAV files; see `slap_fast.library.moment_export`.

        Raises:
            OSError: the folder cannot be written.
        """
        from slap_fast.library.moment_export import export_moments

        return export_moments(moments, Path(folder), self._database)

    def export_to(self, url: str) -> Exported:
        """Copy the windows to a table of LanceDB, to be searched from any machine; later only what changed.

        Args:
            url: `s3://bucket/sounds`, `gs://`, `az://`, or a folder; see `slap_fast.library.shared_table`.

        Raises:
            LibraryError: the table is of another model or version, or the storage cannot be written.
            MissingExtraError: lancedb is not installed.
        """
        from slap_fast.library.shared_table import export_library

        return export_library(self._database, url)

    def _window(self, moment: Moment) -> tuple[np.ndarray, int]:
        """Embedding `[D]` of a moment's best window, and the number of its recording."""
        with self._database.snapshot():
            place = self._database.places([moment.window]).get(moment.window)
            if place is None or self._database.recordings_of([place.recording])[place.recording].name != moment.name:
                raise LibraryError(
                    f"{self.path}: {moment.name} has changed since this result was found; search for it again"
                )
            return self._database.vectors_of([moment.window])[moment.window], place.recording

    def add(
        self,
        *paths: str | os.PathLike[str],
        progress: bool = False,
        workers: int | None = None,
        retry: bool = False,
        report: IndexReport | None = None,
    ) -> IndexReport:
        """Index recordings, and bring all that was added before up to date.

        Only what is new or changed is embedded. What could not be read is in `failed` of the result, not raised.

        Args:
            paths: folders (searched recursively), audio files, and datasets that `slap-fast prepare` wrote.
            progress: show a progress bar.
            workers: processes that embed; 0: this one; None: one for each core, or this one on a GPU and for few files.
            retry: also try recordings again that failed and have not changed since.
            report: is filled and returned, and holds what was done also after an interrupt; None: a new one.

        Raises:
            LibraryError: a path does not exist, has no audio or is in the library; the model has changed since the
                library was made; or another process changes the library.
            ModelError: the model cannot be loaded.
        """
        from slap_fast.library.indexing.report import IndexReport

        report = IndexReport() if report is None else report
        self._indexer(workers).update([os.fspath(path) for path in paths], report, retry=retry, progress=progress)
        return report

    def update(
        self,
        *,
        progress: bool = False,
        workers: int | None = None,
        retry: bool = False,
        report: IndexReport | None = None,
    ) -> IndexReport:
        """Make the library equal to what is on disk now: `add` without paths, which documents arguments and errors."""
        return self.add(progress=progress, workers=workers, retry=retry, report=report)

    def watch(
        self,
        *paths: str | os.PathLike[str],
        seconds: float = 10.0,
        tell: Callable[[str], None] = print,
        warn: Callable[[str], None] | None = None,
        started: Callable[[IndexReport], None] | None = None,
        progress: bool = False,
        workers: int | None = None,
        retry: bool = False,
        report: IndexReport | None = None,
    ) -> None:
        """As `add`, and then again for what changes on disk, until KeyboardInterrupt, which this raises.

        A file that is being written waits until it has not changed for two seconds and a look at the folders.

        Args:
            paths: as of `add`, as are the arguments that are not here.
            seconds: between two looks at all folders.
            tell: gets a line for each change, and for each folder that is back.
            warn: gets a line for each thing that is wrong, when it begins; None: as `tell`.
            started: called after the first update.
            report: of the first update.

        Raises:
            LibraryError, ModelError: as `add`, in the first update; later errors go to `warn`.
        """
        from slap_fast.library.indexing.report import IndexReport

        self._indexer(workers).watch(
            [os.fspath(path) for path in paths],
            IndexReport() if report is None else report,
            seconds=seconds,
            started=started or (lambda report: None),
            tell=tell,
            warn=warn or tell,
            retry=retry,
            progress=progress,
        )

    def remove(self, *paths: str | os.PathLike[str]) -> Removed:
        """Forget recordings: files, or all at or below a folder. Files themselves are not touched.

        Returns:
            How many recordings were removed, and how many files that had failed.

        Raises:
            LibraryError: the library has nothing there, the next update would add it again, or another process changes
                the library.
        """
        return self._indexer(0).remove([os.fspath(path) for path in paths])

    def _indexer(self, workers: int | None) -> Indexer:
        from slap_fast.library.indexing.indexer import Indexer

        return Indexer(
            self.path,
            lambda: self.model,
            self.identity,
            check_model=lambda: self._check_model(self.identity.name),
            device=self.device,
            workers=workers,
        )

    def _create(self, model: str) -> None:
        from slap_fast.library.indexing.writer_lock import writer_lock
        from slap_fast.models.slap import SLAP

        check_new_library(self.path)
        loaded = SLAP.from_pretrained(model)
        loaded.require("audio_pooling")
        window, hop = window_lengths(loaded.config.max_duration)
        meta = {
            "model": ModelIdentity.of(model).to_meta(),
            "width": loaded.embedding_dim,
            "sample_rate": loaded.config.mel.sample_rate,
            "window_seconds": window,
            "hop_seconds": hop,
        }
        with writer_lock(self.path):
            Database.create(self.path, meta).close()

    def _require_model(self) -> None:
        self.identity.require_folder(
            self.path, f"if it was moved, name the new folder once: slap-fast index {self.path} --model FOLDER"
        )

    def _take_model(self, model: str) -> None:
        """Use the library's model from here on by the name that is given; recorded if the old one no longer exists."""
        self._check_model(model)
        given, old = ModelIdentity.of(model), self.identity
        self.identity = given
        if not old.is_gone:
            return
        from slap_fast.library.indexing.writer_lock import writer_lock

        try:
            with writer_lock(self.path), Database(self.path, write=True) as database:
                database.set_meta("model", given.to_meta())
        except (LibraryError, OSError) as error:
            logger.warning("%s: that its model is now at %s was not recorded: %s", self.path, given.name, error)

    def _check_model(self, model: str) -> None:
        if model == self.identity.name:
            self._require_model()
        given = ModelIdentity.of(model)
        if given.weights != self.identity.weights:
            raise LibraryError(
                f"{self.path}: its embeddings are of the model {self.identity.name} ({self.identity.weights}), not of "
                f"{model} ({given.weights}), and cannot be compared; make another library: slap-fast index "
                f"{self.path}-2 --model {model} FOLDER"
            )
