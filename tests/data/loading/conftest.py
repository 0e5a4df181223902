"""Datasets shared by the loader tests."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from slap_fast.data.format.index import ClipIndex
from tests.data.builders import make_clip, make_tokenizer, write_damaged_dataset, write_dataset


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return make_tokenizer()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    return write_dataset(tmp_path_factory.mktemp("good") / "data", [make_clip(number) for number in range(30)])


@pytest.fixture(scope="module")
def damaged_index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    return write_damaged_dataset(tmp_path_factory.mktemp("damaged") / "data")
