"""Picture of a stretch of sound: its spectrogram, and below it how similar each moment is to the query."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from slap_fast.evaluation.localization import mel_frames
from slap_fast.evaluation.plots import new_figure
from slap_fast.ops.log_mel.config import MelConfig

_MAX_COLUMNS = 2000  # of the spectrogram, which no screen shows more of
_DECIBELS = 80
_CURVE_SHARE, _AXIS_SHARE = 0.31, 0.09  # of the height
_TICK_STEPS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400)  # seconds
_CURVE = "#ea580c"
_FONT_SIZE = 8.5
_HALF_LABEL = 0.3  # inches


class Shape(NamedTuple):
    """Size of a picture. Letters have the same size in inches in all, so they are larger in a narrow one."""

    inches: float
    pixels_per_inch: int
    height: float  # share of the width, with a curve
    most_ticks: int

    def pixels(self, *, curve: bool) -> tuple[int, int]:
        """Width and height."""
        width = self.inches * self.pixels_per_inch
        return round(width), round(width * self.height * (1 if curve else 1 - _CURVE_SHARE))


WIDE = Shape(8.0, 110, 0.4, 8)
NARROW = Shape(3.6, 200, 0.6, 3)
"""For phones."""


class Curve(NamedTuple):
    """What is drawn below a spectrogram.

    Attributes:
        times: seconds from the begin of the picture `[C]`.
        values: `[C]`.
        name: of the values.
        threshold: a value that is marked by a line.
    """

    times: np.ndarray
    values: np.ndarray
    name: str = "similarity"
    threshold: float | None = None


def draw_sound(
    samples: np.ndarray,
    config: MelConfig,
    *,
    start: float = 0.0,
    curve: Curve | None = None,
    shape: Shape = WIDE,
) -> bytes:
    """A PNG whose left and right edges are the begin and end of the samples.

    Args:
        samples: `[S]` float32 at the model's rate, at least one.
        config: of the model's spectrogram.
        start: seconds of the first sample in its recording, for the time axis.
        curve: below the spectrogram.
        shape: of the picture.
    """
    frames = mel_frames(samples, config)
    step = -(-len(frames) // _MAX_COLUMNS)
    whole = frames[: len(frames) // step * step]
    frames = whole.reshape(-1, step, frames.shape[1]).max(axis=1)
    return draw_frames(frames, config, len(samples) / config.sample_rate, start=start, curve=curve, shape=shape)


def draw_frames(
    frames: np.ndarray,
    config: MelConfig,
    seconds: float,
    *,
    start: float = 0.0,
    curve: Curve | None = None,
    shape: Shape = WIDE,
    events: Sequence[tuple[float, float]] = (),
) -> bytes:
    """As `draw_sound`, of a spectrogram that is there already.

    Args:
        frames: `[F, n_mels]` normalized log-mel values, evenly over `seconds`.
        config: of the model's spectrogram.
        seconds: that the picture spans.
        start: of the picture in its recording.
        curve: below the spectrogram.
        shape: of the picture.
        events: begin and end in seconds from `start`, shaded.
    """
    from matplotlib.ticker import MultipleLocator

    decibels = (frames * config.std + config.mean) * (20 / config.power) / math.log(10)
    width, height = shape.pixels(curve=curve is not None)
    figure = new_figure(width / shape.pixels_per_inch, height / shape.pixels_per_inch)
    figure.set_layout_engine("none")
    bottom = _AXIS_SHARE * shape.inches * shape.height / figure.get_figheight()
    if curve is None:
        spectrogram: Any = figure.add_axes((0, bottom, 1, 1 - bottom))
        below = spectrogram
    else:
        spectrogram = figure.add_axes((0, bottom + _CURVE_SHARE, 1, 1 - bottom - _CURVE_SHARE))
        below = figure.add_axes((0, bottom, 1, _CURVE_SHARE), sharex=spectrogram)
        spectrogram.tick_params(labelbottom=False, bottom=False)
        _draw_curve(below, start, curve)
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
    below.xaxis.set_major_locator(MultipleLocator(_tick_step(seconds, shape.most_ticks)))
    below.tick_params(axis="x", labelsize=_FONT_SIZE)
    _keep_inside(below, _HALF_LABEL / shape.inches)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", dpi=shape.pixels_per_inch)
    return file.getvalue()


def clock(seconds: float) -> str:
    """Seconds as a person reads them: 0:07.5, 1:02:03."""
    tenths = round(seconds * 10)
    minutes, rest = divmod(tenths, 600)
    hours, minutes = divmod(minutes, 60)
    tail = f"{rest // 10:02d}" + (f".{rest % 10}" if rest % 10 else "")
    return f"{hours}:{minutes:02d}:{tail}" if hours else f"{minutes}:{tail}"


def _draw_curve(axis: Any, start: float, curve: Curve) -> None:
    from matplotlib.ticker import MaxNLocator

    times, values = start + curve.times, curve.values
    low, high = min(0.0, float(values.min())), max(float(values.max()), curve.threshold or 0.0)
    axis.plot(times, values, color=_CURVE, linewidth=1.5, marker="o" if len(times) < 3 else None)
    axis.fill_between(times, values, low, color=_CURVE, alpha=0.15, linewidth=0)
    if curve.threshold is not None:
        axis.axhline(curve.threshold, color=_CURVE, linewidth=1, linestyle="--")
    # Room for the labels, which are inside because the edges of the picture are the edges of the sound.
    margin = 0.12 * (high - low) + 1e-3
    axis.set_ylim(low - margin, high + 4 * margin)
    # Only values that occur, so that no label is cut by an edge.
    axis.set_yticks([tick for tick in MaxNLocator(3).tick_values(low, high) if low <= tick <= high])
    axis.tick_params(axis="y", length=0, pad=-4, labelsize=_FONT_SIZE)
    for label in axis.get_yticklabels():
        label.set_horizontalalignment("left")
    axis.grid(alpha=0.3)
    place = {"transform": axis.transAxes, "ha": "right", "va": "top"}
    axis.text(0.99, 0.95, curve.name, fontsize=_FONT_SIZE, color=_CURVE, **place)


def _tick_step(seconds: float, most: int) -> float:
    return next((step for step in _TICK_STEPS if seconds / step <= most), _TICK_STEPS[-1])


def _keep_inside(axis: Any, near: float) -> None:
    """Move labels of ticks that are so near an edge, as a share of the width, that they would be cut off."""
    low, high = axis.get_xlim()
    for tick, label in zip(axis.get_xticks(), axis.get_xticklabels(), strict=True):
        place = (tick - low) / (high - low)
        if 0 <= place < near:
            label.set_horizontalalignment("left")
        elif 1 - near < place <= 1:
            label.set_horizontalalignment("right")
