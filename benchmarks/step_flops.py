"""What a training step computes, counted: the arithmetic that each layout cannot avoid."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slap_fast.config.model import ModelConfig
from slap_fast.models import flops

# Attention kernels compute the scores anew in the backward: five products for the forward's two.
ATTENTION_BACKWARD = 2.5


def step_flops(tokens: Sequence[int], captions: Sequence[int], config: ModelConfig, *, padded: bool) -> float:
    """Multiplications and additions of one step's matrix products, of all three objectives.

    Args:
        tokens: audio tokens of each clip.
        captions: caption tokens of each clip.
        config: the model's dimensions.
        padded: every clip counts as the longest, and a window saves nothing: SDPA with a mask visits every pair.
    """
    masked = sum(tokens) // 2  # of the real ones, in either layout
    if padded:
        tokens = [max(tokens)] * len(tokens)
        captions = [max(captions)] * len(captions)
        config = replace(config, audio=replace(config.audio, global_every=1))
    return flops.step_flops(config, tokens, captions, masked, attention_backward=ATTENTION_BACKWARD)
