"""Synthetic captioned audio: sound events made by signal processing, composed in time and described in English."""

from __future__ import annotations

from slap_fast.synthetic.clips import SyntheticClip, iter_synthetic, synthetic_clip
from slap_fast.synthetic.dsp import SAMPLE_RATE
from slap_fast.synthetic.event import Event
from slap_fast.synthetic.events import EVENTS

__all__ = ["EVENTS", "SAMPLE_RATE", "Event", "SyntheticClip", "iter_synthetic", "synthetic_clip"]
