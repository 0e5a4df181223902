"""PNG plots of several runs: one panel per value, one line per run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from slap_fast.evaluation.comparison.run import Run
from slap_fast.evaluation.comparison.table import LOSSES
from slap_fast.evaluation.plots import literal, new_figure, save_png, shortened, smoothed

_COLUMNS = 3
_MARKED = 40  # more points than this are drawn without markers


def plot_losses_of(runs: Sequence[Run], png: str | Path) -> bool:
    """Losses over steps, smoothed over the logged values; returns whether there was something to draw."""
    return _plot(runs, LOSSES, png, smooth=True)


def plot_scores_of(runs: Sequence[Run], png: str | Path) -> bool:
    """Scores of evaluations during training; returns whether there was something to draw."""
    keys = dict.fromkeys(f"evaluation/{key}" for run in runs for key in run.scores())
    return _plot(runs, list(keys), png, smooth=False)


def _plot(runs: Sequence[Run], keys: Sequence[str], png: str | Path, *, smooth: bool) -> bool:
    keys = [key for key in keys if any(key in run.series for run in runs)]
    if not keys:
        return False
    columns = 2 if len(keys) == 4 else min(_COLUMNS, len(keys))
    rows = -(-len(keys) // columns)
    figure = new_figure(max(6.0, 4.2 * columns), 2.9 * rows + 0.6)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis, key in zip(axes, keys, strict=False):
        for number, run in enumerate(runs):
            if key not in run.series:
                continue
            steps, values = (np.array(column) for column in zip(*run.series[key], strict=True))
            color = f"C{number}" if len(runs) <= 10 else _color(number, len(runs))
            if smooth and len(values) > 10:
                axis.plot(steps, values, color=color, alpha=0.2, linewidth=0.7)
                values = smoothed(values)
            marker = "." if len(values) == 1 or (len(values) <= _MARKED and not smooth) else None
            axis.plot(steps, values, color=color, linewidth=1.6, marker=marker, label=_label(run))
        axis.set_title(literal(key.removeprefix("evaluation/")), fontsize=11)
        axis.set_xlabel("step")
        axis.grid(alpha=0.3)
    for axis in axes[len(keys) :]:
        axis.remove()
    # One legend: a run without some of the values is in it, too.
    handles = {
        label: line for axis in axes[: len(keys)] for line, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }
    ordered = {_label(run): handles[_label(run)] for run in runs if _label(run) in handles}
    figure.legend(
        ordered.values(), ordered.keys(), loc="outside lower center", ncols=min(4, len(ordered)), frameon=False
    )
    save_png(figure, png)
    return True


def _label(run: Run) -> str:
    return shortened(run.name, 40)


def _color(number: int, count: int) -> tuple[float, float, float]:
    from colorsys import hsv_to_rgb

    return hsv_to_rgb(number / count, 0.8, 0.85)
