"""Every backend on a GPU against the float64 oracle; unavailable ones are skipped with the reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast.ops import PackedLayout, dispatch, varlen_attention
from tests.ops._gpu_checks import (
    LENGTHS,
    attend,
    attention_inputs,
    check_attention,
    serving,
    skipped_where_refused,
    with_gradients,
)
from tests.oracles.varlen_attention import varlen_attention as oracle

pytestmark = pytest.mark.gpu

BACKENDS = [name for name, _ in dispatch.report()["varlen_attention"]]
WINDOWS = [(-1, -1), (-1, 0), (0, 0), (1, 0), (0, 1), (47, 48), (48, 48), (3, -1)]
CROSS = ([3, 0, 70, 1, 0], [90, 4, 2, 0, 3])


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return serving("varlen_attention", request.param)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("window", WINDOWS)
def test_output_and_gradients_equal_the_oracle(backend: str, dtype: torch.dtype, window: tuple[int, int]) -> None:
    check_attention(backend, dtype, (LENGTHS, LENGTHS), window)


@pytest.mark.parametrize("head_dim", [16, 32, 96, 128, 256])
def test_head_dimensions(backend: str, head_dim: int) -> None:
    check_attention(backend, torch.bfloat16, (LENGTHS, LENGTHS), (48, 48), head_dim=head_dim)


def test_query_heads_share_key_heads(backend: str) -> None:
    check_attention(backend, torch.bfloat16, (LENGTHS, LENGTHS), heads=6, kv_heads=2)


@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (2, 1)])
def test_cross_attention_with_queries_that_have_no_keys(backend: str, window: tuple[int, int]) -> None:
    check_attention(backend, torch.bfloat16, CROSS, window)


@pytest.mark.parametrize(("lengths", "window"), [((LENGTHS, LENGTHS), (48, 48)), (CROSS, (-1, -1)), (CROSS, (-1, 0))])
def test_the_log_sum_exp(backend: str, lengths: tuple[list[int], list[int]], window: tuple[int, int]) -> None:
    tensors = attention_inputs(torch.bfloat16, (sum(lengths[0]), sum(lengths[1])))
    with skipped_where_refused():
        _, lse = attend([x.cuda() for x in tensors], lengths, backend, window=window, return_lse=True)
    q, k, v = (x.double() for x in tensors)
    _, expected = oracle(q, k, v, *lengths, window, 64**-0.5)
    torch.testing.assert_close(lse.cpu().double(), expected, rtol=1e-3, atol=1e-3)


def test_the_same_bits_from_run_to_run_and_no_influence_across_clips(backend: str) -> None:
    tensors = [x.cuda() for x in attention_inputs(torch.bfloat16, (sum(LENGTHS), sum(LENGTHS)))]

    def run(tensors: list[Tensor]) -> list[Tensor]:
        return with_gradients(lambda leaves: attend(leaves, (LENGTHS, LENGTHS), backend), tensors)

    with skipped_where_refused():
        first, second = run(tensors), run(tensors)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    changed = [x.clone() for x in tensors]
    for x in changed:
        x[-300:] = 100.0
    assert torch.equal(run(changed)[0][:-300], first[0][:-300])


def test_no_backend_synchronizes_with_the_host(backend: str) -> None:
    q, k, v = (x.cuda().requires_grad_() for x in attention_inputs(torch.bfloat16, (sum(LENGTHS), sum(LENGTHS))))
    layout = PackedLayout.from_lengths(LENGTHS, device="cuda")

    def step() -> None:
        out = varlen_attention(q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, backend=backend)
        torch.autograd.grad(out, (q, k, v), torch.ones_like(out))

    with skipped_where_refused():
        step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
