"""What a run that continues shares with the one that saved: what must be the same, and what has changed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

# Settings of the model that may change under its weights: where the first ones came from, and where captions are cut.
_FREE = ("text.pretrained", "text.max_length")
# What transformers notes besides the text tower's architecture.
_NOTES = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_SPECIAL = ("cls_token", "sep_token", "pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
# How a tokenizer was last called, which is no part of it.
_LAST_USE = ("truncation", "padding")
# What decides which clips a step takes, besides the clips themselves.
_ORDER = (
    *("schedule.seed", "schedule.batch_size", "data.train [", "data.max_duration"),
    *("data.crop_above_max_duration", "data.shuffle_shards", "the training data"),
)


def other_model(saved: Mapping[str, bytes], own: Mapping[str, bytes]) -> str | None:
    """Why weights of one model mean nothing in the other, from the files that describe both; None if they do.

    Args:
        saved: by name, such as `config.json` and `tokenizer/tokenizer.json`.
        own: the same of the run that is to continue.
    """
    for name, ignored in (("config.json", _FREE), ("text_config/config.json", _NOTES)):
        there, here = _flat(_parsed(saved, name)), _flat(_parsed(own, name))
        for key in sorted(there.keys() | here.keys()):
            if key not in ignored and there.get(key) != here.get(key):
                where = "model" if name == "config.json" else "the text encoder's"
                dot = "." if where == "model" else " "
                return f"{where}{dot}{key} is {there.get(key)!r} there and {here.get(key)!r} here"
    return other_tokenizer(saved, own)


def other_tokenizer(saved: Mapping[str, bytes], own: Mapping[str, bytes]) -> str | None:
    """Why the token ids of two tokenizers mean different words; None if they mean the same."""
    there, here = (_parsed(files, "tokenizer/tokenizer.json") for files in (saved, own))
    if not there or not here:
        return None  # one of them was saved without
    words = [_ids(tokenizer) for tokenizer in (there, here)]
    other = sorted(word for word in words[0].keys() | words[1].keys() if words[0].get(word) != words[1].get(word))
    if other:
        known = sorted(words[0].items(), key=lambda item: item[1])
        of_id = {number: word for word, number in words[1].items()}
        word, number = next((item for item in known if of_id.get(item[1]) != item[0]), (other[0], -1))
        return (
            f"the tokenizer is another one: {len(other)} tokens have other ids; token {number} is {word!r} there and "
            f"{of_id.get(number)!r} here"
        )
    for part in sorted(there.keys() | here.keys()):
        if part not in _LAST_USE and there.get(part) != here.get(part):
            return f"the tokenizer is another one: its {part} differs"
    roles = [_parsed(files, "tokenizer/tokenizer_config.json") for files in (saved, own)]
    for role in _SPECIAL:
        first, second = (_content(tokens.get(role)) for tokens in roles)
        if first != second:
            return f"the tokenizer is another one: its {role} is {first!r} there and {second!r} here"
    return None


def recipe_changes(saved: str, own: str) -> list[str]:
    """`key old -> new` for each value of the recipe that differs between two configurations as YAML.

    Each has every key that its version of the program knows; those that only one of them knows are passed over.
    """
    there, here = (_flat((yaml.safe_load(text) or {}).get("recipe") or {}) for text in (saved, own))
    common = sorted(there.keys() & here.keys())
    return [f"{key} {there[key]!r} -> {here[key]!r}" for key in common if there[key] != here[key]]


def changes(saved_config: str, own_config: str, saved_data: Sequence[str], own_data: Sequence[str]) -> list[str]:
    """What there is to say about a run that goes on in another way than it began."""
    found = recipe_changes(saved_config, own_config)
    if saved_data and own_data and list(saved_data) != list(own_data):
        found.append(f"the training data: {' and '.join(saved_data)} -> {' and '.join(own_data)}")
    if not found:
        return []
    order = any(change.startswith(_ORDER) for change in found)
    again = "; the order of clips is another one, so that clips may come again or not at all in this epoch"
    return [f"changed since the checkpoint: {', '.join(found)}{again if order else ''}"]


def _ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids by word, as `tokenizer.json` lists them: a mapping, or pairs of word and score in order."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    listed = vocabulary if isinstance(vocabulary, dict) else {entry[0]: at for at, entry in enumerate(vocabulary)}
    return listed | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return json.loads(files[name]) if name in files else {}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _flat(values: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
