"""Stand-ins for attention libraries: the published signatures, results of the oracle, and the same conventions.

Each checks its arguments as the library would, and records the windows that it was called with.
"""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.oracles.varlen_attention import varlen_attention as oracle


class Kernel:
    """Packed attention with the windows of flash-attention.

    Attributes:
        empty: log-sum-exp of a query without keys, in the forward's output and the backward's input.
        windows: windows of the forward and backward calls so far.
        gradients: results of the backward, set by the test: autograd cannot run inside a PyTorch operator.
    """

    def __init__(self, empty: float) -> None:
        self.empty = empty
        self.windows: list[tuple[int, int]] = []
        self.gradients: tuple[Tensor, ...] = ()

    def forward(
        self, tensors: tuple[Tensor, ...], offsets: tuple[Tensor, Tensor], longest: tuple[int, int], settings: Any
    ) -> tuple[Tensor, Tensor]:
        self._check(tensors, offsets, longest, settings)
        return self._attend(tensors, offsets, settings)

    def backward(
        self,
        grad_out: Tensor,
        tensors: tuple[Tensor, ...],
        out: Tensor,
        lse: Tensor,
        offsets: tuple[Tensor, Tensor],
        longest: tuple[int, int],
        settings: Any,
    ) -> tuple[Tensor, ...]:
        self._check((grad_out, *tensors), offsets, longest, settings)
        expected, expected_lse = self._attend(tensors, offsets, settings)
        torch.testing.assert_close(out, expected)
        torch.testing.assert_close(lse, expected_lse)
        return self.gradients

    def _check(
        self, tensors: tuple[Tensor, ...], offsets: tuple[Tensor, Tensor], longest: tuple[int, int], settings: Any
    ) -> None:
        assert all(x.dim() == 3 and x.stride(-1) == 1 for x in tensors)
        assert all(x.dtype == torch.int32 and x.is_contiguous() for x in offsets)
        assert tuple(int(x.diff().max()) for x in offsets) == longest
        assert settings.causal == (settings.window == (-1, 0))
        self.windows.append(settings.window)

    def _attend(
        self, tensors: tuple[Tensor, ...], offsets: tuple[Tensor, Tensor], settings: Any
    ) -> tuple[Tensor, Tensor]:
        q, k, v = tensors
        lengths_q, lengths_k = (x.diff().tolist() for x in offsets)
        out, lse = oracle(q, k, v, lengths_q, lengths_k, settings.window, settings.scale)
        return out, lse.masked_fill(lse == -math.inf, self.empty)


def _settings(causal: bool, left: int, right: int, scale: float) -> SimpleNamespace:
    return SimpleNamespace(causal=causal, window=(left, right), scale=scale)


def flash_attn_2(kernel: Kernel) -> SimpleNamespace:
    """`flash_attn.flash_attn_interface` of 2.8.3."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int = -1,
        window_size_right: int = -1,
        softcap: float = 0.0,
        alibi_slopes: Tensor | None = None,
        return_softmax: bool = False,
        block_table: Tensor | None = None,
        leftpad_k: Tensor | None = None,
        seqused_k: Tensor | None = None,
        zero_tensors: bool = False,
    ) -> tuple[Tensor, ...]:
        assert dropout_p == 0.0
        settings = _settings(causal, window_size_left, window_size_right, softmax_scale)
        out, lse = kernel.forward((q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), settings)
        return out, lse, torch.empty(0), torch.empty(2)

    def backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dropout_p: float,
        softmax_scale: float,
        causal: bool,
        window_size_left: int,
        window_size_right: int,
        softcap: float,
        alibi_slopes: Tensor | None,
        deterministic: bool,
        rng_state: Tensor | None = None,
        zero_tensors: bool = False,
    ) -> Tensor:
        assert (dropout_p, softcap, alibi_slopes, deterministic) == (0.0, 0.0, None, True)
        settings = _settings(causal, window_size_left, window_size_right, softmax_scale)
        offsets, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        grads = kernel.backward(dout, (q, k, v), out, softmax_lse, offsets, longest, settings)
        for target, grad in zip((dq, dk, dv), grads, strict=True):
            target.copy_(grad)
        return torch.empty(0)

    return SimpleNamespace(_flash_attn_varlen_forward=forward, _flash_attn_varlen_backward=backward)


def flash_attn_3(kernel: Kernel) -> SimpleNamespace:
    """`flash_attn_interface`, with the parameters that packed attention uses."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool = False,
        window_size_left: int = -1,
        window_size_right: int = -1,
    ) -> tuple[Tensor, ...]:
        settings = _settings(causal, window_size_left, window_size_right, softmax_scale)
        out, lse = kernel.forward((q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), settings)
        return out, lse, torch.empty(0), torch.empty(0)

    def backward(
        dout: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        softmax_lse: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        dq: Tensor,
        dk: Tensor,
        dv: Tensor,
        softmax_scale: float,
        is_causal: bool = False,
        window_size_left: int = -1,
        window_size_right: int = -1,
        deterministic: bool = False,
    ) -> Tensor:
        assert deterministic
        settings = _settings(is_causal, window_size_left, window_size_right, softmax_scale)
        offsets, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        grads = kernel.backward(dout, (q, k, v), out, softmax_lse, offsets, longest, settings)
        for target, grad in zip((dq, dk, dv), grads, strict=True):
            target.copy_(grad)
        return torch.empty(0)

    return SimpleNamespace(_flash_attn_forward=forward, _flash_attn_backward=backward)


