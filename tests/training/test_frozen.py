"""Frozen parts and learning rates per part, on two ranks at every ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from slap_fast.config.recipe import OptimizerConfig, RateMultipliersConfig
from slap_fast.training.frozen import frozen_notes, model_parts
from slap_fast.training.parameter_groups import part_multipliers, rate_multipliers
from tests.training import tiny
from tests.training.ranks import run_worker
from tests.training.saved_memory import saved_memory
from tests.training.worker import FROZEN, FROZEN_RUNS, frozen_run

RUNS = [frozen_run(precision, stage, offload) for precision, stage, _, offload in FROZEN_RUNS]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run_worker(tmp_path_factory.mktemp("ranks"), "frozen", "part_rates", "initial_files")


@pytest.mark.parametrize("run", RUNS)
def test_frozen_weights_stay_the_same_bits_in_training_checkpoints_and_exports(
    results: dict[str, Any], run: str
) -> None:
    seen = results["frozen"][run]
    assert seen["kept"]
    assert {name.partition(".")[0] for name in seen["moved"]} == {"audio_pooling", "text_pooling", "caption_decoder"}


@pytest.mark.parametrize("run", RUNS)
def test_a_frozen_part_has_no_optimizer_state_gradient_or_teacher(results: dict[str, Any], run: str) -> None:
    seen = results["frozen"][run]
    copies = 2 if "stage 0" in run else 1
    # ZeRO pads the shards.
    assert copies * seen["trained"] <= seen["moments"] < copies * seen["trained"] + 200
    assert seen["gradients"] == []
    assert seen["norms"] == ["caption_decoder", "heads"]
    assert {name.partition(".")[0] for name in seen["teacher"]} == {"teacher_head"}


@pytest.mark.parametrize("run", RUNS)
def test_a_run_with_frozen_parts_resumes_exactly_and_only_with_the_same_parts(
    results: dict[str, Any], run: str
) -> None:
    seen = results["frozen"][run]
    assert seen["resumed_losses"] == seen["losses"][1]
    assert seen["losses"][0] == pytest.approx(results["frozen"]["fp32, stage 0"]["losses"][0], rel=0.02, abs=0.02)
    assert (
        "model.freeze is [audio_encoder, logit_scale, text_encoder] in the checkpoint and [audio_encoder] in"
        in (seen["refused"])
    )
    assert "model.init_from=" in seen["refused"]


def test_ranks_that_would_start_from_other_files_are_an_error(results: dict[str, Any]) -> None:
    same, *others = results["initial_files"]
    assert same == "no error"
    assert len(others) == 3
    assert all("the files of rank 1 are not those of rank 0: start again, with a commit" in other for other in others)


@pytest.mark.parametrize("stage", [1, 3])
def test_the_update_of_a_parameter_is_its_multiplier_times_that_of_one_learning_rate(
    results: dict[str, Any], stage: int
) -> None:
    seen = results["part_rates"][f"stage {stage}"]
    expected = {
        "audio_encoder.patch_embedding.weight": 0.5**4,
        "audio_encoder.blocks.0.attention.qkv.weight": 0.5**3,
        "audio_encoder.blocks.2.mlp_norm.weight": 0.5,
        "audio_encoder.norm.weight": 1.0,
        "text_encoder.model.embeddings.tok_embeddings.weight": 0.1 * 0.5**3,
        "text_encoder.model.layers.1.mlp.Wo.weight": 0.1 * 0.5,
        "text_encoder.model.final_norm.weight": 0.1,
        "caption_decoder.blocks.0.attention.qkv.weight": 4.0,
        "audio_pooling.probe": 1.0,
    }
    assert {name: seen[name] for name in expected} == pytest.approx(expected, rel=1e-2)


def test_layers_of_a_bert_are_found_too() -> None:
    from transformers import BertConfig, BertModel

    sizes: dict[str, Any] = {
        "num_hidden_layers": 3,
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 16,
    }
    model = tiny.build(tiny.run_config())
    model.student.text_encoder.model = BertModel(BertConfig(vocab_size=37, **sizes), add_pooling_layer=False)
    rates = rate_multipliers(model, OptimizerConfig(layer_decay=0.5))
    found = {name: rates[weight] for name, weight in model.student.text_encoder.model.named_parameters()}
    assert {found[name] for name in found if name.startswith("embeddings.")} == {0.5**4}
    assert [found[f"encoder.layer.{layer}.output.dense.weight"] for layer in range(3)] == [0.5**3, 0.5**2, 0.5]


def test_the_log_has_the_rates_that_differ_and_names_settings_without_effect() -> None:
    config = tiny.changed(
        tiny.run_config(),
        model={"freeze": ("audio_encoder",)},
        objectives={"caption_weight": 0.0},
        optimizer={"rate_multipliers": RateMultipliersConfig(text_encoder=0.1, caption_decoder=2.0, audio_encoder=3.0)},
    )
    model, optimizer = tiny.build(config), config.recipe.optimizer
    assert part_multipliers(model, optimizer) == {"text_encoder": 0.1}
    decayed = tiny.changed(config, optimizer={"layer_decay": 0.5}).recipe.optimizer
    assert part_multipliers(model, decayed) == pytest.approx({"text_encoder": 0.1, "text_encoder/lowest": 0.1 * 0.5**3})
    frozen, distillation, *ignored = frozen_notes(model, config.recipe)
    assert frozen == "frozen: audio_encoder (10,752 parameters)"
    assert "self-distillation trains at most the prototype head" in distillation
    assert ignored == [
        "optimizer.rate_multipliers.audio_encoder=3 has no effect: it is frozen",
        "optimizer.rate_multipliers.caption_decoder=2 has no effect: this run does not have it",
    ]
    assert part_multipliers(model, OptimizerConfig()) == {}


@pytest.mark.parametrize("name", ["audio_encoder", "text_encoder"])
def test_a_frozen_tower_keeps_no_activations(name: str) -> None:
    config = tiny.run_config()
    batch = tiny.batch(config, 0)
    kept = []
    for freeze in ((), (name,)):
        model = tiny.build(tiny.changed(config, model={"freeze": freeze}))
        student = model.student
        with saved_memory() as peak:
            if name == "audio_encoder":
                features = student.audio_encoder(torch.rand(batch.tokens.total, 256), batch.tokens, batch.masked_tokens)
            else:
                features = student.text_encoder(batch.input_ids, batch.text)
            kept.append(peak.now)
        assert features.requires_grad == (not freeze)
    assert kept[0] > 50_000
    assert kept[1] == 0


def test_every_part_can_be_frozen() -> None:
    config = tiny.run_config()
    for name in model_parts(tiny.build(config)):
        model = tiny.build(tiny.changed(config, model={"freeze": (name,)}))
        model(tiny.batch(config, 0), 0.05)["loss"].backward()
        assert all(p.grad is None for p in model_parts(model)[name].parameters())
    assert set(FROZEN) < set(model_parts(tiny.build(config)))
