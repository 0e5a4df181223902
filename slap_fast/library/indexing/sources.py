"""Sources of a library: what is on disk now in its folders, files and prepared datasets."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.dataset_files import INFO_NAME, DatasetError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.prepare.file_search import walk_folder
from slap_fast.library.database import stored_mtime
from slap_fast.library.errors import LibraryError
from slap_fast.library.indexing.report import Failure
from slap_fast.library.recording_audio import clip_member

_SETTLED_NS = 2 * 10**9

MEDIA_EXTENSIONS = AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS


@dataclass(frozen=True)
class Found:
    """A recording on disk.

    Attributes:
        path: absolute, of the file or of the prepared dataset.
        member: key of the clip in the dataset; empty for a file.
        size: bytes of the file or of the clip.
        mtime_ns: of the file, or of the tar that has the clip.
        clip: number of the clip in the dataset.
        tar: path of the tar that has the clip; empty for a file.
        reason: why it cannot be read, if that is known already; as `AudioError.reason`.
        detail: for people.
    """

    path: str
    member: str
    size: int
    mtime_ns: int
    clip: int = -1
    tar: str = ""
    reason: str = ""
    detail: str = ""

    @property
    def name(self) -> str:
        """For people: the path; of a clip in a dataset, `path#key`."""
        return f"{self.path}#{self.member}" if self.member else self.path

    @property
    def key(self) -> tuple[str, str]:
        return self.path, self.member


@dataclass
class Scan:
    """What is on disk.

    Attributes:
        found: recordings, each once, by path and key.
        missing: sources, folders, files and links of which nothing can be said now, because they are not there, not
            readable, or without any audio. What the library has of them must stay.
        ignored: number of other files and folders, by kind.
        waiting: paths and keys of recordings that are being written, which are not read now.
    """

    found: dict[tuple[str, str], Found] = field(default_factory=dict)
    missing: dict[str, Failure] = field(default_factory=dict)
    ignored: Counter[str] = field(default_factory=Counter)
    waiting: set[tuple[str, str]] = field(default_factory=set)

    def hold_back(self, sizes: dict[tuple[str, str], int], now_ns: int) -> dict[tuple[str, str], int]:
        """Let recordings wait that were written to a moment ago, or have another size than in the scan before.

        Args:
            sizes: result of this call for the scan before.
            now_ns: time of this scan, since the epoch.

        Returns:
            Bytes by path and key, for the next scan.
        """
        for key, found in self.found.items():
            age = now_ns - found.mtime_ns
            if 0 <= age < _SETTLED_NS or sizes.get(key, found.size) != found.size:
                self.waiting.add(key)
        return {key: found.size for key, found in self.found.items()}

    def covers(self, path: str) -> bool:
        """Whether a recording at `path` would have been found if it existed."""
        return not any(folder in self.missing for folder in and_above(path))


def scan(sources: Sequence[str], library: str) -> Scan:
    """Look at all sources.

    Args:
        sources: absolute paths of folders, files and prepared datasets. They may overlap.
        library: absolute path of the library, which is left out.
    """
    result = Scan()
    identities: dict[tuple[int, int], str] = {}
    for source in sources:
        if is_dataset(source):
            _scan_dataset(source, result)
        elif os.path.isdir(source):
            seen = _scan_folder(source, library, result, identities)
            if not seen and source not in result.missing:
                detail = "no audio in this folder"
                result.missing[source] = Failure(source, "folder_empty", detail)
        else:
            try:
                os.lstat(source)
            except (FileNotFoundError, NotADirectoryError):
                result.missing[source] = Failure(source, "folder_missing", "no such file or folder")
            except OSError as error:  # such as a drive that does not answer
                result.missing[source] = Failure(source, "unreadable", (error.strerror or str(error)).lower())
            else:
                _add_file(source, result, identities)
    folders = [source for source in sources if source not in result.missing and not is_dataset(source)]
    for path in [path for path, failure in result.missing.items() if failure.reason == "folder_missing"]:
        if any(is_below(path, folder) for folder in folders):
            del result.missing[path]  # the folder that it was in is there, so it is gone, and no drive is missing
    return result


def scan_with_new(known: Sequence[str], added: Sequence[str], library: str) -> Scan:
    """`scan` of the sources of a library, and of new ones.

    Raises:
        LibraryError: a new one does not exist, has no audio, or is in the library.
    """
    for path in added:
        if is_below(path, library):
            raise LibraryError(f"{path}: this is in the library {library} itself; keep recordings in another folder")
    found = scan(list(dict.fromkeys([*known, *added])), library)
    for path in added:
        if path in found.missing and path not in known:
            raise LibraryError(f"{path}: {found.missing[path].detail}")
    return found


def is_dataset(path: str) -> bool:
    """Whether a folder is a dataset that `slap-fast prepare` wrote."""
    return os.path.isfile(os.path.join(path, INFO_NAME))  # not of pathlib, which raises for a drive that is gone


def is_below(path: str, folder: str) -> bool:
    """Whether an absolute path is `folder` or in it."""
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def and_above(path: str) -> Iterator[str]:
    """An absolute path, and all folders that it is in."""
    while True:
        yield path
        path, below = os.path.dirname(path), path
        if path == below:
            return


def _scan_folder(folder: str, library: str, result: Scan, identities: dict[tuple[int, int], str]) -> int:
    """Add the recordings of a folder; returns how many audio files it has."""
    names, left_out = walk_folder(Path(folder))
    for rejection in left_out:
        path = os.path.normpath(os.path.join(folder, rejection.origin))
        if rejection.reason == "unreadable_folder":
            detail = f"this folder cannot be read: {rejection.detail}"
            result.missing[path] = Failure(path, rejection.reason, detail)
        else:
            result.ignored[rejection.reason] += 1
    seen = 0
    for name in names:
        path = os.path.join(folder, name)
        if is_below(path, library):
            continue
        if os.path.splitext(name)[1].lower() in MEDIA_EXTENSIONS:
            seen += 1
            _add_file(path, result, identities)
        elif _status(path, result) is not None:  # else it may be a link to a folder with recordings, or be in one
            result.ignored["not_audio"] += 1
    return seen


def _status(path: str, result: Scan) -> os.stat_result | None:
    """The status of a file; None if it is gone, or cannot be read now, which is then in `missing`."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if os.path.islink(path):
            result.missing[path] = Failure(path, "missing_file", "a link to nothing")
    except PermissionError as error:
        # A file that may not be read has a status: so it is the folder, of which one line says enough.
        place = path if os.path.islink(path) else os.path.dirname(path)
        detail = f"its files cannot be read: {(error.strerror or str(error)).lower()}"
        result.missing[place] = Failure(place, "unreadable_folder", detail)
    except OSError as error:
        result.missing[path] = Failure(path, "unreadable", (error.strerror or str(error)).lower())
    return None