def flash_attn_4(kernel: Kernel) -> SimpleNamespace:
    """`flash_attn.cute.interface` of 4.0.0b36, likewise. An unlimited side is None; causal calls have no window."""

    def settings(causal: bool, left: int | None, right: int | None, scale: float) -> SimpleNamespace:
        assert all(side is None or side >= 0 for side in (left, right))
        if causal:
            assert left is None
            assert right is None
            return _settings(True, -1, 0, scale)
        return _settings(False, -1 if left is None else left, -1 if right is None else right, scale)

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        softmax_scale: float,
        causal: bool = False,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
        return_lse: bool = False,
    ) -> tuple[Tensor | None, ...]:
        assert return_lse
        given = settings(causal, window_size_left, window_size_right, softmax_scale)
        out, lse = kernel.forward((q, k, v), (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k), given)
        return out, lse, None, None, None

    def backward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        dout: Tensor,
        lse: Tensor,
        *,
        softmax_scale: float,
        causal: bool = False,
        window_size_left: int | None = None,
        window_size_right: int | None = None,
        cu_seqlens_q: Tensor,
        cu_seqlens_k: Tensor,
        max_seqlen_q: int,
        max_seqlen_k: int,
        deterministic: bool = False,
    ) -> tuple[Tensor, ...]:
        assert deterministic
        given = settings(causal, window_size_left, window_size_right, softmax_scale)
        offsets, longest = (cu_seqlens_q, cu_seqlens_k), (max_seqlen_q, max_seqlen_k)
        return kernel.backward(dout, (q, k, v), out, lse, offsets, longest, given)

    return SimpleNamespace(_flash_attn_fwd=forward, _flash_attn_bwd=backward)


def register_torch_flash(library: torch.library.Library, kernel: Kernel) -> None:
    """PyTorch's flash-attention operators for CPU tensors; calls must match the schemas of this torch."""

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout: float,
        causal: bool,
        debug: bool,
        *,
        scale: float,
        window_size_left: int,
        window_size_right: int,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        assert (dropout, debug) == (0.0, False)
        settings = _settings(causal, window_size_left, window_size_right, scale)
        out, lse = kernel.forward((q, k, v), (cu_q, cu_k), (max_q, max_k), settings)
        return out, lse, torch.empty(2), torch.empty(0), torch.empty(0)

    def backward(
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        out: Tensor,
        lse: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout: float,
        causal: bool,
        *state: Tensor,
        scale: float,
        window_size_left: int,
        window_size_right: int,
    ) -> tuple[Tensor, ...]:
        assert torch.are_deterministic_algorithms_enabled()
        settings = _settings(causal, window_size_left, window_size_right, scale)
        return kernel.backward(grad_out, (q, k, v), out, lse, (cu_q, cu_k), (max_q, max_k), settings)

    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")


def register_torch_efficient(library: torch.library.Library, kernel: Kernel) -> None:
    """PyTorch's memory-efficient operators, likewise: a batch of one and a padded log-sum-exp."""

    def rounded(length: int) -> int:
        return (length + 31) // 32 * 32

    def pad(lse: Tensor, cu_q: Tensor, max_q: int) -> Tensor:
        clips = lse.split(cu_q.diff().tolist(), dim=1)
        return torch.stack([F.pad(clip, (0, rounded(max_q) - clip.shape[1]), value=math.inf) for clip in clips])

    def forward(
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        dropout: float,
        mask_type: int,
        compute_lse: bool = False,
        *,
        scale: float,
        **_: Any,
    ) -> tuple[Any, ...]:
        assert (bias, dropout, compute_lse) == (None, 0.0, True)
        settings = _settings(mask_type == 1, -1, {0: -1, 1: 0}[mask_type], scale)
        out, lse = kernel.forward((q[0], k[0], v[0]), (cu_q, cu_k), (max_q, max_k), settings)
        return out[None], pad(lse, cu_q, max_q), torch.empty(()), torch.empty(()), max_q, max_k

    def backward(
        grad_out: Tensor,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        bias: Tensor | None,
        out: Tensor,
        cu_q: Tensor,
        cu_k: Tensor,
        max_q: int,
        max_k: int,
        lse: Tensor,
        dropout: float,
        seed: Tensor,
        offset: Tensor,
        mask_type: int,
        bias_requires_grad: bool,
        *,
        scale: float,
        **_: Any,
    ) -> tuple[Tensor, ...]:
        assert torch.are_deterministic_algorithms_enabled()
        assert (bias, dropout, bias_requires_grad) == (None, 0.0, False)
        lengths = cu_q.diff().tolist()
        assert lse.shape == (len(lengths), q.shape[2], rounded(max_q))
        assert all(bool((clip[:, length:] == math.inf).all()) for clip, length in zip(lse, lengths, strict=True))
        packed = torch.cat([clip[:, :length] for clip, length in zip(lse, lengths, strict=True)], dim=1)
        settings = _settings(mask_type == 1, -1, {0: -1, 1: 0}[mask_type], scale)
        grads = kernel.backward(grad_out[0], (q[0], k[0], v[0]), out[0], packed, (cu_q, cu_k), (max_q, max_k), settings)
        return *(grad[None] for grad in grads), torch.empty(0)

    library.impl("_efficient_attention_forward", forward, "CPU")
    library.impl("_efficient_attention_backward", backward, "CPU")
