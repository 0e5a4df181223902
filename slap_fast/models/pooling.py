"""Multi-head attention pooling of packed features: one vector per sequence (big_vision's `MAPHead`)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from slap_fast.models.layers import Linear, initialize_weights
from slap_fast.ops.attention import varlen_attention
from slap_fast.ops.packed import PackedLayout


class AttentionPooling(nn.Module):
    """A learned probe attends to each sequence; a norm and a residual MLP follow."""

    def __init__(self, width: int, heads: int, mlp_ratio: int, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.heads = heads
        self.probe = nn.Parameter(torch.empty(width))
        self.q = Linear(width, width, bias=False)
        self.kv = Linear(width, 2 * width, bias=False)
        self.out = Linear(width, width, bias=False)
        self.norm = nn.RMSNorm(width, eps=norm_eps)
        self.up = Linear(width, mlp_ratio * width, bias=False)
        self.down = Linear(mlp_ratio * width, width, bias=False)
        self.apply(initialize_weights)
        nn.init.trunc_normal_(self.probe, std=width**-0.5)

    def forward(self, features: Tensor, layout: PackedLayout) -> Tensor:
        """`[T, width]` packed features of N sequences to `[N, width]`."""
        count = len(layout)
        q = self.q(self.probe).unflatten(-1, (self.heads, -1)).expand(count, -1, -1)  # [N, H, D]
        k, v = self.kv(features).unflatten(-1, (2, self.heads, -1)).unbind(1)  # [T, H, D]
        probes = torch.arange(count + 1, dtype=torch.int32, device=features.device)
        pooled = varlen_attention(
            q, k, v, probes, layout.cu_seqlens, max_seqlen_q=min(1, count), max_seqlen_k=layout.max_seqlen
        )
        x = self.out(pooled.flatten(1))
        return x + self.down(F.gelu(self.up(self.norm(x))))