def _add_file(path: str, result: Scan, identities: dict[tuple[int, int], str]) -> None:
    if (path, "") in result.found:
        return
    status = _status(path, result)
    if status is None:
        return
    if not stat.S_ISREG(status.st_mode):
        detail = "not a regular file"
        result.found[path, ""] = Found(path, "", 0, stored_mtime(status), reason="unreadable", detail=detail)
        return
    # The same file through a link to it or to its folder. A file with two names of its own is two recordings.
    identity = (status.st_dev, status.st_ino)
    if status.st_nlink == 1 and identities.setdefault(identity, path) != path:
        result.ignored["same_file"] += 1
        return
    empty = status.st_size == 0
    result.found[path, ""] = Found(
        path,
        "",
        status.st_size,
        stored_mtime(status),
        reason="empty_file" if empty else "",
        detail="0 bytes" if empty else "",
    )


def _scan_dataset(folder: str, result: Scan) -> None:
    try:
        for found in _clips(folder):
            result.found.setdefault(found.key, found)
    except (DatasetError, OSError) as error:
        # All or nothing: of a dataset that is being replaced, clips must not look as if they were gone.
        for key in [key for key in result.found if key[0] == folder and key[1]]:
            del result.found[key]
        result.missing[folder] = Failure(folder, "dataset", str(error))


def _clips(folder: str) -> Iterator[Found]:
    index = ClipIndex.open(folder)
    tars = [os.path.join(folder, name) for name in index.shards]
    times = [stored_mtime(os.stat(tar)) for tar in tars]
    for clip in range(len(index)):
        record = index.records[clip]
        yield Found(
            folder,
            clip_member(index.key(clip)),
            int(record["audio_size"]),
            times[int(record["shard"])],
            clip,
            tars[int(record["shard"])],
        )
