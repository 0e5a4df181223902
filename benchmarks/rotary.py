"""Rotary embedding of the audio encoder's queries and keys: slap-fast against the formula of Hugging Face models.

Queries, keys and values are the output `[T, 3, H, D]` of one projection, as in the model; positions are axial.
"Forward" rotates queries and keys; "forward and backward" also computes the gradient of the projection from gradients
of queries, keys and values. The formula is `x * cos + rotate_half(x) * sin`, with tables of cosines and sines in the
dtype of `x` that are computed beforehand, as all layers of a model share them. slap-fast computes angles in every call.

Memory-bound: a rotation takes three operations per value, and the case "copy" measures the bandwidth. Forward reads two
thirds of the projection and writes as many bytes; unless in place, the new tensors are also read into the cache first.
Backward of `apply_rotary_qkv` reads all three gradients and writes one. The formula writes five tensors for each that
it returns, and as many for its gradient; then autograd stacks the three gradients. torch.compile fuses all but the
stack.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings
from benchmarks.harness.inputs import normal
from benchmarks.harness.machine import has_bf16_units
from benchmarks.log_mel_clips import mixed_seconds
from benchmarks.our_peers import gpu_backends
from slap_fast.config.model import ModelConfig
from slap_fast.ops import PackedLayout, apply_rotary, apply_rotary_qkv

TITLE = "Rotary embedding of a packed projection, forward and backward"

TOKENS_PER_FRAME = 4
THETA = (10_000.0, 100.0)
# Rounding errors: of the formula's angles in float32, and of its tables and products in bfloat16.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
GIGABYTES = "GB"

Split = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Projection:
    """Random output of one projection for a batch of clips, the same at every call."""

    lengths: tuple[int, ...]
    heads: int
    head_dim: int
    dtype: torch.dtype
    device: str

    def qkv(self) -> Tensor:
        return self._numbers(0, 3)

    def gradients(self) -> tuple[Tensor, ...]:
        return self._numbers(1, 3).unbind(1)

    def cu_seqlens(self) -> Tensor:
        return PackedLayout.from_lengths(list(self.lengths)).cu_seqlens.to(self.device)

    def _numbers(self, seed: int, parts: int) -> Tensor:
        shape = (sum(self.lengths), parts, self.heads, self.head_dim)
        return normal(seed, *shape, device=self.device, dtype=self.dtype)

    @property
    def gigabytes(self) -> float:
        """Of queries and keys."""
        return 2e-9 * sum(self.lengths) * self.heads * self.head_dim * self.dtype.itemsize


def cases(settings: Settings) -> list[Case]:
    model = ModelConfig()
    seconds = mixed_seconds(4, 0.5, 2.0) if settings.quick else mixed_seconds(16 if settings.device == "cpu" else 256)
    lengths = tuple(model.num_tokens(round(length * model.mel.sample_rate)) for length in seconds)
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    projections = [Projection(lengths, 12, 64, dtype, settings.device) for dtype in dtypes]
    found = [
        case for projection in projections for case in (_forward(projection, settings), _both(projection, settings))
    ]
    return [*found, *(_copy(projection) for projection in projections)]


def _forward(projection: Projection, settings: Settings) -> Case:
    run = partial(_run_forward, projection)
    peers = (
        Peer("rotate_half", lambda: run(_formula(projection))),
        Peer("rotate_half, torch.compile", lambda: run(_compiled(projection)), _too_slow_to_compile(settings)),
        Peer("slap-fast, PyTorch backend", lambda: run(_rotary(projection, "torch"))),
        Peer("slap-fast", lambda: run(_rotary(projection))),
        *_triton(projection, lambda: run(_rotary(projection, "triton"))),
        Peer("slap-fast, in place", lambda: _run_in_place(projection)),
    )
    return _case("forward", projection, peers, backward=False)


def _both(projection: Projection, settings: Settings) -> Case:
    run = partial(_run_both, projection)
    peers = (
        Peer("rotate_half", lambda: run(_formula(projection))),
        Peer("rotate_half, torch.compile", lambda: run(_compiled(projection)), _too_slow_to_compile(settings)),
        Peer("slap-fast, PyTorch backend", lambda: run(_rotary_qkv(projection, "torch"))),
        Peer("slap-fast, views", lambda: run(_rotary(projection))),
        Peer("slap-fast", lambda: run(_rotary_qkv(projection))),
        *_triton(projection, lambda: run(_rotary_qkv(projection, "triton"))),
    )
    return _case("forward and backward", projection, peers, backward=True)


def _case(direction: str, projection: Projection, peers: tuple[Peer, ...], *, backward: bool) -> Case:
    return Case(
        name=f"{direction}, {DTYPE_NAMES[projection.dtype]}",
        peers=peers,
        baseline=peers[0].name,
        reference=lambda: _reference(projection, backward=backward),
        tolerance=TOLERANCES[projection.dtype],
        # Bytes read and written, without the reads that a cache adds to writes.
        work={GIGABYTES: projection.gigabytes * (2 + 3 * backward)},
        facts={
            "clips": len(projection.lengths),
            "tokens": sum(projection.lengths),
            "shortest (tokens)": min(projection.lengths),
            "longest (tokens)": max(projection.lengths),
        },
    )


def _copy(projection: Projection) -> Case:
    def setup() -> Run:
        source = projection.qkv()[:, :2].contiguous()
        target = torch.empty_like(source)
        return Run(step=lambda: target.copy_(source), outputs=lambda: {"values": target.copy_(source)})

    copy = Peer("copy_", setup)
    return Case(
        name=f"copy of queries and keys, {DTYPE_NAMES[projection.dtype]}",
        peers=(copy,),
        baseline=copy.name,
        reference=lambda: {"values": projection.qkv()[:, :2]},
        tolerance=0.0,
        work={GIGABYTES: 2 * projection.gigabytes},
    )


def _triton(projection: Projection, setup: Callable[[], Run]) -> list[Peer]:
    """The Triton backend on a GPU; PyTorch's has a row on every device."""
    return gpu_backends("apply_rotary", projection.device, lambda _name: setup())[:1]


