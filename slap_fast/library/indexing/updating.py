"""Update of a library: makes it equal to the files on disk.

One process, the writer, compares what is on disk with the database, hashes what may differ, gives what has no
embeddings to an engine, and stores the results. A long recording is stored every ten minutes of audio, so that an
update that was killed goes on inside of it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice, pairwise
from typing import Protocol

import numpy as np

from slap_fast.audio.errors import AudioError
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.library.database import Database, Recording, WindowRow, stored_mtime
from slap_fast.library.indexing.jobs import Embedded, Event, Failed, Finished, Job
from slap_fast.library.indexing.report import Failure, IndexReport, Kept
from slap_fast.library.indexing.sources import Found, Scan
from slap_fast.library.recording_audio import CHANGED_WHILE_READ, open_recording, read_clip
from slap_fast.models.windows import MeanEmbedding

COMMIT_WINDOWS = 120
"""Windows of a recording that are stored before it is complete: ten minutes."""

SHARED_BYTES = 32 << 20
"""A larger file is shared by all workers, if without that one of them would still read it when the rest is done."""

_HASHED_AHEAD = 64


class Engine(Protocol):
    """Embeds recordings somewhere: in this process or in workers."""

    @property
    def workers(self) -> int: ...

    @property
    def pending(self) -> int:
        """Jobs without an end yet."""
        ...

    @property
    def full(self) -> bool:
        """Whether more jobs would only wait."""
        ...

    def submit(self, job: Job, left: int) -> None:
        """Queue a job; recordings of `left` bytes may be submitted after it."""
        ...

    def next(self) -> list[Event]:
        """The next events, at least one. Call it while jobs are pending."""
        ...


class Progress(Protocol):
    """What is told how far an update is."""

    def begin(self, size: int, done: int) -> None:
        """There are `size` bytes of recordings that may have changed, of which an earlier update has done `done`."""
        ...

    def read(self, size: int) -> None:
        """`size` more bytes are done."""
        ...

    def embedded(self, seconds: float) -> None:
        """`seconds` more audio is embedded."""
        ...


@dataclass
class _Reading:
    """A recording that is being embedded."""

    found: Found
    digest: bytes
    old: bool  # a complete recording of other content at this path, which is searched until this one is complete
    parts: int
    recording: int | None = None  # id, once a part of it is stored
    done: int = 0  # windows from the begin, without gaps
    rows: list[WindowRow] = field(default_factory=list)  # the last of them, not stored yet
    early: dict[int, WindowRow] = field(default_factory=dict)  # after a gap, of another worker
    mean: MeanEmbedding = field(default_factory=MeanEmbedding)  # of the windows
    only: WindowRow | None = None  # of all of it
    ended: set[int] = field(default_factory=set)  # parts
    lengths: set[int] = field(default_factory=set)  # number of windows, of each part: more than one if it changed
    seconds: float = 0.0
    covered: float = 0.0  # seconds from the begin that are embedded
    declared: float | None = None  # seconds, of its header
    told: int = 0  # bytes that were reported as read
    failed: bool = False


class Update:
    """One update of a library."""

    def __init__(
        self,
        database: Database,
        scan: Scan,
        report: IndexReport,
        progress: Progress,
        *,
        retry: bool = False,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        """
        Args:
            database: open for writing.
            scan: what is on disk.
            report: is filled, also if the update is interrupted.
            progress: is told how far it is.
            retry: also try recordings again that failed and have not changed.
            tell: gets a line for each change.
        """
        self._database = database
        self._tell = tell or (lambda line: None)
        self._report = report
        self._progress = progress
        self._found = scan.found
        self._readings: dict[int, _Reading] = {}
        self._in_work: dict[bytes, list[tuple[Found, bool]]] = {}  # by digest: others of the same content, that wait
        self._engine: Engine | None = None
        self._submitted = 0
        report.failed += scan.missing.values()
        report.ignored += scan.ignored
        known = {(recording.path, recording.member): recording for recording in database.recordings()}
        self._complete = {recording.digest: recording for recording in known.values() if recording.state == "complete"}
        self._partial = {recording.digest: recording for recording in known.values() if recording.state == "partial"}
        self._deadly = {recording.size for recording in known.values() if recording.reason == "worker_died"}
        self._gone = {key: recording for key, recording in known.items() if key not in scan.found}
        for key in [key for key in self._gone if not scan.covers(key[0])]:
            del self._gone[key]
        self._to_read: list[tuple[Found, Recording | None]] = []
        report.waiting = len(scan.waiting)
        for found in (found for key, found in scan.found.items() if key not in scan.waiting):
            self._compare(found, known.get(found.key), retry)
        # New ones first: another name of a recording must be seen before new content takes its place. Of these the
        # large ones first, so that no worker is left with one at the end.
        self._to_read.sort(key=lambda item: (item[1] is not None, -item[0].size if item[0].size > SHARED_BYTES else 0))
        self._size = sum(found.size for found, _ in self._to_read)
        self._left = self._size
        self._resumed: dict[tuple[str, str], int] = {}  # bytes that an earlier update has done, until they are told

    @property
    def reads(self) -> int:
        """Bytes of the recordings that are new, or may have changed."""
        return self._size

    @property
    def dangerous(self) -> bool:
        """Whether one of these may have killed the process that read it before: by its name, or by its size."""
        return any(
            found.size in self._deadly or (known is not None and known.reason == "worker_died")
            for found, known in self._to_read
        )

    def run(self, engine: Engine) -> None:
        """Embed and store what is new or changed, and drop what is gone.

        Raises:
            LibraryError: the database cannot be written; what is in it stays.
            KeyboardInterrupt: what is embedded so far is stored.
        """
        self._engine = engine
        self._resumed = {
            found.key: done for found, known in self._to_read if known is not None and (done := _done(found, known))
        }
        self._progress.begin(self._size, sum(self._resumed.values()))
        try:
            for found, old, digest in _hashed(self._to_read):
                self._left -= found.size
                self._sort_out(found, old, digest)
                while engine.full:
                    self._handle(engine.next())
            while engine.pending:
                self._handle(engine.next())
            self._drop()
        except KeyboardInterrupt:
            self._report.interrupted = True
            raise
        finally:
            for reading in self._readings.values():
                self._store_part(reading)
                if reading.recording is not None and not reading.failed:
                    self._report.kept.append(Kept(reading.found.name, reading.covered, reading.declared))

    # Comparison

    def _compare(self, found: Found, known: Recording | None, retry: bool) -> None:
        same = known is not None and (known.size, known.mtime_ns) == (found.size, found.mtime_ns)
        if known is not None and same and known.state == "complete" and not found.reason:
            self._report.unchanged += 1
        elif known is not None and same and known.state == "failed" and not retry:
            failure = Failure(known.name, known.reason, known.detail, unchanged=True)
            self._report.failed.append(failure)
        else:
            self._to_read.append((found, known))

    def _sort_out(self, found: Found, old: Recording | None, digest: bytes | Failure) -> None:
        """Decide by the digest what to do with a recording that is new or may have changed."""
        if isinstance(digest, Failure):
            changed = "" if found.reason else _change(found)
            if changed or digest.reason == CHANGED_WHILE_READ:
                self._report.failed.append(Failure(found.name, CHANGED_WHILE_READ, changed or digest.detail))
            else:
                self._fail(found, digest.reason, digest.detail)
            self._tell_done(found)
            return
        had_content = old is not None and old.state == "complete"
        if old is not None and had_content and old.digest == digest:
            self._database.move_recording(old.id, *found.key, size=found.size, mtime_ns=found.mtime_ns)
            self._report.touched += 1
            self._tell_done(found)
        elif digest in self._complete:
            self._take_over(found, self._complete[digest])
            self._tell_done(found)
        elif digest in self._in_work:
            self._in_work[digest].append((found, had_content))
        else:
            self._submit(found, digest, had_content)

    def _take_over(self, found: Found, same: Recording) -> None:
        """Give a recording the embeddings of one with the same content."""
        self._forget_digest(found)
        if self._gone.pop((same.path, same.member), None):
            self._database.move_recording(same.id, *found.key, size=found.size, mtime_ns=found.mtime_ns)
            self._report.renamed += 1
            self._tell(f"renamed {same.name} to {found.name}")
        else:
            self._database.copy_recording(same.id, *found.key, size=found.size, mtime_ns=found.mtime_ns)
            self._report.copied += 1
            self._tell(f"copy {found.name} of {same.name}")

    def _forget_digest(self, found: Found) -> None:
        """The recording at this path is about to be replaced, so its content cannot be copied from it any more."""
        old = self._database.find(*found.key)
        if old is not None and self._complete.get(old.digest, old).id == old.id:
            self._complete.pop(old.digest, None)

    # Embedding

    def _submit(self, found: Found, digest: bytes, old: bool) -> None:
        assert self._engine is not None
        workers = self._engine.workers
        shared = found.size > max(SHARED_BYTES, self._left // workers)
        reading = _Reading(found, digest, old, workers if shared else 1, told=self._resumed.pop(found.key, 0))
        partial = self._partial.pop(digest, None)
        if partial is not None:
            self._continue(reading, partial)
        self._submitted += 1
        number = self._submitted
        self._readings[number] = reading
        self._in_work[digest] = []
        for part in range(reading.parts):
            job = Job(number, *found.key, found.clip, reading.done, part, reading.parts, found.size)
            self._engine.submit(job, self._left)

    def _continue(self, reading: _Reading, partial: Recording) -> None:
        """Take over the windows that an interrupted update has stored, also if the file was renamed since."""
        found, key = reading.found, (partial.path, partial.member)
        if reading.old or (key != found.key and key not in self._gone):
            return
        rows = self._database.partial_windows(partial.id)
        if any(later.start <= row.start for row, later in pairwise(rows)):
            return  # damaged: embedded from the begin, in place of these
        self._gone.pop(key, None)
        self._forget_digest(found)
        self._database.move_recording(partial.id, *found.key, size=found.size, mtime_ns=found.mtime_ns)
        reading.recording, reading.done, reading.covered = partial.id, len(rows), partial.seconds
        for row in rows:
            reading.mean.add(row.embedding[None])

    def _handle(self, events: Sequence[Event]) -> None:
        """Store the results of some events, in one transaction: one for each short recording would take its time."""
        interrupt: KeyboardInterrupt | None = None
        report, before, failed = self._report, replace(self._report), len(self._report.failed)
        try:
            with self._database.transaction():
                try:
                    for event in events:
                        self._handle_one(event)
                except KeyboardInterrupt as error:
                    interrupt = error  # after what is embedded is stored
        except Exception:
            # What the transaction took back is not counted, and nothing goes on from it.
            self._readings.clear()
            report.new, report.changed = before.new, before.changed
            report.copied, report.renamed = before.copied, before.renamed
            del report.failed[failed:]
            raise
        if interrupt is not None:
            raise interrupt

    def _handle_one(self, event: Event) -> None:
        reading = self._readings.get(event.job.number)
        if reading is None or reading.failed:
            return  # another part of it has failed
        if isinstance(event, Failed):
            del self._readings[event.job.number]
            self._remove_part(reading)
            changed = _change(reading.found)
            if changed or event.reason == CHANGED_WHILE_READ:
                self._leave(reading, changed or event.detail)
            else:
                self._fail_all(reading, event.reason, event.detail)
            return
        if isinstance(event, Embedded):
            for number, row in enumerate(event.rows, event.first):
                if number >= reading.done:
                    reading.early[number] = row
            while reading.done in reading.early:
                row = reading.early.pop(reading.done)
                reading.rows.append(row)
                reading.mean.add(row.embedding[None])
                reading.done += 1
                self._progress.embedded(row.end - reading.covered)
                self._report.seconds += row.end - reading.covered
                reading.covered = row.end
            reading.declared = event.declared
            if reading.rows:
                self._tell_read(reading, reading.rows[-1].end)
            if len(reading.rows) >= COMMIT_WINDOWS:
                self._store_part(reading)
        elif isinstance(event, Finished):
            reading.ended.add(event.job.part)
            reading.lengths.add(event.windows)
            reading.seconds = event.seconds
            reading.only = event.whole or reading.only
            if len(reading.ended) == reading.parts:
                del self._readings[event.job.number]
                self._complete_reading(reading)

    def _tell_done(self, found: Found) -> None:
        """All of a recording is done, without embedding it."""
        self._progress.read(found.size - self._resumed.pop(found.key, 0))

    def _tell_read(self, reading: _Reading, seconds: float) -> None:
        size = reading.found.size
        told = min(size, int(size * seconds / reading.declared)) if reading.declared else reading.told
        self._progress.read(max(0, told - reading.told))
        reading.told = max(told, reading.told)

    def _complete_reading(self, reading: _Reading) -> None:
        found = reading.found
        changed = _change(found)
        if not changed and reading.lengths != {reading.done}:
            lengths = ", ".join(map(str, sorted(reading.lengths | {reading.done})))
            changed = f"its length differs from one reading of it to another ({lengths} windows); the next update "
            changed += "reads it again"
        if changed:
            self._remove_part(reading)
            self._leave(reading, changed)
            return
        self._progress.read(found.size - reading.told)
        rows = reading.rows if reading.only is None else [*reading.rows, reading.only]
        embedding = _recording_embedding(reading)
        self._forget_digest(found)
        if reading.recording is None:
            self._database.store_recording(
                *found.key,
                rows,
                size=found.size,
                mtime_ns=found.mtime_ns,
                digest=reading.digest,
                seconds=reading.seconds,
                embedding=embedding,
            )
        else:
            self._database.complete_recording(reading.recording, rows, seconds=reading.seconds, embedding=embedding)
        if reading.old:
            self._report.changed += 1
        else:
            self._report.new += 1
        self._tell(f"{'changed' if reading.old else 'new'} {found.name}")
        stored = self._database.find(*found.key)
        assert stored is not None
        self._complete[reading.digest] = stored
        for other, _ in self._in_work.pop(reading.digest):
            self._take_over(other, stored)
            self._tell_done(other)

    def _leave(self, reading: _Reading, detail: str) -> None:
        """Name a recording that changed while it was read. What the library has of it stays until the next update."""
        self._progress.read(reading.found.size - reading.told)
        self._report.failed.append(Failure(reading.found.name, CHANGED_WHILE_READ, detail))
        for other, old in self._in_work.pop(reading.digest):
            self._submit_later(other, reading.digest, old)

    def _submit_later(self, found: Found, digest: bytes, old: bool) -> None:
        if digest in self._in_work:
            self._in_work[digest].append((found, old))
        else:
            self._submit(found, digest, old)

    def _store_part(self, reading: _Reading) -> None:
        """Keep the windows so far, for an update after this one is killed. A short recording has nothing to keep.

        Nor has one that takes the place of a complete one, which is searched until all of the new one is embedded.
        """
        if not reading.rows or reading.failed or reading.old:
            return
        if reading.recording is None and len(reading.rows) < COMMIT_WINDOWS:
            return
        found = reading.found
        if reading.recording is None:
            self._forget_digest(found)
            reading.recording = self._database.begin_recording(
                *found.key, size=found.size, mtime_ns=found.mtime_ns, digest=reading.digest
            )
        # Before they are stored: if this is interrupted after that, they must not be stored again.
        rows, reading.rows = reading.rows, []
        self._database.add_partial_windows(reading.recording, rows, rows[-1].end)

    def _remove_part(self, reading: _Reading) -> None:
        reading.failed = True
        if reading.recording is not None:
            self._database.remove_recordings([reading.recording])

    # Failures and what is gone

    def _fail_all(self, reading: _Reading, reason: str, detail: str) -> None:
        self._progress.read(reading.found.size - reading.told)
        for found, _ in [(reading.found, False), *self._in_work.pop(reading.digest)]:
            self._fail(found, reason, detail, reading.digest)

    def _fail(self, found: Found, reason: str, detail: str, digest: bytes = b"") -> None:
        """Name a recording that cannot be read, and remember it until it changes."""
        self._report.failed.append(Failure(found.name, reason, detail))
        self._forget_digest(found)
        self._database.begin_recording(
            *found.key,
            size=found.size,
            mtime_ns=found.mtime_ns,
            digest=digest,
            state="failed",
            reason=reason,
            detail=detail,
        )

    def _drop(self) -> None:
        self._database.remove_recordings([recording.id for recording in self._gone.values()])
        dropped = sum(recording.state == "complete" for recording in self._gone.values())
        self._report.dropped += dropped
        self._report.dropped_unread += len(self._gone) - dropped
        for recording in self._gone.values():
            self._tell(f"dropped {recording.name}")


def _recording_embedding(reading: _Reading) -> np.ndarray:
    """`[D]` float32, unit length: that of the whole recording if it is short, else the mean of its windows."""
    if reading.only is not None:
        return reading.only.embedding
    if reading.done == 1:
        return reading.rows[0].embedding
    return reading.mean.result()


def _done(found: Found, known: Recording) -> int:
    """Bytes of a recording, roughly, that are embedded and stored by an update that was interrupted."""
    if known.state != "partial" or (known.size, known.mtime_ns) != (found.size, found.mtime_ns):
        return 0
    try:
        with open_recording(known) as sound:  # it has been decoded before, so opening it is safe in this process
            declared = sound.declared_seconds
    except (AudioError, DatasetError, OSError):
        return 0  # told when it is read
    return min(found.size, int(found.size * known.seconds / declared)) if declared else 0


def _change(found: Found) -> str:
    """What has happened to a file, or to the tar of a clip, since it was found; for people. Empty: nothing."""
    try:
        status = os.stat(found.tar or found.path)
    except OSError as error:
        return f"it cannot be read any more ({error.strerror}); the next update tries again"
    if stored_mtime(status) == found.mtime_ns and (found.tar or status.st_size == found.size):
        return ""
    return "it changed while it was read; the next update reads it again"


def _hashed(
    items: Sequence[tuple[Found, Recording | None]],
) -> Iterator[tuple[Found, Recording | None, bytes | Failure]]:
    """The digest of each recording, computed ahead in threads."""
    datasets: dict[str, ClipIndex] = {}
    with ThreadPoolExecutor(2) as pool:
        remaining = iter(items)

        def submit(count: int) -> list[tuple[Found, Recording | None, Future[bytes | Failure]]]:
            return [(found, old, pool.submit(_digest, found, datasets)) for found, old in islice(remaining, count)]

        pending = submit(_HASHED_AHEAD)
        try:
            while pending:
                found, old, future = pending.pop(0)
                pending += submit(1)
                yield found, old, future.result()
        finally:
            for _, _, future in pending:
                future.cancel()


def _digest(found: Found, datasets: dict[str, ClipIndex]) -> bytes | Failure:
    """BLAKE2b-128 of the content, or why it cannot be read."""
    if found.reason:
        return Failure(found.name, found.reason, found.detail)
    digest = hashlib.blake2b(digest_size=16)
    try:
        if found.member:
            if found.path not in datasets:
                datasets[found.path] = ClipIndex.open(found.path)
            digest.update(read_clip(datasets[found.path], found.clip, found.member))
        else:
            with open(found.path, "rb") as file:
                while piece := file.read(1 << 20):
                    digest.update(piece)
    except AudioError as error:
        return Failure(found.name, error.reason, error.detail)
    except DatasetError as error:
        return Failure(found.name, "dataset", str(error))
    except OSError as error:
        return Failure(found.name, "unreadable", (error.strerror or str(error)).lower())
    return digest.digest()
