"""Plans: exact counts, memory as in a real pass, step times as measured, consistent tables, helpful errors."""

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
from slap_fast.planning.devices import PATH, Device, Figure, find_device
from slap_fast.planning.footprint import Lengths, PassCost, training_cost
from slap_fast.planning.memory import Parameters, ZeroLayout, memory
from slap_fast.planning.planner import Plan, make_plan
from slap_fast.planning.report import as_text
from slap_fast.planning.request import parse_request
from slap_fast.planning.step_time import Step, step_time
from slap_fast.training.build import checkpoint_activations
from slap_fast.training.model import PretrainingModel
from tests.training import tiny

RESULTS = Path(__file__).resolve().parents[2] / "benchmarks" / "results"
# One layer of each kind: plans of more layers take as much longer.
LAYERS = tuple(f"model.{part}.layers=1" for part in ("audio", "text", "caption"))
SMALL = ("recipe=quickstart", *LAYERS, "schedule.batch_size=256", "plan.caption_tokens=20")


def plan(*arguments: str) -> Plan:
    return make_plan(parse_request([*SMALL, *arguments]))


@pytest.fixture(scope="module")
def on_gpus() -> Plan:
    return plan("devices=4", "device=h100")


@pytest.mark.parametrize("checkpointed", [False, True])
def test_counted_activations_are_those_that_a_real_pass_allocates(checkpointed: bool) -> None:
    config = tiny.run_config(width=64)
    model = tiny.build(config).train()
    with torch.device("meta"):
        counted = PretrainingModel(config.recipe.model, config.recipe.objectives).train()
    if checkpointed:
        checkpoint_activations(model)
        checkpoint_activations(counted)
    batch = tiny.batch(config, 0)
    model(batch, 0.05)["loss"].backward()  # only the first pass allocates some buffers
    model.zero_grad()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        model(batch, 0.05)["loss"].backward()
    current = peak = 0
    for event in sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns()):
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    lengths = Lengths(batch.samples.lengths, batch.text.lengths, config.recipe.augmentation.masked_fraction)
    cost = training_cost(counted, lengths, "cpu", accumulated=False)
    assert cost.peak_bytes_with_gradients == pytest.approx(peak, rel=0.02)


def test_parameters_are_counted_exactly() -> None:
    config = tiny.run_config()
    model = tiny.build(config)
    with torch.device("meta"):
        counted = PretrainingModel(config.recipe.model, config.recipe.objectives)
    own = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    parameters = Parameters.of(counted)
    assert parameters.trained == sum(count for count, trained in own if trained)
    assert parameters.averaged == sum(count for count, trained in own if not trained)


def test_higher_stages_and_smaller_micro_batches_need_less_memory(on_gpus: Plan) -> None:
    peaks = {(option.checkpointed, option.micro_batch_size, option.stage): option.peak for option in on_gpus.options}
    assert peaks[False, 64, 0] > peaks[False, 64, 1]
    assert peaks[False, 64, 2] > peaks[False, 32, 2] > peaks[False, 16, 2]
    assert peaks[False, 64, 2] > peaks[True, 64, 2]


@pytest.mark.parametrize("absent", [("self_distillation", "caption"), ("contrastive",), ("contrastive", "caption")])
def test_objectives_of_weight_0_are_not_planned(on_gpus: Plan, absent: tuple[str, ...]) -> None:
    fewer = plan("devices=4", "device=h100", *(f"objectives.{name}_weight=0" for name in absent))
    recipe = fewer.request.config.recipe
    model = PretrainingModel(recipe.model, recipe.objectives)
    assert fewer.parameters == Parameters.of(model)
    assert fewer.parameters.averaged == sum(teacher.numel() for _, teacher, _ in model.teacher_pairs())
    assert fewer.model_flops < on_gpus.model_flops
    for option, full in zip(fewer.options, on_gpus.options, strict=True):
        assert option.memory.optimizer < full.memory.optimizer
        assert option.peak < full.peak
        assert option.time.total < full.time.total
    assert f"objectives: {', '.join(recipe.objectives.active)}\n" in as_text(fewer)


def test_the_recommended_option_fits_and_no_other_that_fits_is_much_faster(on_gpus: Plan) -> None:
    best = on_gpus.recommended
    assert best is not None
    assert best.fits
    assert all(best.time.total < 1.05 * option.time.total for option in on_gpus.options if option.fits)


def test_less_memory_leads_to_smaller_micro_batches(on_gpus: Plan) -> None:
    whole = min(option.peak for option in on_gpus.options if option.micro_batch_size == on_gpus.rank_batch_size)
    tight = plan("devices=4", "plan.usable_memory=1", f"plan.memory_gb={(whole - 1e6) / 1e9}")
    assert tight.recommended is not None
    assert tight.recommended.micro_batch_size < tight.rank_batch_size
    assert f"training.micro_batch_size={tight.recommended.micro_batch_size}" in as_text(tight)
    nothing = plan("devices=4", "plan.memory_gb=0.001")
    assert nothing.recommended is None
    assert "nothing fits" in as_text(nothing)


