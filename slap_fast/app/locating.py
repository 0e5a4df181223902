"""Locating: where in a recording a text is heard, within the bounds of a page."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import numpy as np

from slap_fast.app.errors import PageError
from slap_fast.app.listener import Listener
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
) -> Located:
    """The events of a recording that a text describes, with its spectrogram, in memory that does not grow with it.

    Raises:
        PageError: it is longer than `MAX_LOCATED_SECONDS`, or the model cannot be loaded.
        ValueError: it has no samples.
        AudioError: it cannot be read.
        ModelError: the model has no text tower.
    """
    with listener.locating() as model, open_named(sound.path, sound.member) as source:
        rate = model.config.mel.sample_rate
        blocks = _bounded(mono_blocks(source, rate), round(MAX_LOCATED_SECONDS * rate))
        return locate(model, blocks, [text], rule=rule, overview=True, progress=progress)


def _bounded(blocks: Iterable[np.ndarray], limit: int) -> Iterator[np.ndarray]:
    position = 0
    for block in blocks:
        position += len(block)
        if position > limit:
            raise PageError(
                f"the recording is longer than {clock(MAX_LOCATED_SECONDS)}; use `slap-fast locate` instead"
            )
        yield block
