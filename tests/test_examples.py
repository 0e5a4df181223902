"""The scripts in examples/ run, and do what their docstrings state."""

from __future__ import annotations

import dataclasses
import re
import runpy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch

from slap_fast import SLAP
from slap_fast.data.tokenizer import train_tokenizer
from tests.models.builders import TINY
from tests.training.ranks import finish, start_program, start_ranks, tail

EXAMPLES = Path(__file__).parents[1] / "examples"


def _names(script: str) -> dict[str, Any]:
    return runpy.run_path(str(EXAMPLES / script))


def test_every_example_is_tested_and_names_its_command() -> None:
    text = Path(__file__).read_text(encoding="utf-8")
    scripts = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(scripts) == 5
    for script in scripts:
        assert f'"{script}"' in text, script
        docstring = (EXAMPLES / script).read_text(encoding="utf-8").split('"""')[1]
        assert f"    python examples/{script}" in docstring, script


def test_the_vocoder_learns_from_the_mel_loss() -> None:
    example = _names("vocoder_mel_loss.py")
    assert [example["HIFI_GAN"].num_frames(frames * 256) for frames in (40, 75, 120)] == [40, 75, 120]
    losses = example["train"](100)
    assert losses[-1] < 0.5 * losses[0]


def test_the_clip_style_trainer_gives_the_same_on_one_and_on_two_ranks(tmp_path: Path) -> None:
    script, steps = str(EXAMPLES / "clip_style_trainer.py"), ["--steps", "60"]
    log = tmp_path / "log.txt"
    assert finish([start_program(script, steps, log)], log) == [0], tail(log)
    # As torchrun starts it.
    assert finish(start_ranks(script, [steps] * 2, log), log) == [0, 0], tail(log)
    pattern = re.compile(r"(\d) ranks: loss ([\d.]+), accuracy ([\d.]+)")
    (ranks, loss, accuracy), (more_ranks, other_loss, other_accuracy) = (
        map(float, found) for found in pattern.findall(log.read_text())
    )
    assert (ranks, more_ranks) == (1, 2)
    assert accuracy > 0.9
    assert (other_loss, other_accuracy) == pytest.approx((loss, accuracy), rel=1e-3)


def test_the_packed_encoder_equals_the_padded_one() -> None:
    example = _names("pack_hugging_face_encoder.py")
    assert example["largest_difference"]([5, 90, 33, 12]) < 1e-5


def test_files_of_any_duration_are_ranked_by_a_text(tmp_path: Path) -> None:
    example = _names("embed_with_pytorch.py")
    tokenizer = train_tokenizer(["a dog barks at a bell", "rain falls on the roof"], 300)
    torch.manual_seed(0)
    model = SLAP(dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=len(tokenizer)))).eval()
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "model")
    noise, paths = np.random.default_rng(0), []
    for seconds, rate, channels in ((0.3, 16_000, 1), (2.0, 44_100, 2), (1.1, 8000, 1)):
        paths.append(str(tmp_path / f"{seconds}.wav"))
        soundfile.write(paths[-1], noise.uniform(-0.5, 0.5, (int(seconds * rate), channels)), rate)
    ranked = example["rank"](str(tmp_path / "model"), "a dog barks", paths)
    assert sorted(path for _, path in ranked) == sorted(paths)
    similarities = [similarity for similarity, _ in ranked]
    assert similarities == sorted(similarities, reverse=True)
    expected = model.encode_audio(paths) @ model.encode_text("a dog barks")[0]
    assert sorted(similarities) == pytest.approx(sorted(expected.tolist()), abs=1e-5)


def test_a_classifier_learns_on_a_frozen_tower_and_then_with_it(tmp_path: Path) -> None:
    example = _names("classify_with_pytorch.py")
    torch.manual_seed(0)
    model = SLAP(TINY)
    model.save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    for name, scale in (("loud", 0.5), ("quiet", 0.005)):
        (tmp_path / "clips" / name).mkdir(parents=True)
        for clip in range(6):
            samples = scale * generator.uniform(-1, 1, 3000 + 900 * clip)
            soundfile.write(tmp_path / "clips" / name / f"{clip}.wav", samples, 16_000)
    folders = str(tmp_path / "model"), tmp_path / "clips", tmp_path / "out"
    accuracies = example["train"](*folders, head_epochs=6, tower_epochs=2)
    assert len(accuracies) == 8
    assert accuracies[-1] > 0.9
    trained = SLAP.from_pretrained(tmp_path / "out").state_dict()
    same = {name for name, value in model.state_dict().items() if torch.equal(value, trained[name])}
    assert {name for name in trained if name.startswith(("text_", "caption_decoder.", "logit_scale."))} <= same
    assert "audio_encoder.blocks.0.attention.qkv.weight" not in same
