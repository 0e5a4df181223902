"""Progress bar for terminals and log files."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

# Off a terminal every redraw adds a line.
_LOG_SECONDS = 10.0


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """`tqdm` on stderr, redrawn every 0.1 s on a terminal and every 10 s in a file."""
    terminal = sys.stderr.isatty()
    return tqdm(iterable, dynamic_ncols=terminal, mininterval=0.1 if terminal else _LOG_SECONDS, **options)
