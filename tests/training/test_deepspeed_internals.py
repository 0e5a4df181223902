"""`training/zero.py` is the only module that uses private attributes of DeepSpeed, and each of them exists."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

import pytest

from slap_fast.training import zero

PACKAGE = Path(zero.__file__).parents[1]
ROOT = PACKAGE.parent
# Also keys of DeepSpeed's public configuration or of the recipe.
PUBLIC_TOO = {"offload_optimizer"}
PRIVATE = {name for names in zero.PRIVATE_ATTRIBUTES.values() for name in names.split()} - PUBLIC_TOO
PATTERN = re.compile(rf"\b(?:ds_(?:id|numel|process_group|shape|status|tensor)|{'|'.join(sorted(PRIVATE))})\b")


def test_no_other_module_uses_a_private_attribute_of_deepspeed() -> None:
    modules = [path for path in PACKAGE.rglob("*.py") if path != Path(zero.__file__)]
    assert len(modules) > 100
    uses = [
        f"{path.relative_to(PACKAGE)}:{number}: {line.strip()}"
        for path in modules
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if PATTERN.search(line)
    ]
    assert not uses, "\n".join(uses)


def test_every_private_attribute_in_use_is_listed() -> None:
    code = Path(zero.__file__).read_text().partition("@dataclass")[2]
    assert {name for name in PRIVATE | PUBLIC_TOO if re.search(rf"\b{name}\b", code)} == PRIVATE | PUBLIC_TOO
    assert set(re.findall(r"\bds_\w+", code)) <= PRIVATE


def test_the_version_that_was_checked_is_the_one_that_is_installed_and_pinned() -> None:
    assert importlib.metadata.version("deepspeed") == zero.CHECKED_WITH
    if (ROOT / "pyproject.toml").exists():
        assert f"deepspeed=={zero.CHECKED_WITH}" in (ROOT / "pyproject.toml").read_text()


@pytest.mark.parametrize("file", zero.PRIVATE_ATTRIBUTES)
def test_deepspeed_defines_each_private_attribute_in_the_file_that_is_listed(file: str) -> None:
    spec = importlib.util.find_spec("deepspeed")
    assert spec is not None
    assert spec.origin is not None
    source = (Path(spec.origin).parent / file).read_text()
    for name in zero.PRIVATE_ATTRIBUTES[file].split():
        assert re.search(rf"\b{name}\b", source), name
