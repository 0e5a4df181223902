"""Tab Long recording: where in one recording something is heard, as a picture, a table with players, and files."""

from __future__ import annotations

import csv
import io
import os
from dataclasses import dataclass
from typing import Any

import gradio as gr

from slap_fast.app import markup
from slap_fast.app.desk import Desk
from slap_fast.app.errors import PageError
from slap_fast.app.located import Located
from slap_fast.app.locating import Curve, Event, find_events, similarity_curve
from slap_fast.app.names import shown
from slap_fast.app.overview import draw_overview
from slap_fast.app.pictures import clock
from slap_fast.app.queries import MAX_TEXT
from slap_fast.app.recording_picker import RecordingPicker, add_recording_picker, picked
from slap_fast.app.reporting import reported
from slap_fast.app.sounds import Sound

_LISTED_EVENTS = 30


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
        label="Threshold of similarity (0: chosen from the recording)", minimum=0, maximum=1, step=0.01, value=0
    )
    locate = gr.Button("Locate", variant="primary", elem_id="locate")
    results = gr.HTML(elem_id="located", js_on_load=None, padding=False)

    @reported(0)
    def located(text: Any, threshold: Any, listed: Any, upload: Any) -> tuple[str]:
        return (_locate(desk, text, threshold, picked(desk, listed, upload)),)

    gr.on(
        [locate.click, text.submit],
        lambda *values: located(*values)[0],
        [text, threshold, *picker.inputs],
        results,
        api_visibility="private",
        show_progress_on=results,
    )
    return LongRecordingTab(text, picker)


def _locate(desk: Desk, text: Any, asked: Any, sound: Sound) -> str:
    query = desk.finder.of_words_and_sound(text, None, "")
    limit = _threshold(asked)
    rate = int(desk.database.meta["sample_rate"])
    curve = similarity_curve(desk.listener, sound, query.vector, rate)
    if limit is None:
        limit = _chosen(curve)
    events = find_events(curve, limit)
    name = shown(os.path.basename(sound.name))
    key = desk.queries.keep(query)
    kept = desk.located.keep(
        Located(
            draw_overview(curve, events, limit),
            {"csv": _csv(events), "txt": _labels(events, query.text.strip("“”"))},
            os.path.splitext(name)[0],
        )
    )
    heading = markup.message(
        f"{len(events)} events like {query.text} in {name} ({clock(curve.seconds)}), at a similarity of at least "
        f"{limit:.2f}." + ("" if events else " Lower the threshold, or describe it in other words.")
    )
    picture = (
        f'<img class="overview" src="/located/{kept}.png" alt="Similarity over time, with events shaded" width="880">'
    )
    files = (
        f'<p class="files"><a href="/located/{kept}.csv" download>Events as CSV</a>'
        f'<a href="/located/{kept}.txt" download>Audacity labels</a></p>'
    )
    cards = [
        f'<article class="moment"><header><span class="rank">{rank}</span><span class="name">{clock(event.start)} to '
        f'{clock(event.end)}</span><span class="score" title="similarity">{event.score:.3f}</span></header>'
        f"{markup.player(sound, *_heard(event, curve.seconds), query=key)}</article>"
        for rank, event in enumerate(events[:_LISTED_EVENTS], 1)
    ]
    rest = len(events) - len(cards)
    more = markup.message(f"{rest} more events are in the files.") if rest > 0 else ""
    return heading + picture + files + "".join(cards) + more


def _heard(event: Event, seconds: float) -> tuple[float, float]:
    """What is played of an event: at least 3 s, around it."""
    missing = max(0.0, 3.0 - (event.end - event.start)) / 2
    return max(0.0, event.start - missing), min(seconds, event.end + missing)


def _threshold(asked: Any) -> float | None:
    if isinstance(asked, bool) or not isinstance(asked, int | float) or not 0 <= asked <= 1:
        raise PageError("the threshold must be 0 to 1")
    return float(asked) or None


def _chosen(curve: Curve) -> float:
    """Half of the way from the median to the highest similarity."""
    ordered = sorted(curve.similarity.tolist())
    return (ordered[len(ordered) // 2] + ordered[-1]) / 2


def _csv(events: list[Event]) -> bytes:
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(["start", "end", "score"])
    writer.writerows([f"{value:.3f}" for value in event] for event in sorted(events))
    return file.getvalue().encode()


def _labels(events: list[Event], text: str) -> bytes:
    """The label track that Audacity imports: begin, end and text, separated by tabs."""
    return "".join(f"{event.start:.3f}\t{event.end:.3f}\t{text}\n" for event in sorted(events)).encode()
