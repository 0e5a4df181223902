from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from slap_fast import SLAP, cli
from slap_fast.config.loading import load_run_config
from slap_fast.data.tokenizer import load_tokenizer


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small synthetic dataset in `data/` and an untrained model of the quickstart recipe in `run/model`."""
    folder = tmp_path_factory.mktemp("run")
    options = ["--train-clips", "4", "--validation-clips", "4", "--vocab-size", "400", "--workers", "0", "--quiet"]
    assert cli.main(["prepare", "--synthetic", *options, "--out", str(folder / "data")]) == 0
    tokenizer = load_tokenizer(folder / "data" / "train" / "tokenizer")
    config = load_run_config("quickstart").recipe.model
    config = dataclasses.replace(config, text=dataclasses.replace(config.text, vocab_size=len(tokenizer)))
    torch.manual_seed(0)
    model = SLAP(config)
    model.tokenizer = tokenizer
    model.save_pretrained(folder / "run" / "model")
    return folder