def _too_slow_to_compile(settings: Settings) -> str | None:
    return "a quick run is over before it has compiled" if settings.quick else None


def _reference(projection: Projection, *, backward: bool) -> Outputs:
    qkv = projection.qkv().double().requires_grad_(backward)
    q, k, v = _rotary(projection, "torch")(qkv)
    outputs = {"q": q.detach(), "k": k.detach()}
    if backward:
        gradients = [gradient.double() for gradient in projection.gradients()]
        outputs["gradient"] = torch.autograd.grad((q, k, v), qkv, gradients)[0]
    return outputs


def _rotary(projection: Projection, backend: str = "auto") -> Split:
    cu_seqlens = projection.cu_seqlens()

    def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.unbind(1)
        q, k = apply_rotary(q, k, cu_seqlens, tokens_per_frame=TOKENS_PER_FRAME, theta=THETA, backend=backend)
        return q, k, v

    return split


def _rotary_qkv(projection: Projection, backend: str = "auto", *, inplace: bool = False) -> Split:
    return partial(
        apply_rotary_qkv,
        cu_seqlens=projection.cu_seqlens(),
        tokens_per_frame=TOKENS_PER_FRAME,
        theta=THETA,
        inplace=inplace,
        backend=backend,
    )


def _formula(projection: Projection) -> Split:
    cos, sin = _tables(projection)

    def rotate(x: Tensor) -> Tensor:
        axes = x.unflatten(2, (2, -1))  # [T, H, axes, channels]
        first, second = axes.chunk(2, dim=-1)
        return (axes * cos + torch.cat((-second, first), dim=-1) * sin).flatten(2)

    def split(qkv: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = qkv.unbind(1)
        return rotate(q), rotate(k), v

    return split


def _compiled(projection: Projection) -> Split:
    return torch.compile(_formula(projection), fullgraph=True, dynamic=True)


def _tables(projection: Projection) -> tuple[Tensor, Tensor]:
    """`[T, 1, axes, channels]` cosines and sines; both channels of a pair have its angle."""
    positions = torch.cat([torch.arange(length) for length in projection.lengths])
    places = torch.stack([positions // TOKENS_PER_FRAME, positions % TOKENS_PER_FRAME], dim=1)
    channels = projection.head_dim // 2
    exponents = torch.arange(0, channels, 2) / channels
    frequencies = torch.stack([theta**-exponents for theta in THETA])
    angles = places[:, None, :, None] * frequencies
    angles = torch.cat([angles, angles], dim=-1).to(projection.device)
    return angles.cos().to(projection.dtype), angles.sin().to(projection.dtype)


def _run_forward(projection: Projection, split: Split) -> Run:
    qkv = projection.qkv()

    def outputs() -> Outputs:
        with torch.no_grad():
            q, k, _ = split(qkv)
        return {"q": q, "k": k}

    return Run(step=outputs, outputs=outputs)


def _run_in_place(projection: Projection) -> Run:
    qkv = projection.qkv()
    rotate = _rotary_qkv(projection, inplace=True)

    def outputs() -> Outputs:
        q, k, _ = rotate(qkv.clone())
        return {"q": q, "k": k}

    return Run(step=lambda: rotate(qkv), outputs=outputs)


def _run_both(projection: Projection, split: Split) -> Run:
    qkv, gradients = projection.qkv().requires_grad_(), projection.gradients()

    def outputs() -> Outputs:
        q, k, v = split(qkv)
        (gradient,) = torch.autograd.grad((q, k, v), qkv, gradients)
        return {"q": q.detach(), "k": k.detach(), "gradient": gradient}

    return Run(step=outputs, outputs=outputs)
