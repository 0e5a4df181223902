"""Events as files for other programs: CSV, JSON, Audacity label tracks, Raven selection tables."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.runtime.durable_files import replace_file

if TYPE_CHECKING:
    from slap_fast.inference.locate.finding import Located


def as_csv(located: Located, recording: str, sample_rate: int) -> str:
    """A header and one line per event, in seconds, by RFC 4180."""
    out = io.StringIO()
    # With lines that end in a line feed alone, Python 3.12 and older do not quote a carriage return.
    writer = csv.writer(out, lineterminator="\r\n")
    writer.writerow(["recording", "query", "start", "end", "probability", "similarity"])
    for event in located.events:
        times = (f"{event.start:.3f}", f"{event.end:.3f}")
        writer.writerow([recording, event.query, *times, f"{event.probability:.4f}", f"{event.similarity:.4f}"])
    return out.getvalue()


def as_json(located: Located, recording: str, sample_rate: int) -> str:
    """One object: the recording, the rule, the queries, the texts that were not meant, and the events."""
    values = {
        "recording": recording,
        "seconds": round(located.seconds, 3),
        "rule": asdict(located.rule),
        "queries": list(located.queries),
        "not": list(located.others),
        "events": [asdict(event) for event in located.events],
    }
    return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def as_audacity(located: Located, recording: str, sample_rate: int) -> str:
    """A label track: start, end and label, separated by tabs (Audacity's manual, "Importing and Exporting Labels")."""
    return "".join(f"{event.start:.6f}\t{event.end:.6f}\t{_one_cell(event.query)}\n" for event in located.events)


def as_raven(located: Located, recording: str, sample_rate: int) -> str:
    """A selection table with the columns of Raven Pro, and the query and its probability as annotations."""
    columns = ("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)")
    lines = ["\t".join((*columns, "Begin Path", "Annotation", "Probability"))]
    for number, event in enumerate(located.events, 1):
        place = f"{event.start:.6f}\t{event.end:.6f}\t0.0\t{sample_rate / 2:.1f}"
        annotations = f"{_one_cell(recording)}\t{_one_cell(event.query)}\t{event.probability:.4f}"
        lines.append(f"{number}\tSpectrogram 1\t1\t{place}\t{annotations}")
    return "\n".join(lines) + "\n"


FORMATS: dict[str, Callable[[Located, str, int], str]] = {
    "csv": as_csv,
    "json": as_json,
    "audacity": as_audacity,
    "raven": as_raven,
}
"""Functions of the result, the name of the recording and the sample rate in Hz, by name of the format."""


def format_of(path: Path) -> str | None:
    """The format that the end of a file name means; None for another one. Raven's tables end in `.selections.txt`."""
    name = path.name.lower()
    endings = {".selections.txt": "raven", ".txt": "audacity", ".csv": "csv", ".json": "json"}
    return next((format for ending, format in endings.items() if name.endswith(ending)), None)


def write_events(path: Path, format: str, located: Located, recording: str, sample_rate: int) -> None:
    """Write a file that appears complete or not at all.

    File names that are not valid Unicode keep their bytes; in JSON they are escapes of lone surrogates.

    Raises:
        OSError: it cannot be written.
    """
    text = FORMATS[format](located, recording, sample_rate)
    replace_file(path, [text.encode("utf-8", "backslashreplace" if format == "json" else "surrogateescape")])


def _one_cell(text: str) -> str:
    """Text with spaces in place of the tabs and line breaks that would end a cell; other spaces stay, as in a path."""
    return re.sub(r"[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]", " ", text)
