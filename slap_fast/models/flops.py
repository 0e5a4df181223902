"""Model FLOPs of a packed batch, without padding and without recomputation.

A multiply-add is two FLOPs. Only matrix products count, as in PaLM's model FLOPs utilization (arXiv 2204.02311,
appendix B): norms, rotary embeddings and losses are memory-bound. Products with the vocabulary and the prototypes are
included; similarities of embeddings, which depend on the batches of all ranks, and Sinkhorn-Knopp iterations are not.
Text attention counts all pairs of tokens: ModernBERT's local windows mask none in captions of up to 65 tokens.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np

from slap_fast.config.model import OBJECTIVES, ModelConfig
from slap_fast.config.recipe import ObjectivesConfig

# Relative to the forward pass: the gradients of the inputs and of the weights cost one product each.
BACKWARD = 2.0


class Flops(NamedTuple):
    """FLOPs of products with weight matrices, and of the two products of attention."""

    projections: float
    attention: float


_OBJECTIVE_OF_PART = {
    "text_encoder": "contrastive",
    "pooling": "contrastive",
    "caption_decoder": "caption",
    "prototype_head": "self_distillation",
}
_TOWERS_BELOW = {
    "pooling": ("audio_encoder", "text_encoder"),
    "caption_decoder": ("audio_encoder",),
    "prototype_head": ("audio_encoder",),
}


def forward_flops(
    config: ModelConfig,
    audio: Sequence[int],
    captions: Sequence[int],
    masked: int,
    objectives: Sequence[str] = OBJECTIVES,
) -> dict[str, Flops]:
    """FLOPs of one forward pass of each part of the model.

    Args:
        config: every dimension.
        audio: audio tokens of each clip (`ModelConfig.num_tokens`).
        captions: tokens of each clip's caption, with its start and end tokens.
        masked: masked audio tokens of all clips, the input of the prototype head.
        objectives: those that are trained; the parts of others are left out.

    Returns:
        `audio_encoder`, `text_encoder`, `pooling`, `caption_decoder` with its vocabulary, and `prototype_head` with its
        prototypes.

    Raises:
        ValueError: `audio` and `captions` differ in length.
    """
    if len(audio) != len(captions):
        raise ValueError(f"there are {len(audio)} clips and {len(captions)} captions; pass one caption per clip")
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
    parts = {
        "audio_encoder": Flops(
            2.0 * (tower.layers * _layer_weights(tower.width, tower.mlp_width) + patch) * audio_tokens,
            4.0 * tower.width * pairs,
        ),
        "text_encoder": Flops(
            2.0 * text.layers * _layer_weights(text.width, text.mlp_width) * text_tokens,
            4.0 * text.width * text.layers * _squares(words),
        ),
        "pooling": Flops(
            # Key and value projections per token; output projection and MLP per clip.
            2.0 * 2 * (tower.width**2 * audio_tokens + text.width**2 * text_tokens)
            + 2.0 * tower.width**2 * len(tokens) * (2 + 2 * (tower.pooling_mlp_ratio + text.pooling_mlp_ratio)),
            0.0,  # one query per clip: negligible
        ),
        "caption_decoder": Flops(
            2.0 * decoder.layers * decoder_layer * decoded
            + 2.0 * decoder.layers * 2 * tower.width * decoder.width * audio_tokens
            + 2.0 * text.vocab_size * decoder.width * decoded,
            4.0 * decoder.width * decoder.layers * (cross_pairs + causal_pairs),
        ),
        "prototype_head": Flops(2.0 * (head_weights + head.prototypes * head.bottleneck) * masked, 0.0),
    }
    absent = [name for name, objective in _OBJECTIVE_OF_PART.items() if objective not in objectives]
    return {name: part for name, part in parts.items() if name not in absent}


def step_flops(
    config: ModelConfig,
    audio: Sequence[int],
    captions: Sequence[int],
    masked: int,
    objectives: ObjectivesConfig,
    *,
    frozen: Collection[str] = (),
    attention_backward: float = BACKWARD,
) -> float:
    """FLOPs of a training step: forward and backward of the student, forward of the teacher if there is one.

    Args:
        config: as for `forward_flops`, as are `audio`, `captions` and `masked`.
        objectives: which are active, and the passes of the student's audio encoder.
        frozen: parts that are not trained (`model.freeze`).
        attention_backward: relative to the forward. Kernels that recompute the scores need 2.5; utilization does not
            count recomputation and uses 2.
    """
    total = 0.0
    has_teacher = "self_distillation" in objectives.active
    for part, (projections, attention) in forward_flops(config, audio, captions, masked, objectives.active).items():
        passes = objectives.student_passes if part == "audio_encoder" else 1
        teacher = 1 if has_teacher and part in ("audio_encoder", "prototype_head") else 0
        backward = backward_products(part, frozen)
        total += (passes * (1 + backward) + teacher) * projections
        total += (passes * (1 + attention_backward * (backward > 0)) + teacher) * attention
    return total


def backward_products(part: str, frozen: Collection[str]) -> float:
    """Products of the backward pass of a part of `forward_flops`, relative to its forward pass.

    A frozen part passes gradients on to a trained tower below it, and computes none if all below is frozen.
    """
    if not {"audio_pooling", "text_pooling"}.issubset(frozen) if part == "pooling" else part not in frozen:
        return BACKWARD
    return 1.0 if any(tower not in frozen for tower in _TOWERS_BELOW.get(part, ())) else 0.0


def _layer_weights(width: int, mlp_width: int) -> int:
    """Weights of a layer with four square projections and a gated MLP."""
    return 4 * width**2 + 3 * width * mlp_width


def _squares(lengths: np.ndarray) -> int:
    return int((lengths * lengths).sum())


def _pairs_in_window(lengths: np.ndarray, side: int) -> int:
    """(query, key) pairs at most `side` apart."""
    sides = np.minimum(side, np.maximum(lengths - 1, 0))
    return int((lengths * (2 * sides + 1) - sides * (sides + 1)).sum())
