"""Mel statistics: mean and standard deviation of a dataset's log-mel values, for input normalization."""

from __future__ import annotations

import math

import numpy as np

from slap_fast.audio.errors import AudioError
from slap_fast.audio.waveform import mono_blocks
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare.source import TarAudio
from slap_fast.runtime.progress import progress_bar

_MAX_CLIPS = 2000
_MAX_SECONDS = 30  # per clip, so that a long recording does not outweigh many short ones


def mel_statistics(index: ClipIndex, *, progress: bool = False) -> tuple[float, float]:
    """Mean and standard deviation over all mel values of at most 2,000 clips, evenly spaced over the dataset.

    Computed in float64 with the default `MelConfig` from the first 30 s of each clip; the rest is not decoded, so that
    memory is bounded. The standard deviation is 1 if all values are equal.

    Raises:
        DatasetError: no clip can be decoded.
    """
    import torch

    from slap_fast.ops.log_mel import log_mel
    from slap_fast.ops.log_mel.config import MelConfig

    config = MelConfig(sample_rate=index.info["sample_rate"])
    clips = np.unique(np.linspace(0, len(index) - 1, min(len(index), _MAX_CLIPS)).round().astype(np.int64))
    count, total, squares = 0, 0.0, 0.0
    for clip in progress_bar(clips.tolist(), desc="mel statistics", unit="clip", disable=not progress):
        try:
            waveform = _first_seconds(index, clip, config.sample_rate)
        except AudioError:
            # Foreign tars are indexed without decoding; the loader reports clips that cannot be decoded.
            continue
        cu_seqlens = torch.tensor([0, len(waveform)])
        frames = log_mel(torch.from_numpy(np.ascontiguousarray(waveform)), cu_seqlens, config).double()
        count += frames.numel()
        total += frames.sum().item()
        squares += frames.square().sum().item()
    if not count:
        raise DatasetError(f"{index.folder}: none of {len(clips)} sampled clips can be decoded")
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    return mean, std if std > 1e-6 else 1.0


def _first_seconds(index: ClipIndex, clip: int, sample_rate: int) -> np.ndarray:
    """`[S]` float32, the first 30 s at most."""
    record = index.records[clip]
    tar = index.folder / index.shard_name(clip)
    blocks, missing = [], _MAX_SECONDS * sample_rate
    with TarAudio(tar, int(record["audio_offset"]), int(record["audio_size"])).open() as sound:
        for block in mono_blocks(sound, sample_rate):
            blocks.append(block[:missing])
            missing -= len(blocks[-1])
            if not missing:
                break
    if not blocks:
        raise AudioError("no_samples", f"clip {clip} has no samples")
    return np.concatenate(blocks)
