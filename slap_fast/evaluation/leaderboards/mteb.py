"""MTEB model (extra `eval`): runs MAEB, the audio tasks of the Massive Text Embedding Benchmark.

    import mteb
    from slap_fast.evaluation.leaderboards.mteb import SlapEncoder

    mteb.evaluate(SlapEncoder.from_folder("runs/slap/model"), mteb.get_tasks(["ESC50_Zeroshot"]))

Clips keep their duration, and are decoded by slap_fast: mteb's own collator needs torchaudio, and the `Audio` feature
of `datasets` needs torchcodec.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slap_fast.errors import MissingExtraError, ModelError
from slap_fast.models.hub import model_folder
from slap_fast.models.slap import SLAP

try:
    from mteb.models import ModelMeta
    from mteb.models.abs_encoder import AbsEncoder
except ImportError as error:
    raise MissingExtraError('the MTEB model needs mteb: pip install "slap-fast[eval]"') from error

if TYPE_CHECKING:
    from mteb import TaskMetadata
    from mteb.types import BatchedInput, PromptType
    from torch.utils.data import DataLoader

LOCAL = "local"


def slap_meta(name: str, *, revision: str | None = None, **fields: Any) -> ModelMeta:
    """Entry for MTEB's list of models, as a submission needs it.

    `load_model` of an entry with audio demands the extra `mteb[audio]`; a `SlapEncoder` does not.

    Args:
        name: `owner/name` on the Hugging Face hub.
        revision: commit of the model; results are filed under it.
        fields: of `ModelMeta`, such as `license`, `release_date`, `n_parameters` and `training_datasets`, which a
            submission has to state.
    """
    known: dict[str, Any] = {
        "loader": SlapEncoder.from_hub,
        "name": name,
        "revision": revision,
        "release_date": None,
        "languages": ["eng-Latn"],
        "n_parameters": None,
        "memory_usage_mb": None,
        "max_tokens": None,
        "embed_dim": None,
        "license": None,
        "open_weights": True,
        "public_training_code": None,
        "public_training_data": None,
        "framework": ["PyTorch"],
        "similarity_fn_name": "cosine",
        "use_instructions": False,
        "training_datasets": None,
        "modalities": ["audio", "text"],
    }
    return ModelMeta(**known | fields)


class SlapEncoder(AbsEncoder):
    """A SLAP model as MTEB calls it.

    Args:
        model: in eval mode, on the device to run on.
        name: `owner/name`; results are filed under it.
        revision: likewise.

    Raises:
        ModelError: the model has no text tower, because it was trained with `objectives.contrastive_weight=0`.
    """

    mteb_model_meta: ModelMeta

    def __init__(self, model: SLAP, *, name: str = f"{LOCAL}/slap", revision: str | None = None) -> None:
        if model.text_encoder is None:
            raise ModelError(
                "the model has no text tower, which MTEB's tasks of audio and text need: it was trained with "
                "objectives.contrastive_weight=0; take one with a weight above 0"
            )
        self.model = model
        parameters = sum(parameter.numel() for parameter in model.parameters())
        self.mteb_model_meta = slap_meta(
            name,
            revision=revision,
            n_parameters=parameters,
            memory_usage_mb=round(parameters * 4 / 2**20, 1),
            max_tokens=model.config.text.max_length,
            embed_dim=model.embedding_dim,
        )

    @classmethod
    def from_folder(cls, folder: str | Path, *, device: str = "cpu", name: str | None = None) -> SlapEncoder:
        """Load a folder that training wrote; it is named `local/FOLDER` unless `name` is given."""
        plain = re.sub(r"[^\w.-]+", "-", "-".join(Path(folder).resolve().parts[-2:])).strip("-")
        return cls(SLAP.from_pretrained(folder, device=device), name=name or f"{LOCAL}/{plain}")

    @classmethod
    def from_hub(cls, name: str, revision: str | None = None, device: str | None = None, **_: Any) -> SlapEncoder:
        """Download and load a model; the signature of `ModelMeta.loader`."""
        folder = model_folder(name, revision=revision)
        return cls(SLAP.from_pretrained(folder, device=device or "cpu"), name=name, revision=revision)

    def encode(
        self,
        inputs: DataLoader[BatchedInput],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """`[N, D]` float32 unit-length embeddings of audio or texts; of rows with both, their sum.

        Args:
            inputs: with the dataset, whose columns are `audio`, `text` or both.

        Raises:
            ModelError: the dataset has neither.
            AudioError: a clip cannot be read; the message has its number.
        """
        del task_metadata, hf_split, hf_subset, prompt_type
        dataset: Any = inputs.dataset
        progress = bool(kwargs.get("show_progress_bar", False))
        parts = []
        if "text" in dataset.column_names:
            texts = [row["text"] for row in dataset.select_columns(["text"])]
            parts.append(self.model.encode_text(texts, progress=progress).numpy())
        if "audio" in dataset.column_names:
            parts.append(self.model.encode_audio(_clips(dataset), progress=progress).numpy())
        if not parts:
            raise ModelError(
                f"the task gives the columns {', '.join(dataset.column_names)}; SLAP encodes audio and text"
            )
        return sum(parts[1:], start=parts[0])


def _clips(dataset: Any) -> Iterator[Any]:
    """The audio of each row: undecoded where the dataset has files, else samples and their rate."""
    from datasets import Audio

    audio = dataset.select_columns(["audio"])
    if isinstance(audio.features["audio"], Audio):
        audio = audio.cast_column("audio", Audio(decode=False))
    for row in audio:
        yield row["audio"]
