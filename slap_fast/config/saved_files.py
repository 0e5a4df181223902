"""Readers for the JSON, configuration and tokenizer files of a model folder; no code from the folder is executed."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.errors import ModelError, one_line
from slap_fast.runtime.durable_files import os_error

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")

_MAX_BYTES = 1 << 27
_MAX_NUMBER = 1 << 27
# Even on the meta device, building a model takes time and memory for each layer.
_MAX_LAYERS = 1024
_LAYER_COUNT = re.compile(r"layer|block|depth|expert|stage", re.IGNORECASE)
_TOKEN_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")


def weights_digest(folder: Path) -> str | None:
    """Digest of the weights in a model folder; None if it has none. Scores of a model are stored with it.

    Raises:
        OSError: the file cannot be read.
    """
    path = folder / "model.safetensors"
    if not path.is_file():
        return None
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_json_object(path: Path, *, deep: bool = True) -> dict[str, Any]:
    """Read a file that holds one JSON object.

    Args:
        deep: look for entries that name code at every depth, else only at the top.

    Raises:
        ModelError: the file is damaged, is not one object, or names code to run.
    """
    try:
        size = path.stat().st_size
        values = json.loads(path.read_bytes()) if size <= _MAX_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is damaged: it cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        found = f"{size} bytes" if values is None else f"a {type(values).__name__}"
        raise ModelError(f"{path}: is damaged: it holds {found}, not one JSON object; copy it again")
    reject_code(_entries(values) if deep else values.items(), str(path))
    return values


def reject_code(entries: Iterable[tuple[str, Any]], source: str) -> None:
    """
    Args:
        entries: of a JSON file.
        source: name of the file, for the message.

    Raises:
        ModelError: an entry names Python code or kernels to load.
    """
    for key, value in entries:
        if key in ("auto_map", "custom_pipelines") or (key.endswith("_implementation") and value is not None):
            raise ModelError(
                f"{source}: {key} names code to load, and code of a model folder is never run. If transformers itself "
                f"supports this model, delete {key} from the file; otherwise the model cannot be used"
            )


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key and value of a JSON value, at any depth."""
    stack = [values]
    while stack:
        value = stack.pop()
        if isinstance(value, dict):
            yield from value.items()
            stack += value.values()
        elif isinstance(value, list):
            stack += value


def read_text_config(path: Path) -> PreTrainedConfig:
    """Read `text_config/config.json`, the transformers configuration of the text tower.

    Raises:
        ModelError: the file is damaged, names code, or has a size that no model has.
    """
    from transformers import CONFIG_MAPPING

    values = read_json_object(path)
    for key, value in _entries(values):
        if (type(value) is float and not math.isfinite(value)) or (type(value) is int and abs(value) > _MAX_NUMBER):
            raise ModelError(f"{path}: {key} is {value}, which no model has; copy the file again")
        if type(value) is int and _LAYER_COUNT.search(key) and value > _MAX_LAYERS:
            raise ModelError(f"{path}: {key} is {value}; at most {_MAX_LAYERS} are built; copy the file again")
    model_type = values.get("model_type")
    if not isinstance(model_type, str) or model_type not in CONFIG_MAPPING:
        raise ModelError(f"{path}: model_type is {model_type!r}, which this version of transformers does not support")
    try:
        return CONFIG_MAPPING[model_type].from_dict(values)
    except Exception as error:  # Transformers models raise errors of many types for invalid values.
        raise ModelError(f"{path}: transformers rejects it ({one_line(error)}); copy it again") from error


def read_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """Read the tokenizer of `tokenizer.json`, with the special tokens of `tokenizer_config.json`.

    Everything else in the folder is ignored, including the tokenizer class that the files name.

    Raises:
        ModelError: a file is missing, is damaged or names code.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: holds no tokenizer (no tokenizer.json); save_pretrained of transformers' tokenizer writes it"
        )
    read_json_object(path, deep=False)  # deeper keys are the words of a vocabulary
    config: dict[str, Any] = {}
    for name in TOKENIZER_FILES[:0:-1]:
        if os.path.lexists(folder / name):
            config |= read_json_object(folder / name)
    try:
        backend = Tokenizer.from_file(str(path))
        # The file keeps the truncation and padding of its last use.
        backend.no_truncation()
        backend.no_padding()
        vocabulary = backend.get_vocab()
        # Some damage shows only in use.
        backend.encode("a b")
    except BaseException as error:  # The Rust library raises a bare Exception, and BaseException if it panics.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ModelError(f"{path}: is damaged: {one_line(error)}; copy it again") from error
    tokens = {role: _token_text(config[role]) for role in _TOKEN_ROLES if config.get(role) is not None}
    for role, token in tokens.items():
        if not isinstance(token, str) or token not in vocabulary:
            raise ModelError(
                f"{folder / 'tokenizer_config.json'}: {role} is {token!r}, which tokenizer.json does not have"
            )
    names = config.get("model_input_names", ["input_ids", "attention_mask"])
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{folder / 'tokenizer_config.json'}: model_input_names is {names!r}, not a list of names")
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=config.get("clean_up_tokenization_spaces") is True,
        model_input_names=names,
        **tokens,
    )


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the files that `read_tokenizer` reads.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        tokenizer.save_pretrained(os.fspath(folder))
    except OSError:
        raise
    except Exception as error:  # The Rust library raises a bare Exception where a disk is full.
        raise os_error(folder, error) from error


def largest_token_id(tokenizer: Any) -> int:
    """The largest id in the tokenizer's vocabulary; -1 if that is empty."""
    return max(tokenizer.get_vocab().values(), default=-1)


def _token_text(token: Any) -> Any:
    """The text of a special token, which is stored as a string or as an object with `content`."""
    return token.get("content") if isinstance(token, dict) else token
