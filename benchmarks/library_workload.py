"""Model and recordings of the benchmarks of the sound library, made once per process tree in a temporary folder."""

from __future__ import annotations

import functools
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch

from slap_fast.config.model import AudioEncoderConfig, CaptionDecoderConfig, ModelConfig, TextEncoderConfig
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.models.slap import SLAP

SAMPLE_RATE = 16_000
WIDE_RATE = 48_000
_BLOCK_SECONDS = 60
# The quickstart recipe with 6 layers in the audio tower, as it was when results were recorded.
QUICKSTART = ModelConfig(
    audio=AudioEncoderConfig(width=128, layers=6, heads=4, mlp_width=384, pooling_heads=4),
    text=TextEncoderConfig(pretrained=None, vocab_size=1024, width=128, layers=4, heads=4, pooling_heads=4),
    caption=CaptionDecoderConfig(width=128, layers=2, heads=4, mlp_width=512),
)
# The architecture of the paper, whose text tower is ModernBERT-base; its vocabulary needs no tokenizer of that size.
PAPER = ModelConfig(text=TextEncoderConfig(pretrained=None, vocab_size=50_368, width=768, layers=22, heads=12))


@functools.cache
def work_folder() -> Path:
    """Shared by the processes of a run, and deleted by the one that made it."""
    return Path(os.environ.get("SLAP_FAST_BENCHMARK_WORK") or tempfile.mkdtemp(prefix="slap-fast-library-"))


def saved_model(config: ModelConfig, folder: Path) -> Path:
    """A model folder with random weights: a speed does not depend on them."""
    if not folder.exists():
        torch.manual_seed(0)
        model = SLAP(config, objectives=["contrastive"], load_pretrained_text=False)
        model.tokenizer = train_tokenizer(["a dog barks", "rain falls on a tin roof", "a bell rings twice"], 400)
        model.save_pretrained(folder)
    return folder


def waveform(number: int, seconds: float, sample_rate: int = SAMPLE_RATE) -> np.ndarray:
    """`[S]` float32: four decaying tones over weak noise; the first differs from recording to recording."""
    draw = np.random.default_rng([7, number])
    time = np.arange(int(seconds * sample_rate), dtype=np.float32) / sample_rate
    wave = 0.003 * draw.standard_normal(len(time), np.float32)
    for pitch, speed in zip(draw.uniform(80, 4_000, 4), draw.uniform(0.5, 4, 4), strict=True):
        wave += 0.1 * np.sin(2 * np.pi * pitch * time) * np.exp(-speed * (time % 1.7))
    return wave.astype(np.float32)


def clips_folder(folder: Path, clips: int, seconds: float, *, kind: str = "flac") -> Path:
    """`clips` different recordings: 16 kHz mono FLAC, or 48 kHz stereo WAV."""
    if not folder.exists():
        folder.mkdir(parents=True)
        for number in range(clips):
            if kind == "flac":
                soundfile.write(folder / f"{number:06d}.flac", waveform(number, seconds), SAMPLE_RATE)
            else:
                one = waveform(number, seconds, WIDE_RATE)
                soundfile.write(folder / f"{number:06d}.wav", np.stack([one, 0.5 * one], 1), WIDE_RATE)
    return folder


def resampled_waveform(number: int, seconds: float) -> np.ndarray:
    """The recording of `clips_folder` at 48 kHz as the model gets it, `[S]` float32."""
    mixed = 0.75 * waveform(number, seconds, WIDE_RATE)
    return soxr.resample(mixed, WIDE_RATE, SAMPLE_RATE)


def long_waveform(seconds: float) -> np.ndarray:
    """`[S]` float32, of minutes that differ."""
    minutes = [waveform(number, _BLOCK_SECONDS) for number in range(max(1, round(seconds / _BLOCK_SECONDS)))]
    return np.concatenate(minutes)[: int(seconds * SAMPLE_RATE)]


def long_recording(folder: Path, seconds: float) -> Path:
    """A folder with one FLAC of that length, written as a stream."""
    if not folder.exists():
        folder.mkdir(parents=True)
        with soundfile.SoundFile(folder / "long.flac", "w", SAMPLE_RATE, 1, "PCM_16") as file:
            for number in range(max(1, round(seconds / _BLOCK_SECONDS))):
                file.write(waveform(number, _BLOCK_SECONDS)[: int(seconds * SAMPLE_RATE)])
    return folder


def fresh_library(folder: Path, model: Path) -> Path:
    """An empty library of the model in `folder`, with its text tower, which takes seconds and is written once."""
    from slap_fast.library.library import Library
    from slap_fast.library.text_tower import export_text_tower

    empty = model.with_name(f"{model.name}-empty-library")
    if not empty.exists():
        with Library(empty, model=model):
            export_text_tower(SLAP.from_pretrained(model), empty)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(empty, folder)
    return folder
