from __future__ import annotations

import dataclasses

import pytest
import torch

from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.data.loading.batch import Batch
from slap_fast.ops.packed import PackedLayout
from slap_fast.training.model import PretrainingModel
from tests.models.builders import TINY, audio_layouts, random_clips


def _batch(seconds, *, seed=0):
    clips = random_clips(seconds, seed=seed)
    samples, frames, tokens = audio_layouts(clips)
    generator = torch.Generator().manual_seed(seed)
    chosen, masked_lengths = [], []
    for begin, length in zip(tokens.cu_seqlens.tolist(), tokens.lengths, strict=False):
        picked = torch.randperm(length, generator=generator)[: length // 2].sort().values
        chosen.append(begin + picked)
        masked_lengths.append(len(picked))
    text = PackedLayout.from_lengths([3 + clip % 4 for clip in range(len(clips))])
    return Batch(
        waveform=torch.cat(clips),
        samples=samples,
        frames=frames,
        tokens=tokens,
        time_masked=torch.rand(frames.total, generator=generator) < 0.1,
        mel_masked=torch.rand(len(clips), 64, generator=generator) < 0.1,
        masked_tokens=torch.cat(chosen),
        masked=PackedLayout.from_lengths(masked_lengths),
        input_ids=torch.randint(5, 300, (text.total,), generator=generator),
        text=text,
        clip_ids=torch.arange(len(clips)),
    )


@pytest.fixture
def model():
    torch.manual_seed(0)
    return PretrainingModel(TINY, ObjectivesConfig())


def test_the_total_is_the_weighted_sum_and_every_student_parameter_learns(model):
    losses = model(_batch([0.6, 1.2, 0.2]), 0.05)
    total = losses["contrastive"] + losses["self_distillation"] + 0.5 * losses["caption"]
    torch.testing.assert_close(losses["loss"].detach(), total)
    losses["loss"].backward()
    for name, parameter in model.named_parameters():
        if name.startswith("teacher"):
            assert parameter.grad is None, name
        else:
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
            assert parameter.grad.abs().max() > 0, name


def test_the_losses_start_at_chance(model):
    losses = model(_batch([0.6, 1.2, 0.2, 0.9]), 0.05)
    assert float(losses["caption"]) == pytest.approx(torch.log(torch.tensor(300.0)).item(), rel=0.1)
    assert float(losses["logit_scale"]) == pytest.approx(1 / 0.07)


def test_a_few_steps_reduce_every_loss(model):
    batch = _batch([0.6, 1.2, 0.2, 0.9])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-3)
    history = []
    for _ in range(30):
        losses = model(batch, 0.05)
        losses["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
        history.append({name: float(value.detach()) for name, value in losses.items()})
    for name in ("contrastive", "self_distillation", "caption"):
        assert history[-1][name] < history[0][name] - 0.2, name


def test_the_teacher_starts_as_the_student_and_pairs_name_every_parameter(model):
    pairs = list(model.teacher_pairs())
    assert {name for name, _, _ in pairs} == {
        name for name, _ in model.named_parameters() if name.startswith("teacher")
    }
    for name, teacher, student in pairs:
        assert torch.equal(teacher, student), name
        assert not teacher.requires_grad
        assert student.requires_grad


def test_a_shared_pass_feeds_masked_features_to_all_objectives(model):
    batch = _batch([0.6, 0.3])
    apart = model(batch, 0.05)
    model.objectives = dataclasses.replace(model.objectives, shared_pass=True)
    shared = model(batch, 0.05)
    assert torch.equal(apart["self_distillation"], shared["self_distillation"])
    assert not torch.equal(apart["contrastive"], shared["contrastive"])


def test_captions_shift_by_one_token():
    from slap_fast.training.model import _shift_captions

    batch = dataclasses.replace(
        _batch([0.2, 0.2]), input_ids=torch.tensor([1, 10, 2, 1, 20, 21, 2]), text=PackedLayout.from_lengths([3, 4])
    )
    inputs, targets, layout = _shift_captions(batch)
    assert inputs.tolist() == [1, 10, 1, 20, 21]
    assert targets.tolist() == [10, 2, 20, 21, 2]
    assert layout.lengths == (2, 3)
