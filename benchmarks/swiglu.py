"""Gate of the audio encoder's SwiGLU MLP: slap-fast against PyTorch, plain and compiled.

Memory-bound: per hidden value, forward reads two values and writes one, backward reads three and writes two; the
arithmetic is an exponential and a division. Plain PyTorch moves 5 values forward and 13 backward, including autograd's
concatenation of the two gradients. The case "copy" moves as many bytes as "forward and backward" must, between existing
tensors.
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
from benchmarks.our_peers import gpu_backends
from slap_fast.config.model import ModelConfig
from slap_fast.ops import swiglu

TITLE = "The gate of a SwiGLU MLP, forward and backward"

# Plain PyTorch rounds the gate before it multiplies.
TOLERANCES = {torch.float32: 1e-6, torch.bfloat16: 1e-2}
DTYPE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16"}

Gate = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Hidden:
    """Random output of a projection, the same at every call."""

    tokens: int
    width: int
    dtype: torch.dtype
    device: str

    def gate_up(self) -> Tensor:
        return self._numbers(0, 2 * self.width)

    def gradient(self) -> Tensor:
        return self._numbers(1, self.width)

    def _numbers(self, seed: int, width: int) -> Tensor:
        return normal(seed, self.tokens, width, device=self.device, dtype=self.dtype)


def cases(settings: Settings) -> list[Case]:
    tokens = 64 if settings.quick else 3036 if settings.device == "cpu" else 65_536
    width = 96 if settings.quick else ModelConfig().audio.mlp_width
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    sizes = [Hidden(tokens, width, dtype, settings.device) for dtype in dtypes]
    found = [_case(hidden, settings, backward=backward) for hidden in sizes for backward in (False, True)]
    return [*found, *map(_copy, sizes)]


def _case(hidden: Hidden, settings: Settings, *, backward: bool) -> Case:
    run = partial(_run, hidden, backward=backward)
    too_slow = "a quick run is over before it has compiled" if settings.quick else None
    values = hidden.tokens * hidden.width * (3 + 5 * backward)
    return Case(
        name=f"{'forward and backward' if backward else 'forward'}, {DTYPE_NAMES[hidden.dtype]}",
        peers=(
            Peer("PyTorch", lambda: run(_plain)),
            Peer("torch.compile", lambda: run(torch.compile(_plain, fullgraph=True, dynamic=True)), too_slow),
            *_liger(hidden, run),
            Peer("slap-fast", lambda: run(swiglu)),
            *gpu_backends("swiglu", hidden.device, lambda name: run(partial(swiglu, backend=name))),
        ),
        baseline="PyTorch",
        reference=lambda: _outputs(_plain, hidden.gate_up().double(), hidden.gradient().double(), backward=backward),
        tolerance=TOLERANCES[hidden.dtype],
        work={"GB": 1e-9 * hidden.dtype.itemsize * values},
        facts={"tokens": hidden.tokens, "hidden width": hidden.width},
    )


def _liger(hidden: Hidden, run: Callable[[Gate], Run]) -> list[Peer]:
    """Its kernel for gate and up in one tensor; GPU only."""

    def setup() -> Run:
        from liger_kernel.ops.swiglu import LigerFusedGateUpSiLUMulFunction

        return run(lambda gate_up: LigerFusedGateUpSiLUMulFunction.apply(gate_up))

    return (
        [Peer("Liger-Kernel", setup, not_installed("liger_kernel", "liger-kernel"))] if hidden.device == "cuda" else []
    )


def _plain(gate_up: Tensor) -> Tensor:
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def _outputs(gate: Gate, gate_up: Tensor, gradient: Tensor, *, backward: bool) -> Outputs:
    if not backward:
        with torch.no_grad():
            return {"hidden": gate(gate_up)}
    gate_up = gate_up.detach().requires_grad_()
    hidden = gate(gate_up)
    return {"hidden": hidden.detach(), "gradient": torch.autograd.grad(hidden, gate_up, gradient)[0]}


def _run(hidden: Hidden, gate: Gate, *, backward: bool) -> Run:
    step = partial(_outputs, gate, hidden.gate_up(), hidden.gradient(), backward=backward)
    return Run(step=step, outputs=step)


def _copy(hidden: Hidden) -> Case:
    def values() -> Tensor:
        return torch.cat([hidden.gate_up(), hidden.gate_up()])

    def setup() -> Run:
        source = values()
        target = torch.empty_like(source)
        return Run(step=lambda: target.copy_(source), outputs=lambda: {"values": target.copy_(source)})

    copy = Peer("copy_", setup)
    return Case(
        name=f"copy, {DTYPE_NAMES[hidden.dtype]}",
        peers=(copy,),
        baseline=copy.name,
        reference=lambda: {"values": values()},
        tolerance=0.0,
        work={"GB": 1e-9 * hidden.dtype.itemsize * 8 * hidden.tokens * hidden.width},
    )
