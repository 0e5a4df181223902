"""Arguments of `varlen_attention`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.tensor_checks import accumulator, require, require_like


class AttentionCall(NamedTuple):
    """Arguments of the registered op and of every backend.

    Where query and key lengths of a sequence differ, the last query is aligned with the last key.

    Attributes:
        q: `[Tq, H, D]`, any strides.
        k: `[Tk, Hk, D]`, any strides; H / Hk consecutive query heads share a key head.
        v: `[Tk, Hk, D]`, any strides.
        cu_seqlens_q: `[N + 1]` int32, any stride; on a GPU its values are not validated.
        cu_seqlens_k: the same for keys and values.
        max_seqlen_q: longest query sequence.
        max_seqlen_k: longest key sequence.
        left: keys visible to the left of a query, inclusive; -1: unlimited.
        right: the same to the right.
        scale: factor of the scores.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    cu_seqlens_q: Tensor
    cu_seqlens_k: Tensor
    max_seqlen_q: int
    max_seqlen_k: int
    left: int
    right: int
    scale: float

    @property
    def is_causal(self) -> bool:
        """Whether the window is exactly `(-1, 0)`, which libraries pass as a flag."""
        return self.left == -1 and self.right == 0

    @property
    def is_empty(self) -> bool:
        """No queries or no keys: kernels of other libraries cannot be launched."""
        return self.q.shape[0] == 0 or self.k.shape[0] == 0


class Backend(Protocol):
    """A backend module. Importing it must be cheap: its library is imported when first used."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        head_dim: int,
        heads: int,
        kv_heads: int,
        left: int,
        right: int,
        cross: bool,
        return_lse: bool,
        needs_grad: bool,
    ) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only.

        `cross`: keys have their own offsets. `needs_grad`: a backward may follow.
        """

    def forward(self, call: AttentionCall) -> tuple[Tensor, Tensor]:
        """Output, a new contiguous `[Tq, H, D]`, and log-sum-exp `[H, Tq]` in float32 (float64 for float64).

        A query without keys gives 0 and -inf.
        """

    def backward(
        self, call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """New contiguous gradients of `q`, `k` and `v`, in their dtypes.

        `grad_lse` is 0 unless the caller of the op used the log-sum-exp.
        """


def key_sequences(
    cu_seqlens_q: Tensor, cu_seqlens_k: Tensor | None, max_seqlen_q: int, max_seqlen_k: int | None
) -> tuple[Tensor, int]:
    """Offsets and longest sequence of the keys; without offsets of their own, those of the queries.

    Raises:
        ValueError: offsets without the longest sequence.
    """
    if cu_seqlens_k is None:
        return cu_seqlens_q, max_seqlen_q
    if max_seqlen_k is None:
        raise ValueError("max_seqlen_k is None; pass the longest key sequence along with cu_seqlens_k")
    return cu_seqlens_k, max_seqlen_k


def default_scale(q: Tensor) -> float:
    """D ** -0.5 of `[Tq, H, D]`; 1 for shapes that `validate` rejects."""
    return q.shape[2] ** -0.5 if q.dim() == 3 and q.shape[2] else 1.0


def validate(call: AttentionCall) -> AttentionCall:
    """The call with int32 offsets; raises the ValueErrors of `varlen_attention`."""
    q, k, v, cu_seqlens_q, cu_seqlens_k, max_seqlen_q, max_seqlen_k, left, right, _ = call
    if q.dim() != 3 or k.dim() != 3 or k.shape != v.shape or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q, k, v have shapes {tuple(q.shape)}, {tuple(k.shape)}, {tuple(v.shape)}; "
            "pass [Tq, H, D], [Tk, Hk, D], [Tk, Hk, D]"
        )
    if q.shape[2] == 0:
        raise ValueError(f"q has shape {tuple(q.shape)}; the head dimension must be positive")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"q has {q.shape[1]} heads, which is not a multiple of the {k.shape[1]} key heads")
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k, v are {q.dtype}, {k.dtype}, {v.dtype}; pass one floating-point dtype")
    if not q.device == k.device == v.device:
        raise ValueError(f"q, k, v are on {q.device}, {k.device}, {v.device}; move them to one device")
    if left < -1 or right < -1:
        raise ValueError(f"window is {(left, right)}; each side is a count of tokens, or -1 for unlimited")
    checked_q = checked_offsets(
        "cu_seqlens_q", cu_seqlens_q, q.shape[0], q.device, torch.int32, of="tokens of q", longest=max_seqlen_q
    )
    if cu_seqlens_k is cu_seqlens_q and q.shape[0] == k.shape[0] and max_seqlen_q <= max_seqlen_k:
        checked_k = checked_q
    else:
        checked_k = checked_offsets(
            "cu_seqlens_k", cu_seqlens_k, k.shape[0], k.device, torch.int32, of="tokens of k", longest=max_seqlen_k
        )
        if checked_q.shape != checked_k.shape:
            raise ValueError(
                f"cu_seqlens_q has {checked_q.shape[0] - 1} sequences, cu_seqlens_k {checked_k.shape[0] - 1}; "
                "pass as many key sequences as query sequences"
            )
    if checked_q is cu_seqlens_q and checked_k is cu_seqlens_k:
        return call
    return AttentionCall(q, k, v, checked_q, checked_k, *call[5:])


def select(call: AttentionCall, requested: str, *, cross: bool, return_lse: bool, needs_grad: bool) -> str:
    """The backend that serves a valid call; see `Backend.rejects` for the flags.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    q, k = call.q, call.k
    return dispatch.select(
        "varlen_attention",
        requested,
        device=q.device,
        dtype=q.dtype,
        head_dim=q.shape[2],
        heads=q.shape[1],
        kv_heads=k.shape[1],
        left=call.left,
        right=call.right,
        cross=cross,
        return_lse=return_lse,
        needs_grad=needs_grad,
    )


def check(call: AttentionCall, backend: str) -> tuple[AttentionCall, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    # Before validation, which copies int64 offsets to two int32 tensors.
    cross = call.cu_seqlens_k.data_ptr() != call.cu_seqlens_q.data_ptr()
    call = validate(call)
    # A backend that was selected for a call with gradients also serves without.
    return call, select(call, backend, cross=cross, return_lse=False, needs_grad=False)


def check_backward(
    call: AttentionCall, out: Tensor, lse: Tensor, grad_out: Tensor, grad_lse: Tensor, backend: str
) -> tuple[AttentionCall, Tensor, Tensor, Tensor, Tensor, str]:
    """As `check`, for the backward op."""
    call, chosen = check(call, backend)
    q = call.q
    require_like("grad_out", grad_out, q)
    require_like("out", out, q)
    for name, x in (("grad_lse", grad_lse), ("lse", lse)):
        require(name, x, (q.shape[1], q.shape[0]), accumulator(q.dtype), q.device)
    return call, out, lse, grad_out, grad_lse, chosen
