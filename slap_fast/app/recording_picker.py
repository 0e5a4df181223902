"""Picker of a recording: one of the library, found by part of its name, or an upload."""

from __future__ import annotations

from typing import Any, NamedTuple

import gradio as gr

from slap_fast.app.desk import Desk
from slap_fast.app.errors import PageError
from slap_fast.app.names import counted, shown
from slap_fast.app.sounds import Sound

LISTED = 200
"""Recordings in the list at once; part of a name finds the others."""


class RecordingPicker(NamedTuple):
    """Components of a picker."""

    part: gr.Textbox
    listed: gr.Dropdown
    upload: gr.Audio

    @property
    def inputs(self) -> list[Any]:
        """What an event passes to `picked`."""
        return [self.listed, self.upload]


def add_recording_picker(desk: Desk) -> RecordingPicker:
    """Add the components to the page that is being built."""
    with gr.Row():
        with gr.Column(scale=3, min_width=260):
            part = gr.Textbox(label="Part of the recording's name", placeholder="all recordings", max_length=200)
            listed = gr.Dropdown(label="Recording of the library", choices=[], value=None, filterable=False)
        with gr.Column(scale=2, min_width=260):
            upload = gr.Audio(
                label="Or a file of your own", type="filepath", sources=["upload", "microphone"], editable=False
            )
    part.input(
        lambda text: list_recordings(desk, text),
        part,
        listed,
        api_visibility="private",
        show_progress="hidden",
        trigger_mode="always_last",  # as the field is when the typing ends
    )
    return RecordingPicker(part, listed, upload)


def list_recordings(desk: Desk, part: str) -> Any:
    """The choices of the list for a part of a name."""
    part = part if isinstance(part, str) else ""
    found = [(shown(name), f"r{number}") for number, name in _names(desk) if part.lower() in shown(name).lower()]
    info = (
        f"{len(found)} recordings, of which the first {LISTED} are listed; type part of a name"
        if len(found) > LISTED
        else counted(len(found), "recording")
    )
    return gr.update(choices=found[:LISTED], value=None, info=info)


def choose(desk: Desk, sound: Sound) -> Any:
    """The update of the list that chooses one recording. `info` has no name: Gradio shows it as Markdown."""
    return gr.update(choices=[(shown(sound.name), sound.key)], value=sound.key, info="")


def picked(desk: Desk, listed: str | None, upload: str | None) -> Sound:
    """The recording that is chosen; an upload comes first.

    Raises:
        PageError: none is, or it is gone.
    """
    if upload:
        return desk.sounds.admit(upload)
    if not isinstance(listed, str) or not listed:
        raise PageError("choose a recording of the library, or upload one")
    return desk.sounds.find(listed)


def _names(desk: Desk) -> list[tuple[int, str]]:
    return [(recording.id, recording.name) for recording in desk.database.recordings(state="complete")]
