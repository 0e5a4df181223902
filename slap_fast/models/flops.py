"""What a packed batch has to compute: the arithmetic of its tokens, without padding and without recomputation.

A multiplication with its addition is two operations. Matrix products alone are counted, as PaLM counts for its model
FLOPs utilization (arXiv 2204.02311, appendix B): norms, rotations and losses are bound by memory. Products with the
vocabulary and with the prototypes are among them; those between embeddings, which depend on the batches of all ranks,
and the sweeps of Sinkhorn-Knopp are not. Text attention counts every pair of a caption: up to 65 tokens, ModernBERT's
local windows hide none.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from slap_fast.config.model import ModelConfig

# In units of a forward pass: the gradients by the inputs and by the weights cost as much as the product itself.
BACKWARD = 2.0


class Flops(NamedTuple):
    """Operations of products with weights, and of queries with keys and weights with values."""

    projections: float
    attention: float


def forward_flops(config: ModelConfig, audio: Sequence[int], captions: Sequence[int], masked: int) -> dict[str, Flops]:
    """Operations of one forward pass of each part of the model.

    Args:
        config: every dimension.
        audio: audio tokens of each clip, as `ModelConfig.num_tokens` gives them.
        captions: tokens of each clip's caption, with its start and end.
        masked: audio tokens that the prototype head sees, over all clips.

    Returns:
        `audio_encoder`, `text_encoder`, `pooling`, `caption_decoder` with its vocabulary, and `prototype_head` with its
        prototypes.

    Raises:
        ValueError: not one caption a clip.
    """
    if len(audio) != len(captions):
        raise ValueError(f"there are {len(audio)} clips and {len(captions)} captions; pass one caption a clip")
    tokens, words = np.asarray(audio, dtype=np.int64), np.asarray(captions, dtype=np.int64)
    predicted = words - 1  # every token but a caption's first
    audio_tokens, text_tokens, decoded = int(tokens.sum()), int(words.sum()), int(predicted.sum())
    tower, text, decoder, head = config.audio, config.text, config.caption, config.prototype

    half_window = tower.window_columns // 2 * config.tokens_per_column
    global_layers = tower.layers // tower.global_every
    pairs = global_layers * _squares(tokens) + (tower.layers - global_layers) * _pairs_in_window(tokens, half_window)
    patch = tower.patch_frames * tower.patch_mels * tower.width
    decoder_layer = _layer_weights(decoder.width, decoder.mlp_width) + 2 * decoder.width**2
    cross_pairs = int((predicted * tokens).sum())
    causal_pairs = int((predicted * (predicted + 1) // 2).sum())
    head_weights = tower.width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    return {
        "audio_encoder": Flops(
            2.0 * (tower.layers * _layer_weights(tower.width, tower.mlp_width) + patch) * audio_tokens,
            4.0 * tower.width * pairs,
        ),
        "text_encoder": Flops(
            2.0 * text.layers * _layer_weights(text.width, text.mlp_width) * text_tokens,
            4.0 * text.width * text.layers * _squares(words),
        ),
        "pooling": Flops(
            # Keys and values of every token; output projection and MLP of every clip.
            2.0 * 2 * (tower.width**2 * audio_tokens + text.width**2 * text_tokens)
            + 2.0 * tower.width**2 * len(tokens) * (2 + 2 * (tower.pooling_mlp_ratio + text.pooling_mlp_ratio)),
            0.0,  # one query a clip
        ),
        "caption_decoder": Flops(
            2.0 * decoder.layers * decoder_layer * decoded
            + 2.0 * decoder.layers * 2 * tower.width * decoder.width * audio_tokens
            + 2.0 * text.vocab_size * decoder.width * decoded,
            4.0 * decoder.width * decoder.layers * (cross_pairs + causal_pairs),
        ),
        "prototype_head": Flops(2.0 * (head_weights + head.prototypes * head.bottleneck) * masked, 0.0),
    }


def step_flops(
    config: ModelConfig,
    audio: Sequence[int],
    captions: Sequence[int],
    masked: int,
    *,
    shared_pass: bool = False,
    attention_backward: float = BACKWARD,
) -> float:
    """Operations of a training step: forward and backward of the student, forward of the teacher.

    Args:
        config: as for `forward_flops`, as are `audio`, `captions` and `masked`.
        shared_pass: all objectives see one pass of the student's audio encoder; else it makes two.
        attention_backward: in units of the forward. Kernels that compute the scores anew take 2.5; what they repeat is
            no use, so that utilization counts 2.
    """
    total = 0.0
    for part, (projections, attention) in forward_flops(config, audio, captions, masked).items():
        passes = 2 if part == "audio_encoder" and not shared_pass else 1
        teacher = 1 if part in ("audio_encoder", "prototype_head") else 0
        total += (passes * (1 + BACKWARD) + teacher) * projections
        total += (passes * (1 + attention_backward) + teacher) * attention
    return total


def _layer_weights(width: int, mlp_width: int) -> int:
    """Of a layer with four square projections and a gated MLP."""
    return 4 * width**2 + 3 * width * mlp_width


def _squares(lengths: np.ndarray) -> int:
    return int((lengths * lengths).sum())


def _pairs_in_window(lengths: np.ndarray, side: int) -> int:
    """(query, key) pairs at most `side` apart."""
    sides = np.minimum(side, np.maximum(lengths - 1, 0))
    return int((lengths * (2 * sides + 1) - sides * (sides + 1)).sum())
