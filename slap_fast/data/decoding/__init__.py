"""Decoding: encoded clips in memory to waveforms, by the project's own code on CPU or GPU, NVIDIA DALI or soundfile.

decoder.py defines the interface; `make_decoder` below selects an implementation.
"""

from __future__ import annotations

import logging
from typing import Literal

import torch

from slap_fast.data.decoding.dali_decoder import DaliDecoder
from slap_fast.data.decoding.decoder import PREPARE, Crop, DecodeFailure, Decoder
from slap_fast.data.decoding.gpu_decoder import GpuDecoder
from slap_fast.data.decoding.native_decoder import NativeDecoder
from slap_fast.data.decoding.soundfile_decoder import SoundfileDecoder
from slap_fast.errors import MissingExtraError, SlapFastError
from slap_fast.ops import dispatch

__all__ = [
    "PREPARE",
    "Crop",
    "DaliDecoder",
    "DecodeFailure",
    "Decoder",
    "DecoderUnavailableError",
    "GpuDecoder",
    "NativeDecoder",
    "SoundfileDecoder",
    "make_decoder",
]

logger = logging.getLogger(__name__)

_AUTO = ("native", "dali", "soundfile")
"""In order of preference, by `python -m benchmarks loader`. GPU memory is left to the model unless asked for."""

_KINDS = ("auto", "dali", "native", "gpu", "soundfile")


class DecoderUnavailableError(SlapFastError, RuntimeError):
    """The decoder that was asked for cannot run on this machine."""


def make_decoder(
    kind: Literal["auto", "dali", "soundfile", "native", "gpu"] = "auto",
    threads: int = 2,
    max_batch_size: int = 256,
    *,
    sample_rate: int = 16_000,
    pin_memory: bool = False,
    device: torch.device | str = "cpu",
) -> Decoder:
    """Creates a decoder. All of them return the same bits.

    "auto" is the first of native code, DALI and soundfile that can run here. "gpu" returns waveforms in GPU memory.

    Args:
        threads: native decoding threads.
        max_batch_size: maximum number of clips per DALI run; larger batches take several runs and one copy.
        pin_memory: decode into page-locked memory ("native" and "soundfile" only).
        device: the GPU of "gpu"; the other decoders ignore it.

    Raises:
        ValueError: `kind` is unknown, or a count is not positive.
        MissingExtraError: `kind` is "dali" and DALI cannot be imported.
        DecoderUnavailableError: `kind` is "native" or "gpu", which cannot run here.
    """
    if kind not in _KINDS:
        raise ValueError(f"decoder is {kind!r}; choose one of {', '.join(_KINDS)}")
    for candidate in _AUTO if kind == "auto" else (kind,):
        try:
            return _make(candidate, threads, max_batch_size, sample_rate, pin_memory, torch.device(device))
        except (MissingExtraError, DecoderUnavailableError) as error:
            if kind != "auto":
                raise
            logger.info("not decoding with %s: %s", candidate, error)
    raise AssertionError("soundfile is a dependency")


def _make(
    kind: str, threads: int, max_batch_size: int, sample_rate: int, pin_memory: bool, device: torch.device
) -> Decoder:
    if kind == "dali":
        return DaliDecoder(threads, max_batch_size, sample_rate=sample_rate, pin_memory=pin_memory)
    if kind == "native":
        _require("native", torch.device("cpu"), kind)
        return NativeDecoder(threads, sample_rate=sample_rate, pin_memory=pin_memory)
    if kind == "gpu":
        _require("cuda", device, kind)
        return GpuDecoder(device, threads, sample_rate=sample_rate)
    return SoundfileDecoder(threads, sample_rate=sample_rate, pin_memory=pin_memory)


def _require(backend: str, device: torch.device, kind: str) -> None:
    try:
        dispatch.select("decode_flac", backend, device=device)
    except dispatch.CannotServeError as error:
        raise DecoderUnavailableError(
            f"loading.decoder={kind} cannot run here: {error}; choose loading.decoder=auto"
        ) from error
