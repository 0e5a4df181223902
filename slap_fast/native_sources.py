"""Digest of the C++ sources: detects a stale native module. setup.py loads this file by its path."""

from __future__ import annotations

import hashlib
from pathlib import Path


def source_digest(root: Path) -> str | None:
    """SHA-256 of CMakeLists.txt and csrc/ under the checkout `root`; None without a checkout, as in a wheel.

    Without csrc/dali, which is built apart (slap_fast/integrations/dali.py).
    """
    if not (root / "CMakeLists.txt").is_file():
        return None
    sources = sorted(
        path
        for path in (root / "csrc").rglob("*")
        if path.suffix in (".cpp", ".cu", ".cuh", ".h", ".cmake") and path.parent.name != "dali"
    )
    combined = hashlib.sha256()
    for path in (root / "CMakeLists.txt", *sources):
        code = path.read_bytes()
        combined.update(f"{path.relative_to(root).as_posix()}\0{len(code)}\0".encode() + code)
    return combined.hexdigest()
