"""Audio tower of SLAP for one clip: frontend, encoder and pooling, in operations that ONNX has."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.models.layers import EncoderBlock, RMSNorm, SelfAttention
from slap_fast.models.pooling import AttentionPooling
from slap_fast.models.portable.frontend import PortableFrontend
from slap_fast.models.slap import SLAP


class PortableAudioTower(nn.Module):
    """`[1, S]` float32 samples of one clip at the model's rate to its `[1, D]` embedding of unit length.

    A model without the contrastive objective has no pooling: the result is `[T, width]`, the features of its tokens.
    It shares the weights of the model.
    """

    def __init__(self, model: SLAP) -> None:
        super().__init__()
        audio = model.config.audio
        self.theta = (audio.rope_theta_time, audio.rope_theta_frequency)
        self.heads = audio.heads
        self.rows = model.config.tokens_per_column
        self.frontend = PortableFrontend(model.config)
        self.encoder = model.audio_encoder
        self.pooling = model.audio_pooling

    def forward(self, waveform: Tensor) -> Tensor:
        x = self.encoder.patch_embedding(self.frontend(waveform[0]))
        cos, sin = self._rotation(x)
        for block in self.encoder.blocks:
            x = _block(cast(EncoderBlock, block), x, cos, sin)
        features = _norm(self.encoder.norm, x)
        return features if self.pooling is None else F.normalize(pool(self.pooling, features[None], None), dim=-1)

    def _rotation(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Of the angles `[T, 1, 2, head_dim / 4]`: time, then frequency."""
        head_dim = x.shape[1] // self.heads
        position = torch.arange(x.shape[0], device=x.device)
        exponent = torch.arange(0, head_dim // 2, 2, dtype=torch.float64, device=x.device) / (head_dim // 2)
        angles = [
            axis[:, None].to(x.dtype) * (theta**-exponent).to(x.dtype)
            for axis, theta in zip((position // self.rows, position % self.rows), self.theta, strict=True)
        ]
        angle = torch.stack(angles, dim=1).unsqueeze(1)
        return angle.cos(), angle.sin()


def _norm(norm: RMSNorm, x: Tensor) -> Tensor:
    return x * (x.square().mean(dim=-1, keepdim=True) + norm.eps).rsqrt() * norm.weight


def _block(block: EncoderBlock, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x + _self_attention(block.attention, _norm(block.attention_norm, x), cos, sin)
    gate, up = block.mlp.gate_up(_norm(block.mlp_norm, x)).chunk(2, dim=-1)
    return x + block.mlp.down(F.silu(gate) * up)


def _self_attention(attention: SelfAttention, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    q, k, v = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).unbind(1)  # [T, H, D]
    q, k = _rotate(q, cos, sin), _rotate(k, cos, sin)
    side = attention.window[0]
    if side >= 0:
        attended = _attend_locally(q, k, v, side)
    else:
        attended = _attend(*(part.transpose(0, 1) for part in (q, k, v))).transpose(0, 1)
    return attention.out(attended.flatten(1))


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.unflatten(2, (2, 2, -1)).unbind(3)  # [T, H, axes, D / 4]
    return torch.stack([first * cos - second * sin, second * cos + first * sin], dim=3).flatten(2)


def _attend(q: Tensor, k: Tensor, v: Tensor, hidden: Tensor | None = None) -> Tensor:
    """Softmax attention of `[..., T, D]`; pairs where `hidden` is True have no weight."""
    scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
    if hidden is not None:
        scores = scores.masked_fill(hidden, -torch.inf)
    return scores.softmax(dim=-1) @ v


def _attend_locally(q: Tensor, k: Tensor, v: Tensor, side: int) -> Tensor:
    """Attention of `[T, H, D]` to `side` tokens on each side, inclusive, in memory that grows with T, not its square.

    Queries are split into blocks of `side` tokens, which see keys of their own block and its two neighbors alone.
    Indices take the place of padding, slices and transposes, whose sizes would restrict the lengths that torch.export
    accepts; so does a single block, hence one more than needed.
    """
    total, heads, _ = q.shape
    size = max(side, 1)
    item = torch.arange(((total + size - 1) // size + 1) * heads, device=q.device)[:, None]  # [C * H, 1]
    head, first = item % heads, item // heads * size
    query = first + torch.arange(size, device=q.device)  # [C * H, B]
    key = first - size + torch.arange(3 * size, device=q.device)  # [C * H, 3 B]
    # A query beyond the end sees itself, so that no softmax is empty.
    distance = query[:, :, None] - key[:, None, :]
    hidden = (distance.abs() > side) | (((key < 0) | (key >= total))[:, None, :] & (distance != 0))
    rows, columns = query.clamp(max=total - 1) * heads + head, key.clamp(0, total - 1) * heads + head
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    attended = _attend(q[rows], k[columns], v[columns], hidden)  # [C * H, B, D]
    token = torch.arange(total, device=q.device)[:, None]
    found = (token // size * heads + torch.arange(heads, device=q.device)) * size + token % size
    return attended.flatten(0, 1)[found]


def pool(pooling: AttentionPooling, features: Tensor, padding: Tensor | None) -> Tensor:
    """`AttentionPooling` of `[N, L, width]` features to `[N, width]`; positions where `padding` `[N, L]` is True are
    ignored."""
    q = pooling.q(pooling.probe).unflatten(-1, (pooling.heads, 1, -1))  # [H, 1, D]
    k, v = pooling.kv(features).unflatten(-1, (2, pooling.heads, -1)).permute(2, 0, 3, 1, 4).unbind(0)  # [N, H, L, D]
    pooled = _attend(q, k, v, None if padding is None else padding[:, None, None, :])  # [N, H, 1, D]
    x = pooling.out(pooled.flatten(1))
    normed = x * (x.square().mean(dim=-1, keepdim=True) + (pooling.norm.eps or 0.0)).rsqrt() * pooling.norm.weight
    return x + pooling.down(F.gelu(pooling.up(normed)))
