"""Log-mel frames from waveforms: slap-fast against PyTorch and commonly used libraries.

Most cases use SLAP's convention (`MelConfig()`: Kaldi's filterbank, 64 bins, 16 kHz). Others use the convention of
torchaudio, which torch.stft, librosa and DALI compute too, or that of a single library. Every peer is checked against
the PyTorch backend in float64 before it is timed. Clips are noise: speed does not depend on their content. "Forward and
backward" also computes the gradient of the waveform from a gradient of the frames. Use `--threads 1` to compare with
single-threaded peers; the gain from a second thread is a separate case.

Limits on a CPU. A second of 16 kHz audio is 64 kB of samples and 26 kB of frames. A core that copies 10 GB/s could
process 220,000 seconds per second, reading half and writing half of these bytes; the case "copy" measures that.
Arithmetic is the tighter limit. A frame takes about 11,500 FLOP for its real FFT of 512 points (2.5 n log2 n), 2,000
for conditioning and window, 1,800 for power and mel filters (a bin lies in at most two triangles) and 1,300 for 64
logarithms: 17 kFLOP. A core with AVX-512 on 256-bit units at 2.6 GHz does 42 GFLOP/s with additions or multiplications
only and 83 with fused pairs only: 25,000 to 50,000 seconds of audio per second. The rest goes to shuffles, spills, and
loads and stores between passes. Backward does two more transforms (frames are recomputed, not stored) and reads the
gradient: forward and backward take about 3 times as long as forward.

PyTorch streams each intermediate through memory: about 15 passes over 1.6 to 2 kB per frame, 30 kB for an input of 640
bytes. In one batch the cost is page faults and memory bandwidth; in chunks the data stays in the second-level cache.

On a GPU memory bandwidth is the limit: 90 kB per second of audio at 4 TB/s are 44 million seconds per second.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import partial

from benchmarks import log_mel_libraries as libraries
from benchmarks.harness.case import AUDIO_SECONDS, Case, Peer, Settings
from benchmarks.log_mel_clips import Clips, mixed_seconds
from benchmarks.log_mel_peers import (
    copied_bytes,
    copy_of_all_bytes,
    in_chunks,
    kaldi_frames,
    nemo_frames,
    on_threads,
    one_batch,
    one_by_one,
    reference,
    slap_fast,
    stft_frames,
)
from slap_fast.ops import MelConfig

TITLE = "Log-mel frames, forward and backward"

# Largest error in float32 of a preset against its library; the peers stay below a tenth of it.
TOLERANCE = 1e-4
DIRECTIONS = {"forward": False, "forward and backward": True}


def workloads(settings: Settings) -> dict[str, tuple[float, ...]]:
    """Seconds of each clip, by name."""
    if settings.quick:
        return {"equal clips": (0.5,) * 3, "mixed clips": mixed_seconds(4, 0.1, 1.0), "one long clip": (7.3,)}
    clips = 32 if settings.device == "cpu" else 1024
    return {"equal clips": (10.0,) * clips, "mixed clips": mixed_seconds(clips), "one long clip": (3600.0,)}


def cases(settings: Settings) -> list[Case]:
    sizes, threads = workloads(settings), settings.threads

    def clips(workload: str, preset: str) -> Clips:
        return Clips.of_seconds(sizes[workload], MelConfig.preset(preset), settings.device)

    found = [_slap(name, clips(name, "slap"), backward) for name in sizes for backward in DIRECTIONS.values()]
    found += [_torchaudio(clips("equal clips", "torchaudio"), backward, settings) for backward in DIRECTIONS.values()]
    found += [_nemo(clips("mixed clips", "nemo"), backward) for backward in DIRECTIONS.values()]
    found += [
        _single("Whisper", clips("equal clips", "whisper"), libraries.whisper_extractor),
        _single("AST", clips("equal clips", "ast"), partial(libraries.ast_extractor, threads=threads)),
        _single("CLAP", clips("equal clips", "clap"), partial(libraries.clap_extractor, threads=threads)),
        _single("librosa", clips("equal clips", "librosa"), partial(libraries.librosa_by_clip, threads=threads)),
    ]
    if settings.device == "cpu":
        found += [_threads(name, clips(name, "slap"), backward) for name in sizes for backward in DIRECTIONS.values()]
    return [*found, _copy(clips("equal clips", "slap"))]


def _slap(workload: str, clips: Clips, backward: bool) -> Case:
    transform = partial(kaldi_frames, clips.config, clips.device)
    peers = [
        Peer("PyTorch, one batch", lambda: one_batch(clips, transform(), backward=backward)),
        Peer("PyTorch, in chunks", lambda: in_chunks(clips, transform(), backward=backward)),
        *_slap_fast(clips, backward),
    ]
    if not backward:
        peers.insert(2, libraries.kaldi_native_fbank(clips))
    return _case(f"{workload}, {_direction(backward)}", clips, peers, backward)


def _torchaudio(clips: Clips, backward: bool, settings: Settings) -> Case:
    transform = partial(stft_frames, clips.config, clips.device)
    peers = [
        Peer("torch.stft, one batch", lambda: one_batch(clips, transform(), backward=backward)),
        Peer("torch.stft, clip by clip", lambda: one_by_one(clips, transform(), backward=backward)),
        *_slap_fast(clips, backward),
    ]
    if not backward:
        peers[2:2] = [
            libraries.torchaudio(clips),
            libraries.librosa_batched(clips, settings.threads),
            libraries.dali(clips, settings.threads),
        ]
    return _case(f"torchaudio's convention, {_direction(backward)}", clips, peers, backward)


def _nemo(clips: Clips, backward: bool) -> Case:
    padded = Peer("torch.stft, padded", lambda: one_batch(clips, nemo_frames(clips), backward=backward))
    return _case(
        f"NeMo's convention, mixed clips, {_direction(backward)}",
        clips,
        [padded, *_slap_fast(clips, backward)],
        backward,
    )


def _single(convention: str, clips: Clips, library: Callable[[Clips], Peer]) -> Case:
    return _case(f"{convention}'s convention, forward", clips, [library(clips), *_slap_fast(clips, False)], False)


def _threads(workload: str, clips: Clips, backward: bool) -> Case:
    """One thread against two, independent of the `--threads` of the run."""
    cores = len(os.sched_getaffinity(0))
    setup = partial(slap_fast, clips, backward=backward)
    peers = [
        Peer("slap-fast, 1 thread", partial(on_threads, setup, 1)),
        Peer("slap-fast, 2 threads", partial(on_threads, setup, 2), "this machine has 1 core" if cores == 1 else None),
    ]
    return _case(f"one and two threads: {workload}, {_direction(backward)}", clips, peers, backward)


def _slap_fast(clips: Clips, backward: bool) -> list[Peer]:
    return [
        Peer("slap-fast, PyTorch backend", lambda: slap_fast(clips, "torch", backward=backward)),
        Peer("slap-fast", lambda: slap_fast(clips, backward=backward)),
    ]


def _case(name: str, clips: Clips, peers: list[Peer], backward: bool) -> Case:
    return Case(
        name=name,
        peers=tuple(peers),
        baseline=peers[0].name,
        reference=lambda: reference(clips, backward=backward),
        tolerance=TOLERANCE,
        work={AUDIO_SECONDS: clips.seconds},
        facts={
            "clips": len(clips.samples),
            "shortest (s)": min(clips.samples) / clips.config.sample_rate,
            "longest (s)": max(clips.samples) / clips.config.sample_rate,
            "audio (s)": clips.seconds,
            "samples (MB)": 4e-6 * sum(clips.samples),
            "frames (MB)": 4e-6 * sum(clips.frames) * clips.config.n_mels,
        },
    )


def _copy(clips: Clips) -> Case:
    copy = Peer("copy_", lambda: copy_of_all_bytes(clips))
    return Case(
        name="copy of as many bytes as equal clips and their frames have",
        peers=(copy,),
        baseline=copy.name,
        reference=lambda: copied_bytes(clips),
        tolerance=0.0,
        work={AUDIO_SECONDS: clips.seconds},
    )


def _direction(backward: bool) -> str:
    return next(name for name, value in DIRECTIONS.items() if value == backward)
