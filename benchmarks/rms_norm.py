"""RMSNorm of a residual sum: slap-fast against PyTorch operations, plain and compiled.

A block of the model adds the output of a branch to the residual stream and normalizes the sum for the next branch:
`summed = x + residual; normed = F.rms_norm(summed)`. "Forward and backward" also computes the gradients of both inputs
and of the weight from gradients of both results. The audio encoder does this 24 times per pass.

Memory-bound: forward reads two tensors and writes two, backward reads three and writes one, as both inputs have the
same gradient. The case "copy" moves as many bytes between existing tensors. PyTorch operations also write and read
intermediate results; torch.compile fuses them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.harness.case import Case, Outputs, Peer, Run, Settings, not_installed
from benchmarks.harness.inputs import normal
from benchmarks.harness.machine import has_bf16_units
from benchmarks.log_mel_clips import mixed_seconds
from benchmarks.our_peers import gpu_backends
from slap_fast.config.model import ModelConfig
from slap_fast.ops import add_rms_norm

TITLE = "RMSNorm of the sum of residual stream and branch, forward and backward"

# Rounding errors of the sum, the norm, and their gradients.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}
GIGABYTES = "GB"
FORWARD_TENSORS, BACKWARD_TENSORS = 4, 4  # read or written

Norm = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Stream:
    """Random residual stream and branch output for a batch of clips, the same at every call."""

    tokens: int
    width: int
    eps: float
    dtype: torch.dtype
    device: str

    def inputs(self) -> tuple[Tensor, ...]:
        weight = 1.0 + 0.1 * self._numbers(2, self.width)
        return *(self._numbers(seed, self.tokens, self.width) for seed in (0, 1)), weight

    def gradients(self) -> tuple[Tensor, ...]:
        return tuple(self._numbers(seed, self.tokens, self.width) for seed in (3, 4))

    def _numbers(self, seed: int, *shape: int) -> Tensor:
        return normal(seed, *shape, device=self.device, dtype=self.dtype)

    @property
    def gigabytes(self) -> float:
        """Of one tensor."""
        return 1e-9 * self.tokens * self.width * self.dtype.itemsize


def cases(settings: Settings) -> list[Case]:
    model = ModelConfig()
    seconds = mixed_seconds(4, 0.5, 2.0) if settings.quick else mixed_seconds(16 if settings.device == "cpu" else 256)
    tokens = sum(model.num_tokens(round(length * model.mel.sample_rate)) for length in seconds)
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    streams = [Stream(tokens, model.audio.width, model.audio.norm_eps, dtype, settings.device) for dtype in dtypes]
    return [
        *(_case(stream, settings, backward=backward) for stream in streams for backward in (False, True)),
        *(_copy(stream) for stream in streams),
    ]


def _case(stream: Stream, settings: Settings, *, backward: bool) -> Case:
    plain = partial(_plain, stream)
    ours = partial(add_rms_norm, eps=stream.eps)
    compiled = partial(torch.compile, plain, fullgraph=True, dynamic=True)
    too_slow = "a quick run is over before it has compiled" if settings.quick else None
    run = partial(_run_both if backward else _run_forward, stream)
    peers = (
        Peer("add, F.rms_norm", lambda: run(plain)),
        Peer("add, F.rms_norm, torch.compile", lambda: run(compiled()), too_slow),
        *_gpu_libraries(stream, run),
        Peer("slap-fast", lambda: run(ours)),
        *gpu_backends("rms_norm", stream.device, lambda name: run(partial(ours, backend=name))),
    )
    direction = "forward and backward" if backward else "forward"
    return Case(
        name=f"{direction}, {DTYPE_NAMES[stream.dtype]}",
        peers=peers,
        baseline=peers[0].name,
        reference=lambda: _reference(stream, backward=backward),
        tolerance=TOLERANCES[stream.dtype],
        work={GIGABYTES: stream.gigabytes * (FORWARD_TENSORS + backward * BACKWARD_TENSORS)},
        facts={"tokens": stream.tokens, "width": stream.width},
    )


def _copy(stream: Stream) -> Case:
    """A copy of as many bytes as "forward and backward" moves."""

    def setup() -> Run:
        source = torch.stack(stream.gradients()).repeat(2, 1, 1)
        target = torch.empty_like(source)
        return Run(step=lambda: target.copy_(source), outputs=lambda: {"values": target.copy_(source)})

    copy = Peer("copy_", setup)
    return Case(
        name=f"copy, {DTYPE_NAMES[stream.dtype]}",
        peers=(copy,),
        baseline=copy.name,
        reference=lambda: {"values": torch.stack(stream.gradients()).repeat(2, 1, 1)},
        tolerance=0.0,
        work={GIGABYTES: stream.gigabytes * (FORWARD_TENSORS + BACKWARD_TENSORS)},
    )


def _plain(stream: Stream, x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    summed = x + residual
    return F.rms_norm(summed, weight.shape, weight, stream.eps), summed


def _gpu_libraries(stream: Stream, run: Callable[[Norm], Run]) -> list[Peer]:
    if stream.device != "cuda":
        return []
    return [
        Peer("Liger-Kernel", lambda: run(_liger(stream)), not_installed("liger_kernel", "liger-kernel")),
        Peer("QuACK", lambda: run(_quack(stream)), not_installed("quack", "quack-kernels")),
    ]


def _liger(stream: Stream) -> Norm:
    from liger_kernel.ops import LigerFusedAddRMSNormFunction

    return lambda x, residual, weight: LigerFusedAddRMSNormFunction.apply(
        x, residual, weight, stream.eps, 0.0, "llama", False
    )


def _quack(stream: Stream) -> Norm:
    from quack.rmsnorm import rmsnorm

    return lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=stream.eps, prenorm=True)


def _reference(stream: Stream, *, backward: bool) -> Outputs:
    inputs = [x.double().requires_grad_(backward) for x in stream.inputs()]
    results = _plain(stream, *inputs)
    outputs = {"normed": results[0].detach(), "summed": results[1].detach()}
    if not backward:
        return outputs
    gradients = [gradient.double() for gradient in stream.gradients()]
    return outputs | _named(torch.autograd.grad(results, inputs, gradients))


def _named(gradients: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip(("grad of x", "grad of residual", "grad of weight"), gradients, strict=True))


def _run_forward(stream: Stream, norm: Norm) -> Run:
    inputs = stream.inputs()

    def outputs() -> Outputs:
        with torch.no_grad():
            normed, summed = norm(*inputs)
        return {"normed": normed, "summed": summed}

    return Run(step=outputs, outputs=outputs)


def _run_both(stream: Stream, norm: Norm) -> Run:
    inputs, gradients = [x.requires_grad_() for x in stream.inputs()], stream.gradients()

    def outputs() -> Outputs:
        normed, summed = norm(*inputs)
        found = torch.autograd.grad((normed, summed), inputs, gradients)
        return {"normed": normed.detach(), "summed": summed.detach()} | _named(found)

    return Run(step=outputs, outputs=outputs)
