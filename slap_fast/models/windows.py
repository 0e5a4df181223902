"""Windows of long audio: where they begin and end, in memory and in a stream of blocks.

A recording of at most `window` samples is one window. A longer one has a window every `hop` samples while a whole one
fits, and a last one that ends with the recording. So all windows of a recording have the same length, and they cover
all of it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy as np

WINDOW_SECONDS = 10.0
HOP_SECONDS = 5.0


def window_spans(samples: int, window: int, hop: int) -> list[tuple[int, int]]:
    """Begin and end of each window of a recording, in samples, ascending.

    Args:
        samples: length of the recording, at least 1.
        window: length of a window, at least `hop`.
        hop: distance between the begins of two windows, at least 1.
    """
    if samples <= window:
        return [(0, samples)]
    begins = list(range(0, samples - window + 1, hop))
    if begins[-1] + window < samples:
        begins.append(samples - window)
    return [(begin, begin + window) for begin in begins]


def cut_windows(blocks: Iterable[np.ndarray], window: int, hop: int) -> Iterator[tuple[int, np.ndarray]]:
    """The windows of a stream of `[n]` float32 blocks, as `window_spans` defines them: begin and samples.

    Holds at most a window, a hop and a block of samples. Yields nothing for a stream without samples.
    """
    held = np.empty(0, np.float32)
    origin = 0  # position of held[0] in the stream
    begin = 0  # of the next window
    for block in blocks:
        held = np.concatenate([held, block]) if len(held) else block
        while begin + window <= origin + len(held):
            yield begin, held[begin - origin : begin - origin + window].copy()
            begin += hop
        # The last window may begin up to a window before the end.
        keep = max(origin, min(begin, origin + len(held) - window))
        held, origin = held[keep - origin :], keep
    end = origin + len(held)
    if not end:
        return
    if begin == 0:
        yield 0, held
    elif begin - hop + window < end:
        yield end - window, held[end - window - origin :].copy()


class MeanEmbedding:
    """Running mean of unit-length embeddings: the embedding of a recording, from those of its windows.

    Summed in float64, one after the other: the result does not depend on how the windows were grouped.
    """

    def __init__(self) -> None:
        self._sum: np.ndarray | None = None

    def add(self, embeddings: np.ndarray) -> None:
        """Add `[W, D]` unit-length embeddings, in the order of their windows."""
        for row in np.asarray(embeddings, np.float64):
            self._sum = row if self._sum is None else self._sum + row

    def result(self) -> np.ndarray:
        """`[D]` float32, unit length; zeros where windows cancel out.

        Raises:
            ValueError: nothing was added.
        """
        if self._sum is None:
            raise ValueError("no embedding was added; a recording has at least one window")
        length = float(np.sqrt(np.square(self._sum).sum()))
        return (self._sum / max(length, np.finfo(np.float64).tiny)).astype(np.float32)


def mean_embedding(embeddings: np.ndarray) -> np.ndarray:
    """`[D]` float32 embedding of a recording: the normalized mean of its windows' `[W, D]` unit-length ones."""
    mean = MeanEmbedding()
    mean.add(embeddings)
    return mean.result()


def window_lengths(max_duration: float) -> tuple[float, float]:
    """Seconds of a window and from one to the next, for a model that was trained on clips of at most `max_duration`.

    10 s every 5 s; shorter, with half of it as overlap, if the model has only seen shorter clips.
    """
    window = min(WINDOW_SECONDS, max_duration)
    return window, window * HOP_SECONDS / WINDOW_SECONDS
