"""Progress bars that suit a terminal and a log file alike."""

from __future__ import annotations

import sys
from typing import Any

from tqdm import tqdm

# A bar that is not on a terminal redraws by appending: seldom, or a log drowns in it.
_LOG_SECONDS = 10.0


def progress_bar(iterable: Any = None, **options: Any) -> Any:
    """`tqdm` on stderr, redrawn every tenth of a second on a terminal and every ten seconds in a file."""
    terminal = sys.stderr.isatty()
    return tqdm(iterable, dynamic_ncols=terminal, mininterval=0.1 if terminal else _LOG_SECONDS, **options)
