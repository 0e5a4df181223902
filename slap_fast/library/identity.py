"""Identity of the model of a library: embeddings of different models are not comparable."""

from __future__ import annotations

from dataclasses import asdict, dataclass
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
        weights: digest of `model.safetensors`; two models are the same if this is.
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
        digest = weights_digest(folder)
        if digest is None:
            raise LibraryError(f"{name}: it has no model.safetensors; pass the folder of a trained model")
        return cls(str(Path(name).absolute()) if hub_id(name) is None else name, digest)

    @classmethod
    def from_meta(cls, meta: dict[str, Any]) -> ModelIdentity:
        return cls(**meta["model"])

    def to_meta(self) -> dict[str, Any]:
        return asdict(self)
