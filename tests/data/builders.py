"""Small datasets on disk, intact and damaged, and loaders for them."""

from __future__ import annotations

import dataclasses
import io
import json
import tarfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from slap_fast import native
from slap_fast.audio.flac_encoder import encode_flac
from slap_fast.config.model import ModelConfig, TextEncoderConfig
from slap_fast.config.recipe import AugmentationConfig
from slap_fast.data.decoding import Decoder, GpuDecoder, make_decoder
from slap_fast.data.format.dataset_files import FORMAT_VERSION, INDEX_DTYPE, INDEX_NAME, INFO_NAME
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.loading.batch import Batch
from slap_fast.data.loading.loader import Loader
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler
from slap_fast.ops.packed import PackedLayout

WORDS = ["a", "bell", "dog", "rings", "barks", "twice", "far", "away"]
CONFIG = ModelConfig(text=TextEncoderConfig(max_length=12))
START, END = 1, 2


def make_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["[UNK]", "[CLS]", "[SEP]", *WORDS])}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", START), ("[SEP]", END)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="[UNK]")


def encode(pcm: np.ndarray, rate: int = 16_000, *, format: str = "FLAC", subtype: str = "PCM_16") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, pcm, rate, format=format, subtype=subtype)
    return file.getvalue()


def prepared(pcm: np.ndarray) -> bytes:
    """FLAC as `slap-fast prepare` writes it: with a seek table."""
    audio = encode_flac([pcm / np.float32(32768)], Path("not written")).audio
    assert isinstance(audio, bytes)
    return audio


DECODERS = ("soundfile", "dali", "native", "gpu path")


def decoder_of(kind: str, threads: int = 2, max_batch_size: int = 8) -> Decoder:
    """A decoder by a name of `DECODERS`, of which the last runs on the CPU; skips the test where it cannot run."""
    if kind == "gpu path":
        return GpuDecoder("cpu", threads)
    if kind == "dali":
        pytest.importorskip("nvidia.dali")
    if kind == "native" and (reason := native.unavailable()):
        pytest.skip(reason)
    return make_decoder(kind, threads, max_batch_size)  # type: ignore[arg-type]


