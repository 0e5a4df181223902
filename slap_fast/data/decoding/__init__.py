"""The choice of a decoder."""

from __future__ import annotations

import logging
from typing import Literal

from slap_fast.data.decoding.dali_decoder import DaliDecoder
from slap_fast.data.decoding.soundfile_decoder import PREPARE, Crop, DecodeFailure, Decoder, SoundfileDecoder
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
    """The decoder of that name; "auto" is DALI where it is installed, which is the faster, else soundfile.

    Args:
        threads: native decoding threads.
        max_batch_size: the most clips that DALI decodes at once; more are decoded in turns, and copied together.
        pin_memory: decode into page-locked memory where the decoder lets one choose; soundfile does.

    Raises:
        ValueError: no decoder has that name, or a count is not positive.
        MissingExtraError: DALI is asked for by name and cannot be imported.
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
