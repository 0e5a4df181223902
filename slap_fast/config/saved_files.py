"""The files of a model folder, read as data: whatever they hold, no code that came with them runs."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from slap_fast.errors import ModelError
from slap_fast.runtime.durable_files import os_error

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

_MOST_BYTES = 1 << 27
# Each layer is built by itself, so their number is bounded apart from that of anything else.
_MOST_LAYERS = 1024
_MOST = 1 << 27
_COUNTS_MODULES = re.compile(r"layer|block|depth|expert|stage", re.IGNORECASE)
_TOKEN_ROLES = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token", "bos_token", "eos_token")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def read_object(path: Path, *, deep: bool = True) -> dict[str, Any]:
    """A file that holds one JSON object, searched for code at its top or, if `deep`, at every depth.

    Raises:
        ModelError: it does not, or it names code to run.
    """
    try:
        size = path.stat().st_size
        values = json.loads(path.read_bytes()) if size <= _MOST_BYTES else None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(f"{path}: is damaged: it cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(values, dict):
        found = f"{size} bytes" if values is None else f"a {type(values).__name__}"
        raise ModelError(f"{path}: is damaged: it holds {found}, not one JSON object; copy it again")
    refuse_code(_entries(values) if deep else values.items(), str(path))
    return values


def refuse_code(entries: Iterable[tuple[str, Any]], where: str) -> None:
    """
    Raises:
        ModelError: an entry of a JSON file names Python code or kernels to load.
    """
    for key, value in entries:
        if key in ("auto_map", "custom_pipelines") or (key.endswith("_implementation") and value is not None):
            raise ModelError(
                f"{where}: {key} names code to load, and a model is data here: nothing of it is run. If transformers "
                f"itself has this model, delete {key} from the file; otherwise the model cannot be used"
            )


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """Every key of a JSON value, at any depth."""
    waiting = [values]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            yield from value.items()
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def read_text_config(path: Path) -> PreTrainedConfig:
    """`text_config/config.json`: the transformers configuration of a saved model's text tower.

    Raises:
        ModelError: the file is damaged, names code, or a size in it cannot be that of a model.
    """
    from transformers import CONFIG_MAPPING

    values = read_object(path)
    for key, value in _entries(values):
        if type(value) in (int, float) and not (math.isfinite(value) if type(value) is float else abs(value) <= _MOST):
            raise ModelError(f"{path}: {key} is {value}, which no model has; copy the file again")
        if type(value) is int and _COUNTS_MODULES.search(key) and value > _MOST_LAYERS:
            raise ModelError(f"{path}: {key} is {value}; at most {_MOST_LAYERS} are built; copy the file again")
    kind = values.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise ModelError(f"{path}: model_type is {kind!r}, which this version of transformers does not know")
    try:
        return CONFIG_MAPPING[kind].from_dict(values)
    except Exception as error:  # Each model checks its values in its own way.
        raise ModelError(f"{path}: transformers refuses it ({words(error)}); copy it again") from error


def read_tokenizer(folder: str | os.PathLike[str]) -> PreTrainedTokenizerFast:
    """The tokenizer that `tokenizer.json` describes, with the special tokens of `tokenizer_config.json`.

    Nothing else in the folder counts: not the class that it names, nor code that lies there.

    Raises:
        ModelError: a file is damaged or names code; it says which.
    """
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    folder = Path(folder)
    path = folder / "tokenizer.json"
    if not path.is_file():
        raise ModelError(
            f"{folder}: holds no tokenizer (no tokenizer.json); save_pretrained of transformers' tokenizer writes it"
        )
    read_object(path, deep=False)  # deeper down the keys are the words of a vocabulary
    config: dict[str, Any] = {}
    for name in TOKENIZER_FILES[:0:-1]:
        if os.path.lexists(folder / name):
            config |= read_object(folder / name)
    try:
        backend = Tokenizer.from_file(str(path))
        # Those of its last use.
        backend.no_truncation()
        backend.no_padding()
        known = backend.get_vocab()
        # What is not found out when the file is read.
        backend.encode("a b")
    except BaseException as error:  # The Rust library raises a bare Exception, or what is none where it panics.
        if isinstance(error, KeyboardInterrupt | SystemExit):
            raise
        raise ModelError(f"{path}: is damaged: {words(error)}; copy it again") from error
    tokens = {role: _content(config[role]) for role in _TOKEN_ROLES if config.get(role) is not None}
    for role, token in tokens.items():
        if not isinstance(token, str) or token not in known:
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
    """Write what `read_tokenizer` reads.

    Raises:
        OSError: a file cannot be written.
    """
    try:
        tokenizer.save_pretrained(os.fspath(folder))
    except OSError:
        raise
    except Exception as error:  # The Rust library raises a bare Exception where a disk is full.
        raise os_error(folder, error) from error


def largest_id(tokenizer: Any) -> int:
    """The largest token id that the tokenizer may give."""
    return max(tokenizer.get_vocab().values(), default=-1)


def _content(token: Any) -> Any:
    """The text of a special token, which is written out or described."""
    return token.get("content") if isinstance(token, dict) else token


def words(error: BaseException) -> str:
    """An error's message in one line, or its type where there is none."""
    text = " ".join(str(error).split())
    return (text if len(text) <= 200 else f"{text[:200]}...") or type(error).__name__
