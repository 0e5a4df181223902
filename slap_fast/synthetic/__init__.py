"""Synthetic dataset: generates captioned audio by signal processing, for demos, tests and benchmarks.

`synthetic_clip` in clips.py ties it together: combinations.py draws a set of events (some are held out for validation),
scenes.py places them in time, captions.py describes the scene, and rendering.py renders it. events/ defines how each
event sounds and its words; dsp.py has the signal processing. Nothing here depends on the rest of slap_fast.
"""

from __future__ import annotations

from slap_fast.synthetic.clips import SyntheticClip, iter_synthetic, synthetic_clip
from slap_fast.synthetic.dsp import SAMPLE_RATE
from slap_fast.synthetic.event import Event
from slap_fast.synthetic.events import ALL_EVENTS, EVENTS, NEW_EVENTS

__all__ = [
    "ALL_EVENTS",
    "EVENTS",
    "NEW_EVENTS",
    "SAMPLE_RATE",
    "Event",
    "SyntheticClip",
    "iter_synthetic",
    "synthetic_clip",
]
