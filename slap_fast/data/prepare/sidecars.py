"""Sidecar files: the .txt and .json files beside a clip that hold its captions."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from slap_fast.data.format.captions import captions_of
from slap_fast.data.format.dataset_files import DatasetError
from slap_fast.data.prepare.table_rows import RepeatedKey, json_object


def read_sidecars(paths: Iterable[Path]) -> tuple[list[str], dict[str, Any]]:
    """Captions and other JSON fields from the sidecars of a clip: `dog.txt`, `dog.json` or both for `dog.wav`."""
    captions: list[str] = []
    metadata: dict[str, Any] = {}
    for path in paths:
        try:
            data = path.read_bytes()
        except OSError as error:
            raise DatasetError(f"{path.name} cannot be read ({error.strerror})") from error
        found, metadata_found = parse_sidecar(path.name, data)
        captions += found
        metadata |= metadata_found
    return captions_of(captions), metadata


def parse_sidecar(name: str, data: bytes) -> tuple[list[str], dict[str, Any]]:
    """Captions and other fields of a .json file (an object, list or string) or a .txt file (one caption per line).

    Raises:
        DatasetError: it is not UTF-8 or not JSON.
    """
    try:
        text = data.decode("utf-8-sig")
        if not name.lower().endswith(".json"):
            return captions_of(text.splitlines()), {}
        value = json.loads(text, object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{name} is malformed ({error})") from error
    if isinstance(value, RepeatedKey):
        raise DatasetError(f"{name} is malformed (the key {value.key!r} appears twice)")
    if not isinstance(value, dict):
        return captions_of(value), {}
    return captions_of(value), value
