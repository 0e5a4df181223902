"""Tab Long recording: where in one recording something is heard, as a picture, a table with players, and files."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import gradio as gr

from slap_fast.app import markup
from slap_fast.app.desk import Desk
from slap_fast.app.errors import PageError
from slap_fast.app.located import LocatedFiles
from slap_fast.app.locating import locate_text
from slap_fast.app.names import counted, shown
from slap_fast.app.pictures import NARROW, WIDE, Curve, clock, draw_frames
from slap_fast.app.queries import MAX_TEXT, typed_text
from slap_fast.app.recording_picker import RecordingPicker, add_recording_picker, picked
from slap_fast.app.reporting import reported
from slap_fast.app.sounds import Sound
from slap_fast.inference.locate.events import Event, EventRule
from slap_fast.inference.locate.label_files import FORMATS

_LISTED_EVENTS = 30
_PLAYED_SECONDS = 3.0  # of a shorter event, with what is around it


@dataclass(frozen=True)
class LongRecordingTab:
    """Components that other tabs and the page refer to."""

    text: gr.Textbox
    picker: RecordingPicker


def add_long_recording_tab(desk: Desk) -> LongRecordingTab:
    """Add the components and their events to the page that is being built."""
    text = gr.Textbox(label="What to listen for", placeholder="a siren", max_length=MAX_TEXT, elem_id="locate-query")
    picker = add_recording_picker(desk)
    threshold = gr.Slider(
        label="Threshold: least probability of an event", minimum=0.05, maximum=0.95, step=0.05, value=0.5
    )
    locate = gr.Button("Locate", variant="primary", elem_id="locate")
    results = gr.HTML(elem_id="located", js_on_load=None, padding=False)

    def located(text: Any, threshold: Any, listed: Any, upload: Any, progress: Any = gr.Progress()) -> str:  # noqa: B008
        @reported(0)
        def answer() -> tuple[str]:
            sound, done = picked(desk, listed, upload), 0.0

            def advance(seconds: float) -> None:
                nonlocal done
                done += seconds
                share = min(1.0, done / sound.seconds) if sound.seconds else None
                progress(share, desc=f"{clock(done)} looked through")

            return (_locate(desk, text, threshold, sound, advance),)

        return answer()[0]

    gr.on(
        [locate.click, text.submit],
        located,
        [text, threshold, *picker.inputs],
        results,
        api_visibility="private",
        show_progress_on=results,
    )
    return LongRecordingTab(text, picker)


def _locate(desk: Desk, text: Any, asked: Any, sound: Sound, progress: Callable[[float], object]) -> str:
    query = desk.finder.of_words_and_sound(text, None, "")
    located, notes = locate_text(desk.listener, sound, typed_text(text), _rule(asked), progress)
    name = shown(os.path.basename(sound.name))
    rate = int(desk.database.meta["sample_rate"])
    spans = [(event.start, event.end) for event in located.events]
    assert located.overview is not None
    frames = located.overview.rows()
    curve = Curve(located.times, located.probability[:, 0], "probability", located.rule.threshold)
    wide, narrow = (
        draw_frames(frames, located.overview.config, located.seconds, curve=curve, shape=shape, events=spans)
        for shape in (WIDE, NARROW)
    )
    kept = desk.located.keep(
        LocatedFiles(
            wide,
            narrow,
            {
                ending: FORMATS[form](located, name, rate).encode("utf-8", "backslashreplace")
                for ending, form in (("csv", "csv"), ("txt", "audacity"))
            },
            os.path.splitext(name)[0],
        )
    )
    key = desk.queries.keep(query)
    heading = markup.message(
        f"{counted(len(spans), 'event')} like {query.text} in {name} "
        f"({clock(located.seconds)}), with a probability of at least {located.rule.threshold:g}."
        + ("" if spans else " Lower the threshold, or describe it in other words.")
    ) + "".join(map(markup.message, (*query.notes, *notes)))
    shows = "Spectrogram, and probability over time with the threshold dashed, with the events shaded"
    picture = markup.fresh("overview", kept, markup.image(f"/located/{kept}.png", "", shows, curve=True))
    files = (
        f'<p class="files"><a href="/located/{kept}.csv" download>Events as CSV</a>'
        f'<a href="/located/{kept}.txt" download>Audacity labels</a></p>'
    )
    best = sorted(located.events, key=lambda event: -event.probability)[:_LISTED_EVENTS]
    cards = [_card(rank, event, sound, located.seconds, key) for rank, event in enumerate(best, 1)]
    rest = len(spans) - len(cards)
    more = f"{counted(rest, 'more event')} in the files; those above are the most probable."
    return heading + picture + files + "".join(cards) + (markup.message(more) if rest else "")


def _card(rank: int, event: Event, sound: Sound, seconds: float, query: str) -> str:
    missing = max(0.0, _PLAYED_SECONDS - (event.end - event.start)) / 2
    played = max(0.0, event.start - missing), min(seconds, event.end + missing)
    return (
        f'<article class="moment"><header><span class="rank">{rank}</span>'
        f'<span class="name">{clock(event.start)} to {clock(event.end)}</span>'
        f'<span class="score" title="probability">{event.probability:.2f}</span></header>'
        f"{markup.player(sound, *played, query=query, label=f'event {rank}')}</article>"
    )


def _rule(threshold: Any) -> EventRule:
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 < threshold < 1:
        raise PageError("the threshold is a probability: above 0 and below 1")
    return EventRule(threshold=float(threshold))
