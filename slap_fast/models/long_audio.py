"""Audio that is longer than the clips of training, in windows: where they are, and what is kept of each.

Attention of a global layer sees a whole clip. Of an hour, it sees 120 times what it was trained on, at 14,400 times the
cost. So a long clip is encoded in windows, and its memory and time grow with its length.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from slap_fast.config.model import ModelConfig
from slap_fast.models.windows import cut_windows, window_lengths, window_spans

Long = Literal["windows", "whole"]
"""What happens to a clip of more than `ModelConfig.max_duration`."""

# Of a window of dense features, this share on each side is context alone: 5 s of 30 s.
_MARGIN = 1 / 6


def check_long(long: str) -> None:
    """
    Raises:
        ValueError: it is not one of `Long`.
    """
    if long not in get_args(Long):
        raise ValueError(f"long is {long!r}; choose one of {', '.join(map(repr, get_args(Long)))}")


def is_long(config: ModelConfig, samples: int) -> bool:
    """Whether a clip is longer than the model's `max_duration`."""
    return samples > config.max_duration * config.mel.sample_rate


def clip_windows(config: ModelConfig, clip: Tensor) -> list[Tensor]:
    """The windows whose embeddings are averaged, of `[S]` samples; the clip itself if it is not long."""
    if not is_long(config, len(clip)):
        return [clip]
    window, hop = (round(seconds * config.mel.sample_rate) for seconds in window_lengths(config.max_duration))
    return [clip[begin:end] for begin, end in window_spans(len(clip), window, hop)]


def embedding_windows(config: ModelConfig, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
    """`clip_windows` of a stream of blocks; holds at most `max_duration` and a block of samples."""
    blocks = iter(blocks)
    head: list[Tensor] = []
    for block in blocks:
        head.append(block)
        if is_long(config, sum(map(len, head))):
            window, hop = (round(seconds * config.mel.sample_rate) for seconds in window_lengths(config.max_duration))
            device = block.device
            stream = (block.cpu().numpy() for block in itertools.chain(head, blocks))
            yield from (torch.from_numpy(samples).to(device) for _, samples in cut_windows(stream, window, hop))
            return
    if head:
        yield head[0] if len(head) == 1 else torch.cat(head)


@dataclass(frozen=True)
class DenseWindow:
    """A window of a clip, and which of its columns of patches are used.

    Attributes:
        samples: `[n]`, from the first sample of its first column.
        first: the column of the clip that is its first one.
        begin: the first column that is used, counted from `first`.
        end: the one after the last that is used, counted from `first`.
    """

    samples: Tensor
    first: int
    begin: int
    end: int

    @property
    def keep(self) -> slice:
        return slice(self.begin, self.end)


def dense_windows(config: ModelConfig, blocks: Iterable[Tensor], *, long: Long = "windows") -> Iterator[DenseWindow]:
    """Cut a clip into the windows of its dense features. Their used columns are those of the clip, each once, in order.

    A window begins with a column, and has as many as fit into `max_duration`. The first and the last sixth of its
    columns are context: they are taken from the neighboring window, where there is one. The last window ends with the
    clip. A clip of at most `max_duration` is one window.

    Args:
        config: of the model.
        blocks: `[n]` samples, the clip or a stream of it; at most two windows and a block of them are held.
        long: `whole`: the clip is one window, whatever its length.
    """
    if long == "whole":
        held = torch.cat(list(blocks))
        yield DenseWindow(held, 0, 0, config.num_columns(len(held)))
        return
    step = config.column_samples
    limit = int(config.max_duration * config.mel.sample_rate)
    width = max(1, config.mel.num_frames(limit) // config.audio.patch_frames)
    needed = _samples_of(config, width)
    margin = int(width * _MARGIN)
    hop = width - 2 * margin
    held, origin = torch.empty(0), 0  # the first held sample
    column, kept = 0, 0  # the first column of the next window, and the first that is not used yet
    waiting: DenseWindow | None = None  # until it is known whether another one follows
    for block in blocks:
        held = torch.cat([held.to(block), block]) if len(held) else block
        # A clip that is not long is not cut, even if it has a column more than a window.
        while origin + len(held) > limit and column * step + needed <= origin + len(held):
            if waiting is not None:
                yield waiting
            begin = column * step - origin
            end = column + width - margin
            waiting = DenseWindow(held[begin : begin + needed], column, kept - column, end - column)
            kept, column = end, column + hop
        # The last window may begin up to a window before the end.
        keep = min(column * step, max(origin, (config.num_columns(origin + len(held)) - width) * step))
        held, origin = held[keep - origin :], keep
    samples = origin + len(held)
    columns = config.num_columns(samples)
    if waiting is None:
        if samples:
            yield DenseWindow(held, 0, 0, columns)
        return
    if columns <= waiting.first + width:
        yield DenseWindow(waiting.samples, waiting.first, waiting.begin, columns - waiting.first)
        return
    yield waiting
    last = columns - width
    yield DenseWindow(held[last * step - origin :], last, kept - last, width)


def _samples_of(config: ModelConfig, columns: int) -> int:
    """The smallest number of samples that has all frames of as many columns."""
    frames = columns * config.audio.patch_frames
    low, high = 1, 2 * columns * config.column_samples + 4 * config.mel.n_fft
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if config.mel.num_frames(middle) >= frames else (middle + 1, high)
    return low
