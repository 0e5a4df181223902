"""Locating: where in a recording a text is heard, within the bounds of a page."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from slap_fast.app.errors import PageError
from slap_fast.app.irregularities import irregularities
from slap_fast.app.listener import Listener
from slap_fast.app.names import shown
from slap_fast.app.pictures import clock
from slap_fast.app.sounds import Sound
from slap_fast.audio.waveform import mono_blocks
from slap_fast.inference.locate.events import EventRule
from slap_fast.inference.locate.finding import Located, locate
from slap_fast.library.recording_audio import open_named

MAX_LOCATED_SECONDS = 12 * 3600.0
"""Longest recording that the page looks through; `slap-fast locate` has no limit."""


def locate_text(
    listener: Listener, sound: Sound, text: str, rule: EventRule, progress: Callable[[float], object]
) -> tuple[Located, tuple[str, ...]]:
    """The events of a recording that a text describes, with its spectrogram, in memory that does not grow with it.

    Args:
        text: not empty, valid Unicode.

    Returns:
        What was found, and a sentence for each irregularity of the recording.

    Raises:
        PageError: it is longer than `MAX_LOCATED_SECONDS`, it has no samples, or the model cannot be loaded.
        AudioError: it cannot be read.
        ModelError: the model has no text tower.
    """
    with listener.locating() as model, open_named(sound.path, sound.member) as source:
        rate, name = model.config.mel.sample_rate, os.path.basename(sound.name)
        blocks = _bounded(mono_blocks(source, rate), round(MAX_LOCATED_SECONDS * rate), name)
        located = locate(model, blocks, [text], rule=rule, overview=True, progress=progress)
        return located, irregularities(source, name)


def _bounded(blocks: Iterable[np.ndarray], limit: int, name: str) -> Iterator[np.ndarray]:
    position = 0
    for block in blocks:
        position += len(block)
        if position > limit:
            raise PageError(
                f"the recording is longer than {clock(MAX_LOCATED_SECONDS)}; use `slap-fast locate` instead"
            )
        yield block
    if not position:
        raise PageError(f"there are no samples in {shown(name)}")
