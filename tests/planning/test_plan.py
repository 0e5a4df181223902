"""Plans: exact counts, memory as of a real pass, tables that hang together, and errors that help."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch.profiler import ProfilerActivity, profile

from benchmarks.training_step import CPU_MODEL, caption_length, mixed_durations
from slap_fast.cli import main
from slap_fast.config.loading import ConfigError
from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.planning.devices import PATH, Figure, find_device
from slap_fast.planning.footprint import Lengths, Passes, training_passes
from slap_fast.planning.memory import Layout, Parameters, memory
from slap_fast.planning.planner import Plan, make_plan
from slap_fast.planning.report import as_text
from slap_fast.planning.request import parse_request
from slap_fast.planning.step_time import Step, step_time
from slap_fast.training.build import checkpoint_activations
from slap_fast.training.model import PretrainingModel
from tests.training import tiny

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
SMALL = ("recipe=quickstart", "schedule.batch_size=256", "plan.caption_tokens=20")


def plan(*arguments: str) -> Plan:
    return make_plan(parse_request([*SMALL, *arguments]))


@pytest.fixture(scope="module")
def on_gpus() -> Plan:
    return plan("devices=4", "device=h100")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_activations_are_counted_as_a_real_pass_allocates_them(checkpointed: bool) -> None:
    config = tiny.run_config(width=64)
    model = tiny.build(config).train()
    with torch.device("meta"):
        counted = PretrainingModel(config.recipe.model, config.recipe.objectives).train()
    if checkpointed:
        checkpoint_activations(model)
        checkpoint_activations(counted)
    batch = tiny.batch(config, 0)
    model(batch, 0.05)["loss"].backward()  # what a first pass alone allocates
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(batch, 0.05)["loss"].backward()
    now = most = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    lengths = Lengths(batch.samples.lengths, batch.text.lengths, config.recipe.augmentation.masked_fraction)
    assert training_passes(counted, lengths, "cpu", in_parts=False).held_with_gradients == pytest.approx(most, rel=0.02)


def test_parameters_are_counted_exactly() -> None:
    config = tiny.run_config()
    model = tiny.build(config)
    with torch.device("meta"):
        counted = PretrainingModel(config.recipe.model, config.recipe.objectives)
    own = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    parameters = Parameters.of(counted)
    assert parameters.trained == sum(count for count, trained in own if trained)
    assert parameters.averaged == sum(count for count, trained in own if not trained)


def test_higher_stages_and_smaller_micro_batches_take_less(on_gpus: Plan) -> None:
    peaks = {(option.checkpointed, option.micro_batch_size, option.stage): option.peak for option in on_gpus.options}
    assert peaks[False, 64, 0] > peaks[False, 64, 1]
    assert peaks[False, 64, 2] > peaks[False, 32, 2] > peaks[False, 16, 2]
    assert peaks[False, 64, 2] > peaks[True, 64, 2]


def test_what_is_recommended_fits_and_nothing_that_fits_is_much_faster(on_gpus: Plan) -> None:
    best = on_gpus.recommended
    assert best is not None
    assert best.fits
    assert all(best.time.total < 1.05 * option.time.total for option in on_gpus.options if option.fits)


def test_less_memory_makes_smaller_micro_batches(on_gpus: Plan) -> None:
    whole = min(option.peak for option in on_gpus.options if option.micro_batch_size == on_gpus.share)
    tight = plan("devices=4", "plan.usable_memory=1", f"plan.memory_gb={(whole - 1e6) / 1e9}")
    assert tight.recommended is not None
    assert tight.recommended.micro_batch_size < tight.share
    assert f"training.micro_batch_size={tight.recommended.micro_batch_size}" in as_text(tight)
    nothing = plan("devices=4", "plan.memory_gb=0.001")
    assert nothing.recommended is None
    assert "nothing fits" in as_text(nothing)


def test_offloaded_states_leave_the_device_for_the_host() -> None:
    nothing = Passes(0.0, 0.0, (), 0.0, 0.0, 0.0)
    counts = Parameters(trained=1_000_000, averaged=400_000, small=1000)
    layout = Layout(3, 4, bf16=True, in_parts=False)
    kept = memory(counts, layout, nothing, 0.0)
    away = memory(counts, dataclasses.replace(layout, offload_optimizer=True), nothing, 0.0)
    assert away.optimizer == 0
    assert kept.optimizer == 3_000_000
    assert kept.host == 0
    assert away.host == 4_000_000
    assert away.peak < kept.peak


def test_the_recipe_as_it_stands_is_one_of_the_options() -> None:
    own = plan(
        "devices=64", "training.zero_stage=2", "training.micro_batch_size=3", "training.activation_checkpointing=true"
    )
    assert (own.asked.stage, own.asked.micro_batch_size, own.asked.checkpointed) == (2, 3, True)


def test_the_whole_plan_is_printed_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SMALL, "devices=2", "device=cpu", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["device"]["figures"]["peak_bf16"]["kind"] == "measured"
    assert printed["of_recommended_else_asked"]["step_seconds"] > 0
    assert printed["command"].startswith(
        "DS_ACCELERATOR=cpu deepspeed --num_accelerators 2 slap_fast/train.py recipe=q"
    )


def test_a_plan_says_of_each_figure_whether_it_was_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SMALL, "devices=16", "device=h200"]) == 0
    printed = capsys.readouterr().out
    assert "nominal: data sheet" in printed
    assert "assumed: nothing of this code has been measured on it" in printed
    assert "16 clips a device" in printed


@pytest.mark.parametrize("key", yaml.safe_load(PATH.read_text()))
def test_every_device_has_its_peaks_and_says_where_they_are_from(key: str) -> None:
    figures = find_device(key, 1).figures()
    for name in ("peak_bf16", "peak_fp32"):
        assert figures[name].value > 1e11
        assert figures[name].kind == ("measured" if key == "cpu" else "nominal")


def test_longer_clips_and_captions_take_longer() -> None:
    short, long, wordy = (
        plan("device=cpu", f"plan.seconds={seconds}", f"plan.caption_tokens={tokens}").asked
        for seconds, tokens in ((5, 10), (20, 10), (5, 40))
    )
    for longer in (long, wordy):
        assert longer.time.total > short.time.total
        assert longer.peak > short.peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["devices=3"], r"devices=3: schedule.batch_size \(256\) does not divide among them; use devices=2"),
        (["devices=many"], "devices is 'many'; it must be a whole number"),
        (["device=h10"], "device=h10: no such device; did you mean 'h100'"),
        (["device_count=2"], "unknown key 'device_count'"),
        (["plan.memory=80"], "unknown key 'plan.memory'; did you mean 'plan.memory_gb'"),
        (["plan.memory_gb=-1"], "plan.memory_gb is -1.0; it must be positive"),
        (["plan.usable_memory=92"], "plan.usable_memory is 92.0; it is a share, at most 1"),
        (["training.zero_stge=1"], "did you mean 'training.zero_stage'"),
    ],
)
def test_a_request_that_cannot_be_understood_says_what_to_do(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_request([*SMALL, *arguments])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mix", ["mixed", "equal"])
def test_a_step_takes_as_long_as_the_result_says_that_the_figures_are_from(mix: str, precision: str) -> None:
    result = json.loads((RESULTS / "training_step-cpu.json").read_text())
    if yaml.safe_load(PATH.read_text())["cpu"][f"peak_{precision}"]["date"] != result["date"]:
        pytest.skip("the result was renewed since, perhaps on another machine")
    (case,) = [case for case in result["cases"] if case["name"] == f"{mix} durations, {precision}"]
    (packed,) = [peer for peer in case["peers"] if peer["name"] == "packed"]
    with torch.device("meta"):
        model = PretrainingModel(CPU_MODEL, ObjectivesConfig(), load_pretrained_text=False)
    model = model.train().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    durations = mixed_durations(8) if mix == "mixed" else (10.0,) * 8
    samples = [round(seconds * CPU_MODEL.mel.sample_rate) for seconds in durations]
    captions = [caption_length(clip) for clip in range(len(samples))]
    tokens = [CPU_MODEL.num_tokens(count) for count in samples]
    passes = training_passes(model, Lengths(samples, captions, 0.5), "cpu", in_parts=False)
    two_cores = dataclasses.replace(find_device("cpu", 1), **_of_two_cores())
    planned = step_time(
        Step(passes, None, 1, tokens, captions, sum(tokens) // 2),
        CPU_MODEL,
        Parameters.of(model),
        Layout(0, 1, bf16=precision == "bf16", in_parts=False),
        two_cores,
        batch_size=8,
        shared_pass=False,
        checkpointed=False,
        sinkhorn_iterations=3,
    )
    assert planned.total == pytest.approx(packed["time"]["median"], rel=0.15)


def _of_two_cores() -> dict[str, Any]:
    known = yaml.safe_load(PATH.read_text())["cpu"]
    names = ("peak_bf16", "peak_fp32", "bandwidth")
    return {name: Figure(2 * float(known[name]["value"]), known[name]["is"], "") for name in names}
