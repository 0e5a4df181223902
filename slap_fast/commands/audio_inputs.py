"""Audio named on the command line: files, folders, and datasets that `slap-fast prepare` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.shared import CommandError

if TYPE_CHECKING:
    from slap_fast.inference.embed import AudioInput

MAX_SECONDS = 600.0


def add_audio_arguments(parser: argparse.ArgumentParser, *, nargs: str = "+", what: str = "") -> None:
    parser.add_argument(
        "audio",
        metavar="AUDIO",
        nargs=nargs,
        help=f"audio files, folders of them (searched downwards), or prepared datasets{what}",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=MAX_SECONDS,
        help=f"skip longer files; attention's cost grows with the square of the length (default {MAX_SECONDS:g})",
    )


def check_inputs(names: list[str], *, max_seconds: float = MAX_SECONDS) -> None:
    """Find out before a model is loaded, and without torch, what makes the command fail in any case.

    Raises:
        CommandError: an argument is empty, a folder has no audio, or there is nothing under any of the names.
        DatasetError: a dataset cannot be opened.
    """
    if any(not name.strip() for name in names):
        raise CommandError("an AUDIO argument is empty; a shell variable without a value, perhaps")
    if not max_seconds > 0:
        raise CommandError(f"--max-seconds is {max_seconds:g}; it must be above 0")
    paths = [Path(name) for name in names]
    if names and not any(path.exists() for path in paths):
        more = f", and none of the other {len(names) - 1} arguments" if len(names) > 1 else ""
        raise CommandError(f"{names[0]}: no such file or folder{more}")
    for path in paths:
        if _is_dataset(path):
            from slap_fast.data.format.index import ClipIndex

            ClipIndex.open(path)
        elif path.is_dir():
            _list_folder(path)


def collect_inputs(names: list[str], *, max_seconds: float = MAX_SECONDS) -> list[AudioInput]:
    """Every clip that `names` stand for, in order, and what is no clip but should have been one.

    Raises:
        CommandError: as `check_inputs`.
        DatasetError: a dataset cannot be opened.
    """
    from slap_fast.data.format.index import ClipIndex
    from slap_fast.inference.embed import dataset_inputs, file_input, unusable_input

    check_inputs(names, max_seconds=max_seconds)
    inputs: list[AudioInput] = []
    for name in names:
        path = Path(name)
        if _is_dataset(path):
            inputs += dataset_inputs(ClipIndex.open(path))
        elif path.is_dir():
            files, passed_over = _list_folder(path)
            inputs += [file_input(file, max_seconds=max_seconds) for file in files]
            inputs += [unusable_input(*reasons) for reasons in passed_over]
        else:
            inputs.append(file_input(path, max_seconds=max_seconds))
    return inputs


def _is_dataset(path: Path) -> bool:
    return (path / "dataset.json").is_file()


def _list_folder(folder: Path) -> tuple[list[Path], list[tuple[str, str, str]]]:
    """The audio files below a folder, of formats that are not read too; and name, reason and detail of the rest."""
    from slap_fast.audio.files import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
    from slap_fast.data.prepare.file_search import walk_folder

    found, left_out = walk_folder(folder)
    files = [folder / file for file in found if Path(file).suffix.lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS]
    if not files:
        raise CommandError(f"{folder}: no audio in this folder ({' '.join(sorted(AUDIO_EXTENSIONS))})")
    passed_over = [
        (str(folder / rejection.origin), rejection.reason, rejection.detail)
        for rejection in left_out
        if rejection.reason not in ("hidden", "same_folder")
    ]
    return files, passed_over
