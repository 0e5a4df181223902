"""The blocks that the audio encoder and the caption decoder are made of: pre-norm, RMSNorm, SwiGLU, no biases."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.ops.packing import PackedLayout
from slap_fast.ops.rotary import apply_rotary_qkv
from slap_fast.ops.varlen_attention import varlen_attention


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gate, up = self.gate_up(x).chunk(2, dim=-1)
        return self.down(F.silu(gate) * up)


class SelfAttention(nn.Module):
    """Multi-head self-attention over packed sequences with rotary positions.

    Args:
        window: keys visible to the left and right, inclusive; -1 is unlimited.
        tokens_per_frame: None for positions along one axis, else for (frame, row in the frame).
        theta: base of the rotary wavelengths, a pair for two axes.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        window: tuple[int, int],
        tokens_per_frame: int | None,
        theta: float | tuple[float, float],
    ) -> None:
        super().__init__()
        self.heads = heads
        self.window = window
        self.tokens_per_frame = tokens_per_frame
        self.theta = theta
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, layout: PackedLayout) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [T, 3, H, D]
        q, k, v = apply_rotary_qkv(
            qkv,
            layout.cu_seqlens,
            tokens_per_frame=self.tokens_per_frame,
            theta=self.theta,
            inplace=not qkv.requires_grad,
        )
        attended = varlen_attention(q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, window=self.window)
        return self.out(attended.flatten(1))


class CrossAttention(nn.Module):
    """Multi-head attention of packed queries over packed features of another width."""

    def __init__(self, width: int, feature_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = nn.Linear(width, width, bias=False)
        self.kv = nn.Linear(feature_width, 2 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)

    def forward(self, x: Tensor, layout: PackedLayout, features: Tensor, feature_layout: PackedLayout) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = self.kv(features).unflatten(-1, (2, self.heads, -1)).unbind(1)
        attended = varlen_attention(
            q,
            k,
            v,
            layout.cu_seqlens,
            feature_layout.cu_seqlens,
            max_seqlen_q=layout.max_seqlen,
            max_seqlen_k=feature_layout.max_seqlen,
        )
        return self.out(attended.flatten(1))


class EncoderBlock(nn.Module):
    def __init__(self, attention: SelfAttention, width: int, mlp_width: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = attention
        self.mlp_norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(self, x: Tensor, layout: PackedLayout) -> Tensor:
        x = x + self.attention(self.attention_norm(x), layout)
        return x + self.mlp(self.mlp_norm(x))


class DecoderBlock(nn.Module):
    def __init__(
        self,
        attention: SelfAttention,
        cross_attention: CrossAttention,
        width: int,
        mlp_width: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.attention = attention
        self.cross_attention_norm = nn.RMSNorm(width, eps=norm_eps)
        self.cross_attention = cross_attention
        self.mlp_norm = nn.RMSNorm(width, eps=norm_eps)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(self, x: Tensor, layout: PackedLayout, features: Tensor, feature_layout: PackedLayout) -> Tensor:
        x = x + self.attention(self.attention_norm(x), layout)
        x = x + self.cross_attention(self.cross_attention_norm(x), layout, features, feature_layout)
        return x + self.mlp(self.mlp_norm(x))


def initial_std(fan_in: int) -> float:
    """Deviation of a projection's initial weights: PyTorch's own, which is the usual 0.02 at the paper's width of 768.

    A fixed 0.02 would leave the blocks of a narrow model next to silent.
    """
    return (3 * fan_in) ** -0.5


def initialize_weights(module: nn.Module) -> None:
    """Truncated normal for projections, zero for their biases; norms keep their ones."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=initial_std(module.in_features))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
