"""A SLAP model in use: clips and texts in, embeddings and captions out."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast.models.errors import ModelError
from slap_fast.models.network import SLAPNetwork
from slap_fast.ops.packing import PackedLayout
from slap_fast.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Audio = np.ndarray | Tensor | str | os.PathLike

# Columns to each side that a dense embedding pools with its own: 0.8 s in all for the paper's patches.
_DENSE_CONTEXT = 2


def _waveform(model: SLAPNetwork, audio: Audio, position: int) -> Tensor:
    """One clip as 1-D float32 on the CPU."""
    if isinstance(audio, str | os.PathLike):
        from slap_fast.audio_files import load_audio  # what decodes files is not needed for waveforms

        audio = load_audio(audio, model.config.mel.sample_rate)
    waveform = torch.as_tensor(audio)
    if waveform.dim() != 1 or waveform.shape[0] == 0:
        raise ValueError(
            f"audio[{position}] has shape {tuple(waveform.shape)}; pass one mono clip of at least one sample, [S]"
        )
    if waveform.dtype == torch.int16:
        waveform = waveform.float() / 32768.0
    if not waveform.is_floating_point():
        raise ValueError(f"audio[{position}] is {waveform.dtype}; pass float samples in [-1, 1], or int16")
    waveform = waveform.detach().to("cpu", torch.float32)
    if not bool(torch.isfinite(waveform).all()):
        raise ValueError(f"audio[{position}] holds NaN or infinite samples")
    return waveform.contiguous()


def _packs(model: SLAPNetwork, audio: Sequence[Audio], batch_seconds: float) -> Iterator[list[Tensor]]:
    """Clips in the groups that run together: alone on a CPU, up to `batch_seconds` on a GPU."""
    budget = 0 if model.device.type == "cpu" else int(batch_seconds * model.config.mel.sample_rate)
    pack: list[Tensor] = []
    for position, clip in enumerate(audio):
        waveform = _waveform(model, clip, position)
        if pack and sum(len(other) for other in pack) + len(waveform) > budget:
            yield pack
            pack = []
        pack.append(waveform)
    if pack:
        yield pack


def _features(model: SLAPNetwork, pack: list[Tensor]) -> tuple[Tensor, PackedLayout]:
    """`[T, width]` features of a pack of waveforms, and the clips in them."""
    config, device = model.config, model.device
    lengths = [len(waveform) for waveform in pack]
    samples = PackedLayout.from_lengths(lengths, device=device, dtype=torch.int64)
    frames = PackedLayout.from_lengths([config.mel.num_frames(length) for length in lengths], device=device)
    tokens = PackedLayout.from_lengths([config.num_tokens(length) for length in lengths], device=device)
    patches = model.frontend(torch.cat(pack).to(device), samples, frames, tokens)
    return model.audio_encoder(patches, tokens), tokens


def _unit(x: Tensor) -> Tensor:
    unit = F.normalize(x.float(), dim=-1).cpu()
    if not bool(unit.isfinite().all()):
        raise ModelError(
            "the model gives embeddings that are not finite: its weights are damaged, or its training had diverged; "
            "copy the model again, or export an earlier checkpoint"
        )
    return unit


def _pool_columns(model: SLAPNetwork, features: Tensor) -> Tensor:
    """One clip's `[T, width]` features to `[columns, width]`: each column pooled with its neighbours."""
    rows = model.config.tokens_per_column
    columns = features.shape[0] // rows
    spans = [(max(0, center - _DENSE_CONTEXT), min(columns, center + _DENSE_CONTEXT + 1)) for center in range(columns)]
    layout = PackedLayout.from_lengths([(end - begin) * rows for begin, end in spans], device=features.device)
    return model.audio_pooling(torch.cat([features[begin * rows : end * rows] for begin, end in spans]), layout)


@torch.inference_mode()
def encode_clips(model: SLAPNetwork, audio: Sequence[Audio], *, batch_seconds: float, progress: bool) -> Tensor:
    """`SLAP.encode_audio`: one embedding a clip."""
    embeddings = [torch.empty(0, model.embedding_dim)]
    with progress_bar(total=len(audio), desc="embedding audio", unit="clip", disable=not progress) as bar:
        for pack in _packs(model, audio, batch_seconds):
            features, tokens = _features(model, pack)
            embeddings.append(_unit(model.audio_pooling(features, tokens)))
            bar.update(len(pack))
    return torch.cat(embeddings)


@torch.inference_mode()
def encode_columns(model: SLAPNetwork, audio: Sequence[Audio], *, batch_seconds: float, progress: bool) -> list[Tensor]:
    """`SLAP.encode_audio(dense=True)`: one embedding a column of patches."""
    embeddings: list[Tensor] = []
    with progress_bar(total=len(audio), desc="embedding audio", unit="clip", disable=not progress) as bar:
        for pack in _packs(model, audio, batch_seconds):
            features, tokens = _features(model, pack)
            embeddings.extend(_unit(_pool_columns(model, clip)) for clip in features.split(list(tokens.lengths)))
            bar.update(len(pack))
    return embeddings


def _tokenizer(model: SLAPNetwork) -> PreTrainedTokenizerBase:
    if model.tokenizer is None:
        raise ModelError("the model carries no tokenizer; set model.tokenizer, or load a folder that has tokenizer/")
    return model.tokenizer


@torch.inference_mode()
def encode_text(model: SLAPNetwork, texts: Sequence[str], *, batch_size: int, progress: bool) -> Tensor:
    """See `SLAP.encode_text`."""
    for position, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts[{position}] is a {type(text).__name__}; pass a list of strings")
    tokenizer = _tokenizer(model)
    embeddings = []
    with progress_bar(total=len(texts), desc="embedding text", unit="text", disable=not progress) as bar:
        for begin in range(0, len(texts), batch_size):
            chunk = list(texts[begin : begin + batch_size])
            ids = tokenizer(chunk, truncation=True, max_length=model.config.text.max_length)["input_ids"]
            layout = PackedLayout.from_lengths([len(sequence) for sequence in ids], device=model.device)
            packed = torch.tensor([token for sequence in ids for token in sequence], device=model.device)
            embeddings.append(_unit(model.text_pooling(model.text_encoder(packed, layout), layout)))
            bar.update(len(chunk))
    return torch.cat(embeddings) if embeddings else torch.empty(0, model.embedding_dim)


def _boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens that open and close a caption."""
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        raise ModelError("captioning needs a tokenizer with a start token (cls or bos) and an end token (sep or eos)")
    return int(start), int(end)


@torch.inference_mode()
def caption(model: SLAPNetwork, audio: Sequence[Audio], *, max_length: int, progress: bool) -> list[str]:
    """See `SLAP.caption`."""
    tokenizer = _tokenizer(model)
    start, end = _boundary_tokens(tokenizer)
    captions = []
    with progress_bar(total=len(audio), desc="captioning", unit="clip", disable=not progress) as bar:
        for position, clip in enumerate(audio):
            features, tokens = _features(model, [_waveform(model, clip, position)])
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
