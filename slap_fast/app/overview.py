"""Overview of a whole recording: its similarity to a query over time, and the events."""

from __future__ import annotations

import io
from collections.abc import Sequence

from slap_fast.app.locating import Curve, Event
from slap_fast.app.pictures import clock
from slap_fast.evaluation.plots import new_figure

_COLOR = "#ea580c"


def draw_overview(curve: Curve, events: Sequence[Event], threshold: float) -> bytes:
    """A PNG of the curve, with the threshold as a line and the events shaded."""
    figure = new_figure(8, 2.4)
    axis = figure.subplots()
    for event in events:
        axis.axvspan(event.start, event.end, facecolor=_COLOR, alpha=0.25, edgecolor="none")
    axis.plot(curve.times, curve.similarity, color=_COLOR, linewidth=0.9)
    axis.axhline(threshold, color="0.4", linewidth=0.8, linestyle="--")
    axis.set_xlim(0, curve.seconds)
    axis.set_ylabel("similarity")
    axis.xaxis.set_major_formatter(lambda value, _: clock(value))
    axis.grid(alpha=0.3)
    file = io.BytesIO()
    figure.savefig(file, format="png", facecolor="white", dpi=110)
    return file.getvalue()