def write_tar(path: Path, members: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@dataclasses.dataclass
class StoredClip:
    audio: bytes
    samples: int
    captions: int
    metadata: bytes


def make_clip(number: int) -> StoredClip:
    """A clip of 0.05 to 0.5 s, with one to three captions of up to 7 words; even ones have a seek table."""
    generator = np.random.default_rng([17, number])
    pcm = (generator.standard_normal(int(generator.integers(800, 8000))) * 5000).clip(-32768, 32767).astype(np.int16)
    captions = [" ".join(generator.choice(WORDS, generator.integers(1, 8))) for _ in range(generator.integers(1, 4))]
    audio = encode(pcm) if number % 2 else prepared(pcm)
    return StoredClip(audio, len(pcm), len(captions), json.dumps({"captions": captions}).encode())


def write_dataset(folder: Path, clips: Sequence[StoredClip], clips_per_shard: int = 10) -> ClipIndex:
    """A dataset folder of these clips, with keys clip-0, clip-1, ..."""
    folder.mkdir()
    records, shards = [], []
    for shard, first in enumerate(range(0, len(clips), clips_per_shard)):
        path = folder / f"shard-{shard:06d}.tar"
        members = clips[first : first + clips_per_shard]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number, clip in enumerate(members, first):
                places = []
                for extension, content in (("flac", clip.audio), ("json", clip.metadata)):
                    member = tarfile.TarInfo(f"clip-{number}.{extension}")
                    member.size = len(content)
                    places += [tar.offset + tarfile.BLOCKSIZE, len(content)]
                    tar.addfile(member, io.BytesIO(content))
                records.append((shard, *places, clip.samples, 16_000, clip.captions))
        shards.append({"name": path.name, "bytes": path.stat().st_size, "clips": len(members), "seconds": 1.0})
    np.save(folder / INDEX_NAME, np.array(records, dtype=INDEX_DTYPE))
    info = {
        "format_version": FORMAT_VERSION,
        "name": "test",
        "shards": shards,
        "clips": len(clips),
        "seconds": sum(clip.samples for clip in clips) / 16_000,
        "captions": sum(clip.captions for clip in clips),
        "sample_rate": 16_000,
        "mel_mean": 0.0,
        "mel_std": 1.0,
    }
    (folder / INFO_NAME).write_text(json.dumps(info))
    return ClipIndex.open(folder)


def damage_clip(clip: StoredClip, kind: str) -> StoredClip:
    """The clip with one defect, a key of `REASONS`."""
    generator = np.random.default_rng(3)
    noise = (generator.standard_normal(clip.samples) * 5000).astype(np.int16)
    nan = np.full(clip.samples, np.nan, dtype=np.float32)
    flipped = bytearray(clip.audio)
    flipped[-100] ^= 0xFF
    changes: dict[str, dict[str, Any]] = {
        "text": {"audio": b"not audio"},
        "truncated": {"audio": clip.audio[: len(clip.audio) // 2]},
        "flipped": {"audio": bytes(flipped)},
        "empty": {"audio": b""},
        "nan": {"audio": encode(nan, format="WAV", subtype="FLOAT")},
        "rate": {"audio": encode(noise, 44_100)},
        "length": {"audio": encode(noise[:-1])},
        "blank caption": {"metadata": b'{"captions": ["  "]}', "captions": 1},
        "no caption": {"metadata": b'{"captions": []}', "captions": 1},
        "number as caption": {"metadata": b'{"captions": [7]}', "captions": 1},
        "broken metadata": {"metadata": b'{"captions": ["a be', "captions": 1},
        "nested metadata": {"metadata": b'{"captions": ' + b"[" * 100_000, "captions": 1},
    }
    return dataclasses.replace(clip, **changes[kind])


REASONS = {
    "text": "not readable",
    "truncated": "not readable",
    "flipped": "not readable",
    "empty": "0 bytes",
    "nan": "NaN",
    "rate": "44100 Hz, not 16000 Hz; run `slap-fast prepare`",
    "length": "the index says",
    "blank caption": "0 captions, the index says at least 1",
    "no caption": "0 captions, the index says at least 1",
    "number as caption": "0 captions, the index says at least 1",
    "broken metadata": "not JSON",
    "nested metadata": "nested more than 100 times",
}

# Row of each bad clip of the damaged dataset, and its defect.
BAD = {3 * number + 1: kind for number, kind in enumerate(REASONS)}


def write_damaged_dataset(folder: Path) -> ClipIndex:
    """40 clips; each of those in `BAD` has another defect."""
    clips = [make_clip(number) for number in range(40)]
    for number, kind in BAD.items():
        clips[number] = damage_clip(clips[number], kind)
    return write_dataset(folder, clips)


def make_loader(index: Any, tokenizer: PreTrainedTokenizerFast, *, decoder: Any = None, **changed: Any) -> Loader:
    batch_size = changed.pop("batch_size", 8)
    model_config = changed.pop("model_config", CONFIG)
    sampler = changed.pop("sampler", None) or GlobalBatchSampler(
        index, batch_size=batch_size, seed=11, max_duration=30.0
    )
    arguments: dict[str, Any] = {"seed": 11, "start_step": 0, "stop_step": 6} | changed
    decoder = decoder or make_decoder("soundfile", 2)
    return Loader(index, sampler, model_config, AugmentationConfig(), tokenizer, decoder, **arguments)


def as_lists(batch: Batch) -> dict[str, Any]:
    """The batch as values that can be compared bit by bit."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, PackedLayout):
            values[field.name] = (value.lengths, value.cu_seqlens.dtype, value.cu_seqlens.tolist())
        else:
            values[field.name] = (value.dtype, value.tolist())
    return values


def split_batch(batch: Batch) -> list[dict[str, list]]:
    """The batch cut into its clips, with positions relative to the clip."""

    def cut(values: Tensor, layout: PackedLayout) -> list[list]:
        return [piece.tolist() for piece in values.split(list(layout.lengths))]

    first_tokens = np.repeat(batch.tokens.cu_seqlens[:-1].numpy(), batch.masked.lengths)
    fields = {
        "waveform": cut(batch.waveform, batch.samples),
        "time_masked": cut(batch.time_masked, batch.frames),
        "mel_masked": batch.mel_masked.tolist(),
        "masked_tokens": cut(batch.masked_tokens - torch.from_numpy(first_tokens), batch.masked),
        "input_ids": cut(batch.input_ids, batch.text),
        "clip_ids": batch.clip_ids.tolist(),
    }
    return [{name: values[item] for name, values in fields.items()} for item in range(len(batch))]


def loader_threads() -> list[threading.Thread]:
    """Live threads of any loader or decoder."""
    return [thread for thread in threading.enumerate() if thread.name.startswith(("loader", "decode"))]
