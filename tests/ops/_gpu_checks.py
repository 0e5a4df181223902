"""Checks of any backend of an op on a GPU: the error is at most twice that of PyTorch in the same dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from slap_fast.ops import (
    PackedLayout,
    contrastive_loss,
    dispatch,
    linear_cross_entropy,
    prototype_cross_entropy,
    swiglu,
    varlen_attention,
)
from tests.ops._loss_checks import assert_as_accurate_as_plain, unit_rows
from tests.oracles.contrastive_loss import contrastive_loss as contrastive_oracle
from tests.oracles.linear_cross_entropy import linear_cross_entropy as caption_oracle
from tests.oracles.prototype_cross_entropy import prototype_cross_entropy as prototype_oracle
from tests.oracles.swiglu import swiglu as swiglu_oracle
from tests.oracles.varlen_attention import varlen_attention as attention_oracle
from tests.tolerance import assert_as_exact_as

# One token, empty clips at both ends and in between, and lengths around tiles of 64 and 128.
LENGTHS = [0, 1, 63, 64, 0, 65, 127, 128, 129, 300, 0]


def serving(op: str, name: str) -> str:
    """`name`; skips the test if that backend is not available on this machine."""
    reason = dict(dispatch.report()[op])[name]
    if reason is not None:
        pytest.skip(reason)
    return name


@contextmanager
def skipped_where_refused() -> Iterator[None]:
    """Skips the test if the backend refuses the call. Any other error fails it."""
    try:
        yield
    except dispatch.CannotServeError as error:
        pytest.skip(str(error))


def _on_gpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`function` computed on the GPU, for CPU tensors and results."""

    def run(*tensors: Tensor) -> Tensor:
        with skipped_where_refused():
            return function(*(x.cuda() for x in tensors)).cpu()

    return run


