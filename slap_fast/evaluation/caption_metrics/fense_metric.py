"""FENSE: similarity of sentence embeddings, with a penalty for captions that are not fluent (Zhou et al., ICASSP 2022).

Constants and models as in its authors' code and DCASE: paraphrase-TinyBERT-L6-v2, and the error detector
echecker_clotho_audiocaps_base. Only weights that are on this machine are used; nothing is downloaded.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slap_fast.errors import one_line
from slap_fast.evaluation.caption_metrics.java_metrics import UnavailableError

SENTENCE_MODEL = "sentence-transformers/paraphrase-TinyBERT-L6-v2"
DETECTOR = "echecker_clotho_audiocaps_base.ckpt"
_DETECTOR_URL = f"https://github.com/blmoistawinde/fense/releases/download/V0.1/{DETECTOR}"
DETECTOR_SHA256 = "1a719f090af70614bbdb9f9437530b7e133c48cfa4a58d964de0d47fc974a2fa"
_THRESHOLD = 0.9  # probability of an error above which a caption is penalized
_PENALTY = 0.9
_MAX_TOKENS = 64
_BATCH = 32


def fense(generated: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """The mean cosine similarity of each caption to its references, times 0.1 if it has an error.

    Raises:
        UnavailableError: a package or the weights of a model are missing.
    """
    similarities = _similarities(generated, references)
    errors = _have_errors(generated)
    return [value * (1 - _PENALTY * error) for value, error in zip(similarities, errors, strict=True)]


def _similarities(generated: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError as error:
        raise UnavailableError("it needs sentence-transformers: pip install 'slap-fast[eval]'") from error
    try:
        model: Any = SentenceTransformer(
            SENTENCE_MODEL,
            device="cpu",
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"use_safetensors": True},
        )
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"it needs {SENTENCE_MODEL} in the cache of Hugging Face: run hf download {SENTENCE_MODEL}"
        ) from error
    options: dict[str, Any] = {"normalize_embeddings": True, "batch_size": _BATCH, "show_progress_bar": False}
    captions = model.encode(list(generated), **options)
    flat = model.encode([text for several in references for text in several], **options)
    values, first = [], 0
    for caption, several in zip(captions, references, strict=True):
        values.append(float((flat[first : first + len(several)] @ caption).mean()))
        first += len(several)
    return values


def _have_errors(captions: Sequence[str]) -> list[bool]:
    import torch
    from transformers import AutoTokenizer

    encoder, classifier, name = _detector()
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(name, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise UnavailableError(
            f"it needs the tokenizer of {name} in the cache of Hugging Face: run hf download {name} --include '*.json' "
            "'*.txt'"
        ) from error
    flagged: list[bool] = []
    with torch.no_grad():
        for first in range(0, len(captions), _BATCH):
            texts = list(captions[first : first + _BATCH])
            inputs = tokenizer(
                texts, truncation=True, padding="max_length", max_length=_MAX_TOKENS, return_tensors="pt"
            )
            logits = classifier(encoder(**inputs).last_hidden_state[:, 0])  # [B, kinds of errors], the last: any
            flagged += (logits[:, -1].sigmoid() > _THRESHOLD).tolist()
    return flagged


def _detector() -> tuple[Any, Any, str]:
    """The BERT of the error detector, its classifier, and the name of its tokenizer on the Hugging Face hub."""
    import torch
    from transformers import AutoConfig, AutoModel

    path = Path(os.environ.get("FENSE_DATA", "~/.fense_data")).expanduser() / DETECTOR
    if not path.is_file():
        raise UnavailableError(f"it needs {path}, from {_DETECTOR_URL}")
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256") if hasattr(hashlib, "file_digest") else hashlib.sha256(file.read())
    if digest.hexdigest() != DETECTOR_SHA256:
        raise UnavailableError(f"{path} is not the published file (its SHA-256 differs); copy it from {_DETECTOR_URL}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        name, weights = str(saved["model_type"]), saved["state_dict"]
        encoder = AutoModel.from_config(
            AutoConfig.from_pretrained(name, local_files_only=True, trust_remote_code=False), trust_remote_code=False
        ).eval()
        classifier = torch.nn.Linear(encoder.config.hidden_size, int(saved["num_classes"]))
        own = {key.removeprefix("encoder."): value for key, value in weights.items() if key.startswith("encoder.")}
        own.pop("embeddings.position_ids", None)  # a buffer that older versions of transformers saved
        encoder.load_state_dict(own)
        classifier.load_state_dict({key.removeprefix("clf."): weights[key] for key in ("clf.weight", "clf.bias")})
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UnavailableError(f"{path}: {one_line(error)}") from error
    return encoder, classifier, name
