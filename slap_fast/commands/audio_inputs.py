"""Audio named on the command line: files, folders, and datasets that `slap-fast prepare` wrote."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.shared import CommandError

if TYPE_CHECKING:
    from slap_fast.evaluation.dataset import AudioInput

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


def collect_inputs(names: list[str], *, max_seconds: float = MAX_SECONDS) -> list[AudioInput]:
    """Every clip that `names` stand for, in order.

    Raises:
        CommandError: a folder without audio.
    """
    from slap_fast.audio_files import AUDIO_EXTENSIONS
    from slap_fast.data.index import ClipIndex
    from slap_fast.data.ingest.folders import list_audio
    from slap_fast.evaluation.dataset import dataset_inputs, file_input

    inputs: list[AudioInput] = []
    for name in names:
        path = Path(name)
        if (path / "dataset.json").is_file():
            inputs += dataset_inputs(ClipIndex.open(path))
        elif path.is_dir():
            files = [path / file for file in list_audio(path)]
            if not files:
                raise CommandError(f"{path}: no audio in this folder ({' '.join(sorted(AUDIO_EXTENSIONS))})")
            inputs += [file_input(file, max_seconds=max_seconds) for file in files]
        else:
            inputs.append(file_input(path, max_seconds=max_seconds))
    return inputs
