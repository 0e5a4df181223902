"""Files of JSON lines that several processes append to."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.harness.results import without_infinities


def append(path: Path, **record: Any) -> None:
    """Append one line. It is a single write, so lines of several processes do not mix."""
    line = json.dumps(without_infinities(record), allow_nan=False) + "\n"
    with path.open("ab", buffering=0) as file:
        file.write(line.encode())


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The records of `path`, up to a line that was cut off because the process or its machine died."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            yield json.loads(line)
        except json.JSONDecodeError:
            return
