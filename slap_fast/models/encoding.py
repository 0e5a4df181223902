"""Embedding of clips and texts: the implementation of `SLAP.forward`, `encode_audio` and `encode_text`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, NamedTuple, Protocol, TypeVar, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor

from slap_fast import native
from slap_fast.errors import ModelError
from slap_fast.models.arguments import Audio, NamedClip, split_clips, waveform, waveform_blocks
from slap_fast.models.layers import Linear
from slap_fast.models.long_audio import Long, clip_windows, dense_windows, embedding_windows
from slap_fast.models.texts import split_texts, warn_of_cut_texts
from slap_fast.models.windows import MeanEmbedding
from slap_fast.ops.linear.call import select
from slap_fast.ops.packed import PackedLayout
from slap_fast.runtime.cpu import without_spinning
from slap_fast.runtime.progress import progress_bar

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from slap_fast.models.slap import SLAP

T = TypeVar("T")

CPU_BATCH_SECONDS = 60.0
"""Seconds of clips that a CPU encodes together."""

# A dense embedding pools a column with this many on each side: 0.8 s in all for the paper's patches.
_DENSE_CONTEXT = 2


class Embeddings(NamedTuple):
    """The result of `SLAP.forward`, in the argument order of `contrastive_loss`.

    Attributes:
        audio: `[N, D]` float32, unit length; None without audio.
        text: `[M, D]` float32, unit length; None without texts.
        logit_scale: `[1]` float32 multiplier of the cosine similarities.
    """

    audio: Tensor | None
    text: Tensor | None
    logit_scale: Tensor


@runtime_checkable
class PackedBatch(Protocol):
    """The fields of `slap_fast.data.loading.batch.Batch` that an embedding depends on; documented there."""

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


def embed(
    model: SLAP,
    audio: Audio | Iterable[Audio] | None,
    texts: str | Iterable[str] | None,
    *,
    sampling_rate: float | None,
) -> Embeddings:
    """`SLAP.forward` of clips and texts."""
    audio_embeddings = text_embeddings = None
    if audio is not None:
        windows = [clip_windows(model.config, clip) for clip in _waveforms(model, audio, sampling_rate)]
        features = encode_features(model, [window for clip in windows for window in clip])
        audio_embeddings = _mean_of_windows(_normalize(model.audio_pooling(*features)), [len(clip) for clip in windows])
    if texts is not None:
        text_embeddings = _normalize(_pooled_texts(model, _tokenize(model, split_texts(texts))))
    return Embeddings(audio_embeddings, text_embeddings, model.logit_scale())


def audio_features(
    model: SLAP, audio: Audio | Iterable[Audio], *, sampling_rate: float | None
) -> tuple[Tensor, PackedLayout]:
    """See `SLAP.audio_features`."""
    return encode_features(model, _waveforms(model, audio, sampling_rate))


def embed_waveforms(model: SLAP, clips: list[Tensor]) -> Tensor:
    """`[N, D]` unit-length embeddings of waveforms on the device of the model, with gradients unless disabled.

    Without gradients on a CPU, clips have the bits that `SLAP.encode_audio` gives them. Long ones are cut into windows.
    """
    windows = [clip_windows(model.config, clip) for clip in clips]
    flat = [window for clip in windows for window in clip]
    packs = [flat]
    if model.device.type == "cpu" and not torch.is_grad_enabled() and clips:
        packs = list(packed(model, flat, len))
    rows = _normalize(torch.cat([model.audio_pooling(*encode_features(model, pack)) for pack in packs]))
    return _mean_of_windows(rows, [len(clip) for clip in windows])


def embed_token_ids(model: SLAP, ids: list[list[int]]) -> Tensor:
    """`[N, D]` unit-length embeddings of tokenized texts on the device of the model, with gradients unless disabled."""
    return _normalize(_pooled_texts(model, ids))


def embed_batch(model: SLAP, batch: PackedBatch) -> Embeddings:
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
        _normalize(model.audio_pooling(model.audio_encoder(patches, batch.tokens), batch.tokens)),
        _normalize(model.text_pooling(model.text_encoder(batch.input_ids, batch.text), batch.text)),
        model.logit_scale(),
    )


class _Piece(NamedTuple):
    """A clip, or a window of a long one.

    Attributes:
        samples: `[n]`.
        columns: of its dense features, those that are used.
        ends_clip: whether it is the last one of its clip.
    """

    samples: Tensor
    columns: slice
    ends_clip: bool


def encode_audio(
    model: SLAP,
    audio: Audio | Iterable[Audio],
    *,
    sampling_rate: float | None,
    dense: bool,
    long: Long,
    batch_seconds: float,
    progress: bool,
) -> Tensor | list[Tensor]:
    """See `SLAP.encode_audio`."""
    count, clips = split_clips(audio)
    embeddings: list[Tensor] = []
    of_clip: list[Tensor] = []  # of the windows so far: columns, or one embedding each
    with (
        inference_context(model),
        progress_bar(total=count, desc="embedding audio", unit="clip", disable=not progress) as bar,
    ):
        pieces = (piece for clip in clips for piece in _pieces(model, clip, sampling_rate, dense=dense, long=long))
        for pack in packed(model, pieces, lambda piece: len(piece.samples), batch_seconds):
            features, tokens = encode_features(model, [piece.samples for piece in pack])
            if dense:
                parts = [_to_host(_pool_columns(model, rows)) for rows in features.split(list(tokens.lengths))]
            else:
                parts = list(_to_host(model.audio_pooling(features, tokens)).split(1))
            for piece, part in zip(pack, parts, strict=True):
                of_clip.append(part[piece.columns])
                if piece.ends_clip:
                    rows = torch.cat(of_clip)
                    embeddings.append(rows if dense else _mean_of_windows(rows, [len(rows)]))
                    of_clip.clear()
                    bar.update()
    return embeddings if dense else _concatenate(model, embeddings)


def encode_text(model: SLAP, texts: str | Iterable[str], *, batch_size: int, progress: bool) -> Tensor:
    """See `SLAP.encode_text`."""
    if batch_size < 1:
        raise ValueError(f"batch_size is {batch_size}; a batch holds at least 1 text")
    texts = split_texts(texts)
    embeddings: list[Tensor] = []
    with (
        inference_context(model),
        progress_bar(total=len(texts), desc="embedding text", unit="text", disable=not progress) as bar,
    ):
        ids = _tokenize(model, texts)
        for begin in range(0, len(ids), batch_size):
            chunk = ids[begin : begin + batch_size]
            embeddings.append(_to_host(_pooled_texts(model, chunk)))
            bar.update(len(chunk))
    return _concatenate(model, embeddings)


@contextmanager
def inference_context(model: SLAP) -> Iterator[None]:
    # Not inference mode: autograd could not save an inference tensor as the input of a trained probe.
    with torch.no_grad(), without_spinning() if model.device.type == "cpu" else nullcontext():
        yield


def _pieces(model: SLAP, clip: NamedClip, sampling_rate: float | None, *, dense: bool, long: Long) -> Iterator[_Piece]:
    """A clip, in windows if it is long: what is encoded at a time. Files are decoded as a stream."""
    everything = slice(None)
    blocks = waveform_blocks(clip, model.config.mel.sample_rate, sampling_rate, model.device)
    parts: Iterator[tuple[Tensor, slice]]
    if dense:
        parts = ((window.samples, window.keep) for window in dense_windows(model.config, blocks, long=long))
    elif long == "windows":
        parts = ((window, everything) for window in embedding_windows(model.config, blocks))
    else:
        parts = iter([(torch.cat(list(blocks)), everything)])
    last = next(parts, None)
    for part in parts:
        if last is not None:
            yield _Piece(*last, ends_clip=False)
        last = part
    if last is not None:
        yield _Piece(*last, ends_clip=True)


def packed(
    model: SLAP, items: Iterable[T], samples: Callable[[T], int], batch_seconds: float = CPU_BATCH_SECONDS
) -> Iterator[list[T]]:
    """What is encoded together: up to `batch_seconds` of clips, a longer clip by itself.

    On a CPU the bits of a clip must not depend on the others. Where PyTorch multiplies, they would: each clip is then
    encoded by itself. Otherwise at most `CPU_BATCH_SECONDS` are: products of more rows take no less time for a row.

    Args:
        model: in eval mode.
        items: clips.
        samples: length of one.
        batch_seconds: bound on their sum.
    """
    if model.device.type == "cpu":
        batch_seconds = min(batch_seconds, CPU_BATCH_SECONDS) if _has_independent_rows(model) else 0
    budget = batch_seconds * model.config.mel.sample_rate
    pack: list[T] = []
    held = 0
    for item in items:
        if pack and held + samples(item) > budget:
            yield pack
            pack, held = [], 0
        pack.append(item)
        held += samples(item)
    if pack:
        yield pack


def _has_independent_rows(model: SLAP) -> bool:
    """Whether native code computes all products of the audio tower: a row of its results depends on no other row."""
    if native.isa() in (None, "baseline"):
        return False
    towers = [tower for tower in (model.audio_encoder, model.audio_pooling) if tower is not None]
    layers = [layer for tower in towers for layer in tower.modules() if isinstance(layer, torch.nn.Linear)]
    return all(isinstance(layer, Linear) and select(layer.weight, layer.backend) == "native" for layer in layers)


def _waveforms(model: SLAP, audio: Audio | Iterable[Audio], sampling_rate: float | None) -> list[Tensor]:
    sample_rate = model.config.mel.sample_rate
    return [waveform(clip, sample_rate, sampling_rate, model.device) for clip in split_clips(audio)[1]]


def _mean_of_windows(rows: Tensor, counts: list[int]) -> Tensor:
    """`[N, D]` embeddings of clips from the unit-length ones of their windows; of a single window, its own."""
    if all(count == 1 for count in counts):
        return rows
    clips = []
    for windows in rows.split(counts):
        if len(windows) == 1:
            clips.append(windows)
        elif windows.requires_grad:
            clips.append(_normalize(windows.double().mean(dim=0, keepdim=True)))
        else:
            mean = MeanEmbedding()
            mean.add(windows.cpu().numpy())
            clips.append(torch.from_numpy(mean.result())[None].to(rows.device))
    return torch.cat(clips)


def encode_features(model: SLAP, pack: list[Tensor]) -> tuple[Tensor, PackedLayout]:
    """`[T, width]` audio features of waveforms, before pooling, and their layout."""
    config, device = model.config, model.device
    lengths = [len(samples) for samples in pack]
    samples = PackedLayout.from_lengths(lengths, device=device, dtype=torch.int64)
    frames = PackedLayout.from_lengths([config.mel.num_frames(length) for length in lengths], device=device)
    tokens = PackedLayout.from_lengths([config.num_tokens(length) for length in lengths], device=device)
    empty = torch.empty(0, dtype=torch.float32, device=device)
    packed = torch.cat(pack) if len(pack) > 1 else next(iter(pack), empty)
    return model.audio_encoder(model.frontend(packed, samples, frames, tokens), tokens), tokens


def tokenizer_of(model: SLAP) -> PreTrainedTokenizerBase:
    """
    Raises:
        ModelError: the model has none.
    """
    if model.tokenizer is None:
        raise ModelError("the model carries no tokenizer; set model.tokenizer, or load a folder that has tokenizer/")
    return model.tokenizer


def _tokenize(model: SLAP, texts: list[str]) -> list[list[int]]:
    """Token ids of each text, truncated to `config.text.max_length`, which a logged warning reports."""
    tokenizer, max_length = tokenizer_of(model), model.config.text.max_length
    ids = tokenizer(texts, truncation=True, max_length=max_length)["input_ids"] if texts else []
    full = [position for position, sequence in enumerate(ids) if len(sequence) == max_length]
    if full:
        whole = tokenizer([texts[position] for position in full], verbose=False)["input_ids"]
        cut = [position for position, sequence in zip(full, whole, strict=True) if len(sequence) > max_length]
        warn_of_cut_texts([texts[position] for position in cut], len(texts), max_length)
    return ids


def _pooled_texts(model: SLAP, ids: list[list[int]]) -> Tensor:
    """`[N, width]` pooled features of tokenized texts."""
    layout = PackedLayout.from_lengths([len(sequence) for sequence in ids], device=model.device)
    flat = [token for sequence in ids for token in sequence]
    features = model.text_encoder(torch.tensor(flat, dtype=torch.int64, device=model.device), layout)  # [L, width]
    return model.text_pooling(features, layout)


def _pool_columns(model: SLAP, features: Tensor) -> Tensor:
    """One clip's `[T, width]` features to `[columns, width]`: each column of patches pooled with its neighbors.

    Averaged with its neighbors by a model without pooling.
    """
    rows = model.config.tokens_per_column
    columns = features.shape[0] // rows
    spans = [(max(0, center - _DENSE_CONTEXT), min(columns, center + _DENSE_CONTEXT + 1)) for center in range(columns)]
    if model.audio_pooling is None:
        return torch.stack([features[begin * rows : end * rows].float().mean(dim=0) for begin, end in spans])
    layout = PackedLayout.from_lengths([(end - begin) * rows for begin, end in spans], device=features.device)
    return model.audio_pooling(torch.cat([features[begin * rows : end * rows] for begin, end in spans]), layout)


def _normalize(x: Tensor) -> Tensor:
    return F.normalize(x.float(), dim=-1)


def _to_host(pooled: Tensor) -> Tensor:
    """Unit-length embeddings on the CPU."""
    unit = _normalize(pooled).cpu()
    if not bool(unit.isfinite().all()):
        raise ModelError(
            "the model gives embeddings that are not finite: its weights are damaged, or its training had diverged; "
            "copy the model again, or export an earlier checkpoint"
        )
    return unit


def _concatenate(model: SLAP, embeddings: list[Tensor]) -> Tensor:
    """`[N, D]` on the CPU, also for N = 0."""
    empty = torch.empty(0, model.embedding_dim, dtype=torch.float32, device="cpu")
    return torch.cat([empty, *embeddings])
