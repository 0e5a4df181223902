"""Embeddings of labeled clips, cached in a file that is named after the model's weights and the clips."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from slap_fast import __version__
from slap_fast.data.labeled import LabeledSet
from slap_fast.errors import one_line
from slap_fast.inference.audio_inputs import Skipped, labeled_input
from slap_fast.inference.embed import embed_audio
from slap_fast.models.slap import SLAP
from slap_fast.runtime.durable_files import replace_file_with, save_safetensors


@dataclass(frozen=True)
class LabeledEmbeddings:
    """
    Attributes:
        features: `[N, D]` float32.
        clips: `[N]` positions of the embedded clips in the set.
        skipped: clips that could not be read.
        cached: whether they were read from a file.
    """

    features: np.ndarray
    clips: np.ndarray
    skipped: list[Skipped]
    cached: bool


def model_digest(model: SLAP) -> str:
    """Digest of the audio tower's settings and weights."""
    config = model.config
    settings = f"{__version__} {config.mel} {config.audio} {config.max_duration}"
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for part in (model.audio_encoder, model.audio_pooling):
        for name, value in () if part is None else part.state_dict().items():
            digest.update(name.encode())
            if isinstance(value, str):  # an int8 layer saves the name of its kernel
                digest.update(value.encode())
            else:
                digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy())
    return digest.hexdigest()


def labeled_embeddings(
    model: SLAP,
    labeled: LabeledSet,
    source: Path,
    folder: Path,
    *,
    max_seconds: float = math.inf,
    progress: bool = False,
) -> LabeledEmbeddings:
    """Embed the clips of a set, or read their embeddings if this model has embedded the same files before.

    A file counts as the same if path, size and time of change are. For clips inside tables and prepared datasets, those
    of all files in `source` count.

    Args:
        source: what the set was opened from.
        folder: for the cache.

    Raises:
        NoReadableClipError: no clip could be read.
        EmbeddingInterrupted: Ctrl-C.
        OSError: the cache cannot be written.
    """
    inputs = [labeled_input(file, max_seconds=max_seconds) for file in labeled.files]
    names = [clip.name for clip in inputs]
    stored = [file.path for file in labeled.files]
    if any(file.read is not None for file in labeled.files):
        stored = [source, *(source.rglob("*") if source.is_dir() else ())]
    digest = hashlib.blake2b(model_digest(model).encode(), digest_size=10)
    digest.update(json.dumps([max_seconds, names, _states(stored)]).encode())
    path = folder / f"{labeled.name}-{digest.hexdigest()}.safetensors"
    if (found := _read(path, len(names))) is not None:
        return found
    audio = embed_audio(model, inputs, progress=progress)
    position = {id(clip): at for at, clip in enumerate(inputs)}
    clips = np.array([position[id(clip)] for clip in audio.inputs])
    embedded = LabeledEmbeddings(audio.embeddings.numpy(), clips, audio.skipped, False)
    folder.mkdir(parents=True, exist_ok=True)
    metadata = {"skipped": json.dumps([[clip.name, clip.reason] for clip in embedded.skipped])}
    tensors = {"embeddings": audio.embeddings.contiguous(), "clips": torch.from_numpy(embedded.clips)}
    replace_file_with(path, lambda temporary: save_safetensors(temporary, tensors, metadata))
    return embedded


def _states(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of each file; zeros for one that is missing."""
    states = []
    for path in sorted(set(paths)):
        try:
            status = os.stat(path)
        except OSError:
            states.append((str(path.absolute()), 0, 0))
        else:
            states.append((str(path.absolute()), status.st_size, status.st_mtime_ns))
    return states


def _read(path: Path, clips: int) -> LabeledEmbeddings | None:
    """The cached embeddings; None if there are none, or the file is damaged and they have to be computed again."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        return None
    try:
        with safe_open(path, "numpy") as file:
            features, positions = file.get_tensor("embeddings"), file.get_tensor("clips")
            skipped = [Skipped(*entry) for entry in json.loads(file.metadata()["skipped"])]
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        print(f"{path}: cannot be read ({one_line(error)}); the clips are embedded again", file=sys.stderr)
        return None
    if len(features) != len(positions) or len(positions) + len(skipped) != clips or not np.isfinite(features).all():
        print(f"{path}: is damaged; the clips are embedded again", file=sys.stderr)
        return None
    return LabeledEmbeddings(features, positions, skipped, True)
