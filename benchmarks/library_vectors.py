"""Vectors that resemble the embeddings of a sound library, and queries by sound and by text, from a seed.

The shape is that of contrastive audio-text models: a narrow cone, few directions with most of the variance, classes of
very different sizes, windows of one recording close to each other, and texts in a cone of their own (Liang et al.,
"Mind the Gap", 2022), so that text queries are outside the distribution of what is searched.

- Variance falls with the direction as 1 / (1 + j / 16), j = 0 to D - 1.
- 2,000 classes; class k is drawn with probability in proportion to 1 / (k + 10).
- A recording has 20 windows. Window = audio mean + class center + 0.8 recording + 0.5 window, each a random vector of
  the variance above; scaled to unit length. The audio mean is as long as such a vector.
- Sound query: a window of a recording that is not in the library.
- Text query: text mean + center of a class + 0.5 random vector; the two means are orthogonal to each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

CLASSES = 2_000
WINDOWS_OF_RECORDING = 20
_BLOCK = 20_000  # windows; each block has its own seed, so a smaller library is the beginning of a larger one
_READ_ROWS = 65_000  # whole recordings
_EXTRA = 1_000_000  # first block of windows that are not in the library


@dataclass(frozen=True)
class Vectors:
    """The vectors of one seed, unit length.

    Attributes:
        width: of an embedding.
        seed: of all draws.
    """

    width: int = 768
    seed: int = 0

    def windows(self, count: int) -> Iterator[np.ndarray]:
        """The windows of the library, `[count, D]` float32 in blocks; recording r has rows 20 r to 20 r + 19."""
        for block in range(-(-count // _BLOCK)):
            yield self._block(block)[: count - block * _BLOCK]

    def new_windows(self, count: int) -> np.ndarray:
        """Windows of recordings that are not in the library, `[count, D]` float32; at most 20,000."""
        return self._block(_EXTRA)[:count]

    def sound_queries(self, count: int) -> np.ndarray:
        """`[count, D]` float32, each of another recording; at most 1,000."""
        return self._block(_EXTRA + 1)[::WINDOWS_OF_RECORDING][:count]

    def text_queries(self, count: int) -> np.ndarray:
        """`[count, D]` float32."""
        return self._texts(count, 2)

    def vocabulary(self, count: int) -> np.ndarray:
        """Other texts, `[count, D]` float32: what an index is adjusted to."""
        return self._texts(count, 4)

    def _texts(self, count: int, stream: int) -> np.ndarray:
        draw = np.random.default_rng([self.seed, stream])
        noise = draw.standard_normal((count, self.width), np.float32)
        _, text = self._means()
        return _unit(text + self._centers()[self._classes(draw, count)] + 0.5 * noise * self._scale())

    def _block(self, number: int) -> np.ndarray:
        draw = np.random.default_rng([self.seed, 3, number])
        recordings = _BLOCK // WINDOWS_OF_RECORDING
        of_recording = draw.standard_normal((recordings, self.width), np.float32)
        own = draw.standard_normal((recordings, WINDOWS_OF_RECORDING, self.width), np.float32)
        audio, _ = self._means()
        middle = audio + self._centers()[self._classes(draw, recordings)] + 0.8 * of_recording * self._scale()
        return _unit((middle[:, None] + 0.5 * own * self._scale()).reshape(_BLOCK, self.width))

    def _classes(self, draw: np.random.Generator, count: int) -> np.ndarray:
        weights = 1 / (np.arange(CLASSES) + 10)
        return draw.choice(CLASSES, count, p=weights / weights.sum())

    def _centers(self) -> np.ndarray:
        draw = np.random.default_rng([self.seed, 1])
        return draw.standard_normal((CLASSES, self.width), np.float32) * self._scale()

    def _means(self) -> tuple[np.ndarray, np.ndarray]:
        draw = np.random.default_rng([self.seed, 0])
        pair, _ = np.linalg.qr(draw.standard_normal((self.width, 2)))
        length = float(np.linalg.norm(self._scale()))
        return (length * pair[:, 0]).astype(np.float32), (length * pair[:, 1]).astype(np.float32)

    def _scale(self) -> np.ndarray:
        return (1 / np.sqrt(1 + np.arange(self.width) / 16)).astype(np.float32)


def saved_windows(vectors: Vectors, count: int, folder: Path) -> np.ndarray:
    """The windows of the library, `[count, D]` float32, mapped from a file in `folder` that is made once."""
    path = folder / f"windows-{count}x{vectors.width}-seed{vectors.seed}.npy"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(".part.npy")
        matrix = np.lib.format.open_memmap(temporary, "w+", np.float32, (count, vectors.width))
        begin = 0
        for block in vectors.windows(count):
            matrix[begin : begin + len(block)] = block
            begin += len(block)
        matrix.flush()
        temporary.rename(path)
    return np.load(path, mmap_mode="r")


def read_blocks(windows: np.ndarray) -> Iterator[np.ndarray]:
    """Copies of the rows of a mapped matrix in blocks of 200 MB; the file's pages are not counted as memory then."""
    if not isinstance(windows, np.memmap) or windows.filename is None:
        raise ValueError("windows is not mapped from a file; use saved_windows")
    count, width = windows.shape
    with open(windows.filename, "rb") as file:
        file.seek(windows.offset)
        for begin in range(0, count, _READ_ROWS):
            rows = min(_READ_ROWS, count - begin)
            yield np.fromfile(file, np.float32, rows * width).reshape(rows, width)


def exact_neighbors(windows: np.ndarray, queries: np.ndarray, count: int) -> np.ndarray:
    """Rows of the `count` windows with the highest inner product, best first, ties by row: `[Q, count]` int64."""
    best_rows = np.empty((len(queries), 0), np.int64)
    best_scores = np.empty((len(queries), 0), np.float32)
    for begin in range(0, len(windows), 100_000):
        scores = queries @ windows[begin : begin + 100_000].T
        rows = np.broadcast_to(np.arange(begin, begin + scores.shape[1]), scores.shape)
        best_scores = np.concatenate([best_scores, scores], axis=1)
        best_rows = np.concatenate([best_rows, rows], axis=1)
        order = np.lexsort((best_rows, -best_scores))[:, :count]
        best_scores = np.take_along_axis(best_scores, order, 1)
        best_rows = np.take_along_axis(best_rows, order, 1)
    return best_rows


def recall(found: np.ndarray, exact: np.ndarray) -> float:
    """Share of the exact neighbors that were found, mean over the queries; both `[Q, K]`."""
    return float(np.mean([len(set(some) & set(all_)) / len(all_) for some, all_ in zip(found, exact, strict=True)]))


def _unit(matrix: np.ndarray) -> np.ndarray:
    return (matrix / np.linalg.norm(matrix, axis=1, keepdims=True)).astype(np.float32)
