"""What Linux says of a process."""

from __future__ import annotations

from pathlib import Path


def parent(process: int) -> int:
    """0 without one, for a process that is gone, and without /proc."""
    return _field(process, 1, missing=0)


def start_time(process: int) -> int:
    """Clock ticks since the host's start; -1 for a process that is gone, and without /proc."""
    return _field(process, 19, missing=-1)


def _field(process: int, number: int, *, missing: int) -> int:
    """Of those after the name, which stands in parentheses and may contain them itself."""
    try:
        return int(Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()[number])
    except OSError:
        return missing