def attention_inputs(
    dtype: torch.dtype, totals: tuple[int, int], *, heads: int = 4, kv_heads: int = 4, head_dim: int = 64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((totals[0], heads), (totals[1], kv_heads), (totals[1], kv_heads))
    return [torch.randn(*shape, head_dim, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def attend(tensors: list[Tensor], lengths: tuple[list[int], list[int]], backend: str, **settings: Any) -> Any:
    queries, keys = (PackedLayout.from_lengths(each, device="cuda") for each in lengths)
    if lengths[0] != lengths[1]:
        settings |= {"cu_seqlens_k": keys.cu_seqlens, "max_seqlen_k": keys.max_seqlen}
    q, k, v = tensors
    return varlen_attention(q, k, v, queries.cu_seqlens, max_seqlen_q=queries.max_seqlen, backend=backend, **settings)


def with_gradients(function: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients, moved to the CPU in float64."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = function(leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = [out, *torch.autograd.grad(out, leaves, grad.to(out))]
    return [x.detach().double().cpu() for x in results]


def check_attention(
    backend: str,
    dtype: torch.dtype,
    lengths: tuple[list[int], list[int]],
    window: tuple[int, int] = (-1, -1),
    **shape: int,
) -> None:
    """Errors are at most twice those of PyTorch in the same dtype."""
    tensors = attention_inputs(dtype, (sum(lengths[0]), sum(lengths[1])), **shape)
    scale = tensors[0].shape[2] ** -0.5
    with skipped_where_refused():
        actual = with_gradients(
            lambda leaves: attend(leaves, lengths, backend, window=window), [x.cuda() for x in tensors]
        )

    def plainly(leaves: list[Tensor]) -> Tensor:
        q, k, v = leaves
        return attention_oracle(q, k, v, *lengths, window, scale)[0]

    plain, exact = (
        # For a query without keys the oracle's gradient is NaN, the true one 0.
        list(map(torch.nan_to_num, with_gradients(plainly, inputs)))
        for inputs in (tensors, [x.double() for x in tensors])
    )
    size, eps = float(exact[0].norm()), torch.finfo(dtype).eps
    for name, ours, theirs, right in zip(("out", "dq", "dk", "dv"), actual, plain, exact, strict=True):
        # With a window of one key, dq and dk are only the rounding of a difference.
        floor = eps / 8 * float(right.norm()) if float(right.norm()) > 1e-6 * size else 2 * eps * size
        limit = 2 * float((theirs - right).norm()) + floor
        assert float((ours - right).norm()) <= limit, name


def check_contrastive(backend: str, clips: int, width: int, kind: str, by_ids: bool, dtype: torch.dtype) -> None:
    tensors = [unit_rows(clips, width, seed=seed, dtype=dtype) for seed in (1, 2)] + [torch.tensor(100.0)]
    if kind == "sigmoid":
        tensors.append(torch.tensor(-10.0))
    ids = torch.arange(clips) % max(1, clips // 2) if by_ids else None

    def ours(*tensors: Tensor) -> Tensor:
        own = None if ids is None else ids.cuda()
        return contrastive_loss(*tensors, kind=kind, ids=own, backend=backend).loss

    def plain(*tensors: Tensor) -> Tensor:
        like = tensors[0].dtype
        return contrastive_oracle(*(x.to(like) for x in tensors), kind=kind, ids=ids).loss

    assert_as_accurate_as_plain(_on_gpu(ours), plain, tensors)


def check_captions(backend: str, label_smoothing: float, z_loss: float, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 200, generator=generator, dtype=torch.float64).to(dtype) for n in (333, 2001))
    target = torch.randint(0, 2001, (333,), generator=generator)
    target[::7] = -100
    options: dict[str, Any] = {"label_smoothing": label_smoothing, "z_loss": z_loss}

    def ours(hidden: Tensor, weight: Tensor) -> Tensor:
        return linear_cross_entropy(hidden, weight, target.cuda(), backend=backend, **options)

    def plain(hidden: Tensor, weight: Tensor) -> Tensor:
        return caption_oracle(hidden, weight, target, **options)

    assert_as_accurate_as_plain(_on_gpu(ours), plain, [hidden, weight])


def check_prototypes(backend: str, centering: str, dtype: torch.dtype) -> None:
    lengths, offsets = [400, 1, 199], torch.tensor([0, 400, 401, 600])
    student, teacher = (unit_rows(600, 200, seed=seed, dtype=dtype) for seed in (1, 2))
    prototypes, teacher_prototypes = (unit_rows(777, 200, seed=seed, dtype=dtype) for seed in (3, 4))
    options: dict[str, Any] = {"student_temperature": 0.1, "teacher_temperature": 0.06, "centering": centering}
    constants = teacher.detach(), teacher_prototypes.detach()

    def ours(student: Tensor, prototypes: Tensor) -> Tensor:
        targets = [x.cuda() for x in constants]
        return prototype_cross_entropy(
            student, targets[0], prototypes, targets[1], cu_seqlens=offsets.cuda(), backend=backend, **options
        )

    def plain(student: Tensor, prototypes: Tensor) -> Tensor:
        targets = [x.to(student.dtype) for x in constants]
        return prototype_oracle(student, targets[0], prototypes, targets[1], lengths=lengths, **options)

    assert_as_accurate_as_plain(_on_gpu(ours), plain, [student, prototypes])


def check_swiglu(backend: str, rows: int, width: int, dtype: torch.dtype) -> None:
    """With a strided input and a strided gradient; `exp` overflows in the last row."""
    generator = torch.Generator().manual_seed(0)
    wide, grad = (torch.randn(rows, 3 * width, generator=generator, dtype=torch.float64).to(dtype) for _ in range(2))
    wide[-1] *= 60.0

    def results(function: Callable[[Tensor], Tensor], device: str, precision: torch.dtype) -> list[Tensor]:
        gate_up = wide.to(device, precision)[:, : 2 * width].requires_grad_()
        out = function(gate_up)
        return [out, *torch.autograd.grad(out, gate_up, grad.to(device, precision)[:, ::3])]

    with skipped_where_refused():
        ours, again = (results(lambda x: swiglu(x, backend=backend), "cuda", dtype) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(ours, again, strict=True))
    plain = results(lambda x: swiglu(x, backend="torch"), "cpu", dtype)
    exact = results(swiglu_oracle, "cpu", torch.float64)
    assert_as_exact_as([x.cpu() for x in ours], plain, exact, ("out", "gradient"))
