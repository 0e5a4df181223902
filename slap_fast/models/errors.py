"""What is wrong with a model that a user names, as opposed to with a call."""

from __future__ import annotations


class ModelError(ValueError):
    """A saved or pretrained model that cannot be used."""
