"""The list of folders of the page's filter."""

from __future__ import annotations

from slap_fast.app.folders import MAX_FOLDERS, folder_choices, folder_of
from slap_fast.library.database import Recording


def test_folders_beyond_the_most_are_counted_and_the_nearest_are_listed() -> None:
    paths = [f"/sounds/{number}/deep/a.wav" for number in range(MAX_FOLDERS)] + ["/elsewhere/a.wav"]
    recordings = [Recording(number, path, "", 1, 1, b"", 1.0, "complete") for number, path in enumerate(paths)]
    choices, left_out = folder_choices(["/sounds"], recordings)
    assert len(choices) == MAX_FOLDERS
    assert left_out == 1 + 2 * MAX_FOLDERS - MAX_FOLDERS
    assert {folder_of(value) for _, value in choices} <= {"/sounds", *(f"/sounds/{n}" for n in range(MAX_FOLDERS))}
    assert folder_choices(["/sounds"], recordings[:1])[1] == 0
