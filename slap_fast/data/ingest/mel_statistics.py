"""Mean and standard deviation of a dataset's log-mel values: what inputs are normalised with."""

from __future__ import annotations

import math

import numpy as np

from slap_fast.audio_files import AudioError, load_audio
from slap_fast.data.dataset_files import DatasetError
from slap_fast.data.index import ClipIndex
from slap_fast.progress import progress_bar

_MAX_CLIPS = 2000
_MAX_SECONDS = 30  # of one clip: a long recording should not outvote a thousand short ones


def mel_statistics(index: ClipIndex, *, progress: bool = False) -> tuple[float, float]:
    """Mean and standard deviation over all mel values of at most 2,000 clips, evenly spaced through the dataset.

    Computed in float64 with the default `MelConfig`, from the first 30 s of each clip. The deviation is 1 where all
    values are equal.

    Raises:
        DatasetError: no clip can be decoded.
    """
    import torch

    from slap_fast.ops.log_mel import log_mel
    from slap_fast.ops.mel_config import MelConfig

    config = MelConfig(sample_rate=index.info["sample_rate"])
    clips = np.unique(np.linspace(0, len(index) - 1, min(len(index), _MAX_CLIPS)).round().astype(np.int64))
    count, total, squares = 0, 0.0, 0.0
    for clip in progress_bar(clips.tolist(), desc="mel statistics", unit="clip", disable=not progress):
        try:
            waveform = load_audio(index.read_audio(clip))[: _MAX_SECONDS * config.sample_rate]
        except AudioError:
            # Tars of others are indexed without decoding; the loader names what cannot be decoded.
            continue
        cu_seqlens = torch.tensor([0, len(waveform)])
        frames = log_mel(torch.from_numpy(np.ascontiguousarray(waveform)), cu_seqlens, config).double()
        count += frames.numel()
        total += frames.sum().item()
        squares += frames.square().sum().item()
    if not count:
        raise DatasetError(f"{index.folder}: not one of {len(clips)} clips looked at can be decoded")
    mean = total / count
    std = math.sqrt(max(squares / count - mean * mean, 0.0))
    return mean, std if std > 1e-6 else 1.0
