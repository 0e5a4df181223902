"""Runs a Hugging Face encoder on packed input, and compares the result with the padded run.

`register()` adds the attention implementation "slap_varlen" to transformers. The model then takes all sequences of a
batch as one row of tokens, and computes nothing for padding. The weights here are random; for a pretrained model use
`AutoModel.from_pretrained(NAME, attn_implementation=register())`.

    python examples/pack_hugging_face_encoder.py
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModel, ModernBertConfig, PreTrainedModel

from slap_fast.integrations.transformers_attention import register
from slap_fast.ops import PackedLayout


def encoders() -> tuple[PreTrainedModel, PreTrainedModel]:
    """A packed and a padded encoder with the same weights."""
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=1000,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        local_attention=16,
        pad_token_id=0,
    )
    packed = AutoModel.from_config(config, attn_implementation=register()).eval()
    padded = AutoModel.from_config(ModernBertConfig.from_dict(config.to_dict()), attn_implementation="sdpa").eval()
    padded.load_state_dict(packed.state_dict())
    return packed, padded


def run_packed(encoder: PreTrainedModel, sequences: list[Tensor]) -> list[Tensor]:
    """`[length, width]` of each sequence."""
    layout = PackedLayout.from_lengths([len(sequence) for sequence in sequences])
    features = encoder(
        input_ids=torch.cat(sequences)[None],  # [1, T]
        position_ids=torch.cat([torch.arange(length) for length in layout.lengths])[None],
        cu_seq_lens_q=layout.cu_seqlens,
        max_length_q=layout.max_seqlen,
    ).last_hidden_state[0]
    return list(features.split(layout.lengths))


def run_padded(encoder: PreTrainedModel, sequences: list[Tensor]) -> list[Tensor]:
    """`[length, width]` of each sequence."""
    ids = pad_sequence(sequences, batch_first=True)  # [N, longest]
    mask = pad_sequence([torch.ones_like(sequence) for sequence in sequences], batch_first=True)
    features = encoder(input_ids=ids, attention_mask=mask).last_hidden_state
    return [row[: len(sequence)] for row, sequence in zip(features, sequences, strict=True)]


@torch.inference_mode()
def largest_difference(lengths: list[int]) -> float:
    """The largest difference between the packed and the padded features, relative to the largest feature."""
    sequences = [torch.randint(1, 1000, (length,)) for length in lengths]
    packed, padded = encoders()
    ours, theirs = torch.cat(run_packed(packed, sequences)), torch.cat(run_padded(padded, sequences))
    return float((ours - theirs).abs().max() / theirs.abs().max())


if __name__ == "__main__":
    lengths = [5, 90, 33, 12]
    computed = len(lengths) * max(lengths)
    print(f"tokens: {sum(lengths)} packed, {computed} padded")
    print(f"largest relative difference of the features: {largest_difference(lengths):.1e}")
