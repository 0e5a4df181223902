"""Backends of other libraries: arguments passed to the library, results made from its outputs. No kernel runs here."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch

from slap_fast.ops import dispatch, varlen_attention
from slap_fast.ops.attention import (
    backend_flash_attn_2,
    backend_flash_attn_3,
    backend_flash_attn_4,
    backend_torch_efficient,
    backend_torch_varlen,
)
from slap_fast.ops.attention.call import AttentionCall
from slap_fast.ops.attention.library_kernels import deterministic_kernels
from tests.ops.attention import _attention_libraries as libraries
from tests.oracles.varlen_attention import varlen_attention as oracle

MODULES: dict[str, Any] = {
    "flash_attn_2": backend_flash_attn_2,
    "flash_attn_3": backend_flash_attn_3,
    "flash_attn_4": backend_flash_attn_4,
    "torch_varlen": backend_torch_varlen,
    "torch_efficient": backend_torch_efficient,
}
SELF = ([5, 0, 40, 1], [5, 0, 40, 1])
CROSS = ([3, 1, 7, 0, 2], [9, 4, 2, 3, 0])
WINDOWS = [(-1, -1), (-1, 0), (0, 0), (4, 2), (3, -1), (-1, 2)]
TRAITS: dict[str, Any] = {
    "device": torch.device("cuda"),
    "dtype": torch.bfloat16,
    "head_dim": 64,
    "heads": 12,
    "kv_heads": 12,
    "left": -1,
    "right": -1,
    "cross": False,
    "return_lse": False,
    "needs_grad": True,
}


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[libraries.Kernel]:
    """A stand-in for the library of the backend `name`."""
    name = request.getfixturevalue("name")
    kernel = libraries.Kernel(empty=math.inf if name in ("flash_attn_2", "torch_varlen") else -math.inf)
    with torch.library._scoped_library("aten", "IMPL") as library:
        if name == "flash_attn_2":
            monkeypatch.setitem(sys.modules, "flash_attn.flash_attn_interface", libraries.flash_attn_2(kernel))
        elif name == "flash_attn_3":
            monkeypatch.setitem(sys.modules, "flash_attn_interface", libraries.flash_attn_3(kernel))
        elif name == "flash_attn_4":
            monkeypatch.setitem(sys.modules, "flash_attn.cute.interface", libraries.flash_attn_4(kernel))
        elif name == "torch_varlen":
            libraries.register_torch_flash(library, kernel)
        else:
            libraries.register_torch_efficient(library, kernel)
        yield kernel


def _cases() -> Iterator[Any]:
    for name in MODULES:
        for window in WINDOWS:
            for shape, lengths, kv_heads in (("self", SELF, 4), ("gqa", SELF, 2), ("cross", CROSS, 4)):
                if name != "torch_efficient" or (shape == "self" and window in WINDOWS[:2]):
                    yield pytest.param(name, window, lengths, kv_heads, id=f"{name}-{window}-{shape}")


@pytest.mark.parametrize(("name", "window", "lengths", "kv_heads"), list(_cases()))
def test_a_library_gets_the_arguments_of_the_call_and_its_results_are_returned(
    name: str,
    window: tuple[int, int],
    lengths: tuple[list[int], list[int]],
    kv_heads: int,
    kernel: libraries.Kernel,
) -> None:
    generator = torch.Generator().manual_seed(0)
    # Transposed in memory: the last stride is not one.
    q, k, v = (
        torch.randn(heads, 16, total, generator=generator, dtype=torch.float64).permute(2, 0, 1).requires_grad_()
        for heads, total in ((4, sum(lengths[0])), (kv_heads, sum(lengths[1])), (kv_heads, sum(lengths[1])))
    )
    offsets = [torch.tensor([0, *accumulate(each)], dtype=torch.int32) for each in lengths]
    expected, expected_lse = oracle(q, k, v, *lengths, window, 0.3)
    tensors = [x.detach() for x in (q, k, v)]
    call = AttentionCall._make([*tensors, *offsets, max(lengths[0]), max(lengths[1]), *window, 0.3])
    out, lse = MODULES[name].forward(call)
    torch.testing.assert_close(out, expected.detach())
    torch.testing.assert_close(lse, expected_lse.detach())
    assert out.is_contiguous()
    assert lse.is_contiguous()

    grad = torch.randn(out.shape, generator=generator, dtype=torch.float64)
    kernel.gradients = tuple(map(torch.nan_to_num, torch.autograd.grad(expected, (q, k, v), grad)))
    grads = MODULES[name].backward(call, out, lse, grad, torch.zeros_like(lse))
    for actual, wanted in zip(grads, kernel.gradients, strict=True):
        assert actual.is_contiguous()
        torch.testing.assert_close(actual, wanted)
    assert kernel.windows == [window, window]
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", MODULES)
def test_no_kernel_is_launched_over_no_tokens(name: str) -> None:
    q, none = torch.randn(3, 2, 16), torch.randn(0, 2, 16)
    offsets = torch.tensor([0, 3], dtype=torch.int32), torch.tensor([0, 0], dtype=torch.int32)
    call = AttentionCall(q, none, none, *offsets, 3, 0, -1, -1, 0.25)
    out, lse = MODULES[name].forward(call)
    assert torch.equal(out, torch.zeros(3, 2, 16))
    assert torch.equal(lse, torch.full((2, 3), -math.inf))
    grads = MODULES[name].backward(call, out, lse, q, lse)
    assert [tuple(grad.shape) for grad in grads] == [(3, 2, 16), (0, 2, 16), (0, 2, 16)]
    assert not grads[0].any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": torch.device("cpu")}, "GPU memory"),
        ({"dtype": torch.float64}, "float64"),
        ({"head_dim": 20}, "multiples of 8"),
        ({"head_dim": 512}, "head_dim is 512"),
        ({"return_lse": True}, "no gradient of the log-sum-exp"),
    ],
)
@pytest.mark.parametrize("name", MODULES)
def test_what_a_kernel_cannot_serve_is_refused_with_the_reason(name: str, change: dict[str, Any], message: str) -> None:
    assert MODULES[name].rejects(**TRAITS) is None
    assert message in MODULES[name].rejects(**TRAITS | change)


@pytest.mark.parametrize("change", [{"left": 48}, {"right": 48}, {"cross": True}, {"kv_heads": 4}])
def test_the_memory_efficient_kernels_take_only_self_attention_without_windows(change: dict[str, Any]) -> None:
    assert MODULES["torch_efficient"].rejects(**TRAITS | change) is not None
    assert MODULES["torch_efficient"].rejects(**TRAITS | {"dtype": torch.float32, "right": 0}) is None


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_the_registered_op_tells_self_attention_by_the_memory_of_the_offsets(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype
) -> None:
    traits: list[bool] = []

    def select(_call: AttentionCall, _requested: str, *, cross: bool, **_flags: bool) -> str:
        traits.append(cross)
        return "torch"

    monkeypatch.setattr(sys.modules["slap_fast.ops.attention.call"], "select", select)
    offsets, q = torch.tensor([0, 3, 5], dtype=dtype), torch.randn(5, 2, 8)
    for keys in (offsets.view(-1), offsets.clone()):
        torch.ops.slap_fast.varlen_attention(q, q, q, offsets, keys, 3, 3, -1, -1, 1.0, "auto")
    assert traits == [False, True]


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_gpu_no_library_is_imported(name: str) -> None:
    before = set(sys.modules)
    assert MODULES[name].unavailable() == "PyTorch finds no CUDA device"
    assert not {module for module in set(sys.modules) - before if "flash" in module}
    q, offsets = torch.randn(3, 2, 16), torch.tensor([0, 3], dtype=torch.int32)
    with pytest.raises(ValueError, match=f"'{name}' cannot serve this call .*no CUDA device"):
        varlen_attention(q, q, q, offsets, max_seqlen_q=3, backend=name)


def test_a_missing_or_broken_library_or_an_old_gpu_gives_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    assert "compute capability 7.5" in str(backend_flash_attn_2.unavailable())
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    for name in ("flash_attn_2", "flash_attn_3", "flash_attn_4"):
        monkeypatch.setitem(sys.modules, MODULES[name]._MODULE, None)
        assert "is not installed" in MODULES[name].unavailable()

    def broken(name: str) -> None:
        raise ImportError("undefined symbol: _ZN3c10")

    monkeypatch.setattr("slap_fast.ops.attention.library_kernels.importlib.import_module", broken)
    assert "build it against this torch" in str(backend_flash_attn_2.unavailable())


def test_every_library_is_in_the_report() -> None:
    assert set(MODULES) <= {name for name, _ in dispatch.report()["varlen_attention"]}


@pytest.mark.parametrize("user", [(False, False, True), (True, True, True), (True, False, False)])
def test_deterministic_kernels_fill_no_new_tensors_and_restore_the_switches(
    user: tuple[bool, bool, bool],
) -> None:
    filling: Any = torch.utils.deterministic

    def switches() -> tuple[bool, bool, bool]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
            filling.fill_uninitialized_memory,
        )

    def set_switches(enabled: bool, warn_only: bool, fill: bool) -> None:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        filling.fill_uninitialized_memory = fill

    before = switches()
    try:
        set_switches(*user)
        with deterministic_kernels():
            assert switches() == (True, False, user[0] and user[2])
            fresh = torch.empty(1 << 29, dtype=torch.int8)[:: 1 << 20]  # more than other tests freed: new zero pages
            assert bool(fresh.any()) == (user[0] and user[2])
        assert switches() == user
    finally:
        set_switches(*before)
