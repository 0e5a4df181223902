"""Random damage to a model folder: truncated and corrupted files, unexpected JSON values, missing files."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

ODD_VALUES: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 3, 7, 2**31, 2**63, -(2**63), 10**400, 0.0, -0.5, 1e308, float("nan"), float("inf"),
    "", "x", "\ud800", "a/b", [], [1], {}, {"x": 1}, [[]], "__import__('os')",
)  # fmt: skip
ODD_FILES = (b"", b"[]", b"null", b"3", b'"x"', b"{}", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 50_000, b"\0" * 64)


def damage(folder: Path, seed: int) -> str:
    """Damage a folder in one way, chosen by `seed`; returns a description."""
    chance = random.Random(seed)
    path = chance.choice(sorted(path for path in folder.rglob("*") if path.is_file()))
    name = path.relative_to(folder).as_posix()
    json_file = path.suffix == ".json"
    kinds = [_truncate, _corrupt, _replace, _remove] + [_odd_value] * (8 if json_file else 0)
    if path.suffix == ".safetensors":
        kinds += [_odd_header] * 4
    return f"{name}: {chance.choice(kinds)(path, chance)}"


def _truncate(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    keep = chance.randrange(len(content))
    path.write_bytes(content[:keep])
    return f"truncated at byte {keep}"


def _corrupt(path: Path, chance: random.Random) -> str:
    content = bytearray(path.read_bytes())
    places = [chance.randrange(len(content)) for _ in range(chance.choice((1, 1, 4, 64)))]
    for place in places:
        content[place] = chance.randrange(256)
    path.write_bytes(content)
    return f"other bytes at {places}"


def _replace(path: Path, chance: random.Random) -> str:
    content = chance.choice(ODD_FILES)
    path.write_bytes(content)
    return f"holds {content[:20]!r}"


def _remove(path: Path, chance: random.Random) -> str:
    kind = chance.choice(("gone", "a folder", "a link to itself", "the whole folder gone"))
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a link to itself":
        path.symlink_to(path)
    elif kind == "the whole folder gone" and path.parent.name in ("tokenizer", "text_config"):
        shutil.rmtree(path.parent)
    return kind


def _odd_value(path: Path, chance: random.Random) -> str:
    root = json.loads(path.read_bytes())
    change = _change(root, chance)
    path.write_bytes(json.dumps(root).encode())
    return change


def _odd_header(path: Path, chance: random.Random) -> str:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + size])
    change = _change(header, chance)
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[8 + size :])
    return f"in the header, {change}"


def _change(root: Any, chance: random.Random) -> str:
    """Replace, delete, rename or add one entry, at any depth."""
    place: list[str] = []
    node = root
    while True:
        keys = sorted(node) if isinstance(node, dict) else list(range(len(node)))
        if not keys:
            return "nothing"
        key = chance.choice(keys)
        place.append(str(key))
        inner = node[key]
        if not isinstance(inner, dict | list) or not inner or chance.random() < 0.15:
            break
        node = inner
    where = ".".join(place)
    kind = chance.choice(("value", "value", "value", "value", "delete", "rename", "add"))
    value = chance.choice(ODD_VALUES)
    if kind == "delete":
        del node[key]
    elif kind == "rename" and isinstance(node, dict):
        node["renamed"] = node.pop(key)
    elif kind == "add" and isinstance(node, dict):
        node["added"] = value
    else:
        # Also values close to the original number: plausible values are harder to detect.
        if isinstance(inner, int) and not isinstance(inner, bool) and chance.random() < 0.5:
            value = chance.choice((inner + 1, inner - 1, 2 * inner, inner // 2, -inner, float(inner), str(inner)))
        node[key] = value
    return f"{kind} at {where}: {str(value)[:30]!r}"
