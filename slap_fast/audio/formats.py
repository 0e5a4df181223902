"""File extensions of audio that libsndfile reads, and of other media that may hold audio."""

from __future__ import annotations

AUDIO_EXTENSIONS = frozenset(
    {".wav", ".wave", ".flac", ".mp3", ".mp2", ".ogg", ".oga", ".opus", ".aif", ".aiff", ".aifc", ".au", ".snd"}
    | {".caf", ".w64", ".rf64", ".voc"}
)

OTHER_MEDIA_EXTENSIONS = frozenset(
    {".m4a", ".mp4", ".m4b", ".aac", ".webm", ".weba", ".mka", ".mkv", ".wma", ".wmv", ".mov", ".avi", ".3gp", ".ac3"}
    | {".amr", ".ape", ".wv", ".tta", ".mpc", ".spx", ".dsf", ".ra", ".flv", ".mpg", ".mpeg", ".ts", ".adts", ".eac3"}
    | {".m4p", ".m4r", ".m4v", ".3g2", ".3ga", ".aax", ".awb", ".asf", ".dts", ".f4a", ".f4v", ".m2ts", ".mts", ".ogv"}
    | {".qt", ".rm", ".vob", ".ogx", ".nut"}
)
"""Media that may hold audio, but that libsndfile does not read. FFmpeg does, with the extra `media`."""

CONVERT_HINT = "convert it, for example with `ffmpeg -i FILE FILE.flac`"
