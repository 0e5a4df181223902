"""`slap-fast publish`: uploads a model with a generated model card to the Hugging Face hub."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.shared import CommandError, check_model, hub_model, load_model, model_argument, print_rows

if TYPE_CHECKING:
    from slap_fast.models.model_card import TrainingRecord

HELP = "upload a model with a model card to the Hugging Face hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "model", metavar="MODEL", type=model_argument, help="folder of a trained model, such as runs/slap/model"
    )
    parser.add_argument("repository", metavar="OWNER/NAME", help="on the hub; created if it does not exist")
    parser.add_argument("--license", help="of the weights, such as apache-2.0 or cc-by-nc-4.0")
    parser.add_argument("--private", action="store_true", help="create the repository as a private one")
    parser.add_argument("--message", default="Upload the model", help="of the commit")
    parser.add_argument("--replace-card", action="store_true", help="replace the README.md of the repository")
    parser.add_argument("--dry-run", action="store_true", help="show the files and the card, and upload nothing")


def run(arguments: argparse.Namespace) -> int:
    from slap_fast.models.hub import checked_repo_id, upload_files

    folder: Path = arguments.model
    checked_repo_id(arguments.repository)
    if hub_model(folder) is not None:
        raise CommandError(f"{folder}: no such folder; give the folder of a model")
    check_model(folder, "cpu")
    if arguments.license is not None and not arguments.license.strip():
        raise CommandError("--license is empty; give an identifier such as apache-2.0, or leave it out")
    own_card = folder / "README.md"
    if own_card.is_file() and arguments.license is not None:
        raise CommandError(
            f"--license: {own_card} is the card; write the license into its metadata, or delete the file"
        )
    # A model that cannot be loaded is not published.
    model = load_model(folder, "cpu")
    from slap_fast.models.model_card import CARD, model_card, read_training_record
    from slap_fast.models.publishing import model_files

    if own_card.is_file():
        card, record = own_card.read_text(encoding="utf-8"), None
    else:
        record = read_training_record(folder)
        card = model_card(arguments.repository, model, license=arguments.license, record=record)
    with tempfile.TemporaryDirectory(prefix="slap-fast-") as temporary:
        files = model_files(model, Path(temporary), card, weights=folder / "model.safetensors")
        print_rows([(name, _size(content)) for name, content in sorted(files.items())])
        _report_card(own_card, record)
        if arguments.dry_run:
            print(f"\n{card.rstrip()}\n\nNothing was uploaded (--dry-run).")
            return 0
        url, is_kept = upload_files(
            arguments.repository,
            files,
            private=True if arguments.private else None,
            commit_message=arguments.message,
            keep=None if arguments.replace_card else CARD,
        )
    if is_kept:
        print(f"kept the {CARD} of the repository; --replace-card replaces it")
    print(url)
    return 0


def _report_card(own_card: Path, record: TrainingRecord | None) -> None:
    if record is None:
        print(f"card: {own_card}, as it is")
        return
    print(f"card: generated from the model{''.join(f', {path}' for path in record.sources)}")
    for reason in record.left_out:
        print(f"not in the card: {reason}")


def _size(content: Path | bytes) -> str:
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    return f"{size / 1e6:.1f} MB" if size >= 100_000 else f"{size / 1e3:.1f} kB"
