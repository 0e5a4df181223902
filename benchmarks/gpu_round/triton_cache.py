"""Packs Triton's compiled kernels into one file, so that a second round on another machine compiles nothing.

    python -m benchmarks.gpu_round.triton_cache pack FOLDER FILE

Packs only files that Triton loads (machine code, launchers and metadata), no intermediate code. The index of Triton has
absolute paths: unpack to the same folder.
"""

from __future__ import annotations

import sys
import tarfile
from pathlib import Path

_LOADED = {".cubin", ".json", ".so"}


def pack(folder: Path, file: Path) -> int:
    """Returns the number of packed files."""
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
        if hasattr(tarfile, "data_filter"):  # Python 3.11.4, 3.10.12
            archive.extraction_filter = tarfile.data_filter
        archive.extractall(folder)


if __name__ == "__main__":
    _, verb, source, target = sys.argv
    if verb == "pack":
        print(f"{pack(Path(source), Path(target))} files, {Path(target).stat().st_size:,} bytes")
    else:
        unpack(Path(source), Path(target))
