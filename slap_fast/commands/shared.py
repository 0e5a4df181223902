"""What several commands need: their error, the model, and a report of what was skipped."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.errors import SlapFastError

if TYPE_CHECKING:
    from slap_fast.inference.embed import Skipped
    from slap_fast.models.slap import SLAP


_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Of NVIDIA, its boards, Windows' Linux, and AMD.
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


class CommandError(SlapFastError, ValueError):
    """What was asked cannot be done; the message says what, where, and what to do."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", type=Path, help="folder of a trained model, such as runs/slap/model")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")


def has_model(folder: Path) -> bool:
    return (folder / "config.json").is_file()


def check_model(folder: Path, device: str) -> None:
    """Find out without torch, which takes seconds to load, that a model cannot be loaded.

    Raises:
        CommandError: a file of the model is missing, or there is no such device.
    """
    if not has_model(folder):
        inside = "it has no config.json" if folder.is_dir() else "no such folder"
        raise CommandError(f"{folder}: {inside}; MODEL is the folder that training wrote as <output>/model")
    for name in ("model.safetensors", "text_config/config.json"):
        if not (folder / name).is_file():
            raise CommandError(f"{folder}: cannot load the model: {name} is missing; copy the folder again")
    if not (folder / "tokenizer").is_dir():
        raise CommandError(f"{folder}: it has no tokenizer/; copy it from the training dataset's folder")
    kind, _, number = device.partition(":")
    if device != "auto" and (kind not in _DEVICES or not (number.isdecimal() or device == kind)):
        raise CommandError(f"--device {device}: no such device; give auto, cpu, cuda, or cuda:1 for the second GPU")
    if kind == "cuda" and sys.platform == "linux" and not any(Path(path).exists() for path in _GPU_DRIVERS):
        raise CommandError(f"--device {device}: this machine has no GPU, or no driver for it; leave --device out")


def load_model(folder: Path, device: str) -> SLAP:
    """The model in `folder` on `device`, ready for inference.

    Raises:
        CommandError: it cannot be loaded; the message says why in one line.
    """
    check_model(folder, device)
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise CommandError(f"--device {device}: PyTorch finds {torch.cuda.device_count()} GPUs here")
    from slap_fast.models.slap import SLAP

    # Whatever is wrong with a model folder (a torn download, another version) shows as one of these.
    try:
        model = SLAP.from_pretrained(folder)
    except (ValueError, OSError) as error:
        raise CommandError(f"{folder}: cannot load the model: {one_line(error)}") from error
    try:
        return model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {device}: {one_line(error)}") from error


@contextmanager
def blaming(what: object) -> Iterator[None]:
    """Turns a ValueError about `what` the user gave into a CommandError that names it."""
    try:
        yield
    except ValueError as error:
        raise CommandError(f"{what}: {one_line(error)}") from error


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 400 else f"{text[:400]}…"


def show_progress(arguments: argparse.Namespace) -> bool:
    return not arguments.quiet


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def positive(text: str) -> int:
    """An argument of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def report_skipped(skipped: Sequence[Skipped], total: int) -> int:
    """Name what was skipped on stderr; the exit code: 1 if anything was, else 0."""
    for clip in skipped:
        print(f"skipped {clip.name}: {clip.reason}", file=sys.stderr)
    if skipped:
        print(f"slap-fast: skipped {len(skipped)} of {total}; the rest is done", file=sys.stderr)
    return 1 if skipped else 0


def print_rows(rows: Sequence[Sequence[Any]]) -> None:
    """Columns aligned by width, the last one ragged."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    for row in cells:
        print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1], sep="  ")
