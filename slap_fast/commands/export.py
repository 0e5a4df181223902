"""`slap-fast export`: converts a training checkpoint to a model folder."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.shared import CommandError

if TYPE_CHECKING:
    from slap_fast.training.checkpoint.folder import Manifest

HELP = "write the model of a checkpoint, of a run in progress or stopped"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "checkpoint",
        metavar="CHECKPOINT",
        type=Path,
        help="folder such as runs/mine/checkpoints/step-00001000, or of a run, for its newest complete checkpoint",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to create, as training creates model/")


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.training.checkpoint.export import export_checkpoint
    from slap_fast.training.checkpoint.folder import MANIFEST

    given: Path = arguments.checkpoint
    if arguments.out.exists():
        raise CommandError(f"{arguments.out} exists; choose another --out, or delete it")
    if not given.is_dir():
        raise CommandError(f"{given}: no such folder")
    is_checkpoint = (given / MANIFEST).exists() or given.name.startswith("step-")
    manifest = export_checkpoint(given, arguments.out) if is_checkpoint else _export_newest(given, arguments.out)
    print(f"{arguments.out}: the model after step {manifest.step}")
    return 0


def _export_newest(run: Path, out: Path) -> Manifest:
    from slap_fast.training.checkpoint.export import ExportError, export_checkpoint
    from slap_fast.training.checkpoint.folder import checkpoint_folders

    found = checkpoint_folders(run / "checkpoints") or checkpoint_folders(run)
    if not found:
        raise CommandError(f"{run}: it has no checkpoints; give the output folder of a run, or one of its checkpoints")
    for checkpoint in found:
        try:
            return export_checkpoint(checkpoint, out)
        except ExportError as error:
            print(f"skipped: {error}", file=sys.stderr)
    raise CommandError(f"{run}: none of its {len(found)} checkpoints is complete")
