"""Public ops: packed, differentiable, on CPU and GPU, usable in any model.

Importing this package registers every op in `torch.ops.slap_fast`, which exported programs need. So it imports torch.
A function hides the folder of the same name: import a backend by `from slap_fast.ops.rms_norm import backend_triton`.
"""

from __future__ import annotations

from slap_fast.ops.attention import varlen_attention
from slap_fast.ops.contrastive import ContrastiveOutput, contrastive_loss
from slap_fast.ops.decode_flac import DecodedFlac, FlacError, FlacInfo, decode_flac, flac_info
from slap_fast.ops.linear import linear
from slap_fast.ops.linear_cross_entropy import linear_cross_entropy
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patches import log_mel_patches
from slap_fast.ops.log_mel.stream import LogMelStream
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.prototype_cross_entropy import prototype_cross_entropy, sinkhorn_potential
from slap_fast.ops.rms_norm import add_rms_norm, rms_norm
from slap_fast.ops.rotary import apply_rotary, apply_rotary_qkv
from slap_fast.ops.swiglu import swiglu
from slap_fast.ops.waveform_stats import WaveformStats, waveform_stats

__all__ = [
    "ContrastiveOutput",
    "DecodedFlac",
    "FlacError",
    "FlacInfo",
    "LogMelStream",
    "MelConfig",
    "PackedLayout",
    "WaveformStats",
    "add_rms_norm",
    "apply_rotary",
    "apply_rotary_qkv",
    "contrastive_loss",
    "decode_flac",
    "flac_info",
    "linear",
    "linear_cross_entropy",
    "log_mel",
    "log_mel_patches",
    "prototype_cross_entropy",
    "rms_norm",
    "sinkhorn_potential",
    "swiglu",
    "varlen_attention",
    "waveform_stats",
]
