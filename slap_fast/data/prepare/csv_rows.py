"""Strict CSV and TSV reader: a broken quote costs only its own row, and duplicate column names are an error."""

from __future__ import annotations

import csv
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.source import Rejection

_DELIMITERS = ",\t;|"
_SHOWN = 200  # characters of a row in a message
_TOO_LONG, _UNCLOSED = "field larger", "unexpected end"  # how csv.Error begins


def read_csv(
    path: Path, is_file_name: Callable[[str], bool] | None = None
) -> Iterator[tuple[str, dict[str, Any] | Rejection]]:
    """Yields `(origin, row)`; a row that cannot be read is a Rejection and does not affect other rows.

    The delimiter is a comma (a tab for .tsv), unless the header has only another one. In a .tsv, a row with unbalanced
    quotes is read without quoting if it then has as many cells as the header: many .tsv files do not use quoting.

    Args:
        path: UTF-8, or UTF-16 with a byte order mark.
        is_file_name: whether a cell that is not UTF-8 is the name of an existing file; if not, its row is rejected.

    Raises:
        DatasetError: the header cannot be used.
    """
    exists = is_file_name or (lambda cell: os.path.exists(path.parent / cell))
    # surrogateescape keeps file names in another encoding intact, and a bad row does not stop the reading.
    with open(path, encoding=_encoding(path), errors="surrogateescape", newline="") as file:
        lines = _Lines(file)
        header, dialect = _header(path, lines)
        if not header:
            return
        delimiter = dialect.delimiter
        if file.newlines != "\r" and len(header) > 1:
            lines.delimiter, lines.join_below = delimiter, len(header)
        unquoted = path.suffix.lower() == ".tsv"
        while (line := lines.next_record()) is not None:
            origin = f"{path.name}:{lines.number}"
            cells, fault = _cells(lines, header, dialect)
            if fault is not None and unquoted and not fault.startswith(_TOO_LONG):
                literal = line.rstrip("\r\n").split(delimiter)
                cells, fault = (literal, None) if len(literal) == len(header) else ([], fault)
            if fault is not None:
                yield origin, Rejection(origin, "malformed_row", f"{fault}: {line.rstrip()[:_SHOWN]}")
            elif not cells:
                continue
            elif len(cells) != len(header):
                detail = f"{len(cells)} fields, but the header has {len(header)}: {delimiter.join(cells)[:_SHOWN]}"
                yield origin, Rejection(origin, "malformed_row", detail)
            elif any(_not_utf8(cell) and not exists(cell) for cell in cells):
                yield origin, Rejection(origin, "malformed_row", "not UTF-8; convert the file")
            else:
                yield origin, dict(zip(header, cells, strict=True))


class _Dialect(NamedTuple):
    """`spaced`: a space follows the delimiter in the header, and so in the rows, also before a quote."""

    delimiter: str
    spaced: bool


class _Lines:
    """The lines of a file. All lines of a record but the first can be pushed back, to be read again.

    Attributes:
        number: line number of the first line of the record, from 1.
        record: the lines of the record read so far.
        join_below: a line with fewer cells continues the line before it, if that ends with a single carriage return
            (captions of AudioCaps 2 contain some); 0 to join none.
    """

    def __init__(self, file: TextIO) -> None:
        self.number = 1
        self.record: list[str] = []
        self.join_below = 0
        self.delimiter = ","
        self._file = file
        self._pushed_back: deque[str] = deque()

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = self._read()
        while self.join_below and line.endswith("\r"):
            if (more := self._read(None)) is None:
                break
            if more.count(self.delimiter) + 1 >= self.join_below:
                self._pushed_back.appendleft(more)
                break
            line = f"{line[:-1]} {more}"
        self.record.append(line)
        return line

    def _read(self, *default: None) -> Any:
        return self._pushed_back.popleft() if self._pushed_back else next(self._file, *default)

    def next_record(self) -> str | None:
        """Peeks at the first line of the next record; None at the end."""
        self.number += len(self.record)
        self.record = []
        line = next(self, None)
        self.push_back(self.record)
        return line

    def push_back(self, lines: list[str]) -> None:
        """Removes the last lines from the record, to be read again."""
        self._pushed_back.extendleft(reversed(lines))
        self.record = self.record[: len(self.record) - len(lines)]


def _cells(lines: _Lines, header: list[str], dialect: _Dialect) -> tuple[list[str], str | None]:
    """The cells of the next record, or the fault of its first line; then only that line was consumed."""
    fault = None
    cells: list[str] = []
    try:
        cells = next(csv.reader(lines, delimiter=dialect.delimiter, skipinitialspace=dialect.spaced, strict=True), [])
    except csv.Error as error:
        fault = str(error)
    more = lines.record[1:]
    if fault is None and not any(_is_row(line, header, dialect.delimiter) for line in more):
        return cells, None
    lines.push_back(more)
    if more or (fault or "").startswith(_UNCLOSED):
        fault = "a cell starts with a quote that is not closed; close it, or double quotes that are text"
    elif fault is not None and not fault.startswith(_TOO_LONG):
        fault = "a quote inside a quoted cell; double quotes that are text"
    return [], fault


def _is_row(line: str, header: list[str], delimiter: str) -> bool:
    """Whether a line inside a quoted cell looks like a separate row: the right number of cells, one an audio file."""
    cells = line.rstrip("\r\n").split(delimiter)
    return len(cells) == len(header) and any(
        os.path.splitext(cell.strip(' "'))[1].lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS for cell in cells
    )


def _header(path: Path, lines: _Lines) -> tuple[list[str], _Dialect]:
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    dialect = _Dialect(delimiter, spaced=False)
    cells: list[str] = []
    while not cells and (line := lines.next_record()) is not None:
        if delimiter not in line:
            delimiter = next((other for other in _DELIMITERS if other in line), delimiter)
        dialect = _Dialect(delimiter, spaced=f"{delimiter} " in line)
        cells, fault = _cells(lines, [], dialect)
        if fault is not None:
            raise DatasetError(f"{path}: the header cannot be read ({fault}): {line.rstrip()[:_SHOWN]}")
    names = [cell.strip() or f"column {number}" for number, cell in enumerate(cells, 1)]
    check_names(path, names)
    return names, dialect


def check_names(path: Path, names: list[str]) -> None:
    """Raises DatasetError if two columns have the same name."""
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise DatasetError(
            f"{path}: more than one column is named {', '.join(map(repr, repeated))}; its columns are "
            f"{', '.join(names)}: rename or remove all but one"
        )


def _encoding(path: Path) -> str:
    with open(path, "rb") as file:
        return "utf-16" if file.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _not_utf8(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)
