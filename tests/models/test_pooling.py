from __future__ import annotations

import torch
import torch.nn.functional as F

from slap_fast.models.pooling import AttentionPooling
from slap_fast.ops.packed import PackedLayout


def test_pooling_equals_torch_multi_head_attention_of_one_probe():
    torch.manual_seed(0)
    pooling = AttentionPooling(16, heads=4, mlp_ratio=2).double()
    for parameter in pooling.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    lengths = [3, 1, 7]
    features = torch.randn(11, 16, dtype=torch.float64)
    pooled = pooling(features, PackedLayout.from_lengths(lengths))

    in_projection = torch.cat([pooling.q.weight, pooling.kv.weight])
    for clip, actual in zip(features.split(lengths), pooled, strict=True):
        attended, _ = F.multi_head_attention_forward(
            pooling.probe[None, :],
            clip,
            clip,
            embed_dim_to_check=16,
            num_heads=4,
            in_proj_weight=in_projection,
            in_proj_bias=None,
            bias_k=None,
            bias_v=None,
            add_zero_attn=False,
            dropout_p=0.0,
            out_proj_weight=pooling.out.weight,
            out_proj_bias=None,
        )
        x = attended[0]
        expected = x + pooling.down(F.gelu(pooling.up(pooling.norm(x))))
        torch.testing.assert_close(actual, expected)


def test_no_sequences_give_no_vectors():
    pooled = AttentionPooling(8, heads=2, mlp_ratio=2)(torch.empty(0, 8), PackedLayout.from_lengths([]))
    assert pooled.shape == (0, 8)
