"""AUDIO arguments of the command line: files, folders, and datasets written by `slap-fast prepare`."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.shared import CommandError
from slap_fast.inference import MAX_SECONDS

if TYPE_CHECKING:
    from slap_fast.inference.audio_inputs import AudioInput


def add_audio_arguments(parser: argparse.ArgumentParser, *, alternative: str = "", in_windows: bool = True) -> None:
    """
    Args:
        in_windows: whether long files are processed in windows; else they are skipped by default.
    """
    parser.add_argument(
        "audio",
        metavar="AUDIO",
        nargs="+",
        help=f"audio files, folders of them (searched recursively), or prepared datasets{alternative}",
    )
    parser.add_argument(
        "--max-seconds",
        type=float,
        default=math.inf if in_windows else MAX_SECONDS,
        help="skip longer files (default: none is skipped; long ones are embedded in windows)"
        if in_windows
        else f"skip longer files; attention's cost grows with the square of the length (default {MAX_SECONDS:g})",
    )


def check_audio_arguments(names: list[str], *, max_seconds: float = math.inf) -> None:
    """Report invalid arguments before torch and the model are loaded.

    Raises:
        CommandError: an argument is empty, a folder has no audio, or none of the names exists.
        DatasetError: a dataset cannot be opened.
    """
    if any(not name.strip() for name in names):
        raise CommandError("an AUDIO argument is empty; perhaps a shell variable without a value")
    if not max_seconds > 0:
        raise CommandError(f"--max-seconds is {max_seconds:g}; it must be above 0")
    paths = [Path(name) for name in names]
    if names and not any(path.exists() for path in paths):
        more = f" (none of the {len(names)} arguments exists)" if len(names) > 1 else ""
        raise CommandError(f"{names[0]}: no such file or folder{more}")
    for path in paths:
        if _is_dataset(path):
            from slap_fast.data.format.index import ClipIndex

            ClipIndex.open(path)
        elif path.is_dir():
            _list_folder(path)


def collect_inputs(names: list[str], *, max_seconds: float = math.inf) -> list[AudioInput]:
    """All clips of the arguments, in order, including files that are known not to be readable.

    Raises:
        CommandError, DatasetError: as in `check_audio_arguments`.
    """
    from slap_fast.data.format.index import ClipIndex
    from slap_fast.inference.audio_inputs import dataset_inputs, file_input, unusable_input

    check_audio_arguments(names, max_seconds=max_seconds)
    inputs: list[AudioInput] = []
    for name in names:
        path = Path(name)
        if _is_dataset(path):
            inputs += dataset_inputs(ClipIndex.open(path))
        elif path.is_dir():
            files, rejected = _list_folder(path)
            inputs += [file_input(file, max_seconds=max_seconds) for file in files]
            inputs += [unusable_input(*rejection) for rejection in rejected]
        else:
            inputs.append(file_input(path, max_seconds=max_seconds))
    return inputs


def _is_dataset(path: Path) -> bool:
    return (path / "dataset.json").is_file()


def _list_folder(folder: Path) -> tuple[list[Path], list[tuple[str, str, str]]]:
    """Media files below a folder, also of unsupported formats; and name, reason and detail of rejected entries."""
    from slap_fast.audio.formats import AUDIO_EXTENSIONS, OTHER_MEDIA_EXTENSIONS
    from slap_fast.data.prepare.file_search import walk_folder

    found, rejections = walk_folder(folder)
    files = [folder / file for file in found if Path(file).suffix.lower() in AUDIO_EXTENSIONS | OTHER_MEDIA_EXTENSIONS]
    if not files:
        raise CommandError(f"{folder}: no audio in this folder ({' '.join(sorted(AUDIO_EXTENSIONS))})")
    rejected = [
        (str(folder / rejection.origin), rejection.reason, rejection.detail)
        for rejection in rejections
        if rejection.reason not in ("hidden", "same_folder")
    ]
    return files, rejected
