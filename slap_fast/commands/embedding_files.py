"""Named embeddings on disk: `.npz` (names inside), `.safetensors` (in its metadata) or `.npy` (beside it)."""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from slap_fast.commands.shared import CommandError

SUFFIXES = (".npz", ".npy", ".safetensors")


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise CommandError(f"{path}: embeddings are written as {', '.join(SUFFIXES)}; the name must end in one of them")


def write_embeddings(path: Path, names: Sequence[str], embeddings: np.ndarray) -> None:
    """Write `[N, D]` float32 embeddings and their N names; the file appears whole or not at all."""
    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        if path.suffix == ".npz":
            np.savez(part, embeddings=embeddings, names=np.array(names, dtype=np.str_))
        elif path.suffix == ".npy":
            np.save(part, embeddings)
            _names_file(path).write_text(json.dumps(list(names), ensure_ascii=False, indent=0), encoding="utf-8")
        else:
            from safetensors.numpy import save_file

            save_file({"embeddings": np.ascontiguousarray(embeddings)}, part, {"names": json.dumps(list(names))})
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_embeddings(path: Path) -> tuple[list[str], np.ndarray]:
    """Names and `[N, D]` float32 embeddings.

    Raises:
        CommandError: not such a file, or as many names as embeddings are not in it.
    """
    check_suffix(path)
    try:
        names, embeddings = _read(path)
    except (ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise CommandError(f"{path}: cannot read embeddings: {error}; write them with `slap-fast embed`") from error
    if embeddings.ndim != 2 or len(embeddings) != len(names):
        raise CommandError(f"{path}: embeddings of shape {embeddings.shape} and {len(names)} names; write it again")
    return names, embeddings.astype(np.float32)


def _read(path: Path) -> tuple[list[str], np.ndarray]:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            return file["names"].tolist(), file["embeddings"]
    if path.suffix == ".npy":
        names: list[Any] = json.loads(_names_file(path).read_text(encoding="utf-8"))
        return names, np.load(path, allow_pickle=False)
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy") as file:
            return json.loads((file.metadata() or {})["names"]), file.get_tensor("embeddings")
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _names_file(path: Path) -> Path:
    return path.with_suffix(".names.json")
