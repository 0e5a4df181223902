"""What the native module is compiled from; setup.py loads this too, from its file alone."""

from __future__ import annotations

import hashlib
from pathlib import Path


def digest(root: Path) -> str | None:
    """Of all the C++ code in the checkout `root`, and how it is built; None where there is none, as beside a wheel."""
    if not (root / "CMakeLists.txt").is_file():
        return None
    sources = sorted(path for path in (root / "csrc").rglob("*") if path.suffix in (".cpp", ".cu", ".cuh", ".h"))
    combined = hashlib.sha256()
    for path in (root / "CMakeLists.txt", *sources):
        code = path.read_bytes()
        combined.update(f"{path.relative_to(root).as_posix()}\0{len(code)}\0".encode() + code)
    return combined.hexdigest()
