"""Compatibility of a run with its checkpoint: differences of model, tokenizer, recipe and data."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import yaml

# Model settings that the trained weights do not depend on: the source of the initial ones, the caption length, and the
# duration of the longest clips.
# `objective_difference` compares the objectives.
_IGNORED_SETTINGS = ("text.pretrained", "text.max_length", "max_duration", "objectives")
# Entries that transformers adds to the text tower's architecture.
_IGNORED_TEXT_SETTINGS = ("transformers_version", "_name_or_path", "architectures", "dtype", "torch_dtype")
_SPECIAL_TOKENS = ("cls_token", "sep_token", "pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
# Options of the tokenizer's last call, which are saved with it.
_CALL_OPTIONS = ("truncation", "padding")
# Parts that only a model trained for an objective has, with the objective.
_OBJECTIVE_OF_PART = {
    "student.text_encoder.": "contrastive",
    "student_head.": "self_distillation",
    "student.caption_decoder.": "caption",
}
# Settings that determine the clips of each step.
_CLIP_ORDER_SETTINGS = (
    *("schedule.seed", "schedule.batch_size", "data.train [", "data.max_duration"),
    *("data.crop_above_max_duration", "data.shuffle_shards", "the training data"),
)


def objective_difference(saved: Collection[str], own: Collection[str]) -> str | None:
    """The objectives that only one of two models was built for; None if there are none.

    Args:
        saved: names of the parameters of the checkpoint.
        own: of the run that resumes.
    """
    found = []
    for part, objective in _OBJECTIVE_OF_PART.items():
        there, here = (any(name.startswith(part) for name in names) for names in (saved, own))
        if there != here:
            has, weight = ("has", "=0") if there else ("lacks", " above 0")
            found.append(f"it {has} the parts of {objective}, and this run has objectives.{objective}_weight{weight}")
    return "; ".join(found) or None


def model_difference(saved: Mapping[str, bytes], own: Mapping[str, bytes]) -> str | None:
    """The first difference that makes the weights of one model useless in the other; None if there is none.

    Args:
        saved: files of the saved model by name, such as `config.json` and `tokenizer/tokenizer.json`.
        own: the same files of the run that resumes.
    """
    for name, ignored in (("config.json", _IGNORED_SETTINGS), ("text_config/config.json", _IGNORED_TEXT_SETTINGS)):
        there, here = _flatten(_parsed(saved, name)), _flatten(_parsed(own, name))
        for key in sorted(there.keys() | here.keys()):
            if key not in ignored and there.get(key) != here.get(key):
                where = "model." if name == "config.json" else "the text encoder's "
                return f"{where}{key} is {there.get(key)!r} in the checkpoint and {here.get(key)!r} in this run"
    return tokenizer_difference(saved, own)


def tokenizer_difference(saved: Mapping[str, bytes], own: Mapping[str, bytes]) -> str | None:
    """The first difference that changes the tokens of a text or their ids; None if there is none."""
    there, here = (_parsed(files, "tokenizer/tokenizer.json") for files in (saved, own))
    if not there or not here:
        return None  # one model was saved without a tokenizer
    words = [_token_ids(tokenizer) for tokenizer in (there, here)]
    other = sorted(word for word in words[0].keys() | words[1].keys() if words[0].get(word) != words[1].get(word))
    if other:
        known = sorted(words[0].items(), key=lambda item: item[1])
        of_id = {number: word for word, number in words[1].items()}
        word, number = next((item for item in known if of_id.get(item[1]) != item[0]), (other[0], -1))
        return (
            f"the tokenizer differs: {len(other)} tokens have other ids; token {number} is {word!r} in the checkpoint "
            f"and {of_id.get(number)!r} in this run"
        )
    for part in sorted(there.keys() | here.keys()):
        if part not in _CALL_OPTIONS and there.get(part) != here.get(part):
            return f"the tokenizer differs in its {part}"
    roles = [_parsed(files, "tokenizer/tokenizer_config.json") for files in (saved, own)]
    for role in _SPECIAL_TOKENS:
        first, second = (_content(tokens.get(role)) for tokens in roles)
        if first != second:
            return f"the tokenizer differs: its {role} is {first!r} in the checkpoint and {second!r} in this run"
    return None


def freeze_difference(saved: str, own: str) -> str | None:
    """Describes that two YAML configurations freeze different parts; None if they freeze the same."""
    there, here = (sorted((yaml.safe_load(text) or {})["recipe"]["model"].get("freeze", [])) for text in (saved, own))
    if there == here:
        return None
    lists = ["[" + ", ".join(names) + "]" for names in (there, here)]
    return f"model.freeze is {lists[0]} in the checkpoint and {lists[1]} in this run"


def recipe_changes(saved: str, own: str) -> list[str]:
    """`key old -> new` for each recipe value that differs between two YAML configurations.

    Keys that only one of them has, from another version of the program, are ignored.
    """
    there, here = (_flatten((yaml.safe_load(text) or {}).get("recipe") or {}) for text in (saved, own))
    common = sorted(there.keys() & here.keys())
    return [f"{key} {there[key]!r} -> {here[key]!r}" for key in common if there[key] != here[key]]


def resume_changes(saved_config: str, own_config: str, saved_data: Sequence[str], own_data: Sequence[str]) -> list[str]:
    """Notes on the recipe and data changes of a run that resumes."""
    found = recipe_changes(saved_config, own_config)
    if saved_data and own_data and list(saved_data) != list(own_data):
        found.append(f"the training data: {' and '.join(saved_data)} -> {' and '.join(own_data)}")
    if not found:
        return []
    reordered = any(change.startswith(_CLIP_ORDER_SETTINGS) for change in found)
    consequence = "; the order of clips changes, so clips may repeat or be left out in this epoch"
    return [f"changed since the checkpoint: {', '.join(found)}{consequence if reordered else ''}"]


def _token_ids(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Ids by token from `tokenizer.json`, which holds a mapping or a list of (token, score)."""
    vocabulary = (tokenizer.get("model") or {}).get("vocab") or {}
    listed = vocabulary if isinstance(vocabulary, dict) else {entry[0]: at for at, entry in enumerate(vocabulary)}
    return listed | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or []}


def _parsed(files: Mapping[str, bytes], name: str) -> dict[str, Any]:
    return json.loads(files[name]) if name in files else {}


def _content(token: Any) -> Any:
    return token.get("content") if isinstance(token, dict) else token


def _flatten(values: Any, prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat
