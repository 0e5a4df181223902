"""Choices of the page: folders of the library, as labels for people and values for any name."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import PurePath
from urllib.parse import quote_from_bytes, unquote_to_bytes

from slap_fast.app.names import shown
from slap_fast.library.database import Recording

MAX_FOLDERS = 500
"""Subfolders beyond these are not listed; those nearest to the indexed folders come first."""


def folder_choices(folders: Iterable[str], recordings: Iterable[Recording]) -> tuple[list[tuple[str, str]], int]:
    """Indexed folders and their subfolders that have recordings, by path: label and value of each.

    The label leaves out what all paths have in common; the value is the whole path.

    Returns:
        At most `MAX_FOLDERS` of them, and the number of those that are left out.
    """
    roots = {folder for folder in folders if not os.path.isfile(folder)}
    found = set(roots)
    parents = {recording.path if recording.member else os.path.dirname(recording.path) for recording in recordings}
    for parent in parents:
        path = PurePath(parent)
        below = next((root for root in roots if PurePath(root) in (path, *path.parents)), None)
        if below is not None:
            steps = [path, *path.parents]
            found.update(map(str, steps[: steps.index(PurePath(below))]))
    nearest = sorted(found, key=lambda folder: (len(PurePath(folder).parts), os.fsencode(folder)))[:MAX_FOLDERS]
    common = os.path.commonpath([os.path.dirname(root) for root in roots]) if roots else "/"
    choices = [
        (shown(os.path.relpath(folder, common)), quote_from_bytes(os.fsencode(folder)))
        for folder in sorted(nearest, key=os.fsencode)
    ]
    return choices, len(found) - len(nearest)


def folder_of(value: str) -> str:
    """The path of a choice of `folder_choices`."""
    return os.fsdecode(unquote_to_bytes(value))
