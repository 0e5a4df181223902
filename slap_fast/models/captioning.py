"""Caption generation: `SLAP.caption`, by greedy decoding or beam search over batches of clips."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from slap_fast.errors import ModelError
from slap_fast.models.arguments import Audio, NamedClip, split_clips, waveform
from slap_fast.models.decoding import beam_search, greedy_search
from slap_fast.models.encoding import encode_features, inference_context, packed, tokenizer_of
from slap_fast.models.long_audio import is_long
from slap_fast.ops.packed import PackedLayout
from slap_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slap_fast.models.slap import SLAP

logger = logging.getLogger(__name__)

BATCH_SECONDS = 640.0
"""Seconds of audio captioned at a time: 500 MB of keys and values in the paper's model in float32."""


_MAX_LENGTH_PENALTY = 10.0  # above, powers of long captions overflow


def caption(
    model: SLAP,
    audio: Audio | Iterable[Audio],
    *,
    sampling_rate: float | None,
    beam_size: int,
    length_penalty: float,
    max_length: int,
    batch_size: int,
    progress: bool,
) -> list[str]:
    """See `SLAP.caption`."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; a caption has at least 1 token")
    if beam_size < 1:
        raise ValueError(f"beam_size is {beam_size}; pass 1 for greedy decoding, or the number of beams")
    if not abs(length_penalty) <= _MAX_LENGTH_PENALTY:  # false for NaN
        raise ValueError(f"length_penalty is {length_penalty}; pass a number from -10 to 10")
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a batch holds at least 1 clip")
    tokenizer = tokenizer_of(model)
    start, end = _boundary_tokens(tokenizer)
    count, clips = split_clips(audio)
    captions: list[str] = []
    cut: list[str] = []
    long: list[float] = []  # seconds
    with (
        inference_context(model),
        progress_bar(total=count, desc="captioning", unit="clip", disable=not progress) as bar,
    ):
        for batch in _batches(model, clips, sampling_rate, batch_size):
            long += [len(clip) / model.config.mel.sample_rate for clip in batch if is_long(model.config, len(clip))]
            features, layout = clip_features(model, batch)
            decoder = model.caption_decoder
            if beam_size == 1:
                generated = greedy_search(decoder, features, layout, start, end, max_length)
            else:
                generated = beam_search(
                    decoder, features, layout, start, end, max_length, beams=beam_size, length_penalty=length_penalty
                )
            texts = [str(tokenizer.decode(ids, skip_special_tokens=True)).strip() for ids in generated]
            captions += texts
            cut += [text for text, ids in zip(texts, generated, strict=True) if len(ids) == max_length]
            bar.update(len(batch))
    if long:
        logger.warning(
            "%d of %d clips are longer than the %g s of training, up to %.0f s: each has one caption for all of it; "
            "for more, caption its parts",
            len(long),
            len(captions),
            model.config.max_duration,
            max(long),
        )
    if cut:
        logger.warning(
            "%d of %d captions reached max_length=%d tokens and were cut, the first being %r",
            len(cut),
            len(captions),
            max_length,
            cut[0] if len(cut[0]) <= 60 else f"{cut[0][:60]}...",
        )
    if empty := captions.count(""):
        logger.warning("%d of %d captions are empty: the model ended them at once", empty, len(captions))
    return captions


def _batches(
    model: SLAP, clips: Iterable[NamedClip], sampling_rate: float | None, batch_size: int
) -> Iterator[list[Tensor]]:
    """Waveforms, at most `batch_size` and at most `BATCH_SECONDS` at a time; a longer clip by itself."""
    sample_rate = model.config.mel.sample_rate
    batch: list[Tensor] = []
    samples = 0
    for clip in clips:
        values = waveform(clip, sample_rate, sampling_rate, model.device)
        if batch and (len(batch) == batch_size or samples + len(values) > BATCH_SECONDS * sample_rate):
            yield batch
            batch, samples = [], 0
        batch.append(values)
        samples += len(values)
    if batch:
        yield batch


def clip_features(model: SLAP, batch: list[Tensor]) -> tuple[Tensor, PackedLayout]:
    """`[T, width]` audio features, encoded as `SLAP.encode_audio` does: on a CPU they do not depend on the batch."""
    if model.device.type != "cpu":
        return encode_features(model, batch)
    encoded = [encode_features(model, pack) for pack in packed(model, batch, len)]
    lengths = [length for _, tokens in encoded for length in tokens.lengths]
    return torch.cat([features for features, _ in encoded]), PackedLayout.from_lengths(lengths)


def _boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """Ids of the tokens that start and end a caption."""
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        raise ModelError("captioning needs a tokenizer with a start token (cls or bos) and an end token (sep or eos)")
    return int(start), int(end)
