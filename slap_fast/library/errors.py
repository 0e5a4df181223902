"""Errors of a sound library that its user can fix."""

from __future__ import annotations

from slap_fast.errors import SlapFastError


class LibraryError(SlapFastError, ValueError):
    """A library that cannot be opened, written or searched; the message says what to do."""
