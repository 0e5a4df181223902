"""Layers of the model on padded `[N, L, width]` tensors, with the weights of the packed modules, SDPA and masks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast.config.model import ModelConfig
from slap_fast.models.audio_encoder import AudioEncoder
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.models.layers import CrossAttention, DecoderBlock, EncoderBlock, SelfAttention
from slap_fast.models.pooling import AttentionPooling


@dataclass(frozen=True)
class Rotation:
    """`[L, 1, axes, head_dim / (2 * axes)]` cosines and sines, computed once per pass and shared by all layers."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def build(cls, positions: list[Tensor], thetas: list[float], head_dim: int, dtype: torch.dtype) -> Rotation:
        channels = head_dim // len(positions)
        exponent = torch.arange(0, channels, 2, device=positions[0].device, dtype=torch.float64) / channels
        precise = torch.promote_types(dtype, torch.float32)
        angles = [
            axis[:, None].to(precise) * (theta**-exponent).to(precise)
            for axis, theta in zip(positions, thetas, strict=True)
        ]
        angle = torch.stack(angles, dim=1).unsqueeze(1)
        return cls(angle.cos(), angle.sin())

    def __call__(self, x: Tensor) -> Tensor:
        """Rotate `[N, L, H, D]`."""
        first, second = x.to(self.cos.dtype).unflatten(3, (self.cos.shape[2], 2, -1)).unbind(4)
        rotated = torch.stack([first * self.cos - second * self.sin, second * self.cos + first * self.sin], dim=4)
        return rotated.flatten(3).to(x.dtype)


@dataclass(frozen=True)
class AudioMasks:
    """Masks and rotation shared by the layers of the audio encoder.

    Attributes:
        real: `[N, 1, 1, L]` bool, True where a key is real; None where no clip is padded.
        local: `[N or 1, 1, L, L]` bool, the same within the window. A padded query attends to itself: without any key
            its softmax would be NaN.
        rotation: for queries and keys.
    """

    real: Tensor | None
    local: Tensor
    rotation: Rotation

    @classmethod
    def build(cls, token_valid: Tensor, is_padded: bool, config: ModelConfig, dtype: torch.dtype) -> AudioMasks:
        audio, rows = config.audio, config.tokens_per_column
        position = torch.arange(token_valid.shape[1], device=token_valid.device)
        distance = position[None, :] - position[:, None]
        local = (distance.abs() <= audio.window_columns // 2 * rows)[None, None]
        if is_padded:
            local = (local & token_valid[:, None, None, :]) | (distance == 0)
        rotation = Rotation.build(
            [position // rows, position % rows],
            [audio.rope_theta_time, audio.rope_theta_frequency],
            audio.width // audio.heads,
            dtype,
        )
        return cls(key_mask(token_valid, is_padded), local, rotation)


def key_mask(valid: Tensor, is_padded: bool) -> Tensor | None:
    """`[N, L]` to a mask that broadcasts over heads and queries; None where nothing is padded."""
    return valid[:, None, None, :] if is_padded else None


def encode_audio(
    encoder: AudioEncoder, frames: Tensor, masks: AudioMasks, token_masked: Tensor | None = None
) -> Tensor:
    """`[N, F, n_mels]`, F a multiple of the patch, to `[N, L, width]`; `token_masked` is `[N, L, 1]` bool."""
    audio = encoder.config.audio
    patches = frames.unflatten(1, (-1, audio.patch_frames)).unflatten(3, (-1, audio.patch_mels))
    patches = patches.transpose(2, 3).flatten(3).flatten(1, 2)  # [N, L, patch_frames * patch_mels]
    x = encoder.patch_embedding(patches.to(encoder.patch_embedding.weight.dtype))
    if token_masked is not None:
        x = torch.where(token_masked, encoder.mask_token.to(x.dtype), x)
    branch = None
    for block in cast(list[EncoderBlock], encoder.blocks):
        is_global = block.attention.window == (-1, -1)
        mask = masks.real if is_global else masks.local
        normed, x = block.attention_norm(x, branch)
        normed, x = block.mlp_norm(x, self_attention(block.attention, normed, masks.rotation, mask))
        branch = block.mlp(normed)
    return encoder.norm(x, branch)[0]


def decode(decoder: CaptionDecoder, input_ids: Tensor, features: Tensor, feature_mask: Tensor | None) -> Tensor:
    """`[N, C]` ids and `[N, L, feature_width]` features to `[N, C, width]` hidden states.

    Padding follows the tokens of a caption: the causal mask hides it.
    """
    x = decoder.token_embedding(input_ids)
    features, _ = decoder.feature_norm(features)
    position = torch.arange(input_ids.shape[1], device=input_ids.device)
    blocks = cast(list[DecoderBlock], decoder.blocks)
    theta, heads = blocks[0].attention.theta, blocks[0].attention.heads
    rotation = Rotation.build([position], [cast(float, theta)], x.shape[2] // heads, x.dtype)
    branch = None
    for block in blocks:
        normed, x = block.attention_norm(x, branch)
        normed, x = block.cross_attention_norm(
            x, self_attention(block.attention, normed, rotation, None, is_causal=True)
        )
        normed, x = block.mlp_norm(x, cross_attention(block.cross_attention, normed, features, feature_mask))
        branch = block.mlp(normed)
    return decoder.norm(x, branch)[0]


def pool(pooling: AttentionPooling, features: Tensor, mask: Tensor | None) -> Tensor:
    """`[N, L, width]` to `[N, width]`."""
    q = pooling.q(pooling.probe).unflatten(-1, (1, pooling.heads, -1)).expand(features.shape[0], -1, -1, -1)
    k, v = pooling.kv(features).unflatten(-1, (2, pooling.heads, -1)).unbind(2)
    x = pooling.out(attend(q, k, v, mask).squeeze(1))
    return x + pooling.down(F.gelu(pooling.up(pooling.norm(x))))


def self_attention(
    attention: SelfAttention, x: Tensor, rotation: Rotation, mask: Tensor | None, *, is_causal: bool = False
) -> Tensor:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).unbind(2)  # [N, L, H, D]
    return attention.out(attend(rotation(q), rotation(k), v, mask, is_causal=is_causal))


def cross_attention(attention: CrossAttention, x: Tensor, features: Tensor, mask: Tensor | None) -> Tensor:
    q = attention.q(x).unflatten(-1, (attention.heads, -1))
    k, v = attention.kv(features).unflatten(-1, (2, attention.heads, -1)).unbind(2)
    return attention.out(attend(q, k, v, mask))


def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, *, is_causal: bool = False) -> Tensor:
    """`[N, L, H, D]` to `[N, L, H * D]`."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=is_causal)
    return attended.transpose(1, 2).flatten(2)
