"""Report of an update: how many recordings were new, changed, renamed, dropped, and which failed and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field


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
        dropped: recordings that are gone from disk, or were removed.
        seconds: length of the audio that was embedded.
        failed: what could not be read, with reasons.
        ignored: number of other files and folders by kind: `not_audio`, `hidden`, `dataset_folder`, `same_file`, ...
        interrupted: the update was stopped before its end; the next one goes on.
        waiting: files that were written to a moment ago, which `--watch` leaves for its next scan.
    """

    new: int = 0
    changed: int = 0
    renamed: int = 0
    copied: int = 0
    touched: int = 0
    unchanged: int = 0
    dropped: int = 0
    seconds: float = 0.0
    failed: list[Failure] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    interrupted: bool = False
    waiting: int = 0

    @property
    def wrote(self) -> bool:
        """Whether anything that a search sees may differ from before."""
        return any((self.new, self.changed, self.renamed, self.copied, self.dropped, self.failed))
