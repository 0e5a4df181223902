"""Datasets shared by the loader tests."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from slap_fast.data.format.index import ClipIndex
from tests.data.builders import make_clip, make_tokenizer, write_dataset, write_spoiled_dataset


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    return write_dataset(tmp_path_factory.mktemp("good") / "data", [make_clip(number) for number in range(30)])


@pytest.fixture(scope="module")
def spoiled_index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    return write_spoiled_dataset(tmp_path_factory.mktemp("spoiled") / "data")
