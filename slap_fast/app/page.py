"""The page: its tabs, and what connects them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from slap_fast.app import markup
from slap_fast.app.captions_tab import add_captions_tab
from slap_fast.app.desk import Desk
from slap_fast.app.long_recording_tab import add_long_recording_tab
from slap_fast.app.names import counted, shown
from slap_fast.app.recording_picker import choose, list_recordings
from slap_fast.app.search_tab import add_search_tab, event_value, list_folders

_HERE = Path(__file__).parent
_QUEUE = 32  # requests that wait; the next one is told that the page is busy


def style() -> str:
    """CSS of the page."""
    return (_HERE / "page.css").read_text(encoding="utf-8")


def head() -> str:
    """What the head of the page holds besides Gradio's own."""
    return f"<script>{(_HERE / 'page.js').read_text(encoding='utf-8')}</script>"


def theme() -> Any:
    """Gradio's own theme with the fonts of the system: none is loaded."""
    fonts = ("ui-sans-serif", "system-ui", "sans-serif")
    return gr.themes.Default(font=fonts, font_mono=("ui-monospace", "Consolas", "monospace"))


def build_page(desk: Desk) -> gr.Blocks:
    """All components and events of the page."""
    with gr.Blocks(title="Sound library", analytics_enabled=False) as page:
        heading = gr.HTML(elem_id="heading", js_on_load=None, padding=False)
        with gr.Tabs() as tabs:
            with gr.Tab("Search", id="search"):
                search = add_search_tab(desk)
            with gr.Tab("Long recording", id="locate"):
                long = add_long_recording_tab(desk)
            with gr.Tab("Captions", id="captions"):
                captions = add_captions_tab(desk)

        def open_recording(event: gr.EventData, text: str) -> tuple[Any, Any, Any, Any]:
            key = event_value(event, "recording")
            try:
                sound = desk.sounds.find(key if isinstance(key, str) else "")
            except ValueError:
                return gr.skip(), gr.skip(), gr.skip(), gr.skip()
            return gr.update(selected="locate"), choose(desk, sound), text, None

        search.results.whole(
            open_recording,
            search.text,
            [tabs, long.picker.listed, long.text, long.picker.upload],
            api_visibility="private",
        )
        page.load(
            lambda: (_heading(desk), list_folders(desk), list_recordings(desk, ""), list_recordings(desk, "")),
            None,
            [heading, search.folder, long.picker.listed, captions.picker.listed],
            api_visibility="private",
            show_progress="hidden",
        )
    page.queue(max_size=_QUEUE, default_concurrency_limit=2, api_open=False)
    return page


def _heading(desk: Desk) -> str:
    count = len(desk.database.recordings(state="complete"))
    return (
        f"<h1>Sound library</h1><p>{markup.escaped(shown(str(desk.library.path.absolute())))}: "
        f"{counted(count, 'recording')}, {counted(len(desk.library), 'window')}</p>"
    )
