"""Training with each decoder of the loader."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch

from slap_fast.config.recipe import RunConfig
from slap_fast.data.decoding import DecoderUnavailableError
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.loading.loader import Loader
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.training import build
from slap_fast.training.distributed.process_group import Ranks
from tests.data.builders import DECODERS, decoder_of, make_tokenizer, write_damaged_dataset
from tests.training import tiny

STEPS = 3


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> ClipIndex:
    """Clips with and without seek tables, and bad ones."""
    return write_damaged_dataset(tmp_path_factory.mktemp("dataset") / "data")


def configured(decoder: Any, output: Path) -> RunConfig:
    config = tiny.changed(tiny.run_config(output), data={"max_duration": 0.3, "crop_above_max_duration": True})
    loading = dataclasses.replace(config.efficiency.loading, decoder=decoder)
    return dataclasses.replace(config, efficiency=dataclasses.replace(config.efficiency, loading=loading))


def loader_of(config: RunConfig, index: ClipIndex) -> Loader:
    datasets = Mixture([index], [1.0])
    ranks = Ranks(0, 1, 0, torch.device("cpu"), heartbeat=None)  # type: ignore[arg-type]
    sampler = build.build_sampler(config.recipe, datasets)
    return build.build_loader(config, datasets, sampler, config.recipe.model, make_tokenizer(), ranks, range(STEPS))


def losses_with(config: RunConfig, index: ClipIndex) -> list[float]:
    model = tiny.build(config)
    optimizer = torch.optim.AdamW([parameter for parameter in model.parameters() if parameter.requires_grad], lr=1e-2)
    losses = []
    with loader_of(config, index) as loader:
        for _, batch in loader:
            optimizer.zero_grad()
            loss = model(batch.to("cpu"), 0.05)["loss"]
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    assert loader.dropped
    return losses


@pytest.fixture(scope="module")
def losses(index: ClipIndex, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    found = losses_with(configured("soundfile", tmp_path_factory.mktemp("soundfile")), index)
    assert len(set(found)) == STEPS
    return found


@pytest.mark.parametrize("kind", DECODERS[1:])
def test_training_losses_do_not_depend_on_the_decoder(
    kind: str, index: ClipIndex, losses: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = decoder_of(kind)
    if kind == "gpu path":
        monkeypatch.setattr(build, "make_decoder", lambda *_, **__: decoder)
    config = configured("auto" if kind == "gpu path" else kind, tmp_path)
    assert losses_with(config, index) == losses


def test_a_run_that_asks_for_the_gpu_decoder_without_a_gpu_says_so(index: ClipIndex, tmp_path: Path) -> None:
    with pytest.raises(DecoderUnavailableError, match=r"loading.decoder=gpu cannot run here: .*cuda"):
        loader_of(configured("gpu", tmp_path), index)
