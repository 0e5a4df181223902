"""Settings that must not change results: compiled blocks and offloading."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.config.loading import ConfigError, load_run_config
from slap_fast.config.recipe import TrainingConfig
from slap_fast.training.build import build_model
from slap_fast.training.compilation import compile_blocks, transformer_blocks
from slap_fast.training.engine import deepspeed_config, ineffective_settings
from tests.training import tiny
from tests.training.efficiency_worker import HELD, OFFLOADED
from tests.training.ranks import finish, start_ranks, tail


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("ranks")
    names, log = ("compiled", "offloaded", "held"), folder / "ranks.log"
    codes = finish(start_ranks("tests.training.efficiency_worker", [[str(folder), *names]] * 2, log), log)
    assert codes == [0, 0], f"exit codes {codes}:\n{tail(log)}"
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in names}


def test_compiled_blocks_give_the_same_gradients_and_compile_once_for_all_lengths() -> None:
    config = tiny.run_config()
    plain, compiled = tiny.build(config).train(), tiny.build(config).train()
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    programs = CompileCounterWithBackend("aot_eager")
    compile_blocks(compiled, backend=programs)
    counts = []
    for step in range(3):
        for model in (plain, compiled):
            model.zero_grad()
            model(tiny.batch(config, step), 0.05)["loss"].backward()
        for (name, parameter), other in zip(plain.named_parameters(), compiled.parameters(), strict=True):
            if parameter.requires_grad:
                torch.testing.assert_close(other.grad, parameter.grad, msg=name)
        counts.append(programs.frame_count)
    # Local and global layers, first and later ones, of the student and the teacher.
    assert counts[0] < 2 * len(transformer_blocks(compiled))
    assert counts == [counts[0]] * 3
    assert not torch._dynamo.utils.counters["graph_break"]


def test_blocks_cannot_be_compiled_without_a_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def missing() -> str:
        raise exc.InvalidCxxCompiler

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", missing)
    config = tiny.run_config()
    training = dataclasses.replace(config.efficiency.training, compile=True)
    config = dataclasses.replace(config, efficiency=dataclasses.replace(config.efficiency, training=training))
    with pytest.raises(ConfigError, match=r"no C\+\+ compiler was found; install it, or set training.compile=false"):
        build_model(config, config.recipe.model, None)


def test_compiled_checkpointed_blocks_in_micro_batches_on_two_ranks_give_the_same_losses(
    results: dict[str, Any],
) -> None:
    plain, compiled = results["compiled"]
    assert compiled == pytest.approx(plain, rel=1e-5)


def test_at_stage_3_nothing_is_compiled_and_a_message_says_so() -> None:
    config = tiny.run_config(zero_stage=3)
    training = dataclasses.replace(config.efficiency.training, compile=True)
    config = dataclasses.replace(config, efficiency=dataclasses.replace(config.efficiency, training=training))
    model = build_model(config, config.recipe.model, None)
    assert not any("forward" in vars(block) for block in transformer_blocks(model))
    (note,) = ineffective_settings(training, torch.device("cpu"))
    assert note.startswith("training.compile has no effect at zero_stage=3")
    (note,) = ineffective_settings(TrainingConfig(zero_stage=2, offload_optimizer=True), torch.device("cpu"))
    assert "no effect without a GPU" in note
    effective = TrainingConfig(zero_stage=2, offload_optimizer=True, compile=True)
    assert not ineffective_settings(effective, torch.device("cuda"))


@pytest.mark.parametrize("case", range(len(OFFLOADED)))
def test_offloading_gives_the_same_losses(results: dict[str, Any], case: int) -> None:
    plain, *offloaded = results["offloaded"]
    assert offloaded[case] == pytest.approx(plain, rel=1e-5)


@pytest.mark.parametrize(("stage", "precision"), HELD)
def test_the_planned_memory_is_what_deepspeed_allocates(results: dict[str, Any], stage: int, precision: str) -> None:
    planned, held = results["held"][f"stage {stage}, {precision}"]
    assert planned == pytest.approx(held, rel=1e-3)


def test_offloading_is_passed_to_deepspeed() -> None:
    config = load_run_config(
        "quickstart", ["training.zero_stage=3", "training.offload_optimizer=true", "training.offload_parameters=true"]
    )
    settings = deepspeed_config(config, 1, "bf16")
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert settings["zero_optimization"]["offload_param"] == {"device": "cpu"}
    assert settings["zero_force_ds_cpu_optimizer"] is False
    plain = deepspeed_config(load_run_config("quickstart"), 1, "bf16")["zero_optimization"]
    assert not plain.keys() & {"offload_optimizer", "offload_param"}


def test_gradients_are_summed_over_ranks_in_float32() -> None:
    assert deepspeed_config(load_run_config("quickstart"), 2, "bf16")["communication_data_type"] == "fp32"


@pytest.mark.parametrize(
    ("key", "stage", "cure"),
    [
        ("offload_optimizer", 0, "training.zero_stage=1 or higher"),
        ("offload_parameters", 2, "training.zero_stage=3"),
    ],
)
def test_offloading_state_that_a_stage_does_not_partition_is_an_error(key: str, stage: Any, cure: str) -> None:
    with pytest.raises(ValueError, match=f"{key} is true at zero_stage={stage}; set {cure}, or training.{key}=false"):
        TrainingConfig(zero_stage=stage, **dict[str, Any]({key: True}))
