"""Resident memory of this process, from /proc. Imports no large module: its memory would be measured too."""

from __future__ import annotations

import re
from pathlib import Path


def status_bytes(key: str) -> int:
    """Bytes of `VmRSS` (resident now) or `VmHWM` (peak).

    Raises:
        OSError: the system has no /proc, or it lacks this key.
    """
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024
