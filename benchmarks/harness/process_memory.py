"""Resident memory of this process, from /proc. Imports nothing that would count."""

from __future__ import annotations

import re
from pathlib import Path


def status_bytes(key: str) -> int:
    """`VmRSS`, what is resident now, or `VmHWM`, the peak.

    Raises:
        OSError: this system does not say.
    """
    found = re.search(rf"^{key}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    if found is None:
        raise OSError(f"/proc/self/status has no {key}")
    return int(found[1]) * 1024
