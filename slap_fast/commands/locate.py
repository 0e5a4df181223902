"""`slap-fast locate`: finds when sounds happen in one recording, and writes them as a table or as labels."""

from __future__ import annotations

import argparse
import json
import os
import sys
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.embedding_files import check_writable
from slap_fast.commands.shared import (
    CommandError,
    add_model_arguments,
    add_precision,
    add_quiet,
    check_model,
    clock,
    has_model,
    load_model,
    print_rows,
    show_progress,
)
from slap_fast.errors import SlapFastError, one_line
from slap_fast.inference.locate.events import MAX_SMOOTH, EventRule
from slap_fast.inference.locate.label_files import FORMATS, format_of, write_events
from slap_fast.inference.locate.queries import checked_queries

if TYPE_CHECKING:
    from slap_fast.inference.audio_inputs import AudioInput
    from slap_fast.inference.locate.finding import Located
    from slap_fast.models.slap import SLAP

HELP = "find when sounds happen in a recording of any length"
_RULE = EventRule()
_PLOTTED = 1000  # values of a curve; more are merged by their maximum, and would fill the plot as an area
_PLOTTED_QUERIES = 10  # as many as there are colors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_model_arguments(parser)
    add_precision(parser)
    parser.add_argument(
        "recording",
        metavar="RECORDING",
        help="an audio file of any length; or FOLDER#KEY, a clip of a dataset that `slap-fast prepare` wrote",
    )
    parser.add_argument("query", metavar="QUERY", nargs="+", help="what to look for, such as 'a siren'")
    parser.add_argument(
        "--threshold",
        type=float,
        default=_RULE.threshold,
        metavar="P",
        help=f"probability against background sounds from which on it is an event (default {_RULE.threshold:g})",
    )
    parser.add_argument(
        "--not",
        dest="others",
        action="append",
        default=[],
        metavar="TEXT",
        help="a sound that is not meant, added to the background; may be repeated",
    )
    parser.add_argument(
        "--smooth",
        type=float,
        default=_RULE.smooth,
        metavar="S",
        help=f"seconds of the median filter (default {_RULE.smooth:g}; 0: none; at most {MAX_SMOOTH:g})",
    )
    parser.add_argument(
        "--max-gap",
        type=float,
        default=_RULE.max_gap,
        metavar="S",
        help=f"events with at most this many seconds between them are one (default {_RULE.max_gap:g})",
    )
    parser.add_argument(
        "--min-duration",
        type=float,
        default=_RULE.min_duration,
        metavar="S",
        help=f"shorter events are left out (default {_RULE.min_duration:g} s)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="also write the events: .csv, .json, .txt (Audacity labels) or .selections.txt (Raven); may be repeated",
    )
    parser.add_argument("--format", choices=list(FORMATS), help="of --out, whatever its name ends in")
    parser.add_argument(
        "--plot", type=Path, metavar="PNG", help="draw the spectrogram, the probabilities and the events"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per event")
    add_quiet(parser)


def run(arguments: argparse.Namespace) -> int:
    rule, formats = _checked(arguments)
    if has_model(arguments.model):
        check_model(arguments.model, arguments.device)
    recording = _open(arguments.recording)
    model = load_model(arguments.model, arguments.device, arguments.precision)
    located = _locate(model, recording, rule, arguments)
    for path, format in formats.items():
        write_events(path, format, located, recording.name, model.config.mel.sample_rate)
    if arguments.plot is not None:
        _plot(model, located, recording.name, arguments.plot)
    if arguments.json:
        for event in located.events:
            print(json.dumps({"recording": recording.name, **asdict(event)}, ensure_ascii=False))
    elif located.events:
        rows = [
            (
                f"{clock(event.start)}-{clock(event.end)}",
                f"{event.probability:.2f}",
                f"{event.similarity:.3f}",
                event.query,
            )
            for event in located.events
        ]
        print_rows([("time", "probability", "similarity", "query"), *rows])
    count = len(located.events)
    print(f"slap-fast: {count} event{'' if count == 1 else 's'} in {located.seconds:.1f} s", file=sys.stderr)
    for path in (*formats, *([arguments.plot] if arguments.plot is not None else [])):
        print(f"wrote {path}", file=sys.stderr)
    return 0


def _checked(arguments: argparse.Namespace) -> tuple[EventRule, dict[Path, str]]:
    """The rule of events, and the format of each file to write."""
    try:
        checked_queries(arguments.query)
        if arguments.others:
            checked_queries(arguments.others)
        rule = EventRule(
            smooth=arguments.smooth,
            threshold=arguments.threshold,
            max_gap=arguments.max_gap,
            min_duration=arguments.min_duration,
        )
    except ValueError as error:
        raise CommandError(one_line(error, 400)) from error
    formats = {}
    for path in arguments.out:
        format = arguments.format or format_of(path)
        if format is None:
            raise CommandError(
                f"--out {path}: the name must end in .csv, .json, .txt (Audacity) or .selections.txt (Raven); or give "
                "--format"
            )
        formats[path] = format
    if arguments.format is not None and not arguments.out:
        raise CommandError("--format is of --out FILE; give both, or leave it out")
    written = [*formats, *([arguments.plot] if arguments.plot is not None else [])]
    for position, path in enumerate(written):
        if any(os.path.realpath(path) == os.path.realpath(other) for other in written[:position]):
            raise CommandError(f"{path}: two results would be written to this file; give each its own")
        if os.path.realpath(path) == os.path.realpath(arguments.recording):
            raise CommandError(f"{path}: this is the recording, which would be overwritten; give another file")
        check_writable(path)
    if arguments.plot is not None:
        if arguments.plot.suffix.lower() != ".png":
            raise CommandError(f"--plot {arguments.plot}: the name must end in .png")
        if len(arguments.query) > _PLOTTED_QUERIES:
            raise CommandError(
                f"--plot draws at most {_PLOTTED_QUERIES} queries, but {len(arguments.query)} are given; give fewer, "
                "or leave out --plot"
            )
        from importlib.util import find_spec

        if find_spec("matplotlib") is None:
            raise CommandError("--plot needs matplotlib: pip install matplotlib")
    return rule, formats


def _open(name: str) -> AudioInput:
    from slap_fast.inference.audio_inputs import NoReadableClipError, recording_input

    try:
        return recording_input(name)
    except NoReadableClipError as error:
        raise CommandError(one_line(error, 400)) from error


def _locate(model: SLAP, recording: AudioInput, rule: EventRule, arguments: argparse.Namespace) -> Located:
    from slap_fast.inference.locate.finding import locate
    from slap_fast.runtime.progress import progress_bar

    sample_rate = model.config.mel.sample_rate
    options: dict[str, Any] = {"desc": "locating", "unit": "s", "total": _declared_seconds(arguments.recording)}
    form = "{l_bar}{bar}| {n:.0f}/{total:.0f} s [{elapsed}<{remaining}, {rate_fmt}]"
    if options["total"] is not None:
        options["bar_format"] = form
    with progress_bar(disable=not show_progress(arguments), **options) as bar:
        try:
            return locate(
                model,
                recording.blocks(sample_rate),
                arguments.query,
                rule=rule,
                others=arguments.others,
                overview=arguments.plot is not None,
                # The last column may end after the recording.
                progress=lambda seconds: bar.update(seconds if bar.total is None else min(seconds, bar.total - bar.n)),
            )
        except SlapFastError as error:
            if isinstance(error, ValueError) and not str(error).startswith(recording.name):
                raise CommandError(f"{recording.name}: {one_line(error, 400)}") from error
            raise


def _declared_seconds(recording: str) -> float | None:
    """Duration in the header of a file, for the progress bar; None if it has none, or for a clip of a dataset."""
    from slap_fast.audio.errors import AudioError
    from slap_fast.audio.reader import open_audio

    with suppress(AudioError, OSError), open_audio(recording) as sound:
        return sound.declared_seconds
    return None


def _plot(model: SLAP, located: Located, name: str, png: Path) -> None:
    import numpy as np

    from slap_fast.evaluation.localization import EventSpan, Localization
    from slap_fast.evaluation.plots import plot_localization

    assert located.overview is not None
    step = -(-len(located.probability) // _PLOTTED)
    starts = np.arange(0, len(located.probability), step)
    peaks = np.maximum.reduceat(located.probability, starts, axis=0)
    times = np.minimum((starts + step / 2) * located.column_seconds, located.seconds)
    plot_localization(
        located.overview.rows(),
        [Localization(query, times, peaks[:, number]) for number, query in enumerate(located.queries)],
        png,
        mel_config=model.config.mel,
        title=os.fsencode(Path(name).name).decode("utf-8", "replace"),
        seconds=located.seconds,
        unit="probability",
        threshold=located.rule.threshold,
        found=[EventSpan(event.query, event.start, event.end) for event in located.events],
    )
