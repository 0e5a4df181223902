"""Random log-mel conventions for hypothesis, covering all choices of every field, small enough for a dense DFT."""

from __future__ import annotations

from typing import Any, get_args

from hypothesis import strategies as st

from slap_fast.ops.log_mel import config
from slap_fast.ops.log_mel.config import MelConfig

# 0, 1, around a small window, and several frames.
LENGTHS = st.sampled_from([0, 1, 2, 3, 5, 11, 12, 13, 24, 25, 61, 100])


@st.composite
def mel_configs(draw: st.DrawFn, **fixed: Any) -> MelConfig:
    """Any convention with the `fixed` fields."""
    win_length = draw(st.integers(1, 24))
    sample_rate = draw(st.sampled_from([100, 800, 16_000]))
    padding = draw(st.sampled_from(get_args(config.Padding)))
    log = draw(st.sampled_from(get_args(config.Log)))
    fields: dict[str, Any] = {
        "sample_rate": sample_rate,
        "n_fft": win_length + draw(st.sampled_from([0, 1, 3, 8])),
        "win_length": win_length,
        "hop_length": draw(st.integers(1, 30)),
        "window": draw(st.sampled_from(get_args(config.Window))),
        "frame_span": "win_length" if padding == "kaldi" else draw(st.sampled_from(get_args(config.FrameSpan))),
        "padding": padding,
        "pad_length": draw(st.none() | st.integers(0, 50)) if padding in ("zeros", "reflect") else None,
        "drop_last_frame": draw(st.booleans()),
        # Without a logarithm, rounding at the scale of 32768**2 would exceed NeMo's guard of 1e-5.
        "input_scale": 1.0 if log == "none" else draw(st.sampled_from([1.0, 32768.0])),
        "remove_dc_offset": draw(st.booleans()),
        "preemphasis": draw(st.sampled_from([0.0, 0.5, 0.97])),
        "preemphasis_scope": draw(st.sampled_from(get_args(config.PreemphasisScope))),
        "power": draw(st.sampled_from([1.0, 2.0])),
        "power_guard": draw(st.sampled_from([0.0, 1e-3])),
        "n_mels": draw(st.integers(1, 9)),
        "f_min": draw(st.sampled_from([0.0, 10.0])),
        "f_max": draw(st.sampled_from([None, 0.4 * sample_rate])),
        "mel_scale": draw(st.sampled_from(get_args(config.MelScale))),
        "mel_norm": draw(st.sampled_from(get_args(config.MelNorm))),
        "log": log,
        "log_floor": draw(st.sampled_from([0.0, 1e-7, 1e-3])),
        "log_guard": draw(st.sampled_from([1e-6, 0.1])),
        "dynamic_range": draw(st.sampled_from([None, 0.0, 2.0])),
        "normalize_per_clip": draw(st.booleans()),
        "mean": draw(st.sampled_from([0.0, -3.0])),
        "std": draw(st.sampled_from([1.0, 2.0])),
    }
    return MelConfig(**{**fields, **fixed})
