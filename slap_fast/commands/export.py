"""`slap-fast export`: converts a checkpoint to a model folder, or a model to ONNX or `torch.export` programs; or copies
a library to a shared table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from slap_fast.commands.library_arguments import check_library
from slap_fast.commands.shared import CommandError, has_model, load_model, model_argument

if TYPE_CHECKING:
    from slap_fast.training.checkpoint.folder import Manifest

HELP = (
    "write the model of a checkpoint; the towers of a model as ONNX or torch.export programs; or a library to LanceDB"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "source",
        metavar="CHECKPOINT|MODEL|LIBRARY",
        type=model_argument,
        help="with --out: folder such as runs/mine/checkpoints/step-00001000, or of a run, in progress or stopped, for "
        "its newest complete checkpoint; with --lancedb: folder of `slap-fast index`; else: folder of a model, or "
        "owner/name on the Hugging Face hub",
    )
    target = parser.add_mutually_exclusive_group(required=True)
    target.add_argument("--out", type=Path, help="folder to create, as training creates model/")
    target.add_argument("--onnx", type=Path, metavar="OUT", help="folder to create, with audio.onnx and text.onnx")
    target.add_argument("--torch-export", type=Path, metavar="OUT", help="the same, with audio.pt2 and text.pt2")
    target.add_argument(
        "--lancedb", metavar="URL", help="s3://, gs:// or az:// with a path, or a folder: what changed is copied there"
    )


def run(arguments: argparse.Namespace) -> int:
    if arguments.lancedb is not None:
        return _export_library(Path(arguments.source), arguments.lancedb)
    out: Path = arguments.out or arguments.onnx or arguments.torch_export
    if out.exists():
        option = "--out" if arguments.out else "--onnx" if arguments.onnx else "--torch-export"
        raise CommandError(f"{out} exists; choose another {option}, or delete it")
    if arguments.out is None:
        return _export_towers(arguments.source, out, "torch" if arguments.onnx is None else "onnx")
    from slap_fast.training.checkpoint.export import export_checkpoint
    from slap_fast.training.checkpoint.folder import MANIFEST

    given: Path = arguments.source
    if not given.is_dir():
        raise CommandError(f"{given}: no such folder")
    is_checkpoint = (given / MANIFEST).exists() or given.name.startswith("step-")
    manifest = export_checkpoint(given, out) if is_checkpoint else _export_newest(given, out)
    print(f"{out}: the model after step {manifest.step}")
    return 0


def _export_towers(source: Path, out: Path, kind: Literal["onnx", "torch"]) -> int:
    if (
        source.is_dir()
        and not has_model(source)
        and (source.name.startswith("step-") or (source / "checkpoints").exists())
    ):
        raise CommandError(f"{source}: this is no model; write the model of a checkpoint first: slap-fast export --out")
    model = load_model(source, "cpu")
    from slap_fast.models.portable.files import export_towers

    towers = export_towers(model, out, kind)
    for tower in towers:
        files = ", ".join(f"{out / name} ({size / 1e6:.1f} MB)" for name, size in tower.files.items())
        print(f"{files}: deviates by at most {tower.deviation:.1e} from the model")
    if model.text_encoder is None:
        print("no text tower, and audio features without pooling: trained with objectives.contrastive_weight=0")
    if model.caption_decoder is not None:
        print("the caption decoder is not exported")
    return 0


def _export_library(folder: Path, url: str) -> int:
    check_library(folder)
    from slap_fast.library.library import Library

    with Library(folder) as library:
        done = library.export_to(url)
    windows = "window" if done.added == 1 else "windows"
    print(f"{url}: {done.added} {windows} added, {done.updated} updated, {done.removed} removed, {done.kept} unchanged")
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
