"""PNG plot of a probe: confusion of the linear probe, or the scores of its classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from slap_fast.evaluation.plots import literal, new_figure, save_png, shortened
from slap_fast.evaluation.probe.scoring import ProbeResult

_NAMED = 60  # more names do not fit on an axis
_BARS = 40


def plot_probe(result: ProbeResult, png: str | Path) -> None:
    """Draw the confusion matrix (rows sum to 1), or the classes' average precision for a multi-label set."""
    if result.confusion is None:
        _plot_classes(result, png)
    else:
        _plot_confusion(result, np.array(result.confusion), png)


def _plot_confusion(result: ProbeResult, counts: np.ndarray, png: str | Path) -> None:
    n = len(counts)
    size = float(np.clip(2.5 + 0.19 * n, 5, 12))
    figure = new_figure(size + 1.2, size)
    axis = figure.subplots()
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    image = axis.imshow(shares, cmap="viridis", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axis, label="share of the clips of a class", shrink=0.8)
    if n <= _NAMED:
        names = [shortened(name, 24) for name in result.classes]
        axis.set_xticks(range(n), names, rotation=90, fontsize=7)
        axis.set_yticks(range(n), names, fontsize=7)
    axis.set_xlabel("class by the linear probe")
    axis.set_ylabel("true class")
    axis.set_title(f"{literal(result.name)}: {100 * result.linear.mean:.1f} % right", fontsize=11)
    save_png(figure, png)


def _plot_classes(result: ProbeResult, png: str | Path) -> None:
    scored = [(value, name) for name, value in result.linear.per_class.items() if value is not None]
    scored.sort()
    title = f"{literal(result.name)}: mAP {result.linear.mean:.3f} of the linear probe"
    if len(scored) > _BARS:
        scored = [*scored[: _BARS // 2], *scored[-_BARS // 2 :]]
        title += f"\nthe {_BARS // 2} best and the {_BARS // 2} worst of {len(result.linear.per_class)} classes"
    figure = new_figure(7, max(3.0, 0.2 * len(scored) + 1.2))
    axis = figure.subplots()
    knn = [result.knn.per_class[name] or 0.0 for _, name in scored]
    axis.barh(range(len(scored)), [value for value, _ in scored], color="C0", label="linear")
    axis.plot(knn, range(len(scored)), "k|", label=f"{result.neighbors} nearest neighbors")
    axis.set_yticks(range(len(scored)), [shortened(name, 32) for _, name in scored], fontsize=7)
    axis.set_ylim(-0.8, len(scored) - 0.2)
    axis.set_xlim(0, 1)
    axis.set_xlabel("average precision")
    axis.set_title(title, fontsize=11)
    axis.grid(axis="x", alpha=0.3)
    axis.legend(frameon=False, fontsize=8, loc="lower right")
    save_png(figure, png)
