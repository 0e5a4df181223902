"""Arguments of `apply_rotary` and `apply_rotary_qkv`, their validation, backend selection, and the backend protocol."""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.packed import checked_offsets
from slap_fast.ops.tensor_checks import overlaps_itself, require_like, share_memory


class Angles(NamedTuple):
    """What the rotation angles of all tokens follow from; arguments of the registered ops and of every backend.

    Attributes:
        cu_seqlens: `[N + 1]` int32 offsets from 0 to T.
        tokens_per_frame: of two axes; 1 with one axis.
        thetas: base of the wavelengths of each axis: one axis or two.
    """

    cu_seqlens: Tensor
    tokens_per_frame: int
    thetas: list[float]


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated, except offsets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def rotate(self, q: Tensor, k: Tensor, angles: Angles, inverse: bool, out_q: Tensor, out_k: Tensor) -> None:
        """Write the rotated `q` `[T, H, D]` and `k` `[T, Hk, D]` to `out_q` and `out_k`, of any strides.

        The outputs may be `q` and `k` themselves. `inverse` rotates by the negative angles.
        """


def build_angles(cu_seqlens: Tensor, tokens_per_frame: int | None, theta: float | tuple[float, float]) -> Angles:
    """`Angles` from the arguments of `apply_rotary`.

    Raises:
        ValueError: `theta` does not have one base per axis.
    """
    axes = 1 if tokens_per_frame is None else 2
    if axes == 1 and isinstance(theta, tuple):
        raise ValueError(f"theta is {theta}, a pair; one axis takes one base (or pass tokens_per_frame)")
    thetas = [*theta] if isinstance(theta, tuple) else [theta] * axes
    if len(thetas) != axes:
        raise ValueError(f"theta is {theta}; pass a positive base, or one for each of the {axes} axes")
    return Angles(cu_seqlens, 1 if tokens_per_frame is None else tokens_per_frame, thetas)


def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Views of the queries, keys and values; raises ValueError for anything but `[T, 3, H, D]`."""
    if not isinstance(qkv, Tensor):
        raise ValueError(f"qkv is a {type(qkv).__name__}; pass a torch tensor")
    if qkv.dim() != 4 or qkv.shape[1] != 3:
        raise ValueError(f"qkv has shape {tuple(qkv.shape)}; pass [T, 3, H, D]")
    q, k, v = qkv.unbind(1)
    return q, k, v


def validate(q: Tensor, k: Tensor, angles: Angles) -> Angles:
    """`angles` with int32 offsets; raises the ValueErrors of `apply_rotary`."""
    cu_seqlens, tokens_per_frame, thetas = angles
    axes = len(thetas)
    if q.dim() != 3 or k.dim() != 3 or q.shape[0] != k.shape[0] or q.shape[2] != k.shape[2]:
        raise ValueError(f"q, k have shapes {tuple(q.shape)}, {tuple(k.shape)}; pass [T, H, D] and [T, Hk, D]")
    if q.dtype != k.dtype or not q.dtype.is_floating_point:
        raise ValueError(f"q, k are {q.dtype}, {k.dtype}; pass one floating-point dtype")
    if q.device != k.device:
        raise ValueError(f"q, k are on {q.device}, {k.device}; use one device")
    if axes not in (1, 2) or not all(0 < theta < math.inf for theta in thetas):  # False for NaN
        raise ValueError(f"theta is {thetas}; pass a positive, finite base for one axis or for each of two")
    if q.shape[2] % (2 * axes):
        raise ValueError(
            f"the head dimension {q.shape[2]} is not a multiple of {2 * axes}: {axes} axes of channel pairs"
        )
    if tokens_per_frame < 1:
        raise ValueError(f"tokens_per_frame is {tokens_per_frame}; it must be at least 1")
    checked = checked_offsets("cu_seqlens", cu_seqlens, q.shape[0], q.device, torch.int32)
    return angles if checked is cu_seqlens else Angles(checked, tokens_per_frame, thetas)


def select(q: Tensor, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("apply_rotary", requested, device=q.device, dtype=q.dtype, head_dim=q.shape[2])


def require_inplace(q: Tensor, k: Tensor) -> None:
    """Raise ValueError where `q` and `k` cannot be rotated in place."""
    if torch.is_grad_enabled() and (q.requires_grad or k.requires_grad):
        raise ValueError(
            "inplace=True, but q or k requires a gradient; leave it out, call under torch.no_grad(), or pass the "
            "packed projection to apply_rotary_qkv"
        )
    _require_no_overlap(q, k)


def _require_no_overlap(q: Tensor, k: Tensor) -> None:
    """Raise ValueError where one address holds two values: it would be rotated twice, or read after it was rotated."""
    for name, x in (("q", q), ("k", k)):
        if overlaps_itself(x):
            raise ValueError(f"inplace=True, but {name} of strides {x.stride()} overlaps itself; pass a copy of it")
    # A compiler has no addresses: the registered op checks them when it runs.
    if q is k or (not torch.compiler.is_compiling() and share_memory(q, k)):
        raise ValueError("inplace=True, but q and k share memory, which would be rotated twice; leave inplace out")


def check(
    q: Tensor, k: Tensor, angles: Angles, inverse: bool, backend: str
) -> tuple[Tensor, Tensor, Angles, bool, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    return q, k, validate(q, k, angles), inverse, select(q, backend)


def check_inplace(q: Tensor, k: Tensor, angles: Angles, backend: str) -> tuple[Tensor, Tensor, Angles, str]:
    """As `check`, for the op that rotates in place."""
    _, _, angles, _, chosen = check(q, k, angles, False, backend)
    _require_no_overlap(q, k)
    return q, k, angles, chosen


def check_unpack(qkv: Tensor, angles: Angles, inverse: bool, backend: str) -> tuple[Tensor, Angles, bool, str]:
    """As `check`, for the op that splits a packed projection."""
    q, k, _ = split(qkv)
    return qkv, *check(q, k, angles, inverse, backend)[2:]


def check_pack(
    q: Tensor, k: Tensor, v: Tensor, angles: Angles, inverse: bool, backend: str
) -> tuple[Tensor, Tensor, Tensor, Angles, bool, str]:
    """As `check`, for the op that joins queries, keys and values."""
    require_like("k", k, q)
    require_like("v", v, q)
    return q, k, v, *check(q, k, angles, inverse, backend)[2:]
