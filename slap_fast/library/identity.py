"""Identity of the model of a library: embeddings of different models are not comparable."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from slap_fast.config.saved_files import weights_digest
from slap_fast.library.errors import LibraryError
from slap_fast.models.hub import hub_id, model_folder


@dataclass(frozen=True)
class ModelIdentity:
    """What a library records of its model.

    Attributes:
        name: absolute folder, or name on the hub, to load it again.
        weights: digest of `model.safetensors`; two models are the same if this is. It is read once in a process, and
            again when the size, the time or the inode of the file changes.
    """

    name: str
    weights: str

    @classmethod
    def of(cls, name: str) -> ModelIdentity:
        """
        Args:
            name: folder of a model, or `owner/name[@revision]` on the hub; an existing folder comes first.

        Raises:
            LibraryError: the folder holds no weights.
            ModelError: there is no such folder or model on the hub.
        """
        folder = model_folder(name)
        try:
            found = (folder / "model.safetensors").stat()
            digest = _digest(os.path.abspath(folder), found.st_ino, found.st_size, found.st_mtime_ns)
        except FileNotFoundError:
            digest = None
        if digest is None:
            raise LibraryError(f"{name}: it has no model.safetensors; pass the folder of a trained model")
        return cls(str(Path(name).absolute()) if hub_id(name) is None else name, digest)

    @property
    def is_gone(self) -> bool:
        """Whether the model was in a folder that no longer exists."""
        return os.path.isabs(self.name) and not os.path.isdir(self.name)

    def require_folder(self, library: object, remedy: str) -> None:
        """
        Args:
            library: path or URL of the library, for the message.
            remedy: what to do.

        Raises:
            LibraryError: the model was in a folder that no longer exists.
        """
        if self.is_gone:
            raise LibraryError(f"{library}: its model was at {self.name}, which no longer exists; {remedy}")

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> ModelIdentity:
        return cls(**meta["model"])

    def to_meta(self) -> dict[str, Any]:
        return asdict(self)


@lru_cache(maxsize=8)
def _digest(folder: str, inode: int, size: int, mtime_ns: int) -> str | None:
    del inode, size, mtime_ns  # part of the key: another file has another digest
    return weights_digest(Path(folder))