def test_batches_that_are_decoded_ahead_on_the_gpu_are_in_its_memory(on_gpus: Plan) -> None:
    samples = 64 * on_gpus.workload.mean * 16_000  # float32 waveforms of a rank
    files = 64 * on_gpus.workload.mean * on_gpus.workload.bytes_per_second
    for prefetch in (0, 3):
        decoding = plan("devices=4", "device=h100", "loading.decoder=gpu", f"loading.prefetch={prefetch}")
        more = decoding.asked.peak - on_gpus.asked.peak
        assert more == pytest.approx(prefetch * 4 * samples + files, rel=1e-6)


def test_offloaded_states_are_in_host_memory() -> None:
    nothing = PassCost(0.0, 0.0, (), 0.0, 0.0, 0.0)
    counts = Parameters(trained=1_000_000, averaged=400_000, frozen=0, small=1000)
    layout = ZeroLayout(3, 4, bf16=True, accumulated=False)
    on_device = memory(counts, layout, nothing, 0.0)
    offloaded = memory(counts, dataclasses.replace(layout, offload_optimizer=True), nothing, 0.0)
    assert offloaded.optimizer == 0
    assert on_device.optimizer == 3_000_000
    assert on_device.host == 0
    assert offloaded.host == 4_000_000
    assert offloaded.peak < on_device.peak


def test_the_settings_of_the_recipe_are_one_of_the_options() -> None:
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


def test_a_plan_prints_the_origin_of_each_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *SMALL, "devices=16", "device=h200"]) == 0
    printed = capsys.readouterr().out
    assert "nominal: data sheet" in printed
    assert "assumed: nothing of this code has been measured on it" in printed
    assert "16 clips per device" in printed


@pytest.mark.parametrize("key", yaml.safe_load(PATH.read_text()))
def test_every_device_has_its_peaks_and_their_origin(key: str) -> None:
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
        (["devices=3"], r"devices=3: it does not divide schedule.batch_size \(256\); use devices=2"),
        (["devices=many"], "devices is 'many'; it must be a whole number"),
        (["device=h10"], "device=h10: no such device; did you mean 'h100'"),
        (["device_count=2"], "unknown key 'device_count'"),
        (["plan.memory=80"], "unknown key 'plan.memory'; did you mean 'plan.memory_gb'"),
        (["plan.memory_gb=-1"], "plan.memory_gb is -1.0; it must be positive"),
        (["plan.usable_memory=92"], "plan.usable_memory is 92.0; it is a fraction, at most 1"),
        (["training.zero_stge=1"], "did you mean 'training.zero_stage'"),
    ],
)
def test_errors_in_the_arguments_have_a_remedy(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_request([*SMALL, *arguments])


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("mix", ["mixed", "equal"])
def test_the_planned_step_time_is_that_of_the_recorded_benchmark(mix: str, precision: str) -> None:
    """The CPU figures claim to be fitted to this result: whoever records it again checks them, and fits them anew."""
    figure = yaml.safe_load(PATH.read_text())["cpu"][f"peak_{precision}"]
    assert (figure["is"], figure["case"]) == ("measured", precision)
    result = json.loads((RESULTS / f"{figure['result']}.json").read_text())
    (case,) = [case for case in result["cases"] if case["name"] == f"{mix} durations, {precision}"]
    (packed,) = [peer for peer in case["peers"] if peer["name"] == "packed"]
    with torch.device("meta"):
        model = PretrainingModel(CPU_MODEL, ObjectivesConfig(), load_pretrained_text=False)
    model = model.train().to(torch.bfloat16 if precision == "bf16" else torch.float32)
    durations = mixed_durations(8) if mix == "mixed" else (10.0,) * 8
    samples = [round(seconds * CPU_MODEL.mel.sample_rate) for seconds in durations]
    captions = [caption_length(clip) for clip in range(len(samples))]
    tokens = [CPU_MODEL.num_tokens(count) for count in samples]
    cost = training_cost(model, Lengths(samples, captions, 0.5), "cpu", accumulated=False)
    planned = step_time(
        Step(cost, None, 1, tokens, captions, sum(tokens) // 2),
        CPU_MODEL,
        Parameters.of(model),
        ZeroLayout(0, 1, bf16=precision == "bf16", accumulated=False),
        cpu_with_cores(result["settings"]["threads"]),
        batch_size=8,
        objectives=ObjectivesConfig(),
        checkpointed=False,
    )
    assert planned.total == pytest.approx(packed["time"]["median"], rel=0.15), (
        f"{figure['result']} is new, of {result['machine']['cpu']}: fit the cpu figures of devices.yaml to it"
    )


def cpu_with_cores(cores: int) -> Device:
    figures = yaml.safe_load(PATH.read_text())["cpu"]
    scaled: dict[str, Any] = {
        name: Figure(cores * float(figures[name]["value"]), figures[name]["is"], "")
        for name in ("peak_bf16", "peak_fp32", "bandwidth")
    }
    return dataclasses.replace(find_device("cpu", 1), **scaled)
