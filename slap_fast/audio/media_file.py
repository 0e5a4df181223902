"""Media file: decodes the audio of MP4, WebM, AAC, WMA and other files by FFmpeg (PyAV), in mono blocks."""

from __future__ import annotations

import errno
import io
from collections.abc import Generator, Iterator
from typing import TYPE_CHECKING, Any, BinaryIO, NoReturn

import numpy as np

from slap_fast.audio.audio_source import MAX_SHORTFALL, Loudness, check_length
from slap_fast.audio.containers import ByteView, StreamPart
from slap_fast.audio.containers.byte_view import read_at
from slap_fast.audio.errors import AudioError
from slap_fast.errors import SlapFastError, one_line

if TYPE_CHECKING:
    import av
    from av.audio.frame import AudioFrame
    from av.audio.stream import AudioStream
    from av.container import InputContainer

_BLOCK_SAMPLES = 1 << 16
_MIB = 1 << 20
_GAP_SECONDS = 0.1
_MAX_BOXES = 1000
_MAX_PLANES = 8  # of a frame; PyAV reads beyond the list of planes if it is full

# Only formats that hold the audio themselves: playlists (HLS, DASH, concat) would open other files, and raw or text
# formats take any bytes for media.
_FORMATS = (
    *("mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "asf", "avi", "flv", "mpeg", "mpegts", "nut", "rm", "mxf", "wtv"),
    *("aac", "ac3", "eac3", "dts", "dtshd", "loas", "truehd", "mlp", "amr", "ape", "wv", "tta", "mpc", "mpc8"),
    *("dsf", "iff", "shn", "caf", "ogg", "wav", "w64", "aiff", "au", "flac", "oma", "xwma", "qcp", "gxf", "live_flv"),
)
# Formats whose headers declare the length. That of others is an estimate from the bit rate, or the last timestamp.
_WITH_LENGTH = frozenset(
    {"mov", "matroska", "asf", "flv", "ape", "wv", "tta", "mpc", "mpc8", "dsf", "iff", "caf", "wav", "w64", "aiff"}
)
_PROTECTED_TAGS = {"enca", "drms", "aavd", "p608"}


class NotMediaError(SlapFastError, ValueError):
    """FFmpeg does not recognize a file, or finds no decoder for it."""


def unavailable() -> str:
    """How to install PyAV; empty if it is installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        return 'FFmpeg may: pip install "slap-fast[media]"'
    return ""


def ffmpeg_version() -> str:
    """Versions of FFmpeg's libraries; "not installed" without PyAV."""
    if unavailable():
        return "not installed"
    import av

    return ", ".join(
        f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat")
    )


class MediaFile:
    """An open media file: the decoded frames of its default audio stream, or of the first one.

    The delay of the encoder is removed where the file declares it, as FFmpeg does (edit lists of MP4, pre-skip of
    Opus). Packets that cannot be decoded are left out and noted; more than 5 % of them are an error.

    Attributes:
        samplerate: Hz, of the first frame; it may change.
        channels: of the first frame.
        notes: `(reason, detail)` of each irregularity; complete after all blocks were read.
    """

    def __init__(self, file: BinaryIO | io.RawIOBase, *, close: bool = False) -> None:
        """Read the headers and the first block.

        Args:
            file: seekable.
            close: close `file` with this object, but not if this raises.

        Raises:
            NotMediaError: FFmpeg does not recognize the file.
            AudioError: `no_audio`, `protected`, or as for `blocks`.
        """
        import av

        self._file = file
        self._close_file = close
        self.notes: list[tuple[str, str]] = []
        self._size = file.seek(0, io.SEEK_END)
        # A view has no name, so that FFmpeg goes by the content.
        self._view = ByteView(file, StreamPart(0, self._size))
        try:
            self._container: InputContainer = av.open(
                self._view,
                "r",
                metadata_errors="replace",
                io_open=_refuse_to_open,
                container_options={"format_whitelist": ",".join(_FORMATS), "protocol_whitelist": "none"},
            )
        except (av.error.FFmpegError, OSError, ValueError, EOFError) as error:
            self._raise_unrecognized(error)
        try:
            if self._container.format.name == "avi":
                self._check_avi_size()
            self._stream = self._select_stream()
            self._stream.codec_context.thread_count = 1  # clips are decoded in parallel, not packets
            self.samplerate, self.channels = 0, 0
            self._audio_end, self._reached = 0.0, 0.0
            self._blocks = self._decoded()
            self._first = next(self._blocks, None)
        except BaseException:
            self._container.close()
            raise

    def __enter__(self) -> MediaFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; a stream that was passed in open stays open."""
        self._blocks.close()
        self._container.close()
        if self._close_file:
            self._file.close()

    @property
    def declared_seconds(self) -> float | None:
        """Length in the header, of the audio if it has one of its own; None if there is none or it is an estimate."""
        if self._container.format.name.partition(",")[0] not in _WITH_LENGTH:
            return None
        duration, base = self._stream.duration, self._stream.time_base
        if duration is not None and base is not None:
            seconds = float(duration * base)
        else:
            seconds = (self._container.duration or 0) / 1e6
        return seconds if seconds > 0 else None

    def skip(self, seconds: int) -> int:
        """0: the position after a seek is an estimate in many formats, so `blocks` begins with the file."""
        return 0

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Yield the sample rate in Hz and a non-empty `[n]` float32 block, the mean of the channels.

        Raises:
            AudioError: `unreadable`, `truncated`, `not_finite`, `out_of_range`.
        """
        if self._first is not None:
            first, self._first = self._first, None
            yield first
        yield from self._blocks

    def _select_stream(self) -> AudioStream:
        streams = list(self._container.streams.audio)
        if not streams:
            if self._protection():
                raise AudioError("protected", self._protection())
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams}))
            raise AudioError("no_audio", f"a media file without an audio stream (it has {kinds or 'no stream'})")
        default = [stream for stream in streams if _is_default(stream)]
        stream = (default or streams)[0]
        if protection := self._protection(stream):
            raise AudioError("protected", protection)
        if stream.codec_context is None:
            raise NotMediaError("its audio codec is unknown")
        if len(streams) > 1:
            which = f"{streams.index(stream) + 1} of {len(streams)}"
            language = f", {stream.language}" if stream.language else ""
            self.notes.append(("several_streams", f"audio stream {which} was read ({stream.name}{language})"))
        return stream

    def _protection(self, stream: AudioStream | None = None) -> str:
        """What keeps the audio from being decoded: DRM or encryption; empty if nothing is known."""
        found = ""
        head = read_at(self._file, 0, 12)
        if head[4:8] == b"ftyp" and head[8:11] == b"aax":
            found = "Audible AAX"
        elif stream is not None and stream.codec_context and _tag(stream) in _PROTECTED_TAGS:
            found = f"its sample entry is {_tag(stream)!r}"
        elif protection := self._container.metadata.get("ASF_Protection_Type"):
            found = f"Windows Media {protection}"
        return f"encrypted, copy-protected audio ({found}), which cannot be decoded" if found else ""

    def _check_avi_size(self) -> None:
        """Compare the size of the file with that in its headers: FFmpeg takes a cut off file for a shorter one."""
        end = 0
        while len(head := read_at(self._file, end, 8)) == 8 and head[:4] == b"RIFF":
            length = int.from_bytes(head[4:], "little")
            if length in (0, 0xFFFFFFFF):
                return  # not filled in, as in a recording
            end += 8 + length + length % 2
        # The byte that pads the last chunk may be missing.
        if self._size < end - 1:
            detail = f"the AVI file is cut off: {self._size} of {end} bytes"
            if self._size < end * (1 - MAX_SHORTFALL):
                raise AudioError("truncated", detail)
            self.notes.append(("cut_short", detail))

    def _decoded(self) -> Generator[tuple[int, np.ndarray], None, None]:
        """Blocks of at least _BLOCK_SAMPLES samples; shorter ones at the end and where the sample rate changes."""
        loudness, count, rate = Loudness(), 0, 0
        pending: list[np.ndarray] = []
        for frame_rate, mono in self._trimmed():
            if count and (frame_rate != rate or count >= _BLOCK_SAMPLES):
                yield rate, np.concatenate(pending)
                pending, count = [], 0
            rate = frame_rate
            loudness.add(mono)
            pending.append(mono)
            count += len(mono)
        if count:
            yield rate, np.concatenate(pending)
        loudness.check()

    def _trimmed(self) -> Iterator[tuple[int, np.ndarray]]:
        """The frames without the padding of an encoder at the end of an MP4 file, which FFmpeg does not remove."""
        declared = self.declared_seconds if self._container.format.name.startswith("mov") else None
        seconds, held_samples = 0.0, 0
        held: list[tuple[int, np.ndarray]] = []
        for rate, mono, packet_samples in self._frames():
            end = seconds + len(mono) / rate
            if declared is not None and end > declared:
                kept = max(0, round((declared - seconds) * rate))
                held.append((rate, mono[kept:]))
                held_samples += len(mono) - kept
                mono = mono[:kept]
                if held_samples > packet_samples:
                    # More than padding: the declared length is wrong.
                    if len(mono):
                        yield rate, mono
                    yield from ((rate, piece) for rate, piece in held if len(piece))
                    declared, held, mono = None, [], mono[:0]
            seconds = end
            if len(mono):
                yield rate, mono

    def _frames(self) -> Iterator[tuple[int, np.ndarray, int]]:
        """Sample rate, `[n]` float32 mono samples, and the samples of a packet, of every frame."""
        seconds, packet_samples, damage = 0.0, 0, _Damage()
        for frame in self._decoded_packets(damage):
            rate = frame.sample_rate
            if rate <= 0 or not frame.samples:
                continue
            if not self.samplerate:
                self.samplerate, self.channels = rate, frame.layout.nb_channels
            if frame.is_corrupt:
                damage.add(seconds, "the decoder marks it as damaged")
            mono = _mono(frame)
            if not np.isfinite(mono).all():
                raise AudioError("not_finite", f"NaN or infinite samples after {seconds:.1f} s")
            packet_samples = max(packet_samples, len(mono))
            damage.seconds = seconds = seconds + len(mono) / rate
            yield rate, mono, packet_samples
        if self._view.error:
            raise AudioError("unreadable", f"the file cannot be read to its end ({self._view.error})")
        damage.check(self.notes, seconds)
        check_length(max(seconds, self._reached), self.declared_seconds, self.notes)
        if self._audio_end > seconds + _GAP_SECONDS and not damage.count:
            detail = f"its timestamps skip {self._audio_end - seconds:.2f} s in all, which were not filled"
            self.notes.append(("gaps", detail))

    def _decoded_packets(self, damage: _Damage) -> Iterator[AudioFrame]:
        """Every frame. Sets the times in seconds to which the audio, and what has the declared length, were read."""
        import av

        errors = (av.error.FFmpegError, ValueError, OSError, EOFError)
        # A length that is that of the file, and not of the audio, is compared with all its streams.
        own_length = self._stream.duration is not None
        origin = self._stream.start_time or 0
        priming = 0.0  # seconds before time 0, which Matroska counts in the length of the file
        packets = self._container.demux()
        count = size = 0
        while True:
            try:
                packet = next(packets, None)
            except IndexError:  # PyAV, after the last packet, of a stream that began in the middle of the file
                packet = None
            except errors as error:
                damage.add(damage.seconds, _reason(error), fatal=True)
                packet = None
            if packet is None:
                break
            count, size = count + 1, size + packet.size
            if count > self._size + 1000 or size > 4 * self._size + _MIB:
                raise AudioError("unreadable", "damaged: its index refers to the same bytes again and again")
            own = packet.stream.index == self._stream.index
            if packet.pts is not None and packet.time_base is not None and packet.size:
                end = packet.pts + (packet.duration or 0)
                if own:
                    self._audio_end = max(self._audio_end, float((end - origin) * packet.time_base))
                if not own_length:
                    priming = max(priming, -float(packet.pts * packet.time_base)) if own else priming
                    self._reached = max(self._reached, float(end * packet.time_base) + priming)
            if own:
                if _is_encrypted(packet):
                    raise AudioError("protected", "encrypted audio (Common Encryption), which cannot be decoded")
                damage.packets += packet.size > 0
                try:
                    frames = self._stream.decode(packet)
                except errors as error:
                    # An empty packet announces another header.
                    if packet.size or not isinstance(error, av.error.ArgumentError):
                        damage.add(damage.seconds, _reason(error))
                else:
                    yield from frames
        if own_length:
            self._reached = self._audio_end
        if damage.fatal:
            try:
                frames = self._stream.decode(None)
            except errors:
                return
            yield from frames

    def _raise_unrecognized(self, error: Exception) -> NoReturn:
        if self._view.error:
            raise AudioError("unreadable", f"the file cannot be read to its end ({self._view.error})") from error
        if detail := _cut_off_mp4(self._file, self._size):
            raise AudioError("truncated", detail) from error
        # FFmpeg has no error of its own for a format that is not in the list.
        is_unknown = getattr(error, "errno", None) == errno.EINVAL
        raise NotMediaError("not a media format" if is_unknown else _reason(error)) from error


