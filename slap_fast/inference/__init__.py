"""Embedding and captioning of audio files, folders and datasets, as the commands do it."""

MAX_SECONDS = 600.0
"""Longer files are not captioned by default: the cost of attention grows with the square of the length."""
