"""Files of named embeddings.

- `.npz`: arrays `names` and `embeddings`.
- `.safetensors`: tensor `embeddings`, names in the metadata.
- `.npy`: the matrix, followed by a line of JSON with the names, which NumPy ignores.
"""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.commands.shared import CommandError
from slap_fast.runtime.durable_files import replace_file_with, save_safetensors

if TYPE_CHECKING:
    import numpy as np

SUFFIXES = (".npz", ".npy", ".safetensors")


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise CommandError(f"{path}: embeddings are written as {', '.join(SUFFIXES)}; the name must end in one of them")


def check_writable(path: Path) -> None:
    """Report an output path that cannot be written before anything is computed.

    Raises:
        CommandError: no file can be created in its folder, or in the nearest parent folder that exists.
    """
    folder = next(parent for parent in path.absolute().parents if parent.exists())
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        # A test write, because permissions do not show a read-only or full disk.
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        raise CommandError(f"{path}: cannot be written ({folder}: {error.strerror}); choose another --out") from error


def write_embeddings(path: Path, names: Sequence[str], embeddings: np.ndarray) -> None:
    """Write `[N, D]` float32 embeddings and their N names.

    The file is replaced atomically, also if several processes write it at once.

    Raises:
        OSError: it cannot be written; an earlier file is unchanged.
    """
    import numpy as np

    check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    embeddings = np.ascontiguousarray(embeddings)

    def write(temporary: Path) -> None:
        if path.suffix == ".safetensors":
            import torch

            save_safetensors(temporary, {"embeddings": torch.from_numpy(embeddings)}, {"names": json.dumps(names)})
            return
        with open(temporary, "wb") as file:
            if path.suffix == ".npz":
                np.savez(file, embeddings=embeddings, names=np.array(names, dtype=np.str_))
            else:
                np.save(file, embeddings)
                file.write(b"\n" + json.dumps(list(names)).encode() + b"\n")

    names = list(names)
    replace_file_with(path, write)
