"""HTML of results. Every name, query and message is escaped here, whatever it holds."""

from __future__ import annotations

import hashlib
import html
from collections.abc import Sequence
from urllib.parse import urlencode

from slap_fast.app.names import shown
from slap_fast.app.pictures import NARROW, WIDE, clock
from slap_fast.app.sounds import MAX_SECONDS, Sound

_WHOLE_SECONDS = 60.0  # a recording of up to this length can be played as a whole beside its moment


def escaped(text: str) -> str:
    """Text as HTML shows it literally: also what Gradio's templates would fill in, and bytes that are no characters."""
    return "".join(f"&#{ord(c)};" if c in "{}$`" else c for c in html.escape(shown(text)))


def message(text: str, *, error: bool = False) -> str:
    """A paragraph that says what happened."""
    return f'<p class="note{" bad" if error else ""}" role="{"alert" if error else "status"}">{escaped(text)}</p>'


def player(sound: Sound, start: float, end: float, *, query: str = "", label: str = "") -> str:
    """An audio element that plays a stretch, below the picture of it. Both are loaded when they are looked at."""
    end = min(end, start + MAX_SECONDS)
    span = {"start": f"{start:.3f}", "end": f"{end:.3f}"}
    picture = urlencode(span | ({"query": query} if query else {}))
    shows = "Spectrogram, and similarity over time" if query else "Spectrogram"
    shown_picture = image(f"/pictures/{sound.key}.png", picture, shows, curve=bool(query))
    return fresh(
        "sound",
        f"{sound.key} {picture}",
        f'<div class="picture">{shown_picture}<span class="cursor"></span></div>'
        f'<audio controls preload="none" src="/sounds/{sound.key}.wav?{html.escape(urlencode(span))}" '
        f'aria-label="{escaped(label or sound.name)}"></audio>',
    )


def image(path: str, query: str, shows: str, *, curve: bool) -> str:
    """A picture that is loaded when it is looked at, in the shape that fits the screen.

    Args:
        path: of its address.
        query: of its address; may be empty.
        shows: what it shows, for those who do not see it.
        curve: whether there is one below the spectrogram.
    """
    narrow, wide = (
        html.escape(f"{path}?{'&'.join(filter(None, (query, more)))}".rstrip("?")) for more in ("narrow=1", "")
    )
    (narrow_width, narrow_height), (width, height) = NARROW.pixels(curve=curve), WIDE.pixels(curve=curve)
    return (
        f'<picture><source media="(max-width: 600px)" srcset="{narrow}" width="{narrow_width}" '
        f'height="{narrow_height}"><img loading="lazy" src="{wide}" alt="{shows}" width="{width}" height="{height}">'
        "</picture>"
    )


def fresh(kind: str, content: str, inside: str) -> str:
    """An element of class `kind` that no other `content` shares.

    Gradio turns the elements of old results into those of new ones, and a browser shows the old picture in such an
    element until the new one is loaded. It takes a new element where the name of the element differs.
    """
    name = f"{kind}-{hashlib.blake2b(content.encode('utf-8', 'surrogateescape'), digest_size=8).hexdigest()}"
    return f'<{name} class="{kind}">{inside}</{name}>'


def moment(
    rank: int, sound: Sound, window: int, start: float, end: float, score: float, *, folder: str, query: str
) -> str:
    """One result of a search.

    Args:
        rank: from 1.
        sound: the recording.
        window: id of the best window, for "more like this".
        start: seconds.
        end: seconds.
        score: similarity.
        folder: indexed folder that has the recording, which the name is shown relative to; empty: the whole path.
        query: key of the query, for the curve.
    """
    seconds = sound.seconds or end
    cut = f", the first {clock(MAX_SECONDS)} of it below" if end - start > MAX_SECONDS else ""
    whole = ""
    if seconds <= _WHOLE_SECONDS and (start > 0 or end < seconds):
        address = urlencode({"start": "0", "end": f"{seconds:.3f}"})
        whole = (
            f'<details><summary>Whole recording</summary><audio controls preload="none" '
            f'src="/sounds/{sound.key}.wav?{html.escape(address)}"></audio></details>'
        )
    return (
        f'<article class="moment" data-window="{window}"><header><span class="rank">{rank}</span>'
        f'<span class="name" title="{escaped(sound.name)}">{escaped(relative(sound.name, folder))}</span>'
        f'<span class="time">{clock(start)} to {clock(end)} of {clock(seconds)}{cut}</span>'
        f'<span class="score" title="similarity">{score:.3f}</span></header>'
        f"{player(sound, start, end, query=query)}"
        '<footer><button type="button" class="similar">More like this</button>'
        f'<button type="button" class="whole" data-recording="{escaped(sound.key)}">Locate in the recording</button>'
        f"{whole}</footer></article>"
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    top = "".join(f"<th>{escaped(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table class="events"><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def relative(name: str, folder: str) -> str:
    return name[len(folder) :].lstrip("/#") or name if folder and name.startswith(folder) else name
