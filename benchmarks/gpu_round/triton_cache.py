"""Triton's compiled kernels as one file, so that a second call on a fresh machine compiles nothing.

    python -m benchmarks.gpu_round.triton_cache pack FOLDER FILE

Only what is loaded is packed: machine code, launchers and their descriptions, not the stages between. The index holds
absolute paths: unpack to the same folder.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

_LOADED = {".cubin", ".json", ".so"}


def pack(folder: Path, file: Path) -> int:
    """Files that were packed."""
    count = 0
    with tarfile.open(file, "w:gz") as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix in _LOADED:
                archive.add(path, path.relative_to(folder).as_posix())
                count += 1
    return count


def unpack(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file) as archive:
        archive.extractall(folder, filter="data")


if __name__ == "__main__":
    _, verb, source, target = sys.argv
    if verb == "pack":
        print(f"{pack(Path(source), Path(target))} files, {Path(target).stat().st_size:,} bytes")
    else:
        unpack(Path(source), Path(target))
