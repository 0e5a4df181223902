"""Caption decoder: a small causal transformer with cross-attention to the audio features (SLAP, section 3; LocCa)."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.config.model import CaptionDecoderConfig
from slap_fast.models.decoder_state import DecoderState
from slap_fast.models.layers import (
    CrossAttention,
    DecoderBlock,
    RMSNorm,
    Segments,
    SelfAttention,
    initialize_weights,
    run_block,
)
from slap_fast.ops.packed import PackedLayout


class CaptionDecoder(nn.Module):
    """Causal self-attention over a caption, cross-attention to its clip; input and output embeddings are tied."""

    def __init__(self, config: CaptionDecoderConfig, *, vocab_size: int, feature_width: int) -> None:
        super().__init__()
        self.gradient_checkpointing = False
        self._theta = config.rope_theta
        self.token_embedding = nn.Embedding(vocab_size, config.width)
        self.feature_norm = RMSNorm(feature_width, config.norm_eps)
        self.blocks = nn.ModuleList(
            DecoderBlock(
                SelfAttention(
                    config.width, config.heads, window=(-1, 0), tokens_per_frame=None, theta=config.rope_theta
                ),
                CrossAttention(config.width, feature_width, config.heads),
                config.width,
                config.mlp_width,
                config.norm_eps,
            )
            for _ in range(config.layers)
        )
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.apply(initialize_weights)
        nn.init.trunc_normal_(self.token_embedding.weight, std=0.02)

    def forward(
        self,
        input_ids: Tensor,
        layout: PackedLayout,
        features: Tensor,
        feature_layout: PackedLayout,
        readout: Callable[[Tensor, Tensor], Tensor] = F.linear,
    ) -> Tensor:
        """Decode packed captions, each with cross-attention to the clip of the same index.

        Args:
            input_ids: `[L]` int64 tokens of packed captions.
            layout: of the captions in `input_ids`.
            features: `[T, feature_width]` packed audio features.
            feature_layout: of the clips in `features`, one per caption.
            readout: called with the hidden states `[L, width]` and the tied vocabulary matrix `[V, width]`. A callback,
                because under ZeRO-3 the matrix is gathered only inside this forward.

        Returns:
            The result of `readout`; by default the logits `[L, V]`.
        """
        x = self.token_embedding(input_ids)
        features, _ = self.feature_norm(features)
        checkpointed = self.gradient_checkpointing and x.requires_grad
        segments, feature_segments = Segments.of(layout), Segments.of(feature_layout)
        branch = None
        for block in self.blocks:
            x, branch = run_block(block, x, branch, segments, features, feature_segments, checkpointed=checkpointed)
        normed, _ = self.norm(x, branch)
        return readout(normed, self.token_embedding.weight)

    def start(self, features: Tensor, feature_layout: PackedLayout) -> DecoderState:
        """The state for decoding one caption of each clip, or several, token by token.

        Args:
            features: `[T, feature_width]` packed audio features.
            feature_layout: of the clips in them.
        """
        features, _ = self.feature_norm(features)
        cross = [block.cross_attention.keys_values(features) for block in self._decoder_blocks()]
        # Each head's keys in one piece: a step then takes half the time on a CPU, where it is bound by reading them.
        cross = [(_by_head(keys), _by_head(values)) for keys, values in cross]
        return DecoderState(cross, Segments.of(feature_layout), self._theta)

    def step(self, input_ids: Tensor, state: DecoderState) -> Tensor:
        """Logits of the next token of each row, from its latest one alone.

        Equal to `forward` of the whole captions, up to rounding.

        Args:
            input_ids: `[R]` int64, one token of each row of `state`, which this adds to its cache.
            state: from `start`; at first it has one row per clip.

        Returns:
            `[R, V]`.
        """
        x, branch = self.token_embedding(input_ids), None
        rotation = state.rotation()
        for block, cached, cross in zip(self._decoder_blocks(), state.cached, state.cross, strict=True):
            x, branch = block.step(x, branch, cached, rotation, state.rows, cross, state.features)
        normed, _ = self.norm(x, branch)
        return F.linear(normed, self.token_embedding.weight)

    def _decoder_blocks(self) -> list[DecoderBlock]:
        return cast(list[DecoderBlock], list(self.blocks))


def _by_head(x: Tensor) -> Tensor:
    """`[T, heads, D]`, stored as `[heads, T, D]`."""
    return x.transpose(0, 1).contiguous().transpose(0, 1)
