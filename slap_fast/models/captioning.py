"""Greedy caption decoding: `SLAP.caption`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch

from slap_fast.errors import ModelError
from slap_fast.models.arguments import Audio, split_clips
from slap_fast.models.encoding import encode_features, inference_context, packed_clips, tokenizer_of
from slap_fast.ops.packed import PackedLayout
from slap_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slap_fast.models.slap import SLAP


def caption(
    model: SLAP,
    audio: Audio | Iterable[Audio],
    *,
    sampling_rate: float | None,
    max_length: int,
    progress: bool,
) -> list[str]:
    """See `SLAP.caption`."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; a caption has at least 1 token")
    tokenizer = tokenizer_of(model)
    start, end = _boundary_tokens(tokenizer)
    count, clips = split_clips(audio)
    captions = []
    with (
        inference_context(model),
        progress_bar(total=count, desc="captioning", unit="clip", disable=not progress) as bar,
    ):
        # With a budget of 0 seconds each pack is one clip.
        for pack in packed_clips(model, clips, sampling_rate, batch_seconds=0.0):
            features, tokens = encode_features(model, pack)
            ids = [start]
            while len(ids) <= max_length:
                layout = PackedLayout.from_lengths([len(ids)], device=model.device)
                logits = model.caption_decoder(torch.tensor(ids, device=model.device), layout, features, tokens)
                token = int(logits[-1].argmax())
                if token == end:
                    break
                ids.append(token)
            captions.append(str(tokenizer.decode(ids[1:], skip_special_tokens=True)).strip())
            bar.update(1)
    return captions


def _boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the tokens that start and end a caption."""
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        raise ModelError("captioning needs a tokenizer with a start token (cls or bos) and an end token (sep or eos)")
    return int(start), int(end)
