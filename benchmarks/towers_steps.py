"""Steps of the benchmark of audio towers: encoding and training with any tower, and the check of its results."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.harness.case import AUDIO_SECONDS, Outputs, Run, relative_errors
from benchmarks.step_flops import step_flops
from benchmarks.towers_workload import BACKWARD, Workload, batches_by_length
from benchmarks.training_step import TEACHER_TEMPERATURE, caption_length
from benchmarks.training_step import Workload as TrainingBatch
from slap_fast.data.loading.batch import Batch
from slap_fast.ops import dispatch

OPERATIONS = "GFLOP"  # of matrix products, with those of padding

Groups = list[list[int]]
Grouping = Callable[[Workload, Sequence[int]], Groups]


@dataclass(frozen=True)
class Tower:
    """An audio tower.

    Attributes:
        module: all that is trained.
        width: of the embeddings.
        prepare: inputs of the clips with these numbers, on the device; not timed.
        embed: the inputs to `[clips, width]` embeddings.
        flops: of a forward pass over batches of these clips.
        contrast: contrastive loss of embeddings and those of their captions.
        seconds: of the audio of a clip of this duration that it uses.
        plain: backends by op; its results are compared with theirs.
    """

    module: nn.Module
    width: int
    prepare: Callable[[Sequence[int]], Any]
    embed: Callable[[Any], Tensor]
    flops: Callable[[Groups], float]
    contrast: Callable[[Tensor, Tensor], Tensor]
    seconds: Callable[[float], float] = float
    plain: Mapping[str, str] = field(default_factory=dict)


Build = Callable[[Workload], Tower]


def together(workload: Workload, clips: Sequence[int]) -> Groups:
    """One batch."""
    return [list(clips)]


def by_length(workload: Workload, clips: Sequence[int]) -> Groups:
    """Batches of clips of similar length, as open_clip's `LengthBucketer` and its bound on the tokens of a batch."""
    batches = batches_by_length([workload.tokens[clip] for clip in clips], workload.bucket_tokens)
    return [[clips[position] for position in batch] for batch in batches]


def one_at_a_time(workload: Workload, clips: Sequence[int]) -> Groups:
    """Batches of one clip, which need no padding."""
    return [[clip] for clip in clips]


def encode(workload: Workload, build: Build, grouping: Grouping) -> Run:
    """The forward pass alone."""
    tower, groups = _build(workload, build, grouping)
    tower.module.eval()
    inputs = [tower.prepare(group) for group in groups]

    def step() -> list[Tensor]:
        with torch.no_grad(), workload.autocast():
            return [tower.embed(batch) for batch in inputs]

    return Run(step, lambda: _check(workload, tower, grouping, None), work=_work(workload, tower, groups, 1))


def train(workload: Workload, build: Build, grouping: Grouping, *, contrastive: bool) -> Run:
    """Forward and backward passes from the contrastive loss of all clips, or from given gradients of the embeddings."""
    tower, groups = _build(workload, build, grouping)
    inputs = [tower.prepare(group) for group in groups]
    targets = workload.incoming([clip for group in groups for clip in group], tower.width)

    def loss(embeddings: Tensor, targets: Tensor) -> Tensor:
        return tower.contrast(embeddings, targets) if contrastive else (embeddings * targets).sum()

    def step() -> None:
        with workload.autocast():
            embeddings = torch.cat([tower.embed(batch) for batch in inputs])
        loss(embeddings.float(), targets).backward()
        tower.module.zero_grad(set_to_none=True)

    work = _work(workload, tower, groups, 1 + BACKWARD)
    return Run(step, lambda: _check(workload, tower, grouping, loss), work=work)


