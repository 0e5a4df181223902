"""Packed attention, local and global: slap-fast's backends against PyTorch's alternatives.

12 heads of 64 channels over clips at 25 tokens a second, as in the audio encoder: 16 clips spread log-evenly over 1 to
30 s, 16 clips of 10 s (no padding), and one hour. Local layers see 48 tokens to each side, global ones the whole clip;
the hour runs local only. "Forward and backward" computes the gradients of queries, keys and values. All peers are
compared with the PyTorch backend in float64 before they are timed. Useful GFLOP count only visible pairs: `4 D` per
pair and head forward, and 2.5 times that for the backward, which recomputes the scores. The last column divides by the
matrix product that the same run timed, in the same dtype.

The lower bound of a time is operations over peak. The workloads have, forward and with the backward,

    16 clips, 1 to 30 s    3,032 tokens     local  0.79 and  2.77 GFLOP     global 3.23 and 11.3 GFLOP
    16 clips of 10 s       4,000 tokens     local  1.08 and  3.77 GFLOP     global 3.07 and 10.8 GFLOP
    one hour              90,000 tokens     local 26.8  and 93.8  GFLOP

An AVX-512 core at 243 GFLOP/s in float32 and 430 in bf16 needs at least

    16 clips, 1 to 30 s    local 3.3 and 11 ms, bf16 1.8 and 6.4 ms     global 13 and 46 ms, bf16 7.5 and 26 ms
    16 clips of 10 s       local 4.4 and 16 ms, bf16 2.5 and 8.8 ms     global 13 and 44 ms, bf16 7.1 and 25 ms
    one hour               local 110 and 386 ms, bf16 62 and 218 ms

and two cores half of that, plus one exponential per visible pair and head forward, and one more in the backward. A
local kernel must also compute pairs at the edges of its tiles: with tiles of 64 by 64, 97 of about 192 keys are useful.
A masked dense kernel computes all pairs of a clip: 4 times the local ones of the mixed clips. Padding makes that 23
times, and 5.6 times the global ones. PyTorch's own products reach less than the hardware's peak, so shares above 1 are
possible.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from benchmarks import attention_peers as peers
from benchmarks.attention_workload import Workload
from benchmarks.harness.case import Case, Peer, Settings, not_installed
from benchmarks.harness.machine import has_bf16_units
from benchmarks.matrix_product import DTYPE_NAMES, USEFUL, product_case, product_name
from benchmarks.our_peers import PREFIX, attention_variants, variant_peers
from slap_fast.ops import dispatch
from slap_fast.ops.attention import BACKENDS

TITLE = "Packed attention, forward and backward"

WINDOWS = {"local": (48, 48), "global": (-1, -1)}
DIRECTIONS = {"forward": False, "forward and backward": True}
# Ten times (float32) and twice (bfloat16) the error of correct peers.
TOLERANCES = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
HOUR = "one hour"
LONGEST_DENSE = 8192  # tokens of a clip
TOO_LARGE = "its mask of all pairs would take 16 GB and more"


def workloads(settings: Settings) -> dict[str, tuple[int, ...]]:
    """Name of each workload -> tokens of its clips."""
    if settings.quick:
        return {"mixed clips": (3, 40, 130), "equal clips": (60,) * 3, HOUR: (1000,)}
    clips = 16 if settings.device == "cpu" else 256
    # Four tokens, one column of patches, span 160 ms.
    mixed = tuple(4 * int(6.25 * 30 ** (clip / clips)) for clip in range(clips))
    return {"mixed clips": mixed, "equal clips": (250,) * clips, HOUR: (90_000,)}


def cases(settings: Settings) -> list[Case]:
    heads, head_dim = (2, 16) if settings.quick else (12, 64)
    dtypes = [torch.float32, *([torch.bfloat16] if has_bf16_units(settings.device) else [])]
    if settings.device == "cuda":
        dtypes.reverse()  # the training dtype first: a time budget may cut the rest
    found = [product_case(dtype, settings) for dtype in dtypes]
    for name, lengths in workloads(settings).items():
        for kind in ("local",) if name == HOUR else tuple(WINDOWS):
            for dtype in dtypes:
                for direction, backward in DIRECTIONS.items():
                    workload = Workload(lengths, WINDOWS[kind], dtype, backward, settings.device, heads, head_dim)
                    label = f"{name}, {kind}, {DTYPE_NAMES[dtype]}, {direction}"
                    found.append(_case(label, workload, kind, direction, settings))
    return found


def _case(name: str, workload: Workload, kind: str, direction: str, settings: Settings) -> Case:
    too_large = TOO_LARGE if workload.longest > LONGEST_DENSE else None
    found = [
        Peer("SDPA, padded", partial(peers.sdpa_padded, workload), too_large),
        Peer("flex_attention", partial(peers.flex, workload), _no_flex(workload, settings)),
    ]
    if workload.device == "cpu":  # on a GPU these would measure kernel launches
        found[:0] = [
            Peer("SDPA, clip by clip", partial(peers.sdpa_by_clip, workload), too_large),
            Peer("products, clip by clip", partial(peers.products_by_clip, workload), too_large),
            Peer("SDPA, tile by tile", partial(peers.sdpa_by_tile, workload)),
        ]
    if len(workload.lengths) == 1:
        found.insert(0, Peer("SDPA, in blocks", partial(peers.sdpa_in_blocks, workload)))
    if workload.device == "cuda":
        found.append(Peer("xformers", partial(peers.xformers, workload), _no_xformers(workload)))
    return Case(
        name=name,
        peers=(*found, *_backends(workload)),
        baseline=found[0].name,
        reference=workload.reference,
        tolerance=TOLERANCES[workload.dtype],
        work={USEFUL: workload.flop / 1e9},
        peak=product_name(workload.dtype),
        facts={
            "clips": len(workload.lengths),
            "tokens": workload.tokens,
            "longest": workload.longest,
            "heads": workload.heads,
            "head_dim": workload.head_dim,
            "window": kind,
            "dtype": str(workload.dtype).removeprefix("torch."),
            "pass": direction,
            "useful GFLOP": workload.flop / 1e9,
        },
    )


def _backends(workload: Workload) -> list[Peer]:
    """The backends made for the device, each with why it cannot run on this machine."""
    unavailable = dict(dispatch.report()["varlen_attention"])
    # A call that every backend made for the device accepts.
    simplest: dict[str, Any] = {
        "device": torch.device(workload.device),
        "dtype": torch.bfloat16 if workload.device == "cuda" else torch.float32,
        "head_dim": 64,
        "heads": workload.heads,
        "kv_heads": workload.heads,
        "left": -1,
        "right": -1,
        "cross": False,
        "return_lse": False,
        "needs_grad": False,
    }
    wanted = simplest | {
        "dtype": workload.dtype,
        "head_dim": workload.head_dim,
        "left": workload.window[0],
        "right": workload.window[1],
        "needs_grad": workload.backward,
    }
    found = [
        Peer(
            PREFIX + name,
            partial(peers.backend, workload, name),
            unavailable[name] or module.rejects(**wanted) or _too_padded(name, workload),
        )
        for name, module in BACKENDS.items()
        if module.rejects(**simplest) is None
    ]
    without_triton = unavailable["triton"] or BACKENDS["triton"].rejects(**wanted)
    setup = partial(peers.backend, workload, "triton")
    names = attention_variants(workload.window, workload.dtype, backward=workload.backward)
    return [*found, *variant_peers("varlen_attention", workload.device, setup, without_triton, names)]


def _too_padded(name: str, workload: Workload) -> str | None:
    return TOO_LARGE if name == "torch_padded" and workload.longest > LONGEST_DENSE else None


def _no_flex(workload: Workload, settings: Settings) -> str | None:
    if settings.quick:
        return "not in quick runs: its compilation takes longer than the rest of the run"
    if workload.device == "cpu" and workload.backward:
        return "flex_attention has no backward on the CPU"
    return None


def _no_xformers(workload: Workload) -> str | None:
    if workload.is_local:
        return "its block-diagonal masks have no window to the right"
    return not_installed("xformers", "xformers")
