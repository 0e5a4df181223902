"""Where the audio lies in a file, by its frames, pages and chunks: what headers say of the length is often wrong."""

from slap_fast.audio.streams.byte_view import ByteView, Part, Stretches, file_size
from slap_fast.audio.streams.chunks import chunk_stretches
from slap_fast.audio.streams.flac import flac_stretches
from slap_fast.audio.streams.mpeg import mpeg_stretches
from slap_fast.audio.streams.ogg import ogg_stretches

__all__ = [
    "ByteView",
    "Part",
    "Stretches",
    "chunk_stretches",
    "file_size",
    "flac_stretches",
    "mpeg_stretches",
    "ogg_stretches",
]
