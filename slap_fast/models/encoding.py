"""A SLAP model in use: clips and texts in, embeddings and captions out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast.errors import ModelError
from slap_fast.models.call_arguments import Audio, NamedClip, split_clips, split_texts, waveform
from slap_fast.models.slap_network import SLAPNetwork
from slap_fast.ops.packed import PackedLayout
from slap_fast.runtime.cpu import without_spinning
from slap_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

# Columns to each side that a dense embedding pools with its own: 0.8 s in all for the paper's patches.
_DENSE_CONTEXT = 2


class Embeddings(NamedTuple):
    """What `SLAP.forward` returns, in the order of `contrastive_loss`.

    Attributes:
        audio: `[N, D]` float32 of unit length; None where no audio was given.
        text: `[M, D]` float32 of unit length; None where no texts were given.
        logit_scale: `[1]` float32 multiplier of their cosines.
    """

    audio: Tensor | None
    text: Tensor | None
    logit_scale: Tensor


@runtime_checkable
class PackedBatch(Protocol):
    """The fields of `slap_fast.data.loading.batch.Batch` that an embedding depends on; see there."""

    @property
    def waveform(self) -> Tensor: ...
    @property
    def samples(self) -> PackedLayout: ...
    @property
    def frames(self) -> PackedLayout: ...
    @property
    def tokens(self) -> PackedLayout: ...
    @property
    def time_masked(self) -> Tensor: ...
    @property
    def mel_masked(self) -> Tensor: ...
    @property
    def input_ids(self) -> Tensor: ...
    @property
    def text(self) -> PackedLayout: ...


def _packs(
    model: SLAPNetwork, clips: Iterable[NamedClip], sampling_rate: float | None, batch_seconds: float
) -> Iterator[list[Tensor]]:
    """Clips in the groups that run together: alone on a CPU, up to `batch_seconds` on a GPU."""
    sample_rate = model.config.mel.sample_rate
    budget = 0 if model.device.type == "cpu" else int(batch_seconds * sample_rate)
    pack: list[Tensor] = []
    for clip in clips:
        samples = waveform(clip, sample_rate, sampling_rate, model.device)
        if pack and sum(len(other) for other in pack) + len(samples) > budget:
            yield pack
            pack = []
        pack.append(samples)
    if pack:
        yield pack


def audio_features(model: SLAPNetwork, pack: list[Tensor]) -> tuple[Tensor, PackedLayout]:
    """`[T, width]` features of a pack of waveforms, and the clips in them."""
    config, device = model.config, model.device
    lengths = [len(samples) for samples in pack]
    samples = PackedLayout.from_lengths(lengths, device=device, dtype=torch.int64)
    frames = PackedLayout.from_lengths([config.mel.num_frames(length) for length in lengths], device=device)
    tokens = PackedLayout.from_lengths([config.num_tokens(length) for length in lengths], device=device)
    packed = torch.cat(pack) if pack else torch.empty(0, dtype=torch.float32, device=device)
    return model.audio_encoder(model.frontend(packed, samples, frames, tokens), tokens), tokens


def _normalized(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _unit(x: Tensor) -> Tensor:
    unit = _normalized(x).cpu()
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


def embed(
    model: SLAPNetwork,
    audio: Audio | Iterable[Audio] | None,
    texts: str | Iterable[str] | None,
    *,
    sampling_rate: float | None,
) -> Embeddings:
    """`SLAP.forward` of clips and texts."""
    audio_embeddings = text_embeddings = None
    if audio is not None:
        sample_rate = model.config.mel.sample_rate
        clips = [waveform(clip, sample_rate, sampling_rate, model.device) for clip in split_clips(audio)[1]]
        audio_embeddings = _normalized(model.audio_pooling(*audio_features(model, clips)))
    if texts is not None:
        ids = tokenize(model, split_texts(texts))
        text_embeddings = _normalized(model.text_pooling(*text_features(model, ids)))
    return Embeddings(audio_embeddings, text_embeddings, model.logit_scale())


def embed_batch(model: SLAPNetwork, batch: PackedBatch) -> Embeddings:
    """`SLAP.forward` of a packed batch."""
    patches = model.frontend(
        batch.waveform,
        batch.samples,
        batch.frames,
        batch.tokens,
        time_masked=batch.time_masked,
        mel_masked=batch.mel_masked,
    )
    return Embeddings(
        _normalized(model.audio_pooling(model.audio_encoder(patches, batch.tokens), batch.tokens)),
        _normalized(model.text_pooling(model.text_encoder(batch.input_ids, batch.text), batch.text)),
        model.logit_scale(),
    )


@contextmanager
def _in_use(model: SLAPNetwork) -> Iterator[None]:
    # Not inference mode: a probe that is trained on an embedding keeps it for its backward pass.
    with torch.no_grad(), without_spinning() if model.device.type == "cpu" else nullcontext():
        yield


def encode_clips(
    model: SLAPNetwork,
    audio: Audio | Iterable[Audio],
    *,
    sampling_rate: float | None,
    batch_seconds: float,
    progress: bool,
) -> Tensor:
    """`SLAP.encode_audio`: one embedding a clip."""
    count, clips = split_clips(audio)
    embeddings = [_no_embeddings(model)]
    with _in_use(model), progress_bar(total=count, desc="embedding audio", unit="clip", disable=not progress) as bar:
        for pack in _packs(model, clips, sampling_rate, batch_seconds):
            features, tokens = audio_features(model, pack)
            embeddings.append(_unit(model.audio_pooling(features, tokens)))
            bar.update(len(pack))
    return torch.cat(embeddings)


def encode_columns(
    model: SLAPNetwork,
    audio: Audio | Iterable[Audio],
    *,
    sampling_rate: float | None,
    batch_seconds: float,
    progress: bool,
) -> list[Tensor]:
    """`SLAP.encode_audio(dense=True)`: one embedding a column of patches."""
    count, clips = split_clips(audio)
    embeddings: list[Tensor] = []
    with _in_use(model), progress_bar(total=count, desc="embedding audio", unit="clip", disable=not progress) as bar:
        for pack in _packs(model, clips, sampling_rate, batch_seconds):
            features, tokens = audio_features(model, pack)
            embeddings.extend(_unit(_pool_columns(model, clip)) for clip in features.split(list(tokens.lengths)))
            bar.update(len(pack))
    return embeddings


def _no_embeddings(model: SLAPNetwork) -> Tensor:
    return torch.empty(0, model.embedding_dim, dtype=torch.float32, device="cpu")


def _tokenizer(model: SLAPNetwork) -> PreTrainedTokenizerBase:
    if model.tokenizer is None:
        raise ModelError("the model carries no tokenizer; set model.tokenizer, or load a folder that has tokenizer/")
    return model.tokenizer


def tokenize(model: SLAPNetwork, texts: list[str]) -> list[list[int]]:
    """The token ids of each text, at most `config.text.max_length`; longer texts are cut, and a warning is logged."""
    tokenizer, most = _tokenizer(model), model.config.text.max_length
    ids = tokenizer(texts, truncation=True, max_length=most)["input_ids"] if texts else []
    full = [position for position, sequence in enumerate(ids) if len(sequence) == most]
    if full:
        whole = tokenizer([texts[position] for position in full], verbose=False)["input_ids"]
        cut = [position for position, sequence in zip(full, whole, strict=True) if len(sequence) > most]
        if cut:
            logger.warning(
                "%d of %d texts are longer than the model's %d tokens and were cut, the first being %r",
                len(cut),
                len(texts),
                most,
                f"{texts[cut[0]][:60]}...",
            )
    return ids


def text_features(model: SLAPNetwork, ids: list[list[int]]) -> tuple[Tensor, PackedLayout]:
    """`[L, width]` features of tokenized texts, and the texts in them."""
    layout = PackedLayout.from_lengths([len(sequence) for sequence in ids], device=model.device)
    flat = [token for sequence in ids for token in sequence]
    return model.text_encoder(torch.tensor(flat, dtype=torch.int64, device=model.device), layout), layout


def encode_text(model: SLAPNetwork, texts: str | Iterable[str], *, batch_size: int, progress: bool) -> Tensor:
    """See `SLAP.encode_text`."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a batch holds at least 1 text")
    texts = split_texts(texts)
    embeddings = [_no_embeddings(model)]
    with (
        _in_use(model),
        progress_bar(total=len(texts), desc="embedding text", unit="text", disable=not progress) as bar,
    ):
        ids = tokenize(model, texts)
        for begin in range(0, len(ids), batch_size):
            chunk = ids[begin : begin + batch_size]
            embeddings.append(_unit(model.text_pooling(*text_features(model, chunk))))
            bar.update(len(chunk))
    return torch.cat(embeddings)


def _boundary_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[int, int]:
    """The tokens that open and close a caption."""
    start = tokenizer.cls_token_id if tokenizer.cls_token_id is not None else tokenizer.bos_token_id
    end = tokenizer.sep_token_id if tokenizer.sep_token_id is not None else tokenizer.eos_token_id
    if start is None or end is None:
        raise ModelError("captioning needs a tokenizer with a start token (cls or bos) and an end token (sep or eos)")
    return int(start), int(end)


def caption(
    model: SLAPNetwork,
    audio: Audio | Iterable[Audio],
    *,
    sampling_rate: float | None,
    max_length: int,
    progress: bool,
) -> list[str]:
    """See `SLAP.caption`."""
    if max_length < 1:
        raise ValueError(f"max_length is {max_length}; a caption has at least 1 token")
    tokenizer = _tokenizer(model)
    start, end = _boundary_tokens(tokenizer)
    count, clips = split_clips(audio)
    captions = []
    with _in_use(model), progress_bar(total=count, desc="captioning", unit="clip", disable=not progress) as bar:
        for (samples,) in _packs(model, clips, sampling_rate, 0.0):
            features, tokens = audio_features(model, [samples])
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
