"""Synthetic captioned audio: sound events made by signal processing, composed in time and described in English."""

from __future__ import annotations

from slap_fast.data.synthesis.clips import SyntheticClip, iter_synthetic, synthetic_clip
from slap_fast.data.synthesis.dsp import SAMPLE_RATE
from slap_fast.data.synthesis.event import Event
from slap_fast.data.synthesis.events import EVENTS

__all__ = ["EVENTS", "SAMPLE_RATE", "Event", "SyntheticClip", "iter_synthetic", "synthetic_clip"]
