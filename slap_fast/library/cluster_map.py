"""PNG map of a library: one point per recording, in the color of its cluster; no display is needed."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slap_fast.evaluation.plots import new_figure, save_png, shortened
from slap_fast.library.clusters import UNCLUSTERED, Clustering

_COLORED = 18
"""Clusters with a color and a line of the legend; the others share one."""


def plot_map(clustering: Clustering, positions: np.ndarray, png: str | Path) -> None:
    """Draw `positions` `[N, 2]` of `Clustering.positions`, with the number of each of the largest clusters.

    Raises:
        MissingExtraError: matplotlib is not installed.
        OSError: `png` cannot be written.
    """
    figure = new_figure(11, 7)
    axis = figure.subplots()
    axis.set_aspect("equal", adjustable="datalim")
    axis.set_xticks([])
    axis.set_yticks([])
    shown = ~np.isnan(positions[:, 0])
    count, total = int(shown.sum()), len(positions)
    sample = "" if count == total else f" (a sample of {count:,})"
    axis.set_title(
        f"{_counted(total, 'recording')}{sample}, {_counted(len(clustering.clusters), 'cluster')}", fontsize=11
    )
    size = float(np.clip(6000 / max(count, 1), 6, 40))

    def draw(rows: np.ndarray, color: object, label: str) -> None:
        x, y = positions[rows & shown].T
        axis.scatter(x, y, s=size, color=color, label=label, linewidths=0, alpha=0.8)

    labels = clustering.labels
    if (labels < 0).any():
        draw(labels < 0, "0.82", f"{UNCLUSTERED} ({int((labels < 0).sum()):,})")
    colored = clustering.clusters[:_COLORED]
    if rest := clustering.clusters[_COLORED:]:
        draw(
            labels >= _COLORED, "0.5", f"{_counted(len(rest), 'smaller cluster')} ({int((labels >= _COLORED).sum()):,})"
        )
    for cluster in colored:
        label = f"{cluster.number}  {shortened(cluster.name, 46)} ({len(cluster.members):,})"
        draw(labels == cluster.number, _color(cluster.number), label)
    for cluster in colored:
        rows = (labels == cluster.number) & shown
        if rows.any():
            _number(axis, positions[rows], cluster.number)
    handles, names = axis.get_legend_handles_labels()
    if handles:
        gray = len(handles) - len(colored)  # drawn first, to lie below, and listed last
        figure.legend(
            handles[gray:] + handles[:gray],
            names[gray:] + names[:gray],
            loc="outside right upper",
            frameon=False,
            fontsize=8,
            markerscale=max(1.0, (30 / size) ** 0.5),
        )
    save_png(figure, png)


def _number(axis: object, points: np.ndarray, number: int) -> None:
    """Write the number of a cluster beside its most central recording; the mean of a bent one may lie in another."""
    from matplotlib.axes import Axes
    from matplotlib.patheffects import withStroke

    assert isinstance(axis, Axes)
    middle = points[np.abs(points - np.median(points, axis=0)).sum(axis=1).argmin()]
    axis.annotate(
        str(number),
        middle,
        xytext=(5, 5),
        textcoords="offset points",
        fontsize=9,
        fontweight="bold",
        path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )


def _color(number: int) -> object:
    from matplotlib import colormaps

    # Strong colors first, then pale ones; without the grays, which are of the other recordings.
    colors = [shade for pale in (0, 1) for shade in range(pale, 20, 2) if shade not in (14, 15)]
    return colormaps["tab20"](colors[number])


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"
