"""Optional packages."""

from __future__ import annotations


class MissingExtraError(ImportError):
    """A package that an extra of slap-fast brings is not installed; the message says how to install it."""
