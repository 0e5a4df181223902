"""Every backend of the losses that serves on a GPU against the float64 oracles; one that does not is skipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from slap_fast.ops import contrastive_loss, dispatch, linear_cross_entropy, prototype_cross_entropy
from tests.ops._loss_checks import assert_as_accurate_as_plain, unit_rows
from tests.oracles.contrastive_loss import contrastive_loss as contrastive_oracle
from tests.oracles.linear_cross_entropy import linear_cross_entropy as caption_oracle
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as prototype_oracle

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [
    pytest.param(op, name, id=f"{op}-{name}")
    for op in ("contrastive_loss", "linear_cross_entropy", "prototype_cross_entropy")
    for name, _ in dispatch.report()[op]
]


def _backend(op: str, name: str) -> str:
    reason = dict(dispatch.report()[op])[name]
    if reason is not None:
        pytest.skip(reason)
    return name


@pytest.fixture(params=[name for name, _ in dispatch.report()["contrastive_loss"]])
def contrastive_backend(request: pytest.FixtureRequest) -> str:
    return _backend("contrastive_loss", request.param)


@pytest.fixture(params=[name for name, _ in dispatch.report()["linear_cross_entropy"]])
def caption_backend(request: pytest.FixtureRequest) -> str:
    return _backend("linear_cross_entropy", request.param)


@pytest.fixture(params=[name for name, _ in dispatch.report()["prototype_cross_entropy"]])
def prototype_backend(request: pytest.FixtureRequest) -> str:
    return _backend("prototype_cross_entropy", request.param)


def _on_gpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` of CPU tensors, computed on the GPU; skipped where the backend cannot serve."""

    def run(*tensors: Tensor) -> Tensor:
        try:
            return function(*(x.cuda() for x in tensors)).cpu()
        except ValueError as error:
            pytest.skip(str(error))

    return run


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize(("clips", "width"), [(1, 768), (129, 70), (1000, 768)])
def test_contrastive_loss_and_gradients(
    contrastive_backend: str, clips: int, width: int, kind: str, by_ids: bool, dtype: torch.dtype
) -> None:
    tensors = [unit_rows(clips, width, seed=seed, dtype=dtype) for seed in (1, 2)] + [torch.tensor(100.0)]
    if kind == "sigmoid":
        tensors.append(torch.tensor(-10.0))
    ids = torch.arange(clips) % max(1, clips // 2) if by_ids else None

    def ours(*tensors: Tensor) -> Tensor:
        own = None if ids is None else ids.cuda()
        return contrastive_loss(*tensors, kind=kind, ids=own, backend=contrastive_backend).loss

    def plain(*tensors: Tensor) -> Tensor:
        like = tensors[0].dtype
        return contrastive_oracle(*(x.to(like) for x in tensors), kind=kind, ids=ids).loss

    assert_as_accurate_as_plain(_on_gpu(ours), plain, tensors)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 1e-3)])
def test_caption_loss_and_gradients(
    caption_backend: str, label_smoothing: float, z_loss: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 200, generator=generator, dtype=torch.float64).to(dtype) for n in (333, 2001))
    target = torch.randint(0, 2001, (333,), generator=generator)
    target[::7] = -100
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, target.cuda(), backend=caption_backend, **options)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return caption_oracle(hidden, weight, target, **options)

    assert_as_accurate_as_plain(_on_gpu(ours), plain, [hidden, weight])


# Plain Sinkhorn-Knopp overflows in float16.
@pytest.mark.parametrize(
    ("centering", "dtype"),
    [
        ("sinkhorn", torch.float32),
        ("sinkhorn", torch.bfloat16),
        ("softmax", torch.float16),
        ("softmax", torch.bfloat16),
    ],
)
def test_prototype_loss_and_gradients(prototype_backend: str, centering: str, dtype: torch.dtype) -> None:
    lengths, offsets = [400, 1, 199], torch.tensor([0, 400, 401, 600])
    student, teacher = (unit_rows(600, 200, seed=seed, dtype=dtype) for seed in (1, 2))
    prototypes, teacher_prototypes = (unit_rows(777, 200, seed=seed, dtype=dtype) for seed in (3, 4))
    options: dict[str, Any] = {"student_temperature": 0.1, "teacher_temperature": 0.06, "centering": centering}
    constants = teacher.detach(), teacher_prototypes.detach()

    def ours(student: Tensor, prototypes: Tensor) -> Tensor:
        targets = [x.cuda() for x in constants]
        return prototype_cross_entropy(
            student, targets[0], prototypes, targets[1], cu_seqlens=offsets.cuda(), backend=prototype_backend, **options
        )

    def plain(student: Tensor, prototypes: Tensor) -> Tensor:
        targets = [x.to(student.dtype) for x in constants]
        return prototype_oracle(student, targets[0], prototypes, targets[1], lengths=lengths, **options)

    assert_as_accurate_as_plain(_on_gpu(ours), plain, [student, prototypes])


def _step(op: str, backend: str, rows: int) -> Callable[[], list[Tensor]]:
    """A forward and backward of `op` on fixed tensors."""
    a, b, c, d = (unit_rows(rows, 256, seed=seed, dtype=torch.bfloat16).detach().cuda() for seed in range(4))
    leaves = [a.requires_grad_(), b.requires_grad_()]
    target = torch.arange(rows, device="cuda")
    scale = torch.tensor(50.0, device="cuda")

    def run() -> list[Tensor]:
        if op == "contrastive_loss":
            loss = contrastive_loss(a, b, scale, backend=backend).loss
        elif op == "linear_cross_entropy":
            loss = linear_cross_entropy(a, b, target, backend=backend)
        else:
            loss = prototype_cross_entropy(
                a, c, b, d, student_temperature=0.1, teacher_temperature=0.06, backend=backend
            )
        return [loss, *torch.autograd.grad(loss, leaves)]

    return run


@pytest.mark.parametrize(("op", "name"), ROWS)
def test_the_same_bits_from_run_to_run_without_waiting_for_the_device(op: str, name: str) -> None:
    step = _step(op, _backend(op, name), 3000)
    try:
        first = step()
    except ValueError as error:
        pytest.skip(str(error))
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", ["contrastive_loss", "linear_cross_entropy", "prototype_cross_entropy"])
def test_triton_is_replayed_by_a_cuda_graph(op: str) -> None:
    step = _step(op, _backend(op, "triton"), 1000)
    expected = step()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, expected, strict=True))


def test_triton_needs_no_matrix_of_similarities() -> None:
    backend = _backend("contrastive_loss", "triton")
    step = _step("contrastive_loss", backend, 1 << 17)  # similarities: 32 GiB in 16 bits
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step()
    torch.cuda.synchronize()
    results_size = sum(x.numel() * x.element_size() for x in results)
    assert torch.cuda.max_memory_allocated() - before - results_size < 1 << 30
    assert all(x.isfinite().all() for x in results)
