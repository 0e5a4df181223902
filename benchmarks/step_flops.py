"""What a training step computes, counted: the arithmetic that each layout cannot avoid."""

from __future__ import annotations

from collections.abc import Sequence

from slap_fast.models.config import ModelConfig

# Passes over the audio encoder, in units of a forward: two of the student, with a backward of twice the forward each,
# and one of the teacher. Attention kernels recompute the scores in the backward: five products for the forward's two.
AUDIO_PASSES = 2 * (1 + 2) + 1
AUDIO_ATTENTION_PASSES = 2 * (1 + 2.5) + 1
TRAINED_PASSES = 1 + 2
TRAINED_ATTENTION_PASSES = 1 + 2.5


def step_flops(tokens: Sequence[int], captions: Sequence[int], config: ModelConfig, *, padded: bool) -> float:
    """Multiplications and additions of one step's matrix products, of all three objectives.

    Args:
        tokens: audio tokens of each clip.
        captions: caption tokens of each clip.
        config: the model's dimensions.
        padded: every clip counts as the longest, and a window saves nothing: SDPA with a mask visits every pair.
    """
    useful_tokens = sum(tokens)
    if padded:
        tokens = [max(tokens)] * len(tokens)
        captions = [max(captions)] * len(captions)
    audio, text, caption, head = config.audio, config.text, config.caption, config.prototype
    audio_tokens, text_tokens = sum(tokens), sum(captions)
    decoded_tokens = text_tokens - len(captions)

    half_window = audio.window_columns // 2 * config.tokens_per_column
    global_layers = audio.layers // audio.global_every
    all_pairs = sum(length**2 for length in tokens)
    local_pairs = all_pairs if padded else sum(_pairs_in_window(length, half_window) for length in tokens)
    pairs = global_layers * all_pairs + (audio.layers - global_layers) * local_pairs
    per_token = audio.layers * _layer_weights(audio.width, audio.mlp_width)
    per_token += audio.patch_frames * audio.patch_mels * audio.width
    total: float = AUDIO_PASSES * 2 * per_token * audio_tokens
    total += AUDIO_ATTENTION_PASSES * 4 * audio.width * pairs

    total += TRAINED_PASSES * 2 * text.layers * _layer_weights(text.width, text.mlp_width) * text_tokens
    total += TRAINED_ATTENTION_PASSES * 4 * text.width * text.layers * sum(length**2 for length in captions)

    pooled_keys = 2 * audio.width**2 * audio_tokens + 2 * text.width**2 * text_tokens
    total += TRAINED_PASSES * 2 * pooled_keys

    decoder_weights = _layer_weights(caption.width, caption.mlp_width) + 2 * caption.width**2
    total += TRAINED_PASSES * 2 * caption.layers * decoder_weights * decoded_tokens
    total += TRAINED_PASSES * 2 * caption.layers * 2 * audio.width * caption.width * audio_tokens
    total += TRAINED_PASSES * 2 * text.vocab_size * caption.width * decoded_tokens
    cross_pairs = sum((words - 1) * length for words, length in zip(captions, tokens, strict=True))
    total += TRAINED_ATTENTION_PASSES * 4 * caption.width * caption.layers * cross_pairs

    # Masked tokens are half of the real ones in either layout; student forward and backward, teacher forward.
    head_weights = audio.width * head.hidden + head.hidden**2 + head.hidden * head.bottleneck
    total += (TRAINED_PASSES + 1) * 2 * (head_weights + head.prototypes * head.bottleneck) * useful_tokens / 2
    return total


def _layer_weights(width: int, mlp_width: int) -> int:
    """Of a layer with four square projections and a gated MLP."""
    return 4 * width**2 + 3 * width * mlp_width


def _pairs_in_window(length: int, side: int) -> int:
    """(query, key) pairs at most `side` apart."""
    side = min(side, length - 1)
    return length * (2 * side + 1) - side * (side + 1)
