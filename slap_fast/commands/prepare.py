"""`slap-fast prepare`: converts captioned audio to a dataset folder of WebDataset tars with an index."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.commands.shared import CommandError, add_quiet, positive, show_progress

if TYPE_CHECKING:
    from slap_fast.data.prepare import PrepareReport
    from slap_fast.data.prepare.source import GeneratedSource, Source

HELP = "turn captioned audio into a dataset, or make a synthetic one"
EPILOG = """\
SOURCE is a .csv, .tsv, .json, .jsonl, .parquet or .arrow with audio (paths, or bytes) and captions, or several with the
same columns; a folder of .parquet shards, or that datasets saved; a folder of audio with .txt or .json files beside it,
or with a metadata.csv; WebDataset tars; or hf://owner/name, a dataset of the Hugging Face hub. AudioCaps, Clotho,
WavCaps, MACS, ESC-50, UrbanSound8K, FSD50K and AudioSet are read as published.
The same command resumes an interrupted run. Clips that cannot be used are left out and listed in DIR/report.jsonl.

  slap-fast prepare captions.csv --audio-dir audio --out data/mine
  slap-fast prepare 'hub/data/train-*.parquet' --out data/train
  slap-fast prepare hf://owner/name --split train --out data/hub
  slap-fast prepare AudioCaps/train.csv --layout audiocaps --audio-dir AudioCaps/train --out data/audiocaps
  slap-fast prepare captions.csv --out parts/3 --part 3/16         (one of 16 machines; then, with all parts:)
  slap-fast prepare --merge parts/* --out data/mine
  slap-fast prepare --synthetic --out data/synthetic      (writes data/synthetic/train and data/synthetic/validation)
"""
LAYOUTS = (
    *("auto", "manifest", "folder", "webdataset", "audiocaps", "clotho", "wavcaps", "macs", "esc50", "urbansound8k"),
    *("fsd50k", "audioset", "labeled"),
)
SMALLEST_VOCABULARY = 261  # 256 bytes and 5 special tokens

# Arguments, with their defaults, that are used only when reading a SOURCE, when converting audio, or with --synthetic.
_READING: dict[str, Any] = {
    **{"layout": "auto", "audio_dir": None, "audio_column": None, "caption_columns": None},
    **{"split": None, "caption_template": None, "exclude": None},
}
_CONVERTING: dict[str, Any] = {"min_duration": 0.0, "max_duration": None, "shard_megabytes": 1000, "workers": None}
_NAMING: dict[str, Any] = {"name": None, "vocab_size": 8192}
_PART: dict[str, Any] = {"part": None}
_SYNTHETIC = {"train_clips": 2000, "validation_clips": 240, "seed": 0, "events": "default"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("source", metavar="SOURCE", nargs="*", help="one source, or several tables or .tar files")
    parser.add_argument("--out", metavar="DIR", type=Path, help="dataset folder to write")
    parser.add_argument("--layout", choices=LAYOUTS, help="format of SOURCE (default: detected)")
    parser.add_argument("--audio-dir", type=Path, help="folder of the audio (default: that of the manifest)")
    parser.add_argument("--audio-column", help="audio column of a manifest (default: detected by name)")
    parser.add_argument(
        "--caption-columns", nargs="+", help="caption columns of a manifest (default: detected by name)"
    )
    parser.add_argument("--split", help="split of a SOURCE that has several, such as train")
    parser.add_argument(
        "--caption-template",
        metavar="TEXT",
        help='make captions of class names, which replace {} (labeled layouts: "the sound of {}" by default)',
    )
    parser.add_argument(
        "--exclude",
        metavar="FILE",
        nargs="+",
        type=Path,
        help="leave out the clips whose ids are listed there: a blacklist of WavCaps, a .csv, or one id per line",
    )
    parser.add_argument("--name", help="name of the dataset (default: that of the source)")
    parser.add_argument("--min-duration", type=float, metavar="SECONDS", help="leave out shorter clips")
    parser.add_argument(
        "--max-duration", type=float, metavar="SECONDS", help="leave out longer clips (default: keep all)"
    )
    parser.add_argument("--shard-megabytes", type=positive, help="size of a tar (default 1000)")
    parser.add_argument("--workers", type=int, help="worker processes; 0: work in this process (default: one per CPU)")
    parser.add_argument(
        "--vocab-size",
        type=int,
        help="train a tokenizer of at most this many tokens on the captions; 0: none (default 8192)",
    )
    parser.add_argument(
        "--part",
        metavar="N/M",
        help="prepare part N of M, numbered from 1, of SOURCE: the share of one machine. Each part needs its own DIR",
    )
    parser.add_argument(
        "--merge", action="store_true", help="join all parts, given as SOURCE, to the dataset DIR without copying audio"
    )
    parser.add_argument(
        "--reindex",
        action="store_true",
        help="write the index of SOURCE, a folder of WebDataset tars of 16 kHz mono FLAC, which are not changed",
    )
    parser.add_argument("--synthetic", action="store_true", help="generate captioned sounds instead of reading SOURCE")
    parser.add_argument("--train-clips", type=positive, help="of --synthetic (default 2000)")
    parser.add_argument("--validation-clips", type=positive, help="of --synthetic (default 240)")
    parser.add_argument("--seed", type=int, help="of --synthetic (default 0)")
    parser.add_argument(
        "--events",
        choices=("default", "new"),
        help="of --synthetic: new makes clips of sounds that the default set does not have, to fine-tune on",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object per dataset")
    add_quiet(parser)
    parser.set_defaults(**_READING, **_CONVERTING, **_NAMING, **_PART, **_SYNTHETIC)


def run(arguments: argparse.Namespace) -> int:
    _check(arguments)
    for report in _reports(arguments):
        if arguments.json:
            print(json.dumps(asdict(report) | {"folder": str(report.folder)}, ensure_ascii=False))
        else:
            print(report, flush=True)
    return 0


def _reports(arguments: argparse.Namespace) -> Iterator[PrepareReport]:
    if arguments.merge:
        from slap_fast.data.prepare.merge_parts import merge

        yield merge(arguments.source, arguments.out, progress=show_progress(arguments))
        return
    if arguments.reindex:
        from slap_fast.data.prepare.reindex import reindex

        yield reindex(
            arguments.source[0],
            name=arguments.name,
            vocab_size=arguments.vocab_size or None,
            progress=show_progress(arguments),
        )
        return
    for source, out, vocab_size in _synthetic(arguments) if arguments.synthetic else _given(arguments):
        yield _prepare(source, out, vocab_size, arguments)


def _check(arguments: argparse.Namespace) -> None:
    if arguments.reindex and (len(arguments.source) != 1 or arguments.out or arguments.synthetic):
        raise CommandError("--reindex takes one SOURCE, the folder with the tars, and no --out or --synthetic")
    if arguments.merge and (arguments.reindex or arguments.synthetic or not arguments.source):
        raise CommandError("--merge takes the folders of all parts, and no --reindex or --synthetic")
    if not arguments.reindex and arguments.out is None:
        raise CommandError("give --out DIR, the dataset folder to write")
    if arguments.synthetic and arguments.source:
        raise CommandError("--synthetic generates its own clips; leave out SOURCE")
    if not arguments.synthetic and not arguments.source:
        raise CommandError("give a SOURCE, or --synthetic")
    if arguments.merge:
        _reject_unused(arguments, _READING | _CONVERTING | _NAMING | _PART | _SYNTHETIC, "--merge")
    elif arguments.reindex:
        _reject_unused(arguments, _READING | _CONVERTING | _PART | _SYNTHETIC, "--reindex")
    elif arguments.synthetic:
        _reject_unused(arguments, _READING | _PART, "--synthetic")
    else:
        _reject_unused(arguments, _SYNTHETIC, "a SOURCE")
    longest = arguments.max_duration
    if arguments.min_duration < 0 or (longest is not None and longest <= arguments.min_duration):
        raise CommandError(
            f"--min-duration {arguments.min_duration:g} and --max-duration {longest} leave no clip; "
            "choose 0 <= min < max"
        )
    if arguments.part is not None:
        from slap_fast.data.prepare.parts import parse_part

        try:
            parse_part(arguments.part)
        except ValueError as error:
            raise CommandError(f"--part {error}") from error
    for name in ("workers", "vocab_size", "seed"):
        value = getattr(arguments, name)
        if value is not None and value < 0:
            raise CommandError(f"--{name.replace('_', '-')} is {value}; it cannot be negative")
    if 0 < arguments.vocab_size < SMALLEST_VOCABULARY:
        raise CommandError(
            f"--vocab-size is {arguments.vocab_size}; 256 bytes and 5 special tokens need at least "
            f"{SMALLEST_VOCABULARY}, and 0 trains none"
        )


def _reject_unused(arguments: argparse.Namespace, defaults: dict[str, Any], mode: str) -> None:
    """Raises CommandError if an argument was given that would be ignored."""
    given = [name for name, default in defaults.items() if getattr(arguments, name) != default]
    if given:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise CommandError(f"{flags}: not used with {mode}; leave it out")


def _given(arguments: argparse.Namespace) -> list[tuple[Source, Path, int | None]]:
    from slap_fast.data.prepare.source_detection import open_source

    sources = arguments.source
    source = open_source(
        sources if len(sources) > 1 else sources[0],
        layout=arguments.layout,
        audio_root=arguments.audio_dir,
        audio_column=arguments.audio_column,
        caption_columns=arguments.caption_columns,
        split=arguments.split,
        caption_template=arguments.caption_template,
        exclude=arguments.exclude or (),
    )
    return [(source, arguments.out, arguments.vocab_size or None)]


def _synthetic(arguments: argparse.Namespace) -> list[tuple[GeneratedSource, Path, int | None]]:
    from functools import partial

    from slap_fast.data.prepare.source import GeneratedSource
    from slap_fast.synthetic import iter_synthetic

    splits: list[tuple[Any, int, int | None]] = [
        ("train", arguments.train_clips, arguments.vocab_size or None),
        ("validation", arguments.validation_clips, None),
    ]
    return [
        (
            GeneratedSource(
                partial(iter_synthetic, split, clips, arguments.seed, arguments.events),
                f"synthetic-{split}" if arguments.events == "default" else f"synthetic-{arguments.events}-{split}",
                {"split": split, "clips": clips, "seed": arguments.seed}
                | ({} if arguments.events == "default" else {"events": arguments.events}),
                clips,
            ),
            arguments.out / split,
            vocab_size,
        )
        for split, clips, vocab_size in splits
    ]


def _prepare(source: Source, out: Path, vocab_size: int | None, arguments: argparse.Namespace) -> PrepareReport:
    from slap_fast.data.prepare import prepare
    from slap_fast.data.prepare.parts import parse_part

    return prepare(
        source,
        out,
        name=arguments.name,
        workers=arguments.workers,
        max_shard_bytes=arguments.shard_megabytes * 1_000_000,
        min_duration=arguments.min_duration,
        max_duration=arguments.max_duration,
        vocab_size=vocab_size,
        part=parse_part(arguments.part) if arguments.part else None,
        progress=show_progress(arguments),
    )
