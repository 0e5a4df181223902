"""Decoding: encoded clips in memory to waveforms, by soundfile or NVIDIA DALI.

decoder.py defines the interface; `make_decoder` below selects an implementation.
"""

from __future__ import annotations

import logging
from typing import Literal

from slap_fast.data.decoding.dali_decoder import DaliDecoder
from slap_fast.data.decoding.decoder import PREPARE, Crop, DecodeFailure, Decoder
from slap_fast.data.decoding.soundfile_decoder import SoundfileDecoder
from slap_fast.errors import MissingExtraError

__all__ = ["PREPARE", "Crop", "DaliDecoder", "DecodeFailure", "Decoder", "SoundfileDecoder", "make_decoder"]

logger = logging.getLogger(__name__)


def make_decoder(
    kind: Literal["auto", "dali", "soundfile"] = "auto",
    threads: int = 2,
    max_batch_size: int = 256,
    *,
    sample_rate: int = 16_000,
    pin_memory: bool = False,
) -> Decoder:
    """Creates a decoder. "auto" is DALI if it is installed (it is faster), else soundfile.

    Args:
        threads: native decoding threads.
        max_batch_size: maximum number of clips per DALI run; larger batches take several runs and one copy.
        pin_memory: decode into page-locked memory (soundfile only).

    Raises:
        ValueError: `kind` is unknown, or a count is not positive.
        MissingExtraError: `kind` is "dali" and DALI cannot be imported.
    """
    if kind not in ("auto", "dali", "soundfile"):
        raise ValueError(f"decoder is {kind!r}; choose 'auto', 'dali' or 'soundfile'")
    if kind != "soundfile":
        try:
            return DaliDecoder(threads, max_batch_size, sample_rate=sample_rate, pin_memory=pin_memory)
        except MissingExtraError as error:
            if kind == "dali":
                raise
            logger.info("decoding with soundfile: %s", error)
    return SoundfileDecoder(threads, sample_rate=sample_rate, pin_memory=pin_memory)
