"""Publishing: uploads a SLAP model with its model card to the Hugging Face hub."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.models.hub import checked_repo_id, upload_files
from slap_fast.models.model_card import CARD, model_card

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP


def model_files(model: SLAP, folder: Path, card: str, *, weights: Path | None = None) -> dict[str, Path | bytes]:
    """Everything that is uploaded, as content or local path by path in the repository.

    Args:
        folder: empty; receives the files.
        weights: a `model.safetensors` to upload as it is; None: the weights of the model are written to `folder`.
    """
    if weights is None:
        model.save_pretrained(folder)
    else:
        model.save_config_and_tokenizer(folder)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    files: dict[str, Path | bytes] = {path.relative_to(folder).as_posix(): path for path in paths}
    if weights is not None:
        files["model.safetensors"] = weights
    return files | {CARD: card.encode("utf-8")}


def push_model(
    model: SLAP, repo_id: str, *, private: bool | None, license: str | None, commit_message: str, token: str | None
) -> str:
    """See `SLAP.push_to_hub`."""
    card = model_card(checked_repo_id(repo_id), model, license=license)
    with tempfile.TemporaryDirectory(prefix="slap-fast-") as folder:
        files = model_files(model, Path(folder), card)
        url, _ = upload_files(repo_id, files, private=private, commit_message=commit_message, token=token, keep=CARD)
    return url
