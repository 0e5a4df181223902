"""Audio tower: a ViT over packed log-mel patches of clips of any duration (SLAP, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from slap_fast.config.model import ModelConfig
from slap_fast.models.layers import (
    EncoderBlock,
    Linear,
    RMSNorm,
    Segments,
    SelfAttention,
    initialize_weights,
    run_block,
)
from slap_fast.ops.packed import PackedLayout


class AudioEncoder(nn.Module):
    """Repeats local sliding-window layers and a global one (every `global_every`-th), with 2-D rotary positions."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        audio = config.audio
        self.config = config
        self.gradient_checkpointing = False
        self.patch_embedding = Linear(audio.patch_frames * audio.patch_mels, audio.width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(audio.width))
        half_window = audio.window_columns // 2 * config.tokens_per_column
        self.blocks = nn.ModuleList()
        for layer in range(audio.layers):
            is_global = (layer + 1) % audio.global_every == 0
            attention = SelfAttention(
                audio.width,
                audio.heads,
                window=(-1, -1) if is_global else (half_window, half_window),
                tokens_per_frame=config.tokens_per_column,
                theta=(audio.rope_theta_time, audio.rope_theta_frequency),
            )
            self.blocks.append(EncoderBlock(attention, audio.width, audio.mlp_width, audio.norm_eps))
        self.norm = RMSNorm(audio.width, audio.norm_eps)
        self.apply(initialize_weights)
        nn.init.trunc_normal_(self.mask_token, std=0.02)

    def forward(
        self,
        patches: Tensor,
        token_layout: PackedLayout,
        masked_tokens: Tensor | None = None,
    ) -> Tensor:
        """Encode packed patches.

        Args:
            patches: `[T, patch_frames * patch_mels]` normalized log-mel values, in the order of `log_mel_patches`.
            token_layout: layout of the clips in them, `ModelConfig.num_tokens` tokens each.
            masked_tokens: `[M]` int64 positions in the packed tokens to replace with the mask token.

        Returns:
            `[T, width]` features, before pooling.
        """
        x = self.patch_embedding(patches.to(self.patch_embedding.weight.dtype))
        if masked_tokens is not None:
            x = x.index_copy(0, masked_tokens, self.mask_token.to(x.dtype).expand(masked_tokens.shape[0], -1))
        checkpointed = self.gradient_checkpointing and torch.is_grad_enabled()
        segments = Segments.of(token_layout)
        branch = None
        for block in self.blocks:
            x, branch = run_block(block, x, branch, segments, checkpointed=checkpointed)
        normed, _ = self.norm(x, branch)
        return normed
