"""The MTEB model in real tasks of mteb, on local data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import mteb
import numpy as np
import pytest
import torch
from mteb.abstasks import AbsTaskRetrieval, AbsTaskZeroShotClassification
from mteb.abstasks.task_metadata import TaskMetadata

from slap_fast.errors import ModelError
from slap_fast.evaluation.leaderboards.mteb import SlapEncoder, slap_meta
from slap_fast.models.slap import SLAP
from tests.data.builders import encode, make_tokenizer
from tests.models.builders import TINY

LABELS = ("a bell rings", "a dog barks")


def metadata(name: str, kind: Any, category: Any) -> TaskMetadata:
    return TaskMetadata(
        name=name,
        description="local",
        reference=None,
        dataset={"path": "local/none", "revision": "none"},
        type=kind,
        category=category,
        modalities=["audio", "text"],
        eval_splits=["test"],
        eval_langs=["eng-Latn"],
        main_score="accuracy",
        date=None,
        domains=None,
        task_subtypes=None,
        license=None,
        annotations_creators=None,
        dialect=None,
        sample_creation=None,
        bibtex_citation=None,
    )


def clips() -> list[bytes]:
    """Eight FLAC files of different lengths and rates."""
    rng = np.random.default_rng(0)
    return [
        encode((rng.standard_normal(2000 + 900 * at) * 3000).astype(np.int16), 16_000 if at % 2 else 44_100)
        for at in range(8)
    ]


class ZeroShot(AbsTaskZeroShotClassification):
    metadata = metadata("LocalZeroShot", "AudioZeroshotClassification", "a2t")
    input_column_name = "audio"
    label_column_name = "label"

    def load_data(self, *args: Any, **kwargs: Any) -> None:
        columns = {"audio": [{"bytes": one, "path": None} for one in clips()], "label": [at // 4 for at in range(8)]}
        data = datasets.Dataset.from_dict(columns).cast_column("audio", datasets.Audio())
        self.dataset = datasets.DatasetDict({"test": data})
        self.data_loaded = True

    def get_candidate_labels(self) -> list[str]:
        return list(LABELS)


@pytest.fixture
def model() -> SLAP:
    torch.manual_seed(0)
    model = SLAP(TINY).eval()
    model.tokenizer = make_tokenizer()
    return model


def test_a_zero_shot_task_gives_the_accuracy_of_the_model(model: SLAP) -> None:
    (result,) = mteb.evaluate(SlapEncoder(model), ZeroShot(), cache=None).task_results
    audio, text = model.encode_audio(clips()), model.encode_text(list(LABELS))
    right = (audio @ text.T).argmax(1) == torch.arange(8) // 4
    assert result.scores["test"][0]["accuracy"] == pytest.approx(float(right.float().mean()))