class _Damage:
    """Packets that cannot be decoded."""

    def __init__(self) -> None:
        self.packets = self.count = 0
        self.seconds = 0.0
        self.fatal = False
        self._first = ""

    def add(self, seconds: float, reason: str, *, fatal: bool = False) -> None:
        self.count += 1
        self.fatal = self.fatal or fatal
        self._first = self._first or f"after {seconds:.1f} s ({reason})"

    def check(self, notes: list[tuple[str, str]], seconds: float) -> None:
        if not self.count:
            return
        detail = f"{self.count} of {self.packets} packets are damaged, the first {self._first}"
        if not seconds or self.count > max(1, MAX_SHORTFALL * self.packets):
            raise AudioError("unreadable", detail)
        notes.append(("damaged", f"{detail}; what could not be decoded is missing"))


def _mono(frame: AudioFrame) -> np.ndarray:
    """`[n]` float32, the mean of the channels, in [-1, 1] for integer formats."""
    if frame.format.is_planar and frame.layout.nb_channels >= _MAX_PLANES:
        frame = _packed(frame)
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T  # [channels, n]
    if samples.dtype == np.uint8:
        samples = samples.astype(np.float32) - 128
        scale = 128.0
    elif samples.dtype.kind == "i":
        scale = 2.0 ** (8 * samples.dtype.itemsize - 1)
    else:
        scale = 1.0
    precise = np.float32 if samples.dtype.itemsize <= 4 and samples.dtype != np.int32 else np.float64
    mono = samples[0].astype(precise) if len(samples) == 1 else samples.mean(axis=0, dtype=precise)
    return (mono / precise(scale)).astype(np.float32)


