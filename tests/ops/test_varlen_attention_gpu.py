"""Every backend that serves on a GPU against the float64 oracle. One that does not is skipped with its reason."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from slap_fast.ops import PackedLayout, dispatch, varlen_attention
from tests.oracles.varlen_attention import varlen_attention as oracle

pytestmark = pytest.mark.gpu

BACKENDS = [name for name, _ in dispatch.report()["varlen_attention"]]
WINDOWS = [(-1, -1), (-1, 0), (0, 0), (1, 0), (0, 1), (47, 48), (48, 48), (3, -1)]
# One token, empty clips at both ends and between, and lengths around tiles of 64 and 128.
LENGTHS = [0, 1, 63, 64, 0, 65, 127, 128, 129, 300, 0]
CROSS = ([3, 0, 70, 1, 0], [90, 4, 2, 0, 3])


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    reason = dict(dispatch.report()["varlen_attention"])[request.param]
    if reason is not None:
        pytest.skip(reason)
    return request.param


def _tensors(
    dtype: torch.dtype, totals: tuple[int, int], *, heads: int = 4, kv_heads: int = 4, head_dim: int = 64
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((totals[0], heads), (totals[1], kv_heads), (totals[1], kv_heads))
    return [torch.randn(*shape, head_dim, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


def _attend(tensors: list[Tensor], lengths: tuple[list[int], list[int]], backend: str, **settings: Any) -> Any:
    queries, keys = (PackedLayout.from_lengths(each, device="cuda") for each in lengths)
    if lengths[0] != lengths[1]:
        settings |= {"cu_seqlens_k": keys.cu_seqlens, "max_seqlen_k": keys.max_seqlen}
    q, k, v = tensors
    return varlen_attention(q, k, v, queries.cu_seqlens, max_seqlen_q=queries.max_seqlen, backend=backend, **settings)


def _with_gradients(attend: Any, tensors: list[Tensor]) -> list[Tensor]:
    """Output and gradients, in float64 on the host."""
    leaves = [x.detach().requires_grad_() for x in tensors]
    out = attend(leaves)
    grad = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    results = [out, *torch.autograd.grad(out, leaves, grad.to(out))]
    return [x.detach().double().cpu() for x in results]


def _check(
    backend: str,
    dtype: torch.dtype,
    lengths: tuple[list[int], list[int]],
    window: tuple[int, int] = (-1, -1),
    **shape: int,
) -> None:
    """Errors are at most twice those of PyTorch in the same dtype."""
    tensors = _tensors(dtype, (sum(lengths[0]), sum(lengths[1])), **shape)
    scale = tensors[0].shape[2] ** -0.5
    try:
        actual = _with_gradients(
            lambda leaves: _attend(leaves, lengths, backend, window=window), [x.cuda() for x in tensors]
        )
    except ValueError as error:
        pytest.skip(str(error))

    def plainly(leaves: list[Tensor]) -> Tensor:
        q, k, v = leaves
        return oracle(q, k, v, *lengths, window, scale)[0]

    plain, exact = (
        # The softmax of a query without keys is NaN in the oracle's gradient; 0 is right.
        list(map(torch.nan_to_num, _with_gradients(plainly, inputs)))
        for inputs in (tensors, [x.double() for x in tensors])
    )
    size, eps = float(exact[0].norm()), torch.finfo(dtype).eps
    for name, ours, theirs, right in zip(("out", "dq", "dk", "dv"), actual, plain, exact, strict=True):
        # With a window of one key, dq and dk are nothing but the rounding of a difference.
        floor = eps / 8 * float(right.norm()) if float(right.norm()) > 1e-6 * size else 2 * eps * size
        limit = 2 * float((theirs - right).norm()) + floor
        assert float((ours - right).norm()) <= limit, name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", WINDOWS)
def test_output_and_gradients_are_those_of_the_oracle(
    backend: str, dtype: torch.dtype, window: tuple[int, int]
) -> None:
    _check(backend, dtype, (LENGTHS, LENGTHS), window)


@pytest.mark.parametrize("head_dim", [16, 32, 96, 128, 256])
def test_head_dimensions(backend: str, head_dim: int) -> None:
    _check(backend, torch.bfloat16, (LENGTHS, LENGTHS), (48, 48), head_dim=head_dim)


def test_query_heads_share_key_heads(backend: str) -> None:
    _check(backend, torch.bfloat16, (LENGTHS, LENGTHS), heads=6, kv_heads=2)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1)])
def test_cross_attention_with_queries_that_have_no_keys(backend: str, window: tuple[int, int]) -> None:
    _check(backend, torch.bfloat16, CROSS, window)


@pytest.mark.parametrize(("lengths", "window"), [((LENGTHS, LENGTHS), (48, 48)), (CROSS, (-1, -1)), (CROSS, (-1, 0))])
def test_the_log_sum_exp(backend: str, lengths: tuple[list[int], list[int]], window: tuple[int, int]) -> None:
    tensors = _tensors(torch.bfloat16, (sum(lengths[0]), sum(lengths[1])))
    try:
        _, lse = _attend([x.cuda() for x in tensors], lengths, backend, window=window, return_lse=True)
    except ValueError as error:
        pytest.skip(str(error))
    q, k, v = (x.double() for x in tensors)
    _, expected = oracle(q, k, v, *lengths, window, 64**-0.5)
    torch.testing.assert_close(lse.cpu().double(), expected, rtol=1e-3, atol=1e-3)


def test_the_same_bits_from_run_to_run_and_no_leak_across_clips(backend: str) -> None:
    tensors = [x.cuda() for x in _tensors(torch.bfloat16, (sum(LENGTHS), sum(LENGTHS)))]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        return _with_gradients(lambda leaves: _attend(leaves, (LENGTHS, LENGTHS), backend), tensors)

    first, second = run(tensors), run(tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[-300:] = 100.0
    assert torch.equal(run(changed)[0][:-300], first[0][:-300])


def test_no_backend_waits_for_the_device(backend: str) -> None:
    q, k, v = (x.cuda().requires_grad_() for x in _tensors(torch.bfloat16, (sum(LENGTHS), sum(LENGTHS))))
    layout = PackedLayout.from_lengths(LENGTHS, device="cuda")

    def step() -> None:
        out = varlen_attention(q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, backend=backend)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    try:
        step()
    except ValueError as error:
        pytest.skip(str(error))
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
