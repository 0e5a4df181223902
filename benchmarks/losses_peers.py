"""Peers of the loss benchmark: losses in plain PyTorch, losses of libraries, and slap-fast's backends.

A step computes the loss and the gradients of all parameters. The memory that it holds beyond these is what the
benchmark reports. Formulas compute in the dtype of their inputs, as in common use.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from benchmarks.harness.case import Outputs, Run
from benchmarks.harness.machine import available_bytes
from benchmarks.losses_workload import Captions, Contrastive, Prototypes, Repeated
from slap_fast.ops import contrastive_loss, linear_cross_entropy, prototype_cross_entropy

CHECKPOINTED_ROWS = 1024
ROOM = 0.9  # share of the available memory that a peer may use
OPEN_CLIP = {"infonce": "ClipLoss", "sigmoid": "SigLipLoss"}

Loss = Callable[..., Tensor]


def run(workload: Repeated, parameters: Sequence[Tensor], names: Sequence[str], loss: Loss) -> Run:
    """Set up `loss(*parameters)`; `names` are those of the parameters."""
    for parameter in parameters:
        parameter.requires_grad_()

    def step() -> list[Tensor]:
        value = loss(*parameters)
        return [value.detach(), *torch.autograd.grad(value, parameters)]

    def outputs() -> Outputs:
        value, *gradients = step()
        return {
            "loss": value,
            **{
                name: workload.checked(gradient) if gradient.shape[:1] == (workload.rows,) else gradient
                for name, gradient in zip(names, gradients, strict=True)
            },
        }

    return Run(step=step, outputs=outputs, outputs_run_step=True)


def contrastive(workload: Contrastive, loss: Loss) -> Run:
    """Set up `loss(audio, text, logit_scale)`, for the sigmoid `loss(audio, text, logit_scale, logit_bias)`."""
    return run(workload, workload.parameters(), workload.parameter_names, loss)


def captions(workload: Captions, loss: Loss) -> Run:
    """Set up `loss(hidden, vocabulary, target)`."""
    target = workload.target()
    return run(
        workload,
        workload.parameters(),
        ("hidden", "vocabulary"),
        lambda hidden, vocabulary: loss(hidden, vocabulary, target),
    )


def prototypes(workload: Prototypes, loss: Loss) -> Run:
    """Set up `loss(student, prototypes, teacher's features, teacher's prototypes)`."""
    teacher = workload.teacher()
    return run(
        workload,
        workload.parameters(),
        ("student", "prototypes"),
        lambda student, matrix: loss(student, matrix, *teacher),
    )


def contrastive_backend(workload: Contrastive, name: str) -> Run:
    def loss(audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return contrastive_loss(audio, text, scale, bias, kind=workload.kind, backend=name).loss

    return contrastive(workload, loss)


def contrastive_by_ids(workload: Contrastive, name: str) -> Run:
    ids = torch.arange(workload.rows, device=workload.device)

    def loss(audio: Tensor, text: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        return contrastive_loss(audio, text, scale, bias, ids=ids, kind=workload.kind, backend=name).loss

    return contrastive(workload, loss)


def captions_backend(workload: Captions, name: str) -> Run:
    return captions(workload, partial(linear_cross_entropy, backend=name))


def prototypes_backend(workload: Prototypes, name: str) -> Run:
    def loss(student: Tensor, matrix: Tensor, teacher: Tensor, teacher_matrix: Tensor) -> Tensor:
        return prototype_cross_entropy(
            student,
            teacher,
            matrix,
            teacher_matrix,
            student_temperature=workload.student_temperature,
            teacher_temperature=workload.teacher_temperature,
            sinkhorn_iterations=workload.iterations,
            backend=name,
        )

    return prototypes(workload, loss)


def formula(workload: Contrastive) -> Loss:
    """The loss of all pairs at once, from one product."""
    if workload.kind == "sigmoid":
        return lambda audio, text, scale, bias: _sigmoid_sum(audio, text, scale, bias, 0) / len(audio)

    def infonce(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        logits = scale * audio @ text.T
        labels = torch.arange(len(audio), device=audio.device)
        return (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2

    return infonce


@lru_cache(maxsize=1)  # called again for each set of inputs
def compiled(workload: Contrastive) -> Loss:
    torch._dynamo.reset()  # compile each size alone, without dynamic shapes
    return torch.compile(formula(workload), dynamic=False)


def checkpointed(workload: Contrastive) -> Loss:
    """The formula by chunks of rows, for the softmax also of columns; each chunk is recomputed in the backward."""
    part = _sigmoid_sum if workload.kind == "sigmoid" else _cross_entropy_sum

    def one_way(queries: Tensor, keys: Tensor, *scalars: Tensor) -> Tensor:
        total = queries.new_zeros((), dtype=torch.float32)
        for begin in range(0, len(queries), CHECKPOINTED_ROWS):
            chunk = queries[begin : begin + CHECKPOINTED_ROWS]
            total = total + checkpoint(part, chunk, keys, *scalars, begin, use_reentrant=False)
        return total / len(queries)

    def loss(audio: Tensor, text: Tensor, *scalars: Tensor) -> Tensor:
        if workload.kind == "sigmoid":
            return one_way(audio, text, *scalars)
        return (one_way(audio, text, *scalars) + one_way(text, audio, *scalars)) / 2

    return loss


def _cross_entropy_sum(queries: Tensor, keys: Tensor, scale: Tensor, offset: int) -> Tensor:
    labels = torch.arange(offset, offset + len(queries), device=queries.device)
    return F.cross_entropy(scale * queries @ keys.T, labels, reduction="sum")


def _sigmoid_sum(queries: Tensor, keys: Tensor, scale: Tensor, bias: Tensor, offset: int) -> Tensor:
    logits = scale * queries @ keys.T + bias
    signs = -torch.ones_like(logits)
    signs.diagonal(offset).fill_(1)
    return -F.logsigmoid(signs * logits).sum()


def open_clip(workload: Contrastive) -> Loss:
    return getattr(_open_clip_losses(), OPEN_CLIP[workload.kind])()


@cache
def _open_clip_losses() -> ModuleType:
    """open_clip's file of losses alone: its package imports torchvision and timm."""
    package = importlib.util.find_spec("open_clip")
    assert package is not None
    assert package.submodule_search_locations is not None
    path = Path(next(iter(package.submodule_search_locations)), "loss.py")
    spec = importlib.util.spec_from_file_location("open_clip_losses", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def inf_cl(workload: Contrastive) -> Loss:
    """Inf-CL, whose kernels need a process group: here of this process alone."""
    from inf_cl import cal_inf_loss

    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(
            "nccl", store=torch.distributed.HashStore(), rank=0, world_size=1, device_id=torch.device("cuda", 0)
        )

    def loss(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
        return (cal_inf_loss(audio, text, scale=scale) + cal_inf_loss(text, audio, scale=scale)) / 2

    return loss


def cross_entropy_of_linear(hidden: Tensor, vocabulary: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden, vocabulary), target)


def torch_linear_cross_entropy(*, chunked: bool) -> Loss:
    if not chunked:
        return F.linear_cross_entropy
    return partial(F.linear_cross_entropy, options=torch.nn.LinearCrossEntropyOptions())


def liger() -> Loss:
    from liger_kernel.transformers.fused_linear_cross_entropy import LigerFusedLinearCrossEntropyLoss

    loss = LigerFusedLinearCrossEntropyLoss()
    return lambda hidden, vocabulary, target: loss(vocabulary, hidden, target)


def cut_cross_entropy() -> Loss:
    from cut_cross_entropy import linear_cross_entropy as cut

    return cut


def dinov2(workload: Prototypes) -> Loss:
    """All scores of both sides, Sinkhorn-Knopp in place on exponentials in float32, a mean over tokens."""

    def assign(teacher: Tensor, matrix: Tensor) -> Tensor:
        share = (teacher @ matrix.T).float().div_(workload.teacher_temperature).exp_()  # [T, K]
        share /= share.sum()
        for _ in range(workload.iterations):
            share /= share.sum(0, keepdim=True) * workload.prototypes
            share /= share.sum(1, keepdim=True) * workload.rows
        return share.mul_(workload.rows)

    def loss(student: Tensor, matrix: Tensor, teacher: Tensor, teacher_matrix: Tensor) -> Tensor:
        with torch.no_grad():
            target = assign(teacher, teacher_matrix)
        prediction = F.log_softmax((student @ matrix.T).float() / workload.student_temperature, dim=-1)
        return -(target * prediction).sum(-1).mean()

    return loss


def no_room(byte_count: float, device: str) -> str | None:
    """Why a peer that holds so many bytes is not run, or None: a system out of memory would kill the whole run."""
    if device == "cuda" and not torch.cuda.is_available():
        return None
    room = ROOM * available_bytes(device)
    return None if byte_count < room else f"holds {byte_count / 1e9:,.1f} GB at once, of {room / 1e9:,.1f} available"