def _packed(frame: AudioFrame) -> AudioFrame:
    """The frame with interleaved channels."""
    import av

    resampler = av.AudioResampler(frame.format.packed.name, frame.layout, frame.sample_rate)
    try:
        (packed,) = resampler.resample(frame)
    except (av.error.FFmpegError, ValueError) as error:
        raise AudioError("unreadable", f"{frame.layout.nb_channels} channels ({one_line(error)})") from error
    return packed


def _refuse_to_open(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    raise ValueError(f"the file refers to another file, {url!r}, which is not opened")


def _is_default(stream: AudioStream) -> bool:
    from av.stream import Disposition

    return bool(stream.disposition & Disposition.default)


def _tag(stream: AudioStream) -> str:
    try:
        return str(stream.codec_context.codec_tag).strip("\0 ")
    except UnicodeDecodeError:  # a number, as in WAV and AVI
        return ""


def _is_encrypted(packet: av.Packet[Any]) -> bool:
    # PyAV before 15 does not have it; the decoder then reports damaged packets.
    has_sidedata = getattr(packet, "has_sidedata", None)
    return bool(has_sidedata and has_sidedata("encryption_info"))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or one_line(error)


def _cut_off_mp4(file: BinaryIO | io.RawIOBase, size: int) -> str:
    """What an MP4 file that has audio data lacks; empty if it is none, or nothing is missing."""
    boxes: list[bytes] = []
    place = 0
    while place + 8 <= size and len(boxes) < _MAX_BOXES:
        head = read_at(file, place, 16)
        length = int.from_bytes(head[:4], "big")
        if length == 1:
            length = int.from_bytes(head[8:16], "big")
        boxes.append(head[4:8])
        if length < 8:
            break
        place += length
    if boxes[:1] != [b"ftyp"] or b"mdat" not in boxes:
        return ""
    if b"moov" not in boxes:
        return "the index of this MP4 file ('moov' box) is missing: it is cut off, or its writer did not finish"
    return f"the MP4 file is cut off: {size} of at least {place} bytes" if place > size else ""
