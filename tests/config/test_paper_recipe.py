"""`recipe=paper` builds the paper's model: every dimension that the paper gives, checked on the meta device."""

from __future__ import annotations

import math

import pytest
import torch

from slap_fast.config.loading import load_run_config
from slap_fast.training.model import PretrainingModel


@pytest.fixture(scope="module")
def recipe():
    return load_run_config("paper", ["data.train=unused"]).recipe


@pytest.fixture(scope="module")
def model(recipe):
    with torch.device("meta"):
        return PretrainingModel(recipe.model, recipe.objectives, load_pretrained_text=False)


def _shapes(module):
    return {name: tuple(parameter.shape) for name, parameter in module.named_parameters()}


def test_the_frontend_is_16_khz_25_ms_10_ms_64_bins(recipe):
    mel = recipe.model.mel
    assert (mel.sample_rate, mel.win_length, mel.hop_length, mel.n_mels) == (16_000, 400, 160, 64)
    assert mel.window.startswith("hann")
    # 16 x 16 patches: 4 tokens every 160 ms.
    assert recipe.model.num_tokens(16_000 * 16) == 4 * 100


def test_the_audio_encoder_has_12_layers_of_768_with_12_heads_and_an_mlp_of_3072(model):
    shapes = _shapes(model.student.audio_encoder)
    expected = {"patch_embedding.weight": (768, 256), "mask_token": (768,), "norm.weight": (768,)}
    for layer in range(12):
        prefix = f"blocks.{layer}."
        expected |= {
            prefix + "attention_norm.weight": (768,),
            prefix + "attention.qkv.weight": (3 * 768, 768),
            prefix + "attention.out.weight": (768, 768),
            prefix + "mlp_norm.weight": (768,),
            prefix + "mlp.gate_up.weight": (2 * 3072, 768),
            prefix + "mlp.down.weight": (768, 3072),
        }
    assert shapes == expected


def test_two_local_layers_of_24_columns_then_a_global_one(model):
    windows = [block.attention.window for block in model.student.audio_encoder.blocks]
    assert windows == [(48, 48), (48, 48), (-1, -1)] * 4
    assert {block.attention.heads for block in model.student.audio_encoder.blocks} == {12}
    assert {block.attention.tokens_per_frame for block in model.student.audio_encoder.blocks} == {4}


def test_both_towers_are_pooled_by_one_probe_with_12_heads(model):
    for pooling in (model.student.audio_pooling, model.student.text_pooling):
        assert pooling.heads == 12
        assert tuple(pooling.probe.shape) == (768,)
        assert tuple(pooling.up.weight.shape) == (3072, 768)


def test_the_text_encoder_is_modernbert_base(recipe, model):
    assert recipe.model.text.pretrained == "answerdotai/ModernBERT-base"
    config = model.student.text_encoder.model.config
    assert config.model_type == "modernbert"
    assert (config.num_hidden_layers, config.num_attention_heads, config.hidden_size) == (22, 12, 768)
    assert (config.intermediate_size, config.vocab_size) == (1152, 50_368)
    assert sum(p.numel() for p in model.student.text_encoder.parameters()) == pytest.approx(149e6, rel=0.01)


def test_the_caption_decoder_has_8_layers_of_512_with_8_heads_with_768_wide_audio_features(model):
    decoder = model.student.caption_decoder
    assert len(decoder.blocks) == 8
    for block in decoder.blocks:
        assert block.attention.heads == block.cross_attention.heads == 8
        assert block.attention.window == (-1, 0)
        assert tuple(block.attention.qkv.weight.shape) == (3 * 512, 512)
        assert tuple(block.cross_attention.kv.weight.shape) == (2 * 512, 768)
    assert tuple(decoder.token_embedding.weight.shape) == (50_368, 512)


def test_self_distillation_has_32768_prototypes_in_256_dimensions(recipe, model):
    linears = [module for module in model.student_head.mlp if isinstance(module, torch.nn.Linear)]
    assert [(m.in_features, m.out_features) for m in linears] == [(768, 2048), (2048, 2048), (2048, 256)]
    assert tuple(model.student_head.prototypes.shape) == (32_768, 256)
    assert _shapes(model.teacher_encoder) == _shapes(model.student.audio_encoder)
    assert recipe.augmentation.masked_fraction == 0.5
    assert (recipe.schedule.ema_momentum, recipe.schedule.ema_final_momentum) == (0.994, 1.0)
    objectives = recipe.objectives
    assert (objectives.student_temperature, objectives.teacher_temperature_start) == (0.1, 0.04)
    assert (objectives.teacher_temperature, objectives.teacher_temperature_steps) == (0.07, 10_000)
    assert objectives.sinkhorn_iterations == 3


def test_weights_and_schedule_are_the_papers(recipe):
    objectives, schedule, optimizer = recipe.objectives, recipe.schedule, recipe.optimizer
    assert objectives.contrastive_weight == objectives.self_distillation_weight == 1.0
    assert objectives.caption_weight == 0.5
    assert (schedule.batch_size, schedule.warmup_steps, optimizer.learning_rate) == (2048, 2000, 1e-4)
    assert schedule.steps == pytest.approx(2 * 109e6 / 2048, rel=1e-3)
    assert recipe.data.max_duration == 30.0
    assert recipe.model.logit_scale_init == pytest.approx(math.log(1 / 0.07))
    assert recipe.model.logit_scale_max == pytest.approx(math.log(100))
