"""Results of a search in Jupyter: a player, a spectrogram and the similarity over time of each moment, as HTML.

The page has everything in it (no file and no server is asked when it is shown), so sizes are bounded.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from slap_fast.errors import SlapFastError, one_line
from slap_fast.library.recording_audio import read_moment

if TYPE_CHECKING:
    from slap_fast.library.moments import Moment

Curve = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]
"""Samples `[S]` and their rate to times `[C]`, in seconds, and similarities `[C]` with the query."""

MAX_SECONDS = 30.0
"""Longest part of a moment that is played and drawn."""
MAX_PLAYED = 20
"""Moments with a player; the others are listed."""
MAX_DRAWN = 5
"""Moments with a picture: each takes a run of the audio tower."""
_SAMPLE_RATE = 16_000


def results_html(query: str, moments: Sequence[Moment], curve: Curve | None = None) -> str:
    """HTML of the results of a search.

    A moment whose audio cannot be read, such as one of a deleted file, is listed with the reason.

    Args:
        query: the text that was looked for.
        moments: best first.
        curve: similarity with the query over time; None: pictures have the spectrogram alone.
    """
    if not moments:
        return f"<p>Nothing found for <b>{_escaped(query)}</b>.</p>"
    parts = [f"<p>{len(moments)} moment{'s' if len(moments) > 1 else ''} for <b>{_escaped(query)}</b></p>"]
    for rank, moment in enumerate(moments):
        if rank < MAX_PLAYED:
            parts.append(moment_html(moment, curve, picture=rank < MAX_DRAWN))
        else:
            parts.append(f"<div>{_heading(moment)}</div>")
    return "\n".join(parts)


def moment_html(moment: Moment, curve: Curve | None = None, *, picture: bool = True) -> str:
    """HTML of one moment: name, time, score, player and, with `picture`, its spectrogram."""
    end = min(moment.end, moment.start + MAX_SECONDS)
    try:
        samples = read_moment(moment.path, moment.member, moment.start, end, _SAMPLE_RATE)
        player = f'<audio controls preload="none" src="data:audio/flac;base64,{_flac(samples)}"></audio>'
        drawn = (
            f'<br><img alt="spectrogram" src="data:image/png;base64,{_png(samples, moment, curve)}">' if picture else ""
        )
    except (SlapFastError, OSError) as error:
        reason = f"<br><i>cannot be played: {_escaped(one_line(error))}</i>"
        return f'<div style="margin:1em 0">{_heading(moment)}{reason}</div>'
    cut = f" <small>first {MAX_SECONDS:g} s</small>" if end < moment.end else ""
    return f'<div style="margin:1em 0">{_heading(moment)}<br>{player}{cut}{drawn}</div>'


def _heading(moment: Moment) -> str:
    return (
        f"<b>{moment.score:.3f}</b> {_clock(moment.start)} to {_clock(moment.end)} <code>{_escaped(moment.name)}</code>"
    )


def _escaped(text: str) -> str:
    # Bytes of a file name that are not UTF-8 cannot be sent to a browser.
    return html.escape(text.encode("utf-8", "backslashreplace").decode())


def _clock(seconds: float) -> str:
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


def _flac(samples: np.ndarray) -> str:
    import soundfile

    content = io.BytesIO()
    soundfile.write(content, np.clip(samples, -1, 1), _SAMPLE_RATE, format="FLAC", subtype="PCM_16")
    return base64.b64encode(content.getvalue()).decode()


def _png(samples: np.ndarray, moment: Moment, curve: Curve | None) -> str:
    from slap_fast.evaluation.plots import new_figure

    figure = new_figure(7.0, 1.9 if curve is None else 3.0)
    axes = figure.subplots(1 if curve is None else 2, 1, sharex=True, squeeze=False)[:, 0]
    end = moment.start + len(samples) / _SAMPLE_RATE
    decibels = _spectrogram(samples)
    axes[0].imshow(
        decibels,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(moment.start, end, 0, _SAMPLE_RATE / 2000),
        vmin=decibels.max() - 80,
    )
    axes[0].set_ylabel("kHz")
    if curve is not None:
        times, similarity = curve(samples, _SAMPLE_RATE)
        axes[1].plot(moment.start + times, similarity)
        axes[1].set_ylabel("similarity")
        axes[1].grid(alpha=0.3)
    axes[-1].set_xlim(moment.start, end)
    axes[-1].set_xlabel("time in the recording (s)")
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=80)
    return base64.b64encode(content.getvalue()).decode()


def _spectrogram(samples: np.ndarray) -> np.ndarray:
    """Energy in dB, `[257, frames]`, of Hann windows of 32 ms every 16 ms."""
    padded = np.pad(samples, (256, 256 + -len(samples) % 256))
    frames = np.lib.stride_tricks.sliding_window_view(padded, 512)[::256] * np.hanning(512)
    return 20 * np.log10(np.abs(np.fft.rfft(frames, axis=1)).T + 1e-6)
