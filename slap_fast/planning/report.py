"""Report of a plan: as text with tables, and as JSON."""

from __future__ import annotations

import dataclasses
from typing import Any

from slap_fast.planning.memory import Parameters
from slap_fast.planning.planner import Option, Plan

_PLANNED_KEYS = ("training.zero_stage", "training.micro_batch_size", "training.activation_checkpointing")


def command(plan: Plan) -> str:
    """The launch command of the plan's best option."""
    request, best = plan.request, plan.best
    given = [argument for argument in request.arguments if argument.partition("=")[0] not in _PLANNED_KEYS]
    chosen = [f"training.zero_stage={best.stage}"]
    if best.micro_batch_size < plan.rank_batch_size:
        chosen.append(f"training.micro_batch_size={best.micro_batch_size}")
    if best.checkpointed:
        chosen.append("training.activation_checkpointing=true")
    launcher = f"deepspeed --num_accelerators {request.devices}"
    if request.device.is_cpu:
        launcher = f"DS_ACCELERATOR=cpu {launcher}"
    elif request.devices > request.device.node:
        launcher = "deepspeed --hostfile hosts"
    return " ".join([launcher, "slap_fast/train.py", *given, *chosen])


def as_json(plan: Plan) -> dict[str, Any]:
    """The whole plan, in bytes, seconds and counts."""
    request, device = plan.request, plan.request.device
    schedule, objectives = request.config.recipe.schedule, request.config.recipe.objectives
    total = plan.best.time.total
    clips = schedule.batch_size / total
    return {
        "devices": request.devices,
        "device": {
            "key": device.key,
            "name": device.name,
            "figures": {name: dataclasses.asdict(figure) for name, figure in device.figures().items()},
        },
        "objectives": list(objectives.active),
        "precision": "bf16" if plan.bf16 else "fp32",
        "workload": {
            "origin": plan.workload.origin,
            "mean_seconds": plan.workload.mean,
            "longest_seconds": plan.workload.longest,
            "caption_tokens": plan.workload.caption_tokens,
            "flac_bytes_per_second": plan.workload.bytes_per_second,
        },
        "parameters": dataclasses.asdict(plan.parameters),
        "clips_per_device": plan.rank_batch_size,
        "useful_operations_per_device": plan.model_flops,
        "options": [dataclasses.asdict(option) for option in plan.options],
        "asked": dataclasses.asdict(plan.asked),
        "recommended": None if plan.recommended is None else dataclasses.asdict(plan.recommended),
        "command": None if plan.recommended is None else command(plan),
        "of_recommended_else_asked": {
            "step_seconds": total,
            "days": schedule.steps * total / 86_400,
            "clips_per_second": clips,
            "audio_seconds_per_second": clips * plan.workload.mean,
            "utilization": utilization(plan),
            "storage_bytes_per_second": clips * plan.workload.mean * plan.workload.bytes_per_second,
        },
    }


def utilization(plan: Plan) -> float:
    """Model FLOPs utilization: the model FLOPs of a step as a fraction of the device's peak."""
    device = plan.request.device
    peak = (device.peak_bf16 if plan.bf16 else device.peak_fp32).value
    return plan.model_flops / plan.best.time.total / peak


def as_text(plan: Plan) -> str:
    request, device, workload = plan.request, plan.request.device, plan.workload
    schedule = request.config.recipe.schedule
    lines = [
        f"{request.devices} x {device.name}, {'bf16' if plan.bf16 else 'fp32'}; "
        f"batch {schedule.batch_size:,}, {plan.rank_batch_size:,} clips per device",
        f"clips: {workload.origin}; {workload.mean:.1f} s on average, {workload.longest:.1f} s at most, "
        f"captions of {workload.caption_tokens} tokens",
        f"objectives: {', '.join(request.config.recipe.objectives.active)}",
        f"parameters: {_counted(plan.parameters)}",
        "",
        f"peak memory per device in GB; * fits in {request.options.usable_memory:.0%} of "
        f"{device.memory.value / 1e9:.1f} GB",
        *_table(plan),
        "",
    ]
    if plan.recommended is None:
        lines.append(
            "nothing fits: use more devices, a smaller schedule.batch_size, or training.offload_optimizer=true"
        )
        lines.append("with the settings of the recipe:")
    else:
        lines += ["recommended, the fastest that fits:", f"  {command(plan)}"]
    return "\n".join([*lines, *_details(plan), "", *_figures(plan)])


def _counted(parameters: Parameters) -> str:
    named = {"trained": parameters.trained, "of the teacher": parameters.averaged, "frozen": parameters.frozen}
    return ", ".join(f"{count:,} {name}" for name, count in named.items() if count)


def _table(plan: Plan) -> list[str]:
    lines = [f"  {'micro-batch':>11}  {'checkpointed':>12}" + "".join(f"  {f'stage {stage}':>9}" for stage in range(4))]
    rows: dict[tuple[bool, int], list[Option]] = {}
    for option in plan.options:
        rows.setdefault((option.checkpointed, option.micro_batch_size), []).append(option)
    for (checkpointed, size), options in rows.items():
        cells = "".join(f"  {option.peak / 1e9:>8.1f}{'*' if option.fits else ' '}" for option in options)
        lines.append(f"  {size:>11,}  {'yes' if checkpointed else 'no':>12}{cells}".rstrip())
    return lines


def _details(plan: Plan) -> list[str]:
    request, best = plan.request, plan.best
    schedule, memory, time = request.config.recipe.schedule, best.memory, best.time
    clips = schedule.batch_size / time.total
    storage = clips * plan.workload.mean * plan.workload.bytes_per_second
    parts = [
        ("parameters", memory.parameters),
        ("optimizer", memory.optimizer),
        ("gradients", memory.gradients),
        ("teacher's average", memory.teacher),
        ("activations", memory.activations),
    ]
    named = ", ".join(f"{name} {value / 1e9:.1f}" for name, value in parts if value >= 5e7)
    seconds = ", ".join(
        f"{name} {value * 1e3:,.1f}" for name, value in dataclasses.asdict(time).items() if value >= 5e-5
    )
    lines = [
        f"  memory   peak of {best.peak / 1e9:.1f} GB, {request.device.overhead.value / 1e9:.1f} of it outside the "
        f"tensors; tensors: {named}"
    ]
    if memory.host:
        lines.append(f"  host     {memory.host / 1e9:.1f} GB of host memory per device")
    return [
        *lines,
        f"  step     {time.total * 1e3:,.1f} ms: {seconds}",
        f"  speed    {clips:,.0f} clips/s, {clips * plan.workload.mean:,.0f} s of audio/s, "
        f"{utilization(plan):.0%} model FLOPs utilization",
        f"  run      {schedule.steps:,} steps in {_span(schedule.steps * time.total)}",
        f"  storage  {storage / request.devices / 1e6:,.1f} MB/s per device, {storage / 1e6:,.1f} MB/s in total",
    ]


def _span(seconds: float) -> str:
    for unit, length in (("days", 86_400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _figures(plan: Plan) -> list[str]:
    lines = ["device figures (FLOP/s, bytes, seconds)"]
    for name, figure in plan.request.device.figures().items():
        lines.append(f"  {name:<16}  {figure.value:>9.3g}  {figure.kind}: {figure.origin}")
    return lines
