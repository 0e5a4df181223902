"""Datasets shared by the loader tests. Imports in the fixtures: a GPU machine may lack packages for audio files."""

from __future__ import annotations

import pytest
from transformers import PreTrainedTokenizerFast

from slap_fast.data.format.index import ClipIndex


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    from tests.data.builders import make_tokenizer

    return make_tokenizer()


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    from tests.data.builders import make_clip, write_dataset

    return write_dataset(tmp_path_factory.mktemp("good") / "data", [make_clip(number) for number in range(30)])


@pytest.fixture(scope="module")
def damaged_index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    from tests.data.builders import write_damaged_dataset

    return write_damaged_dataset(tmp_path_factory.mktemp("damaged") / "data")
