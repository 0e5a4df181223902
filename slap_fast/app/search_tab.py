"""Tab Search: words or a sound, or both; ranked moments that can be heard and seen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gradio as gr

from slap_fast.app import markup
from slap_fast.app.desk import Desk
from slap_fast.app.folders import folder_choices
from slap_fast.app.queries import MAX_RESULTS, MAX_TEXT, Query, count_of
from slap_fast.app.reporting import reported
from slap_fast.library.indexing.sources import is_below
from slap_fast.library.moments import Moment

PAGE = 10

_BUTTONS = """
element.addEventListener("click", (event) => {
  const card = event.target.closest(".moment");
  if (!card) return;
  if (event.target.closest(".similar")) trigger("similar", {window: card.dataset.window});
  const whole = event.target.closest(".whole");
  if (whole) trigger("whole", {recording: whole.dataset.recording});
});
"""


@dataclass(frozen=True)
class Shown:
    """What the results show, kept on the server: the key of a query, and how many of its moments."""

    query: str
    count: int


@dataclass(frozen=True)
class SearchTab:
    """Components that other tabs and the page refer to."""

    text: gr.Textbox
    folder: gr.Dropdown
    results: gr.HTML


def add_search_tab(desk: Desk) -> SearchTab:
    """Add the components and their events to the page that is being built."""
    shown = gr.State(None)
    with gr.Row():
        with gr.Column(scale=3, min_width=260):
            text = gr.Textbox(
                label="Sounds like, in words",
                placeholder="a dog barks twice",
                max_length=MAX_TEXT,
                autofocus=True,
                elem_id="query",
            )
            unlike = gr.Textbox(label="Not like", placeholder="music", max_length=MAX_TEXT, elem_id="unlike")
        with gr.Column(scale=2, min_width=260):
            sound = gr.Audio(
                label="Sounds like this",
                type="filepath",
                sources=["upload", "microphone"],
                editable=False,
                elem_id="sound",
            )
    with gr.Accordion("Filters", open=False), gr.Row():
        folder = gr.Dropdown(label="In folder", choices=[("all folders", "")], value="", min_width=240, scale=2)
        shortest = gr.Textbox(
            label="Recordings of at least (s)", elem_id="shortest", placeholder="any", max_length=40, min_width=140
        )
        longest = gr.Textbox(
            label="Recordings of at most (s)", elem_id="longest", placeholder="any", max_length=40, min_width=140
        )
        count = gr.Slider(label="Results", minimum=1, maximum=50, step=1, value=PAGE, min_width=140)
    search = gr.Button("Search", variant="primary", elem_id="search")
    results = gr.HTML(_welcome(desk), elem_id="results", js_on_load=_BUTTONS, padding=False)
    more = gr.Button("More results", visible=False, elem_id="more")
    filters = [folder, shortest, longest, count]
    outputs = [results, more, shown]

    def find(query: Query, folder: Any, shortest: Any, longest: Any, count: Any) -> tuple[Any, Any, Any]:
        wanted = count_of(count)
        key = desk.queries.keep(desk.finder.narrowed(query, folder, shortest, longest))
        return _results(desk, Shown(key, wanted))

    @reported(2)
    def by_words_and_sound(text: Any, unlike: Any, sound: Any, *filters: Any) -> tuple[Any, Any, Any]:
        upload = desk.sounds.admit(sound).path if sound else None
        return find(desk.finder.of_words_and_sound(text, upload, unlike), *filters)

    @reported(2)
    def by_moment(window: Any, *filters: Any) -> tuple[Any, Any, Any]:
        return find(desk.finder.of_window(window), *filters)

    @reported(2)
    def further(shown: Any) -> tuple[Any, Any, Any]:
        if not isinstance(shown, Shown):
            return _results(desk, Shown("", PAGE))
        return _results(desk, Shown(shown.query, min(shown.count + PAGE, MAX_RESULTS)))

    def similar(folder: Any, shortest: Any, longest: Any, count: Any, event: gr.EventData) -> tuple[Any, Any, Any]:
        return by_moment(event_value(event, "window"), folder, shortest, longest, count)

    options: dict[str, Any] = {"api_visibility": "private", "show_progress_on": results}
    gr.on(
        [search.click, text.submit, unlike.submit],
        by_words_and_sound,
        [text, unlike, sound, *filters],
        outputs,
        **options,
    )
    results.similar(similar, filters, outputs, **options)
    more.click(further, shown, outputs, **options)
    return SearchTab(text, folder, results)


def list_folders(desk: Desk) -> Any:
    """The choices of the filter by folder, as the library is now."""
    found, left_out = folder_choices(desk.database.folders(), desk.database.recordings(state="complete"))
    listed = f"{len(found)} of {len(found) + left_out} folders, those nearest to the indexed ones"
    info = f"{listed}; each includes those below it" if left_out else ""
    return gr.update(choices=[("all folders", ""), *found], info=info)


def event_value(event: gr.EventData, name: str) -> Any:
    """What a page sent with an event; None if it sent no such value."""
    try:
        return getattr(event, name)
    except (AttributeError, KeyError, TypeError):
        return None


def _results(desk: Desk, shown: Shown) -> tuple[str, Any, Shown | None]:
    query = desk.queries.get(shown.query)
    if query is None:
        return markup.message("These results are no longer kept; search again."), gr.update(visible=False), None
    found = desk.finder.moments(query, min(shown.count + 1, MAX_RESULTS + 1))
    moments = found[: shown.count]
    heading = "".join(map(markup.message, (_heading(desk, query, moments), *query.notes)))
    cards = [_card(desk, rank, moment, shown.query) for rank, moment in enumerate(moments, 1)]
    more = len(found) > shown.count and shown.count < MAX_RESULTS
    return heading + "".join(cards), gr.update(visible=more), shown


def _card(desk: Desk, rank: int, moment: Moment, query: str) -> str:
    recording = desk.database.find(moment.path, moment.member)
    if recording is None:  # an indexer removed it between the search and now
        return markup.message(f"{moment.name} is no longer in the library")
    sound = desk.sounds.recording(recording.id)
    folder = max((folder for folder in desk.database.folders() if is_below(moment.path, folder)), key=len, default="")
    return markup.moment(rank, sound, moment.window, moment.start, moment.end, moment.score, folder=folder, query=query)


def _heading(desk: Desk, query: Query, moments: list[Moment]) -> str:
    if moments:
        return f"Most like {query.text}:"
    if not len(desk.library):
        return _EMPTY
    return f"Nothing found for {query.text}: no recording passes the filters; widen them."


_EMPTY = (
    "This library has no recordings yet. Index some with `slap-fast index`; they appear here as soon as they "
    "are whole, without a restart."
)


def _welcome(desk: Desk) -> str:
    return "" if len(desk.library) else markup.message(_EMPTY)