def train_all_objectives(workload: Workload) -> Run:
    """Forward and backward passes of the whole model: text tower, caption decoder, teacher and three losses.

    In bfloat16 its weights are, too, as in training.
    """

    def result(dtype: torch.dtype, backends: Mapping[str, str]) -> dict[str, Tensor]:
        model, batch = _pretraining(workload, [workload.durations[clip] for clip in workload.checked], dtype)
        with dispatch.preferring(**backends):
            loss = model(batch, TEACHER_TEMPERATURE)["loss"]
            loss.backward()
        return {"embeddings": loss.detach(), "gradients": _take_gradients(model)}

    def outputs() -> Outputs:
        plain = plain_backends()
        exact = result(torch.float32, plain)
        return _excess(result(workload.dtype, {}), result(workload.dtype, plain), exact)

    model, batch = _pretraining(workload, workload.durations, workload.dtype)

    def step() -> None:
        model(batch, TEACHER_TEMPERATURE)["loss"].backward()
        model.zero_grad(set_to_none=True)

    captions = [caption_length(clip) for clip in range(len(workload.durations))]
    flops = step_flops(workload.tokens, captions, workload.model, padded=False)
    return Run(step, outputs, work={OPERATIONS: flops / 1e9, AUDIO_SECONDS: workload.seconds})


def plain_backends() -> dict[str, str]:
    """PyTorch's backend for each op."""
    return {op: "torch" for op, backends in dispatch.report().items() if "torch" in dict(backends)}


def reference(*, trains: bool) -> Outputs:
    """What `Run.outputs` of a correct tower are: see `_excess`."""
    return dict.fromkeys(["embeddings", "gradients"] if trains else ["embeddings"], torch.ones((), dtype=torch.float64))


def _build(workload: Workload, build: Build, grouping: Grouping) -> tuple[Tower, Groups]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tower = build(workload)
    tower.module.to(workload.device)
    return tower, grouping(workload, range(len(workload.durations)))


def _work(workload: Workload, tower: Tower, groups: Groups, passes: int) -> dict[str, float]:
    heard = sum(tower.seconds(duration) for duration in workload.durations)
    return {OPERATIONS: passes * tower.flops(groups) / 1e9, AUDIO_SECONDS: heard}


def _check(
    workload: Workload, tower: Tower, grouping: Grouping, loss: Callable[[Tensor, Tensor], Tensor] | None
) -> Outputs:
    """A few clips in the batches of the peer, against the same tower with its plain backends and one clip at a time."""

    def result(workload: Workload, grouping: Grouping) -> dict[str, Tensor]:
        groups = grouping(workload, workload.checked)
        clips = [clip for group in groups for clip in group]
        with torch.set_grad_enabled(loss is not None), workload.autocast():
            embeddings = torch.cat([tower.embed(tower.prepare(group)) for group in groups]).float()
        found = {"embeddings": embeddings.detach()[torch.tensor(clips).argsort().to(embeddings.device)]}
        if loss is not None:
            loss(embeddings, workload.incoming(clips, tower.width)).backward()
            found["gradients"] = _take_gradients(tower.module)
        return found

    with dispatch.preferring(**tower.plain):
        exact = result(workload.single_precision(), one_at_a_time)
        plain = exact if workload.dtype == torch.float32 else result(workload, one_at_a_time)
    return _excess(result(workload, grouping), plain, exact)


def _excess(found: Mapping[str, Tensor], plain: Mapping[str, Tensor], exact: Mapping[str, Tensor]) -> Outputs:
    """One plus the relative error of each result, beyond twice that of `plain`, which has the same dtype.

    Towers of different architectures thereby share one reference: ones.
    """
    errors, allowed = relative_errors(found, exact), relative_errors(plain, exact)
    if not all(math.isfinite(error) for error in allowed.values()):
        raise ValueError(f"results of the plain way to run the tower are not finite: {allowed}")
    return {
        name: torch.tensor(1 + max(0.0, error - 2 * allowed[name]), dtype=torch.float64)
        for name, error in errors.items()
    }


def _take_gradients(module: nn.Module) -> Tensor:
    gradients = [weight.grad.flatten() for weight in module.parameters() if weight.grad is not None]
    module.zero_grad(set_to_none=True)
    return torch.cat(gradients)


def _pretraining(workload: Workload, durations: Sequence[float], dtype: torch.dtype) -> tuple[nn.Module, Batch]:
    training = TrainingBatch(tuple(durations), workload.model, dtype, workload.device)
    return training.pretraining_model(dtype), training.batch(dtype)
