"""PNG plots of training logs, similarity matrices and localization; no display is needed."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from slap_fast.errors import MissingExtraError
from slap_fast.evaluation.localization import EventSpan, Localization
from slap_fast.ops.log_mel.config import MelConfig

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DPI = 150

# Key of log.jsonl, title, unit.
_PANELS = (
    ("loss", "Total loss", "weighted sum (nats)"),
    ("contrastive", "Contrastive", "cross-entropy (nats)"),
    ("self_distillation", "Self-distillation", "cross-entropy (nats)"),
    ("caption", "Captioning", "cross-entropy (nats/token)"),
    ("learning_rate", "Learning rate", "learning rate"),
    ("clips_per_second", "Throughput", "clips/s"),
    ("grad_norm", "Gradient norm", "before clipping"),
    ("prototype_entropy", "Prototypes in use", "entropy (nats)"),
    ("evaluation/score", "Evaluation", "score"),
)
_SMOOTHED = ("loss", "contrastive", "self_distillation", "caption", "clips_per_second")


def read_log(log_jsonl: str | Path) -> list[dict[str, Any]]:
    """The logged values of each step of a run, ascending; of a value logged twice (resumed run), the later one.

    Truncated lines, as a killed run leaves them, are ignored.

    Raises:
        ValueError: no logged step.
    """
    steps: dict[int, dict[str, Any]] = {}
    for line in Path(log_jsonl).read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and isinstance(entry.get("step"), int):
            # Evaluation scores of a step are logged as a separate entry.
            steps.setdefault(entry["step"], {}).update(entry)
    if not steps:
        raise ValueError(f"{log_jsonl}: it has no logged step")
    return [steps[step] for step in sorted(steps)]


def plot_losses(log_jsonl: str | Path, png: str | Path) -> None:
    """Plot losses, learning rate, throughput and other logged values over the steps of a run, raw and smoothed.

    Raises:
        ValueError: no logged step, or none of the known values.
    """
    log = read_log(log_jsonl)
    panels = [panel for panel in _PANELS if any(is_number(entry.get(panel[0])) for entry in log)]
    if not panels:
        raise ValueError(f"{log_jsonl}: it has none of {', '.join(panel[0] for panel in _PANELS)}")
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(4.2 * columns, 2.9 * rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharex=True).ravel()
    for axis, (key, title, unit) in zip(axes, panels, strict=False):
        steps, values = _series(log, key)
        if key in _SMOOTHED and len(values) > 10:
            axis.plot(steps, values, color="C0", alpha=0.3, linewidth=0.8, label="logged")
            axis.plot(steps, smoothed(values), color="C0", linewidth=1.8, label="smoothed")
            axis.legend(frameon=False, fontsize=8)
        else:
            axis.plot(steps, values, color="C0", linewidth=1.8)
        if key == "learning_rate":
            axis.ticklabel_format(axis="y", style="sci", scilimits=(-2, 3))
        axis.set_title(title, fontsize=11)
        axis.set_ylabel(unit)
        axis.set_xlabel("step")
        axis.tick_params(labelbottom=True)
        axis.grid(alpha=0.3)
    for axis in axes[len(panels) :]:
        axis.remove()
    figure.suptitle("Training")
    save_png(figure, png)


def plot_similarity(
    similarity: np.ndarray, captions: Sequence[str], png: str | Path, *, title: str = "Held-out clips against captions"
) -> None:
    """Plot a similarity matrix of clips (rows) and their own captions (columns); pairs are on the diagonal.

    Args:
        similarity: `[N, N]` cosine of clip i and caption j.
        captions: N captions; up to 40 of them label the rows.

    Raises:
        ValueError: the matrix is empty, not square, or of another size than `captions`.
    """
    n = len(captions)
    if not n or similarity.shape != (n, n):
        raise ValueError(
            f"similarity has shape {similarity.shape} and there are {n} captions; it must be [N, N], N > 0"
        )
    labeled = n <= 40
    figure = new_figure(9.5 if labeled else 7.5, 6.5)
    axis = figure.subplots()
    image = axis.imshow(similarity, cmap="viridis", interpolation="nearest")
    figure.colorbar(image, ax=axis, label="cosine similarity", shrink=0.9)
    best = similarity.argmax(0)
    hits = int((best == np.arange(n)).sum())
    axis.plot(
        np.arange(n),
        best,
        linestyle="none",
        marker="o",
        markersize=max(2.0, 150 / n) if n > 25 else 6,
        markerfacecolor="none",
        markeredgecolor="red",
        label="most similar clip of each caption",
    )
    axis.set_title(
        f"{title}\n{hits} of {n} captions find their own clip among these (red on the diagonal)", fontsize=11
    )
    axis.set_xlabel("caption, in the order of the clips")
    if labeled:
        axis.set_yticks(range(n), [shortened(caption, 48) for caption in captions], fontsize=7)
        axis.set_ylabel("clip, named by its first caption")
    else:
        axis.set_ylabel("clip")
    axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.08), frameon=False, fontsize=8)
    save_png(figure, png)


def plot_localization(
    mel: np.ndarray,
    curves: Sequence[Localization],
    png: str | Path,
    *,
    mel_config: MelConfig,
    title: str = "",
    events: Sequence[EventSpan] = (),
    seconds: float | None = None,
    unit: str = "cosine similarity",
    threshold: float | None = None,
    found: Sequence[EventSpan] = (),
) -> None:
    """Plot a log-mel spectrogram above the similarity of text queries over time, on a shared time axis.

    Args:
        mel: `[F, n_mels]` normalized log-mel frames of `log_mel` with `mel_config`, or of a long clip fewer rows.
        curves: one per query.
        title: such as the clip's caption.
        events: annotated events, shaded behind the curves.
        seconds: duration of the clip; None: that of F frames.
        unit: of the curves.
        threshold: drawn as a line.
        found: events that were found, by the queries of `curves`: bars above the curves.

    Raises:
        ValueError: no frames, no curve, or a number of mel bins other than `mel_config.n_mels`.
    """
    if mel.ndim != 2 or not len(mel) or mel.shape[1] != mel_config.n_mels:
        raise ValueError(f"mel has shape {mel.shape}; it must be [F, {mel_config.n_mels}] with F > 0")
    if not curves:
        raise ValueError("no curve; localize at least one query")
    figure = new_figure(10, 6)
    axes = figure.subplots(2, 2, width_ratios=(60, 1), height_ratios=(1.4, 1), sharex="col")
    spectrogram, below = axes[0, 0], axes[1, 0]
    axes[1, 1].remove()

    if seconds is None:
        seconds = len(mel) * mel_config.hop_length / mel_config.sample_rate
    decibels = (mel * mel_config.std + mel_config.mean) * (20 / mel_config.power) / math.log(10)
    image = spectrogram.imshow(
        decibels.T,
        origin="lower",
        aspect="auto",
        cmap="magma",
        interpolation="nearest",
        extent=(0, seconds, -0.5, mel_config.n_mels - 0.5),
        vmin=decibels.max() - 80,
    )
    figure.colorbar(image, cax=axes[0, 1], label="energy (dB)")
    ticks = _mel_ticks(mel_config)
    spectrogram.set_yticks([bin_number for _, bin_number in ticks], [f"{hertz:g}" for hertz, _ in ticks])
    spectrogram.set_ylim(-0.5, mel_config.n_mels - 0.5)
    spectrogram.set_ylabel("frequency (Hz, mel scale)")
    if title:
        spectrogram.set_title("\n".join(textwrap.wrap(literal(title), 100)), fontsize=11)

    _shade_events(below, events)
    for curve in curves:
        label = shortened(curve.query, 60)
        below.plot(curve.times, curve.similarity, marker="." if len(curve.times) < 60 else None, label=f"“{label}”")
    if threshold is not None:
        below.axhline(threshold, color="black", linestyle="--", linewidth=0.8, label=f"threshold {threshold:g}")
    _draw_found(below, found, [curve.query for curve in curves], seconds)
    below.set_xlim(0, seconds)
    if seconds > 600:
        from matplotlib.ticker import MultipleLocator

        below.xaxis.set_major_locator(MultipleLocator(_clock_step(seconds)))
        below.xaxis.set_major_formatter(lambda value, _: _clock(value))
    below.set_xlabel("time (h:mm:ss)" if seconds > 600 else "time (s)")
    below.set_ylabel(unit)
    below.grid(alpha=0.3)
    below.legend(loc="upper center", bbox_to_anchor=(0.5, -0.24), frameon=False, fontsize=9, ncols=2)
    save_png(figure, png)


class ScoreBar(NamedTuple):
    """One score of `plot_scores`: value, interval and reference in the same unit, or None."""

    label: str
    value: float | None
    interval: tuple[float, float] | None
    reference: float


def plot_scores(bars: Sequence[ScoreBar], png: str | Path, *, title: str, unit: str, reference: str) -> None:
    """Plot scores as bars with their intervals, each beside a reference; a score of None has only the reference.

    Raises:
        ValueError: no bar.
    """
    if not bars:
        raise ValueError("no score to plot")
    figure = new_figure(8.5, 1.4 + 0.5 * len(bars))
    axis = figure.subplots()
    places = np.arange(len(bars))
    axis.barh(places - 0.2, [bar.value or 0.0 for bar in bars], 0.38, color="C0", label="this model")
    axis.barh(places + 0.2, [bar.reference for bar in bars], 0.38, color="0.75", label=reference)
    for place, bar in zip(places, bars, strict=True):
        if bar.value is None:
            axis.annotate("not computed", (0, place - 0.2), xytext=(4, 0), textcoords="offset points", va="center")
            continue
        right = bar.value
        if bar.interval is not None:
            low, high = bar.interval
            # An interval of a median may not contain it.
            spread = [[max(0.0, bar.value - low)], [max(0.0, high - bar.value)]]
            axis.errorbar(bar.value, place - 0.2, xerr=spread, color="black", capsize=3, linewidth=1)
            right = max(right, high)
        axis.annotate(f"{bar.value:.1f}", (right, place - 0.2), xytext=(4, 0), textcoords="offset points", va="center")
    axis.set_yticks(places, [literal(bar.label) for bar in bars])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlim(left=0)
    axis.set_xlabel(unit)
    axis.grid(axis="x", alpha=0.3)
    axis.set_title(literal(title))
    axis.legend(loc="lower center", bbox_to_anchor=(0.5, 1.04), frameon=False, ncols=2)
    save_png(figure, png)


def _shade_events(axis: Axes, events: Sequence[EventSpan]) -> None:
    names = list(dict.fromkeys(name for name, _, _ in events))
    for position, name in enumerate(names):
        for index, (_, start, end) in enumerate(event for event in events if event[0] == name):
            label = f"{literal(name)} (ground truth)" if not index else None
            axis.axvspan(start, end, color=f"C{position}", alpha=0.15, linewidth=0, label=label)


def _draw_found(axis: Axes, found: Sequence[EventSpan], queries: Sequence[str], seconds: float) -> None:
    """Bars of the events of each query in a row of its own above the curves, in the color of its curve."""
    if not found:
        return
    low, high = axis.get_ylim()
    step = 0.06 * (high - low)
    for row, query in enumerate(queries):
        # An event of a second would be less than a pixel of ten hours.
        spans = [(start, max(end - start, seconds / 400)) for text, start, end in found if text == query]
        axis.broken_barh(spans, (high + row * step, 0.7 * step), color=f"C{row % 10}")
    axis.set_ylim(low, high + len(queries) * step)


def _clock_step(seconds: float) -> float:
    """Seconds between at most ten ticks: a round number of minutes or hours."""
    minutes = (2, 5, 10, 15, 30)
    steps = [*(60 * count for count in minutes), *(3600 * count for count in (1, 2, 3, 6, 12, 24))]
    return next((step for step in steps if seconds <= 10 * step), 86400 * -(-seconds // 864000))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def shortened(text: str, width: int) -> str:
    return literal(textwrap.shorten(text, width, placeholder="…"))


def literal(text: str) -> str:
    # matplotlib typesets text between dollar signs as math.
    return text.replace("$", r"\$")


def _mel_ticks(config: MelConfig) -> list[tuple[float, float]]:
    """Round frequencies in Hz, and their (fractional) mel bins."""
    top = config.f_max or config.sample_rate / 2
    low, high = (1127 * math.log1p(hertz / 700) for hertz in (config.f_min, top))
    step = (high - low) / (config.n_mels + 1)
    candidates = (125, 250, 500, 1000, 2000, 4000, 8000, 16000)
    bins = [(hertz, (1127 * math.log1p(hertz / 700) - low) / step - 1) for hertz in candidates]
    return [(hertz, bin_number) for hertz, bin_number in bins if -0.5 <= bin_number <= config.n_mels - 0.5]


def _series(log: Sequence[dict[str, Any]], key: str) -> tuple[np.ndarray, np.ndarray]:
    points = [(entry["step"], entry[key]) for entry in log if is_number(entry.get(key))]
    steps, values = zip(*points, strict=True)
    return np.array(steps), np.array(values, dtype=np.float64)


def is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def smoothed(values: np.ndarray) -> np.ndarray:
    """Centered moving average over a tenth of the points, which does not lag; the window is truncated at both ends."""
    half = max(1, len(values) // 20)
    sums = np.concatenate([[0.0], values.cumsum()])
    center = np.arange(len(values))
    start, end = np.maximum(center - half, 0), np.minimum(center + half + 1, len(values))
    return (sums[end] - sums[start]) / (end - start)


def new_figure(width: float, height: float) -> Figure:
    # A bare Figure uses Agg and leaves the backend and global state of pyplot unchanged.
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plots need matplotlib: pip install matplotlib") from error
    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def save_png(figure: Figure, png: str | Path) -> None:
    Path(png).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, format="png")
