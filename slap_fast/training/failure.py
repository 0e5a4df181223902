"""Classifies the exception that ended a run: the message for the user, and whether a restart may help."""

from __future__ import annotations

import errno
import traceback

from slap_fast.errors import SlapFastError

_PERMANENT = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


def describe(error: Exception) -> str:
    """One line for an error that the user can fix; the traceback for a bug."""
    if isinstance(error, OSError | SlapFastError):
        return f"{type(error).__name__}: {error}\n"
    return "".join(traceback.format_exception(error))


def is_retryable(error: Exception) -> bool:
    """False for bad input, divergence, a full disk and missing permissions: a restart would fail the same way."""
    if isinstance(error, OSError) and error.errno in _PERMANENT:
        return False
    return error.retryable if isinstance(error, SlapFastError) else True
