"""Progress bar of indexing: bytes of files for the time left, and seconds of audio a second."""

from __future__ import annotations

import time
from typing import Any

from slap_fast.runtime.progress import progress_bar

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}{postfix}]"


class AudioProgress:
    """Bar on stderr. The length of audio is not known before it is decoded, so the time left goes by bytes."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._bar: Any = None
        self._began: float | None = None  # when the first audio was embedded
        self._seconds = 0.0

    def __enter__(self) -> AudioProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def begin(self, size: int, done: int) -> None:
        """There are `size` bytes of recordings that may have changed, of which an earlier update has done `done`."""
        self._bar = progress_bar(
            desc="indexing",
            unit="B",
            unit_scale=True,
            unit_divisor=1000,
            bar_format=_FORMAT,
            disable=not self._shown,
            total=size,
            initial=done,
        )

    def read(self, size: int) -> None:
        """`size` more bytes are done."""
        if self._bar is not None:
            self._bar.update(size)

    def embedded(self, seconds: float) -> None:
        """`seconds` more audio is embedded."""
        if self._bar is None:
            return
        if self._began is None:
            # The model took seconds to load; with them in the speed, the time left would be many times too long.
            self._began = time.monotonic()
            self._bar.last_print_t = time.time()
        self._seconds += seconds
        elapsed = max(time.monotonic() - self._began, 1e-3)
        if elapsed >= 1:
            self._bar.set_postfix_str(f"{self._seconds / elapsed:.0f} s of audio a second", refresh=False)
