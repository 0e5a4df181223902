"""Errors that a user can fix: bad input, a missing package, storage that is down.

Every exception class of this package derives from `SlapFastError`. The command line prints such an error, and those of
the system (OSError, out of memory), as one line. Any other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from typing import ClassVar


class SlapFastError(Exception):
    """What was wrong, where (file, key, index, value), and what to do about it, in one message.

    Attributes:
        retryable: the same call may succeed later without a change (a rank may join, clips may be readable again), so a
            launcher restarts the run. Where it is False, a restart would fail the same way.
    """

    retryable: ClassVar[bool] = False


class ModelError(SlapFastError, ValueError):
    """A saved or pretrained model that cannot be used."""


class MissingExtraError(SlapFastError, ImportError):
    """A package that an extra of slap-fast brings is not installed; the message says how to install it."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The message of an error in one line of at most `limit` characters; the error's type if it has no message."""
    text = " ".join(str(error).split())
    return (text if len(text) <= limit else f"{text[:limit]}...") or type(error).__name__
