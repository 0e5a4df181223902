"""Every backend of the losses on a GPU against the float64 oracles; unavailable ones are skipped."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from slap_fast.ops import contrastive_loss, dispatch, linear_cross_entropy, prototype_cross_entropy
from tests.ops._gpu_checks import (
    check_captions,
    check_contrastive,
    check_prototypes,
    serving,
    skipped_where_refused,
)
from tests.ops._loss_checks import unit_rows

pytestmark = pytest.mark.gpu

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
ROWS = [
    pytest.param(op, name, id=f"{op}-{name}")
    for op in ("contrastive_loss", "linear_cross_entropy", "prototype_cross_entropy")
    for name, _ in dispatch.report()[op]
]


@pytest.fixture(params=[name for name, _ in dispatch.report()["contrastive_loss"]])
def contrastive_backend(request: pytest.FixtureRequest) -> str:
    return serving("contrastive_loss", request.param)


@pytest.fixture(params=[name for name, _ in dispatch.report()["linear_cross_entropy"]])
def caption_backend(request: pytest.FixtureRequest) -> str:
    return serving("linear_cross_entropy", request.param)


@pytest.fixture(params=[name for name, _ in dispatch.report()["prototype_cross_entropy"]])
def prototype_backend(request: pytest.FixtureRequest) -> str:
    return serving("prototype_cross_entropy", request.param)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("by_ids", [False, True])
@pytest.mark.parametrize("kind", ["infonce", "sigmoid"])
@pytest.mark.parametrize(("clips", "width"), [(1, 768), (129, 70), (1000, 768)])
def test_contrastive_loss_and_gradients(
    contrastive_backend: str, clips: int, width: int, kind: str, by_ids: bool, dtype: torch.dtype
) -> None:
    check_contrastive(contrastive_backend, clips, width, kind, by_ids, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("label_smoothing", "z_loss"), [(0.0, 0.0), (0.1, 1e-3)])
def test_caption_loss_and_gradients(
    caption_backend: str, label_smoothing: float, z_loss: float, dtype: torch.dtype
) -> None:
    check_captions(caption_backend, label_smoothing, z_loss, dtype)


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
    check_prototypes(prototype_backend, centering, dtype)


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
def test_the_same_bits_from_run_to_run_without_host_synchronization(op: str, name: str) -> None:
    step = _step(op, serving(op, name), 3000)
    with skipped_where_refused():
        first = step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        second = step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("op", ["contrastive_loss", "linear_cross_entropy", "prototype_cross_entropy"])
def test_triton_runs_in_a_cuda_graph(op: str) -> None:
    step = _step(op, serving(op, "triton"), 1000)
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


def test_triton_does_not_store_the_similarities() -> None:
    backend = serving("contrastive_loss", "triton")
    step = _step("contrastive_loss", backend, 1 << 17)  # similarities: 32 GiB in 16 bits
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    results = step()
    torch.cuda.synchronize()
    results_size = sum(x.numel() * x.element_size() for x in results)
    assert torch.cuda.max_memory_allocated() - before - results_size < 1 << 30
    assert all(x.isfinite().all() for x in results)
