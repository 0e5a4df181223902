"""The error for an unusable clip."""

from __future__ import annotations

from slap_fast.errors import SlapFastError


class AudioError(SlapFastError, ValueError):
    """A clip that cannot be used.

    Attributes:
        reason: the category in reports: one of `missing_file`, `empty_file`, `unsupported_format`, `unreadable`,
            `truncated`, `no_audio`, `protected`, `no_samples`, `not_finite`, `out_of_range`, `too_short`, `too_long`.
        detail: what was found, for a person.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"
