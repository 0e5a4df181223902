"""Shared parts of the commands: errors, common arguments, loading the model, reporting skipped clips."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.errors import ModelError, SlapFastError, one_line
from slap_fast.models.hub import HubId, hub_id, model_folder

if TYPE_CHECKING:
    from slap_fast.inference.audio_inputs import Skipped
    from slap_fast.models.quantization import Precision
    from slap_fast.models.slap import SLAP

_DEVICES = ("cpu", "cuda", "mps", "xpu")
# Device files of NVIDIA, NVIDIA Jetson, WSL and AMD.
_GPU_DRIVERS = ("/dev/nvidiactl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")


class CommandError(SlapFastError, ValueError):
    """Invalid arguments, or input that a command cannot use."""


def add_model_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model",
        metavar="MODEL",
        type=model_argument,
        help="folder of a trained model, such as runs/slap/model, or owner/name[@revision] on the Hugging Face hub",
    )
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1, ...; auto takes a GPU if there is one")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--precision",
        choices=("fp32", "bf16", "int8"),
        default="fp32",
        help="of the weights; int8 is for CPUs: faster, and within a cosine of 0.999 of fp32 (default fp32)",
    )


def model_argument(text: str) -> Path:
    """Argument type of a MODEL. `Path` alone would turn ./a/b and a/b/, which are folders, into the hub id a/b."""
    is_folder = text.startswith(("./", "../")) or (text.endswith("/") and not text.startswith("hf:"))
    return Path(text).absolute() if is_folder and not Path(text).exists() else Path(text)


def has_model(model: Path) -> bool:
    """Whether a MODEL argument names a folder with a model, or a model of the hub, which is not looked up."""
    return (model / "config.json").is_file() if model.exists() else _is_hub_name(model)


def _is_hub_name(model: Path) -> bool:
    try:
        return hub_model(model) is not None
    except CommandError:
        return False


def hub_model(model: Path) -> HubId | None:
    """The hub id that a MODEL argument names, or None for a folder.

    Raises:
        CommandError: it is neither.
    """
    if model.exists():
        return None
    name = re.sub("^hf:/(?!/)", "hf://", str(model))  # as a path, hf:// has lost a slash
    if not name.startswith("hf://") and (name.startswith((".", "/", "~")) or name.partition("@")[0].count("/") != 1):
        raise CommandError(
            f"{model}: no such folder; MODEL is the folder that training wrote as <output>/model, or owner/name on the "
            "Hugging Face hub"
        )
    try:
        return hub_id(name)
    except ModelError as error:
        raise CommandError(one_line(error, 400)) from error


def beside_model(model: Path, name: str) -> Path:
    """Where results of a model go by default: beside its folder; in the current folder for a model of the hub."""
    return Path(name) if _is_hub_name(model) else model.resolve().parent / name


def check_model(model: Path, device: str) -> None:
    """Report a model or device that cannot be used before torch is loaded, which takes seconds.

    Raises:
        CommandError: a file of the model is missing, or the device does not exist. A model of the hub is not looked up.
    """
    if hub_model(model) is None:
        _check_model_folder(model)
    kind, _, number = device.partition(":")
    if device != "auto" and (kind not in _DEVICES or not (number.isdecimal() or device == kind)):
        raise CommandError(f"--device {device}: no such device; give auto, cpu, cuda, or cuda:1 for the second GPU")
    if kind == "cuda" and sys.platform == "linux" and not any(Path(path).exists() for path in _GPU_DRIVERS):
        raise CommandError(f"--device {device}: this machine has no GPU, or no driver for it; leave --device out")


def _check_model_folder(folder: Path) -> None:
    if not has_model(folder):
        raise CommandError(
            f"{folder}: it has no config.json; MODEL is the folder that training wrote as <output>/model"
        )
    objectives: Any = None
    with suppress(OSError, ValueError, AttributeError):  # the loader reports a damaged file
        objectives = json.loads((folder / "config.json").read_bytes()).get("objectives")
    if not isinstance(objectives, list):
        objectives = ["contrastive", "caption"]  # of models that do not record them
    needed = ["model.safetensors", *(["text_config/config.json"] if "contrastive" in objectives else [])]
    for name in needed:
        if not (folder / name).is_file():
            raise CommandError(f"{folder}: cannot load the model: {name} is missing; copy the folder again")
    if not (folder / "tokenizer").is_dir() and ("contrastive" in objectives or "caption" in objectives):
        raise CommandError(f"{folder}: it has no tokenizer/; copy it from the training dataset's folder")


def load_model(model: Path, device: str, precision: Precision = "fp32") -> SLAP:
    """Load a model of a folder or of the hub to `device`, in eval mode.

    With int8 weights, the device "auto" is the CPU.

    Raises:
        CommandError: it cannot be loaded; the message has the reason in one line.
        ModelError: it cannot be downloaded.
    """
    check_model(model, device)
    import torch

    if device == "auto":
        device = "cuda" if precision != "int8" and torch.cuda.is_available() else "cpu"
    if precision == "int8" and device != "cpu":
        raise CommandError(f"--precision int8 is for CPUs, and --device is {device}; give --device cpu, or bf16")
    if device.startswith("cuda") and int(device.partition(":")[2] or 0) >= torch.cuda.device_count():
        raise CommandError(f"--device {device}: PyTorch finds {torch.cuda.device_count()} GPUs here")
    from slap_fast.models.slap import SLAP

    folder = model_folder(name) if (name := hub_model(model)) is not None else model
    try:
        return SLAP.from_pretrained(folder, device=device, precision=precision)
    except (ValueError, OSError) as error:
        raise CommandError(f"{model}: cannot load the model: {one_line(error, 400)}") from error
    except (RuntimeError, AssertionError) as error:
        raise CommandError(f"--device {device}: {one_line(error, 400)}") from error


@contextmanager
def errors_about(path: Path) -> Iterator[None]:
    """Turns a ValueError in the block into a CommandError about the user's file or folder `path`."""
    try:
        yield
    except ValueError as error:
        raise CommandError(f"{path}: {one_line(error, 400)}") from error


def show_progress(arguments: argparse.Namespace) -> bool:
    return not arguments.quiet


def add_quiet(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--quiet", action="store_true", help="no progress bars")


def positive(text: str) -> int:
    """Argument type: an integer of at least 1."""
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return value


def clock(seconds: float) -> str:
    """Hours, minutes and seconds, to a tenth: 0:02:05.3."""
    tenths = round(seconds * 10)
    return f"{tenths // 36000}:{tenths // 600 % 60:02d}:{tenths % 600 / 10:04.1f}"


def report_skipped(skipped: Sequence[Skipped], total: int) -> int:
    """Print skipped clips to stderr; returns the exit code, 1 if there are any, else 0."""
    for clip in skipped:
        print(f"skipped {clip.name}: {clip.reason}", file=sys.stderr)
    if skipped:
        print(f"slap-fast: skipped {len(skipped)} of {total}; the rest is done", file=sys.stderr)
    return 1 if skipped else 0


def print_rows(rows: Sequence[Sequence[Any]]) -> None:
    """Print left-aligned columns."""
    cells = [[str(cell) for cell in row] for row in rows]
    if not cells:
        return
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]) - 1)]
    for row in cells:
        print(*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1], sep="  ")
