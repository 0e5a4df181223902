"""Parts of a source: the share that one of several machines prepares, and the file that describes a finished one."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from slap_fast.data.format.dataset_files import PART_NAME, DatasetError, write_json
from slap_fast.data.format.shard_writer import KeyRegistry
from slap_fast.data.prepare.source import ClipItem, Rejection, Source

_FORMAT_VERSION = 1


@dataclass(frozen=True)
class Part:
    """Part `number` (from 1) of `of` parts of a source: consecutive items, in equal numbers."""

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def items(self, total: int) -> tuple[int, float]:
        """First item, and the one after the last. The last part has the rest, should there be more than `total`."""
        last = self.number == self.of
        return total * (self.number - 1) // self.of, math.inf if last else total * self.number // self.of


def parse_part(text: str) -> Part:
    """`3/16` as a Part.

    Raises:
        ValueError: it is not two whole numbers N/M with 1 <= N <= M.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
    if not found:
        raise ValueError(f"{text!r} is not N/M, such as 3/16 for the third of 16 parts")
    number, of = int(found[1]), int(found[2])
    if number == 0:
        raise ValueError(f"{text}: parts are numbered from 1; for Slurm, use --array=1-{of}")
    if number > of:
        raise ValueError(f"{text}: there are {of} parts, numbered from 1 to {of}")
    return Part(number, of)


@dataclass(frozen=True)
class WholeSource:
    """What all parts of one source have in common.

    Attributes:
        counted: number of items that the parts were cut from.
        items, seen: number of items, and of files, rows or members, in the whole source.
        digest: of the names, captions and rejections of all items.
    """

    counted: int
    items: int
    seen: int
    digest: str


@dataclass(frozen=True)
class PartInfo:
    """`part.json`: a finished part, to be merged.

    Attributes:
        part: number and number of parts.
        arguments: those of `prepare`, the same for all parts.
        source: the same for all parts.
        readers: versions of the libraries that decoded the audio.
        shards: `{name, bytes, clips, seconds}` of each tar.
        captions, seen, merged, rejected, noted: counts of this part; see `PrepareReport`.
    """

    part: Part
    arguments: dict[str, Any]
    source: WholeSource
    readers: dict[str, str]
    shards: list[dict[str, Any]]
    captions: int
    seen: int
    merged: int
    rejected: dict[str, int]
    noted: dict[str, int]

    @property
    def clips(self) -> int:
        return sum(shard["clips"] for shard in self.shards)

    @property
    def with_part(self) -> dict[str, Any]:
        """The arguments of the command that wrote this part."""
        return self.arguments | {"part": str(self.part)}

    def write(self, folder: Path) -> None:
        write_json(folder / PART_NAME, {"format_version": _FORMAT_VERSION, **asdict(self)})


def read_part(folder: Path) -> PartInfo:
    """Read `part.json`.

    Raises:
        DatasetError: it is missing or not readable.
    """
    path = folder / PART_NAME
    try:
        value = json.loads(path.read_bytes())
        if value.pop("format_version") != _FORMAT_VERSION:
            raise ValueError("of another version of slap-fast")
        value |= {"part": Part(**value["part"]), "source": WholeSource(**value["source"])}
        return PartInfo(**value)
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DatasetError(f"{path}: damaged ({error}); delete the folder and prepare this part again") from error


class SourceItems:
    """The items of a part that are not done yet. Iterates the whole source, and gives out keys in its order.

    Keys must be unique in the whole dataset, so items of other parts and finished ones claim theirs too.

    Attributes:
        claims: `(key, differs from the item's name)` of the items that were yielded, in their order; the caller takes
            them from the left.
        seen, merged: files, rows or members in the items of the part, and those that were merged into one.
        whole: the whole source, after an iteration.
    """

    def __init__(self, source: Source, part: Part | None, consumed: int) -> None:
        self.claims: deque[tuple[str, bool]] = deque()
        self.seen = self.merged = 0
        self.whole = WholeSource(0, 0, 0, "")
        self._source = source
        self._consumed = consumed
        self._counted = 0
        self._start, self._end = 0, math.inf
        if part is not None:
            count = source.count()
            self._counted = sum(1 for _ in source) if count is None else count
            self._start, self._end = part.items(self._counted)

    def count(self) -> int | None:
        """Number of items of the part, for the progress bar."""
        end = min(self._end, self._counted) if self._counted else self._source.count()
        return None if end is None else int(end) - self._start

    def __iter__(self) -> Iterator[ClipItem | Rejection]:
        keys, digest = KeyRegistry(), hashlib.blake2b(digest_size=16)
        position = seen = 0
        for item in self._source:
            digest.update(_identity(item))
            seen += item.seen
            claim = keys.claim(item.name) if isinstance(item, ClipItem) else ("", False)
            if self._start <= position < self._end:
                self.seen += item.seen
                self.merged += item.seen - 1
                if position - self._start >= self._consumed:
                    self.claims.append(claim)
                    yield item
            position += 1
        self.whole = WholeSource(self._counted, position, seen, digest.hexdigest())


def _identity(item: ClipItem | Rejection) -> bytes:
    if isinstance(item, ClipItem):
        fields = ["clip", item.name, item.origin, *item.captions]
    else:
        fields = ["rejection", item.origin, item.reason]
    return "\0".join([*fields, str(item.seen), ""]).encode("utf-8", "surrogatepass")
