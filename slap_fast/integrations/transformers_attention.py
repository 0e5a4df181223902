"""Packed attention for Hugging Face transformers: `attn_implementation="slap_varlen"` runs `varlen_attention`.

    model = AutoModel.from_pretrained(name, attn_implementation=register())
    out = model(input_ids=ids[None], position_ids=positions[None], cu_seq_lens_q=cu_seqlens, max_length_q=longest)

The convention is that of transformers for packed input: `input_ids` and `position_ids` of shape `[1, T]`, and the
keyword arguments `cu_seq_lens_q` and `max_length_q` (`cu_seq_lens_k`, `max_length_k` for cross-attention). transformers
passes the same arguments to every layer of encoder and decoder: run the encoder separately and pass its output to the
decoder.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from slap_fast.ops.attention import varlen_attention

NAME = "slap_varlen"

# Arguments that change the scores. Ignoring them would give wrong results.
_CHANGES_SCORES = ("position_bias", "s_aux", "softcap")


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    is_causal: bool | None = None,
    cu_seq_lens_q: Tensor | None = None,
    cu_seq_lens_k: Tensor | None = None,
    max_length_q: int | None = None,
    max_length_k: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """`[1, H, T, D]` queries, keys and values to `[1, T, H, D]`."""
    for name in _CHANGES_SCORES:
        if others.get(name) is not None:
            raise ValueError(f"attn_implementation={NAME!r} has no {name}, which {type(module).__name__} asks for")
    if cu_seq_lens_q is None or max_length_q is None or query.shape[0] != 1:
        raise ValueError(
            f"attn_implementation={NAME!r} takes one packed row: pass input_ids and position_ids of shape [1, T] with "
            f"cu_seq_lens_q and max_length_q (got {query.shape[0]} rows, cu_seq_lens_q={cu_seq_lens_q is not None}, "
            f"max_length_q={max_length_q})"
        )
    if attention_mask is not None:
        raise ValueError(f"attn_implementation={NAME!r} takes no attention_mask: cu_seq_lens_q separates the sequences")
    if dropout > 0.0:
        raise ValueError(f"attn_implementation={NAME!r} has no attention dropout; set it to 0 (it is {dropout})")
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    if causal and key.shape[2] == query.shape[2]:
        # Self-attention. In a decoder with cross-attention, the arguments for keys describe the encoder's output.
        cu_seq_lens_k, max_length_k = None, None
    # The window of transformers counts the token itself; that of `varlen_attention` counts tokens to each side.
    side = -1 if sliding_window is None else sliding_window - 1
    q, k, v = (x[0].transpose(0, 1) for x in (query, key, value))
    attended = varlen_attention(
        q,
        k,
        v,
        cu_seq_lens_q,
        cu_seq_lens_k,
        max_seqlen_q=max_length_q,
        max_seqlen_k=max_length_k,
        window=(side, 0 if causal else side),
        scale=scaling,
    )
    return attended.unsqueeze(0), None


def _no_mask(*_: Any, attention_mask: Tensor | None = None, **__: Any) -> None:
    if attention_mask is not None and not torch.compiler.is_compiling() and not bool(attention_mask.all()):
        raise ValueError(f"attn_implementation={NAME!r} takes no padding; pack the sequences instead")


def register() -> str:
    """Register `slap_varlen` with transformers; returns the name to pass as `attn_implementation`."""
    from transformers import AttentionInterface
    from transformers.masking_utils import AttentionMaskInterface

    AttentionInterface.register(NAME, _attention)
    AttentionMaskInterface.register(NAME, _no_mask)
    return NAME
