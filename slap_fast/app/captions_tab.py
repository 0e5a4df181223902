"""Tab Captions: what is heard in a recording or a part of it, in words."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any

import gradio as gr

from slap_fast.app import markup
from slap_fast.app.desk import Desk
from slap_fast.app.errors import PageError
from slap_fast.app.pictures import clock
from slap_fast.app.recording_picker import RecordingPicker, add_recording_picker, picked
from slap_fast.app.reporting import reported
from slap_fast.app.sounds import MAX_SECONDS, Sound
from slap_fast.app.typed_seconds import typed_seconds

_PART_SECONDS = 10.0


@dataclass(frozen=True)
class CaptionsTab:
    """Components that the page refers to."""

    picker: RecordingPicker


def add_captions_tab(desk: Desk) -> CaptionsTab:
    """Add the components and their events to the page that is being built."""
    picker = add_recording_picker(desk)
    with gr.Row():
        start = gr.Textbox(label="From (s)", placeholder="the start", max_length=40)
        end = gr.Textbox(label=f"To (s); at most {MAX_SECONDS:g} s later", placeholder="the end", max_length=40)
    caption = gr.Button("Describe", variant="primary", elem_id="caption")
    results = gr.HTML(elem_id="captions", js_on_load=None, padding=False)

    @reported(0)
    def captioned(start: Any, end: Any, listed: Any, upload: Any) -> tuple[str]:
        return (_captions(desk, picked(desk, listed, upload), typed_seconds(start, 0.0), typed_seconds(end, math.inf)),)

    caption.click(
        lambda *values: captioned(*values)[0],
        [start, end, *picker.inputs],
        results,
        api_visibility="private",
        show_progress_on=results,
    )
    return CaptionsTab(picker)


def _captions(desk: Desk, sound: Sound, start: float, end: float) -> str:
    """A player and a caption for each part of at most 10 s."""
    desk.listener.check_captions()
    if end <= start:
        raise PageError(f"{end:g} s is not after {start:g} s; exchange the two, or leave the end empty")
    rate = int(desk.database.meta["sample_rate"])
    read = desk.sounds.stretch(sound.key, start, min(end, start + MAX_SECONDS), rate, log=True)
    samples, stop_at = read.samples, start + len(read.samples) / rate
    count = -(-len(samples) // round(_PART_SECONDS * rate))
    what = f"{clock(start)} to {clock(stop_at)} of {os.path.basename(sound.name)}."
    if read.goes_on and end > start + MAX_SECONDS:
        what += f" It goes on, but at most {clock(MAX_SECONDS)} are described at once: enter {stop_at:g} as the start."
    cards = list(map(markup.message, (what, *read.notes)))
    for part in range(count):
        begin, stop = (len(samples) * edge // count for edge in (part, part + 1))
        times = start + begin / rate, start + stop / rate
        text = desk.listener.caption(samples[begin:stop])
        cards.append(
            f'<article class="moment"><header><span class="time">{clock(times[0])} to {clock(times[1])}</span></header>'
            f'<p class="caption">{markup.escaped(text)}</p>{markup.player(sound, *times)}</article>'
        )
    return "".join(cards)
