"""Transformer blocks of the audio encoder and the caption decoder: pre-norm, RMSNorm, SwiGLU, no biases.

The residual stream and the output of the last branch are passed on as two tensors: the next norm adds and normalizes
them in one fused op.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from slap_fast.models.token_cache import TokenCache
from slap_fast.ops.attention import varlen_attention
from slap_fast.ops.linear import linear
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.rms_norm import add_rms_norm, rms_norm
from slap_fast.ops.rotary import apply_rotary_qkv
from slap_fast.ops.swiglu import swiglu

_NARROW = 512  # inputs or outputs


class Segments(NamedTuple):
    """`PackedLayout` without the host-side lengths, on which torch.compile would specialize."""

    cu_seqlens: Tensor
    max_seqlen: int

    @classmethod
    def of(cls, layout: PackedLayout) -> Segments:
        return cls(layout.cu_seqlens, layout.max_seqlen)


class RMSNorm(nn.Module):
    """Adds the output of the last branch to the residual stream and normalizes the sum (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, branch: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """The normalized sum `x + branch`, and the sum itself; `branch` None counts as 0."""
        weight = self.weight.to(x.dtype)  # under autocast, branch and stream may have other dtypes
        if branch is None:
            return rms_norm(x, weight, eps=self.eps), x
        return add_rms_norm(branch.to(x.dtype), x, weight, eps=self.eps)


class Linear(nn.Linear):
    """`torch.nn.Linear` by the op `linear`.

    In training mode, PyTorch serves narrow layers: its products take 0.9 of the time there, and training needs no rows
    that are independent of the batch. The mode decides, not whether gradients are recorded: both passes of a
    micro-batch must have the same bits.
    """

    @property
    def backend(self) -> str:
        is_narrow = min(self.in_features, self.out_features) < _NARROW
        return "torch" if self.training and is_narrow else "auto"

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, backend=self.backend)


class SwiGLU(nn.Module):
    """Gated MLP (arXiv 2002.05202)."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.gate_up = Linear(width, 2 * hidden, bias=False)
        self.down = Linear(hidden, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(swiglu(self.gate_up(x)))


class SelfAttention(nn.Module):
    """Multi-head self-attention over packed sequences with rotary positions.

    Args:
        window: keys visible to the left and right, inclusive; -1 is unlimited.
        tokens_per_frame: None for 1-D positions, else for 2-D positions (frame, row within the frame).
        theta: base of the rotary wavelengths; a pair for 2-D positions.
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
        self.qkv = Linear(width, 3 * width, bias=False)
        self.out = Linear(width, width, bias=False)

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

    def step(self, x: Tensor, cached: TokenCache, cos: Tensor, sin: Tensor) -> Tensor:
        """Causal attention of the next token of each row to itself and the cached ones, which it joins.

        Args:
            x: `[R, width]`, one token of each row.
            cached: the earlier tokens of the rows.
            cos: `[D / 2]` float32 (float64 for float64), of the rotary angles of its position.
            sin: the same.
        """
        qkv = self.qkv(x).unflatten(-1, (3, self.heads, -1))  # [R, 3, H, D]
        first, second = qkv[:, :2].to(cos.dtype).chunk(2, dim=-1)
        rotated = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(qkv.dtype)
        keys, values = cached.append(rotated[:, 1], qkv[:, 2])
        attended = F.scaled_dot_product_attention(rotated[:, 0, :, None], keys, values)  # [R, H, 1, D]
        return self.out(attended.flatten(1))


class CrossAttention(nn.Module):
    """Multi-head attention of packed queries to packed features of another width."""

    def __init__(self, width: int, feature_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(feature_width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)

    def forward(self, x: Tensor, layout: Segments, features: Tensor, feature_layout: Segments) -> Tensor:
        return self.attend(x, layout, self.keys_values(features), feature_layout)

    def keys_values(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """`[T, heads, D]` each, of the features; they do not depend on the queries."""
        k, v = self.kv(features).unflatten(-1, (2, self.heads, -1)).unbind(1)
        return k, v

    def attend(
        self, x: Tensor, layout: Segments, keys_values: tuple[Tensor, Tensor], feature_layout: Segments
    ) -> Tensor:
        q = self.q(x).unflatten(-1, (self.heads, -1))
        k, v = keys_values
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
    """Takes the residual stream and a branch output still to be added, and returns both for the next block."""

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
    """`EncoderBlock` with cross-attention to the features between self-attention and MLP."""

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

    def step(
        self,
        x: Tensor,
        branch: Tensor | None,
        cached: TokenCache,
        rotation: tuple[Tensor, Tensor],
        rows: Segments,
        keys_values: tuple[Tensor, Tensor],
        feature_layout: Segments,
    ) -> tuple[Tensor, Tensor]:
        """`forward` of the next token of each row alone; see `DecoderState` for the arguments."""
        normed, x = self.attention_norm(x, branch)
        normed, x = self.cross_attention_norm(x, self.attention.step(normed, cached, *rotation))
        normed, x = self.mlp_norm(x, self.cross_attention.attend(normed, rows, keys_values, feature_layout))
        return x, self.mlp(normed)


def run_block(
    block: nn.Module, x: Tensor, branch: Tensor | None, *context: object, checkpointed: bool
) -> tuple[Tensor, Tensor]:
    """Runs `block(x, branch, *context)`, with activation checkpointing if `checkpointed`."""
    if not checkpointed:
        return block(x, branch, *context)
    # Checkpointing stores the inputs: one tensor instead of two.
    summed = x if branch is None else x + branch
    return checkpoint(block, summed, None, *context, use_reentrant=False)


def initial_std(fan_in: int) -> float:
    """Standard deviation of a projection's initial weights: that of nn.Linear, about 0.02 at the paper's width of 768.

    A fixed 0.02 would make the outputs of the blocks of a narrow model vanishingly small.
    """
    return (3 * fan_in) ** -0.5


def initialize_weights(module: nn.Module) -> None:
    """Truncated normal for projection weights, zero for biases; norm weights stay one."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=initial_std(module.in_features))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
