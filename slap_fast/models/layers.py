"""The blocks that the audio encoder and the caption decoder are made of: pre-norm, RMSNorm, SwiGLU, no biases.

The residual stream and what the last branch adds to it travel as two tensors: they are added where the sum is next
normalized, in the same pass.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slap_fast.ops.attention import varlen_attention
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.rms_norm import add_rms_norm, rms_norm
from slap_fast.ops.rotary import apply_rotary_qkv
from slap_fast.ops.swiglu import swiglu


class Segments(NamedTuple):
    """What a block needs of a `PackedLayout`: one that saw each length would be compiled for these lengths alone."""

    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def of(cls, layout: PackedLayout) -> Segments:
        return cls(layout.cu_seqlens, layout.max_seqlen)


class RMSNorm(nn.Module):
    """Adds what the last branch returned to the residual stream, and normalizes the sum for the next (1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The normalized sum and the sum; without a branch, of `x` alone."""
        weight = self.weight.to(x.dtype)  # autocast gives branches, and may give the stream, a type of its own
        if branch is None:
            return rms_norm(x, weight, eps=self.eps), x
        return add_rms_norm(branch.to(x.dtype), x, weight, eps=self.eps)


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = nn.Linear(width, 2 * hidden, bias=False)
        self.down = nn.Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


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

    def forward(self, x: Tensor, layout: Segments) -> Tensor:
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

    def forward(self, x: Tensor, layout: Segments, features: Tensor, feature_layout: Segments) -> Tensor:
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
    """Takes the residual stream and what is still to be added to it, and returns both for the next block."""

    def __init__(self, attention: SelfAttention, width: int, mlp_width: int, norm_eps: float) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, norm_eps)
        self.attention = attention
        self.mlp_norm = RMSNorm(width, norm_eps)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(self, x: Tensor, branch: Tensor | None, layout: Segments) -> tuple[Tensor, Tensor]:
        normed, x = self.attention_norm(x, branch)
        normed, x = self.mlp_norm(x, self.attention(normed, layout))
        return x, self.mlp(normed)


class DecoderBlock(nn.Module):
    """As `EncoderBlock`, with cross-attention to the features between its two branches."""

    def __init__(
        self,
        attention: SelfAttention,
        cross_attention: CrossAttention,
        width: int,
        mlp_width: int,
        norm_eps: float,
    ) -> None:
        super().__init__()
        self.attention_norm = RMSNorm(width, norm_eps)
        self.attention = attention
        self.cross_attention_norm = RMSNorm(width, norm_eps)
        self.cross_attention = cross_attention
        self.mlp_norm = RMSNorm(width, norm_eps)
        self.mlp = SwiGLU(width, mlp_width)

    def forward(
        self,
        x: Tensor,
        branch: Tensor | None,
        layout: Segments,
        features: Tensor,
        feature_layout: Segments,
    ) -> tuple[Tensor, Tensor]:
        normed, x = self.attention_norm(x, branch)
        normed, x = self.cross_attention_norm(x, self.attention(normed, layout))
        normed, x = self.mlp_norm(x, self.cross_attention(normed, layout, features, feature_layout))
        return x, self.mlp(normed)


def run_block(
    block: nn.Module, x: Tensor, branch: Tensor | None, *context: object, checkpointed: bool
) -> tuple[Tensor, Tensor]:
    """`block(x, branch, *context)` of one of the blocks above; checkpointed, the backward pass runs it again."""
    if not checkpointed:
        return block(x, branch, *context)
    # The inputs are all that is kept: one tensor, not two.
    summed = x if branch is None else x + branch
    return checkpoint(block, summed, None, *context, use_reentrant=False)


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
