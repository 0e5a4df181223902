"""Uploaded sounds: read within bounds, with a sentence about what is wrong with one that cannot be read."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np

from slap_fast.app.errors import PageError
from slap_fast.app.irregularities import irregularities
from slap_fast.app.names import shown
from slap_fast.app.pictures import clock
from slap_fast.audio.errors import AudioError
from slap_fast.audio.reader import open_audio
from slap_fast.audio.waveform import mono_blocks

MAX_UPLOAD_MIB = 200
"""Size of one uploaded file, by default."""


class Upload(NamedTuple):
    """An upload that was read.

    Attributes:
        samples: `[S]` float32 mono.
        notes: a sentence for each irregularity of the file.
    """

    samples: np.ndarray
    notes: tuple[str, ...]


def read_upload(path: str, sample_rate: int, max_seconds: float) -> Upload:
    """All of an upload, at `sample_rate` Hz.

    However long the file says it is, no more than `max_seconds` are decoded.

    Raises:
        PageError: it cannot be read, has no sound, or is longer.
    """
    name, kept, samples = shown(os.path.basename(path)), [], 0
    try:
        with open_audio(path) as sound:
            for block in mono_blocks(sound, sample_rate):
                kept.append(block)
                samples += len(block)
                if samples > max_seconds * sample_rate:
                    raise PageError(
                        f"{name} is longer than {clock(max_seconds)}; cut it, or index it and search in the library"
                    )
            notes = irregularities(sound, name)
    except AudioError as error:
        raise PageError(f"the sound {name} cannot be used: {error.detail}") from error
    if not samples:
        raise PageError(f"the sound {name} cannot be used: it has no samples")
    return Upload(np.concatenate(kept), notes)
