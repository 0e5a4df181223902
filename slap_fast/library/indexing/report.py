"""Report of an update: how many recordings were new, changed, renamed, dropped, and which failed and why."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from slap_fast.library.database import State


@dataclass(frozen=True)
class Failure:
    """A recording, folder or file that is not in the library, or not as it is now.

    Attributes:
        name: path; of a clip in a dataset, `path#key`.
        reason: as `AudioError.reason`; or `changed_while_read`, `worker_died`, `unreadable_folder`, `folder_missing`,
            `folder_empty`, `dataset`, `duplicate_key`.
        detail: for people, with what to do.
        unchanged: it failed before, has not changed since, and was not tried again.
    """

    name: str
    reason: str
    detail: str
    unchanged: bool = False

    def __str__(self) -> str:
        known = " (has not changed since; --retry tries again)" if self.unchanged else ""
        return f"{self.name}: {self.reason}: {self.detail}{known}"


@dataclass(frozen=True)
class Kept:
    """The begin of a recording that is embedded and stored when an update ends before all of it is.

    Attributes:
        name: path; of a clip in a dataset, `path#key`.
        seconds: length of what is kept, from the begin.
        declared: length of the recording as its header has it; None if that is not known.
    """

    name: str
    seconds: float
    declared: float | None


@dataclass(frozen=True)
class Removed:
    """What `Library.remove` has removed.

    Attributes:
        recordings: that a search found.
        partial: recordings that were embedded in part, which no search found.
        failed: files and clips that could not be read, and never were recordings.
    """

    recordings: int
    partial: int
    failed: int

    def __str__(self) -> str:
        return counted_states({"complete": self.recordings, "partial": self.partial, "failed": self.failed})


@dataclass
class IndexReport:
    """What an update of a library did.

    Attributes:
        new: recordings that were embedded and were not in the library.
        changed: recordings that were embedded again because their content had changed.
        renamed: recordings that were found under another name; their embeddings were kept.
        copied: recordings with the content of another one, whose embeddings they were given.
        touched: recordings with another modification time and the same content.
        unchanged: recordings of the same size and modification time.
        dropped: recordings that are gone from disk.
        dropped_unread: files that are gone from disk and were no recordings: they had failed, or were embedded in part.
        seconds: length of the audio that was embedded.
        failed: what could not be read, with reasons.
        ignored: number of other files and folders by kind: `not_audio`, `hidden`, `dataset_folder`, `same_file`, ...
        interrupted: the update was stopped before its end; the next one goes on.
        kept: of an update that was stopped, the recordings that are embedded and stored in part.
        waiting: files that were written to a moment ago, which `--watch` leaves for its next scan.
    """

    new: int = 0
    changed: int = 0
    renamed: int = 0
    copied: int = 0
    touched: int = 0
    unchanged: int = 0
    dropped: int = 0
    dropped_unread: int = 0
    seconds: float = 0.0
    failed: list[Failure] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    kept: list[Kept] = field(default_factory=list)
    waiting: int = 0

    @property
    def wrote(self) -> bool:
        """Whether anything that a search sees may differ from before."""
        return any((self.new, self.changed, self.renamed, self.copied, self.dropped, self.failed))


def counted_states(states: Mapping[State, int]) -> str:
    """Such as "2 recordings and 1 file that failed": no search finds a file that failed, so it is no recording."""
    kinds: list[tuple[State, str, str]] = [
        ("complete", "recording", "recordings"),
        ("partial", "recording that is embedded in part", "recordings that are embedded in part"),
        ("failed", "file that failed", "files that failed"),
    ]
    parts = [
        f"{count} {one if count == 1 else several}" for state, one, several in kinds if (count := states.get(state, 0))
    ]
    return " and ".join([", ".join(parts[:-1]), parts[-1]]) if len(parts) > 1 else parts[0] if parts else "0 recordings"
