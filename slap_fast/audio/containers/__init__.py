"""Header parsers by container format: they find where the audio lies, since the length in a header is often wrong."""

from __future__ import annotations

import io
from typing import BinaryIO

from slap_fast.audio.containers.byte_view import ByteView, ClampedBytesIO, StreamLayout, StreamPart
from slap_fast.audio.containers.chunks import chunk_layout
from slap_fast.audio.containers.flac import flac_layout
from slap_fast.audio.containers.mpeg import mpeg_layout
from slap_fast.audio.containers.ogg import ogg_layout

__all__ = ["ByteView", "ClampedBytesIO", "StreamLayout", "StreamPart", "find_layout", "mpeg_layout"]


def find_layout(file: BinaryIO | io.RawIOBase, size: int) -> StreamLayout:
    """Layout of a file of `size` bytes in any format but MPEG audio, which has no file header."""
    return chunk_layout(file, size) or ogg_layout(file, size) or flac_layout(file, size) or StreamLayout()
