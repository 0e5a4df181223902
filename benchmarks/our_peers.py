"""slap-fast's backends and the variants of its Triton kernels as separate peers of a benchmark."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeVar

import torch

from benchmarks.harness.case import Peer, Run
from slap_fast.kernels import variants
from slap_fast.ops import dispatch

T = TypeVar("T")

PREFIX = "slap-fast, "
# Names in `variants.VARIANTS` that the launches of each op may use.
VARIANTS_OF: dict[str, tuple[str, ...]] = {
    "varlen_attention": (
        "attention_forward_global",
        "attention_forward_local",
        "attention_grad_q",
        "attention_grad_kv_global",
        "attention_grad_kv_local",
    ),
    "contrastive_loss": ("contrastive_tile", "gradient_product"),
    "linear_cross_entropy": ("caption_tile", "gradient_product"),
    "prototype_cross_entropy": ("prototype_scores", "prototype_tile", "gradient_product"),
}


def gpu_backends(op: str, device: str, setup: Callable[[str], Run]) -> list[Peer]:
    """On a GPU, one peer for each backend of `op` that is forced by name; on a CPU none."""
    if device != "cuda":
        return []
    reasons = dict(dispatch.report()[op])
    return [Peer(PREFIX + name, partial(setup, name), reasons[name]) for name in ("triton", "torch")]


def attention_variants(window: tuple[int, int], dtype: torch.dtype, *, backward: bool) -> tuple[str, ...]:
    """Variant names that a call of `varlen_attention` with heads of 64 channels uses."""
    if dtype == torch.float32:
        return ()
    without = {"_global", "_local"} - {"_global" if window == (-1, -1) else "_local" if min(window) >= 0 else ""}
    names = [name for name in VARIANTS_OF["varlen_attention"] if not name.endswith(tuple(without))]
    return tuple(name for name in names if backward or "_grad_" not in name)


def loss_variants(op: str, dtype: torch.dtype) -> tuple[str, ...]:
    """Variant names that a call of a loss uses: float32 has a single tile, 16-bit dtypes a single gradient product."""
    if dtype == torch.float32:
        return tuple(name for name in VARIANTS_OF[op] if not name.endswith("_tile"))
    return tuple(name for name in VARIANTS_OF[op] if name != "gradient_product")


def variant_peers(
    op: str,
    device: str,
    setup: Callable[[], Run],
    unavailable: str | None = None,
    names: Sequence[str] | None = None,
) -> list[Peer]:
    """On a GPU, one peer for each non-default variant of the kernels of `op`; on a CPU none.

    Args:
        op: a registered op.
        device: "cpu" or "cuda".
        setup: makes a run of the Triton backend.
        unavailable: why the Triton backend cannot run the case.
        names: the names in VARIANTS_OF that the case uses; None: all.
    """
    if device != "cuda":
        return []
    return [
        Peer(f"{PREFIX}triton, {name}={variant}", partial(_set_up, setup, {name: variant}), unavailable)
        for name in (VARIANTS_OF[op] if names is None else names)
        for variant in variants.VARIANTS[name][1:]
    ]


def _set_up(setup: Callable[[], Run], choice: dict[str, str]) -> Run:
    run = _under(setup, choice)
    return Run(partial(_under, run.step, choice), partial(_under, run.outputs, choice), run.outputs_run_step)


def _under(call: Callable[[], T], choice: dict[str, str]) -> T:
    with variants.use(**choice):
        return call()
