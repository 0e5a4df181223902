"""Progress bar of indexing: bytes of files for the time left, and seconds of audio a second."""

from __future__ import annotations

import time

from slap_fast.runtime.progress import progress_bar

_FORMAT = "{desc} {percentage:3.0f}%|{bar}| {n_fmt}B/{total_fmt}B [{elapsed}<{remaining}{postfix}]"


class AudioProgress:
    """Bar on stderr. The length of audio is not known before it is decoded, so the time left goes by bytes."""

    def __init__(self, *, shown: bool) -> None:
        self._bar = progress_bar(
            desc="indexing", unit="B", unit_scale=True, unit_divisor=1000, bar_format=_FORMAT, disable=not shown
        )
        self._began = time.monotonic()
        self._seconds = 0.0

    def __enter__(self) -> AudioProgress:
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.close()

    def begin(self, size: int) -> None:
        """There are `size` bytes of recordings that may have changed."""
        self._bar.total = size
        self._began = time.monotonic()

    def read(self, size: int) -> None:
        """`size` more bytes are done."""
        self._bar.update(size)

    def embedded(self, seconds: float) -> None:
        """`seconds` more audio is embedded."""
        self._seconds += seconds
        elapsed = max(time.monotonic() - self._began, 1e-3)
        self._bar.set_postfix_str(f"{self._seconds / elapsed:.0f} s of audio a second", refresh=False)
