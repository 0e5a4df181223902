"""Records as lines of JSON: written at once, in one piece, by any number of processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.results import finite


def append(path: Path, **record: Any) -> None:
    line = json.dumps(finite(record), allow_nan=False) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of `path`; a line that was cut off, by a machine that was taken away, is the last and is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
