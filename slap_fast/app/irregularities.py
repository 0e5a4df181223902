"""What is odd about a sound that could be read all the same, such as an end that is missing."""

from __future__ import annotations

from slap_fast.app.names import shown
from slap_fast.audio.audio_source import AudioSource
from slap_fast.audio.waveform import log_notes


def irregularities(source: AudioSource, name: str, *, log: bool = True) -> tuple[str, ...]:
    """A sentence for each irregularity, for the page. Call it after the blocks were read.

    Args:
        source: which was read.
        name: of it, for people.
        log: also log them as warnings.
    """
    if log:
        log_notes(source, shown(name))
    return tuple(f"{shown(name)}: {reason.replace('_', ' ')}: {detail}." for reason, detail in source.notes)
