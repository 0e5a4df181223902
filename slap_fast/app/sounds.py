"""Sounds that the page plays: recordings of the library by number, uploads by a random key."""

from __future__ import annotations

import io
import os
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile

from slap_fast.app.errors import PageError
from slap_fast.app.irregularities import irregularities
from slap_fast.app.names import shown
from slap_fast.app.recent import Recent
from slap_fast.audio.errors import AudioError
from slap_fast.library.database import Database
from slap_fast.library.recording_audio import blocks_from, open_named

MAX_SECONDS = 120.0
"""Longest stretch that is cut out at once, for a player or a picture."""

_KEPT_CUTS = 8
_KEPT_UPLOADS = 64
_PLAYED_RATES = (8_000, 48_000)


@dataclass(frozen=True)
class Sound:
    """A recording that the page may play.

    Attributes:
        key: by which the page names it.
        name: for people; may hold any character.
        path: of the file, or of the dataset that has the clip.
        member: key of the clip in the dataset; empty for a file.
        seconds: duration; None if unknown.
    """

    key: str
    name: str
    path: str
    member: str
    seconds: float | None


@dataclass(frozen=True)
class Stretch:
    """A stretch of a recording that was read.

    Attributes:
        samples: `[S]` float32 mono, at least one.
        goes_on: whether the recording has more sound after it.
        notes: a sentence for each irregularity that was met so far.
    """

    samples: np.ndarray
    goes_on: bool
    notes: tuple[str, ...]


class Sounds:
    """Finds and cuts sounds. Nothing else can be read through it: a key is looked up, never a path."""

    def __init__(self, database: Database, uploads: Path) -> None:
        self._database = database
        self._uploads = uploads.resolve()
        self._admitted: Recent[Sound] = Recent(_KEPT_UPLOADS)
        self._cuts: OrderedDict[tuple[str, float, float], bytes] = OrderedDict()
        self._lock = threading.Lock()
        self._decoding = threading.BoundedSemaphore(2)  # the rest waits: each decodes a whole recording at worst

    def admit(self, upload: str) -> Sound:
        """Give an uploaded file a key.

        Raises:
            PageError: the path is not one of an upload.
        """
        path = Path(upload).resolve()
        if self._uploads not in path.parents or not path.is_file():
            raise PageError("this upload is no longer there; upload the file again")
        sound = Sound("", path.name, str(path), "", None)
        return Sound(f"u{self._admitted.keep(sound)}", sound.name, sound.path, "", None)

    def recording(self, number: int) -> Sound:
        """A recording of the library.

        Raises:
            PageError: the library has none with this number, or it is not complete.
        """
        recording = self._database.recordings_of([number]).get(number) if 0 < number < 1 << 63 else None
        if recording is None or recording.state != "complete":
            raise PageError("this recording is no longer in the library; search again")
        return Sound(f"r{number}", recording.name, recording.path, recording.member, recording.seconds)

    def find(self, key: str) -> Sound:
        """The sound of a key that the page was given.

        Raises:
            PageError: there is none.
        """
        if key.startswith("r") and key[1:].isascii() and key[1:].isdecimal():
            return self.recording(int(key[1:]))
        if key.startswith("u") and (sound := self._admitted.get(key[1:])) is not None:
            return sound
        raise PageError("this sound is no longer there; search or upload again")

    def stretch(self, key: str, start: float, end: float, sample_rate: int, *, log: bool = False) -> Stretch:
        """The sound between two times in seconds, at `sample_rate` Hz; at most `MAX_SECONDS` of it.

        Args:
            log: log the irregularities of the file. Pictures and players, which are asked for again and again, do not.

        Raises:
            PageError: there is no such sound, it has no samples, or the times are not within it.
            AudioError: the file is missing or unreadable, or ends before `start` although the library has more of it.
            DatasetError: the dataset is missing or damaged.
        """
        sound = self.find(key)
        if not 0 <= start < end <= 1e7 or (sound.seconds is not None and start >= sound.seconds):
            raise PageError(f"{start:g} s to {end:g} s is not a stretch of this recording")
        first, last = round(start * sample_rate), round(min(end, start + MAX_SECONDS) * sample_rate)
        kept, position = [np.empty(0, np.float32)], 0
        with self._decoding, open_named(sound.path, sound.member) as source:
            for begin, block in blocks_from(source, start, sample_rate):
                if len(part := block[max(0, first - begin) : max(0, last - begin)]):
                    kept.append(part)  # an empty part would keep the memory of its block
                position = begin + len(block)
                if position > last:
                    break
            notes = irregularities(source, os.path.basename(sound.name), log=log)
        samples = np.concatenate(kept)
        if not len(samples):
            name = shown(sound.name)
            if not position:
                raise PageError(f"there are no samples in {name}")
            if sound.seconds is None:
                raise PageError(f"{name} ends at {position / sample_rate:.1f} s, before {start:g} s")
            raise AudioError("no_samples", f"{name} ends before {start:g} s: it has changed; index it again")
        return Stretch(samples, position > last, notes)

    def wav(self, key: str, start: float, end: float) -> bytes:
        """A stretch as a WAV file, 16 bit, mono, at the recording's own rate; raises as `stretch`."""
        with self._lock:
            if (cut := self._cuts.get((key, start, end))) is not None:
                return cut
        sound = self.find(key)
        with open_named(sound.path, sound.member) as source:
            rate = int(min(max(source.samplerate, _PLAYED_RATES[0]), _PLAYED_RATES[1]))
        file = io.BytesIO()
        soundfile.write(file, self.stretch(key, start, end, rate).samples.clip(-1, 1), rate, "PCM_16", format="WAV")
        with self._lock:
            self._cuts[key, start, end] = file.getvalue()
            while len(self._cuts) > _KEPT_CUTS:
                self._cuts.popitem(last=False)
        return file.getvalue()
