"""Counted FLOPs equal those of the matrix products of a real step."""

from __future__ import annotations

import dataclasses

import pytest
from torch.utils.flop_counter import FlopCounterMode

from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.models.flops import forward_flops, step_flops
from slap_fast.ops import dispatch
from slap_fast.training.model import PretrainingModel
from tests.training import tiny


@pytest.mark.parametrize(
    ("objectives", "student", "teacher"),
    [
        (ObjectivesConfig(), 2, 1),
        (ObjectivesConfig(shared_pass=True), 1, 1),
        (ObjectivesConfig(self_distillation_weight=0.0, caption_weight=0.0), 1, 0),
        (ObjectivesConfig(self_distillation_weight=0.0, contrastive_weight=0.0), 1, 0),
        (ObjectivesConfig(contrastive_weight=0.0, caption_weight=0.0), 1, 1),
        (ObjectivesConfig(contrastive_weight=0.0), 2, 1),
    ],
)
def test_projection_flops_are_those_of_a_step(objectives: ObjectivesConfig, student: int, teacher: int) -> None:
    """`student` and `teacher`: passes of the audio encoder."""
    run = tiny.run_config()
    config, batch = run.recipe.model, tiny.batch(run, 0)
    model = PretrainingModel(config, objectives)
    with dispatch.preferring(linear="torch"), FlopCounterMode(display=False) as counter:
        model(batch, 0.05)["loss"].backward()
    ran = sum(
        count for op, count in counter.get_flop_counts()["Global"].items() if str(op) in ("aten.mm", "aten.addmm")
    )

    lengths = batch.tokens.lengths, batch.text.lengths, batch.masked.total

    def count(size: int) -> float:
        """FLOPs without attention, for `size` words and `size` prototypes."""
        sized = dataclasses.replace(
            config,
            text=dataclasses.replace(config.text, vocab_size=size),
            prototype=dataclasses.replace(config.prototype, prototypes=size),
        )
        counted = step_flops(sized, *lengths, objectives)
        for part, (_, attention) in forward_flops(sized, *lengths, objectives.active).items():
            counted -= ((student * 3 + teacher) if part == "audio_encoder" else 3) * attention
        return counted

    # Extrapolated to size 0, since FlopCounterMode does not see the products inside the ops of the losses.
    counted = 2 * count(1) - count(2)
    # Patches need no gradient.
    counted -= student * 2 * 256 * config.audio.width * batch.tokens.total
    # The two pooling probes are projected once per step, independent of the batch.
    counted += 3 * 2 * 2 * config.audio.width**2 * (model.student.audio_pooling is not None)
    assert ran == counted


def test_attention_flops_count_the_pairs_within_windows_clips_and_captions() -> None:
    config = tiny.model_config()
    config = dataclasses.replace(config, audio=dataclasses.replace(config.audio, window_columns=2))
    tokens, words = 12, 5
    near = sum(abs(query - key) <= 4 for query in range(tokens) for key in range(tokens))
    flops = forward_flops(config, [tokens, tokens], [words, words], 0)
    assert flops["audio_encoder"].attention == 2 * 4 * 16 * (tokens**2 + 2 * near)
    assert flops["text_encoder"].attention == 2 * 4 * 16 * 2 * words**2
    assert flops["caption_decoder"].attention == 2 * 4 * 16 * ((words - 1) * tokens + 4 * 5 // 2)


def test_not_one_caption_per_clip_is_an_error() -> None:
    with pytest.raises(ValueError, match="2 clips and 1 captions"):
        forward_flops(tiny.model_config(), [4, 4], [3], 0)
