"""FLOPs of a training step, in the packed and the padded layout."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.models import flops

# Attention kernels recompute the scores in the backward: five products, where the forward has two.
ATTENTION_BACKWARD = 2.5


def step_flops(tokens: Sequence[int], captions: Sequence[int], config: ModelConfig, *, padded: bool) -> float:
    """FLOPs of the matrix products of one step, with all three objectives.

    Args:
        tokens: audio tokens of each clip.
        captions: caption tokens of each clip.
        config: the model's dimensions.
        padded: all clips have the length of the longest, and windows save nothing: masked SDPA computes all pairs.
    """
    masked = sum(tokens) // 2  # not of padding, in either layout
    if padded:
        tokens = [max(tokens)] * len(tokens)
        captions = [max(captions)] * len(captions)
        config = replace(config, audio=replace(config.audio, global_every=1))
    return flops.step_flops(config, tokens, captions, masked, ObjectivesConfig(), attention_backward=ATTENTION_BACKWARD)
