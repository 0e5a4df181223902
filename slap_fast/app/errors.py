"""Error that the page shows to its user."""

from __future__ import annotations

from slap_fast.errors import SlapFastError


class PageError(SlapFastError, ValueError):
    """What was asked for cannot be done; the message says why and what to do, and is shown on the page."""
