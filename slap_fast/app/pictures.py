"""Picture of a stretch of sound: its spectrogram, and below it how similar each moment is to the query."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from slap_fast.evaluation.localization import mel_frames
from slap_fast.evaluation.plots import new_figure
from slap_fast.ops.log_mel.config import MelConfig

_MAX_COLUMNS = 2000  # of the spectrogram, which no screen shows more of
_DECIBELS = 80
_INCHES = 8
_PIXELS_PER_INCH = 110
_MAX_TICKS = 8
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)  # seconds
_CURVE = "#ea580c"


def draw_sound(
    samples: np.ndarray,
    config: MelConfig,
    *,
    start: float = 0.0,
    curve: tuple[np.ndarray, np.ndarray] | None = None,
) -> bytes:
    """A PNG whose left and right edges are the begin and end of the samples.

    Args:
        samples: `[S]` float32 at the model's rate, at least one.
        config: of the model's spectrogram.
        start: seconds of the first sample in its recording, for the time axis.
        curve: centers in seconds from `start` `[C]`, and similarities `[C]`.
    """
    frames = mel_frames(samples, config)
    step = -(-len(frames) // _MAX_COLUMNS)
    whole = frames[: len(frames) // step * step]
    frames = whole.reshape(-1, step, frames.shape[1]).max(axis=1)
    return draw_frames(frames, config, len(samples) / config.sample_rate, start=start, curve=curve)


def draw_frames(
    frames: np.ndarray,
    config: MelConfig,
    seconds: float,
    *,
    start: float = 0.0,
    curve: tuple[np.ndarray, np.ndarray] | None = None,
    events: Sequence[tuple[float, float]] = (),
) -> bytes:
    """As `draw_sound`, of a spectrogram that is there already.

    Args:
        frames: `[F, n_mels]` normalized log-mel values, evenly over `seconds`.
        config: of the model's spectrogram.
        seconds: that the picture spans.
        start: of the picture in its recording.
        curve: centers in seconds from `start` `[C]`, and similarities `[C]`.
        events: begin and end in seconds from `start`, shaded.
    """
    from matplotlib.ticker import MultipleLocator

    decibels = (frames * config.std + config.mean) * (20 / config.power) / math.log(10)
    figure = new_figure(_INCHES, 2.3 if curve is None else 3.2)
    figure.set_layout_engine("none")
    bottom = 0.25 / figure.get_figheight()
    if curve is None:
        spectrogram: Any = figure.add_axes((0, bottom, 1, 1 - bottom))
        below = spectrogram
    else:
        curve_height = 1.0 / figure.get_figheight()
        spectrogram = figure.add_axes((0, bottom + curve_height, 1, 1 - bottom - curve_height))
        below = figure.add_axes((0, bottom, 1, curve_height), sharex=spectrogram)
        spectrogram.tick_params(labelbottom=False, bottom=False)
        _draw_curve(below, start + curve[0], curve[1])
    top = float(decibels.max())
    spectrogram.imshow(
        decibels.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        extent=(start, start + seconds, 0, decibels.shape[1]),
        vmin=top - _DECIBELS,
        vmax=top,
    )
    spectrogram.set_yticks([])
    for begin, end in events:
        for axis in {spectrogram, below}:
            axis.axvspan(start + begin, start + end, facecolor=_CURVE, alpha=0.2, edgecolor="none")
    below.set_xlim(start, start + seconds)
    below.xaxis.set_major_formatter(lambda value, _: clock(value))
    below.xaxis.set_major_locator(MultipleLocator(_tick_step(seconds)))
    below.tick_params(axis="x", labelsize=8)
    for label, side in zip(_edge_labels(below), ("left", "right"), strict=False):
        label.set_horizontalalignment(side)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", dpi=_PIXELS_PER_INCH)
    return file.getvalue()


def clock(seconds: float) -> str:
    """Seconds as a person reads them: 0:07.5, 1:02:03."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _draw_curve(axis: Any, times: np.ndarray, similarity: np.ndarray) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.plot(times, similarity, color=_CURVE, linewidth=1.5, marker="o" if len(times) < 3 else None)
    axis.fill_between(times, similarity, min(0.0, float(similarity.min())), color=_CURVE, alpha=0.15, linewidth=0)
    # Room for the labels, which are inside because the edges of the picture are the edges of the sound.
    low, high = min(0.0, float(similarity.min())), float(similarity.max())
    margin = 0.1 * (high - low) + 1e-3
    axis.set_ylim(low - margin, high + 3 * margin)
    axis.tick_params(axis="y", length=0, pad=-4, labelsize=7)
    for label in axis.get_yticklabels():
        label.set_horizontalalignment("left")
    axis.yaxis.set_major_locator(MaxNLocator(4, prune="both"))
    axis.grid(alpha=0.3)
    axis.text(0.99, 0.9, "similarity", transform=axis.transAxes, ha="right", va="top", fontsize=8, color=_CURVE)


def _tick_step(seconds: float) -> float:
    return next((step for step in _TICK_STEPS if seconds / step <= _MAX_TICKS), _TICK_STEPS[-1])


def _edge_labels(axis: Any) -> list[Any]:
    """The labels of ticks that are so near the edge that they would be cut off."""
    low, high = axis.get_xlim()
    labels = [(tick, label) for tick, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True)]
    inside = [(tick, label) for tick, label in labels if low <= tick <= high]
    near = 0.03 * (high - low)
    left = [label for tick, label in inside if tick - low < near][:1]
    right = [label for tick, label in inside if high - tick < near][-1:]
    for label in right:
        label.set_horizontalalignment("right")
    return left
