"""Peers of the attention benchmark: packed attention written in PyTorch, and slap-fast's backends.

Every peer takes its inputs and returns its results in the layout that suits it: packing and unpacking are not timed.
Masks are made beforehand, in the form that the peer's kernel reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.attention_workload import Workload
from benchmarks.harness.case import Outputs, Run
from slap_fast.ops import varlen_attention
from slap_fast.ops.attention.backend_torch import tiles
from slap_fast.ops.tensor_checks import accumulator

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Split = Callable[[Tensor], list[Tensor]]
Pack = Callable[[Sequence[Tensor]], Tensor]

FLEX_BLOCK = 128
HALO_BLOCK = 64  # the fastest on a CPU among 32, 64, 96, 128, 192 and 256


def backend(workload: Workload, name: str) -> Run:
    layout = workload.layout()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return varlen_attention(
            q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, window=workload.window, backend=name
        )

    return _run(workload, [attend], lambda x: [x], lambda parts: parts[0])


def sdpa_by_clip(workload: Workload) -> Run:
    """One call per clip, `[1, H, L, D]`."""
    return _run(workload, [_sdpa(mask) for mask in _clip_masks(workload)], *_by_clip(workload))


def sdpa_by_tile(workload: Workload) -> Run:
    """One call per tile of a clip: 128 queries or more, and the keys in their windows. CPU only."""
    cu_seqlens = workload.layout().cu_seqlens
    masked = [
        (rows, keys, None if hidden is None else _additive(~hidden, workload.dtype))
        for rows, keys, hidden in tiles(cu_seqlens, cu_seqlens, *workload.window)
    ]
    return _run(workload, [lambda q, k, v: _TiledSDPA.apply(q, k, v, masked)], lambda x: [x], lambda parts: parts[0])


class _TiledSDPA(torch.autograd.Function):
    """SDPA's CPU kernel over tiles of `[T, H, D]`.

    Called below SDPA's own autograd, under which the gradient of each tile's keys would be as large as all keys.
    """

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, tiles: list[tuple[slice, slice, Tensor | None]]) -> Tensor:
        out = torch.empty_like(q)
        lse = q.new_empty(q.shape[1], q.shape[0], dtype=accumulator(q.dtype))
        for rows, keys, mask in tiles:
            tile_out, tile_lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                *(x.transpose(0, 1)[None] for x in (q[rows], k[keys], v[keys])), attn_mask=mask
            )
            out[rows], lse[:, rows] = tile_out[0].transpose(0, 1), tile_lse[0]
        ctx.save_for_backward(q, k, v, out, lse)
        ctx.tiles = tiles
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, out, lse = ctx.saved_tensors
        grad_q = torch.empty_like(q)
        # Neighboring tiles share keys: their sums are kept at accumulator precision.
        grad_k, grad_v = (torch.zeros_like(x, dtype=lse.dtype) for x in (k, v))
        for rows, keys, mask in ctx.tiles:
            tile = (x.transpose(0, 1)[None] for x in (grad_out[rows], q[rows], k[keys], v[keys], out[rows]))
            tile_q, tile_k, tile_v = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                *tile, lse[None, :, rows], 0.0, False, attn_mask=mask
            )
            grad_q[rows] = tile_q[0].transpose(0, 1)
            grad_k[keys] += tile_k[0].transpose(0, 1)
            grad_v[keys] += tile_v[0].transpose(0, 1)
        return grad_q, grad_k.to(k.dtype), grad_v.to(v.dtype), None


def products_by_clip(workload: Workload) -> Run:
    """Batched products and a softmax per clip: the scores are stored, and at these lengths stay in the cache."""
    scale = workload.head_dim**-0.5

    def attend_with(mask: Tensor | None) -> Attend:
        def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            scores = torch.matmul(q * scale, k.transpose(-1, -2))
            return torch.matmul((scores if mask is None else scores + mask).softmax(-1), v)

        return attend

    return _run(workload, [attend_with(mask) for mask in _clip_masks(workload)], *_by_clip(workload))


def sdpa_padded(workload: Workload) -> Run:
    """One call, `[N, H, longest, D]`, with a mask if clips differ in length or there is a window."""
    lengths = torch.tensor(workload.lengths, device=workload.device)
    slot = torch.arange(workload.longest, device=workload.device)
    valid = slot < lengths[:, None]  # [N, longest]
    mask = None
    if workload.is_local or min(workload.lengths) < workload.longest:
        # A padding query sees itself: without any key its softmax would be NaN.
        visible = valid[:, None, :] | (slot[:, None] == slot)
        if workload.is_local:
            visible &= _band(slot[:, None], slot, workload.window)
        mask = _additive(visible[:, None], workload.dtype)

    def split(x: Tensor) -> list[Tensor]:
        padded = x.new_zeros(len(workload.lengths), workload.longest, *x.shape[1:])
        padded[valid] = x
        return [padded.transpose(1, 2).contiguous()]

    return _run(workload, [_sdpa(mask)], split, lambda parts: parts[0].transpose(1, 2)[valid])


def sdpa_in_blocks(workload: Workload, block: int = HALO_BLOCK) -> Run:
    """One call over a batch of query blocks, each with its keys and their halo; for one long clip and a window."""
    left, right = workload.window
    tokens, width = workload.tokens, block + left + right
    blocks = -(-tokens // block)
    missing = blocks * block - tokens
    first = torch.arange(blocks, device=workload.device)[:, None] * block
    query = first + torch.arange(block, device=workload.device)
    key = first - left + torch.arange(width, device=workload.device)
    visible = _band(query[:, :, None], key[:, None, :], workload.window)
    visible &= ((key >= 0) & (key < tokens))[:, None, :] | (query >= tokens)[:, :, None]
    sdpa = _sdpa(_additive(visible[:, None], workload.dtype))

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        queries = F.pad(q, (0, 0, 0, 0, 0, missing)).unflatten(0, (blocks, block)).transpose(1, 2)
        # [blocks, H, D, width], a view
        keys, values = (F.pad(x, (0, 0, 0, 0, left, right + missing)).unfold(0, width, block) for x in (k, v))
        return sdpa(queries, keys.transpose(2, 3), values.transpose(2, 3)).transpose(1, 2).flatten(0, 1)[:tokens]

    return _run(workload, [attend], lambda x: [x], lambda parts: parts[0])


def flex(workload: Workload) -> Run:
    """`flex_attention`, compiled, over the packed sequence `[1, H, T, D]` with a document mask and the window."""
    mask, compiled = _flex_mask(workload), _compiled_flex(workload)
    run = _run(
        workload,
        [lambda q, k, v: compiled(q, k, v, block_mask=mask)],
        lambda x: [x.transpose(0, 1)[None].contiguous()],
        lambda parts: parts[0][0].transpose(0, 1),
    )
    run.step()  # compiles
    return run


@lru_cache(maxsize=1)  # the setup runs again for each set of inputs of a CUDA graph
def _compiled_flex(_workload: Workload) -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention

    torch._dynamo.reset()  # one static compilation per workload
    return torch.compile(flex_attention, dynamic=False)


def xformers(workload: Workload) -> Run:
    """xformers over `[1, T, H, D]` with its block-diagonal mask, which has no two-sided window."""
    from xformers.ops import fmha

    mask = fmha.BlockDiagonalMask.from_seqlens(workload.lengths, device=torch.device(workload.device))
    return _run(
        workload,
        [lambda q, k, v: fmha.memory_efficient_attention(q, k, v, attn_bias=mask)],
        lambda x: [x[None]],
        lambda parts: parts[0][0],
    )


def _run(workload: Workload, attends: Sequence[Attend], split: Split, pack: Pack) -> Run:
    """A peer: each of `attends` runs over one part of the inputs, which `split` makes and `pack` joins."""
    q, k, v = ([part.detach().requires_grad_(workload.backward) for part in split(x)] for x in workload.tensors())
    gradients = split(workload.gradient()) if workload.backward else []

    def forward() -> list[Tensor]:
        return [attend(*parts) for attend, *parts in zip(attends, q, k, v, strict=True)]

    def step() -> list[Tensor]:
        if workload.backward:
            out = forward()
            return [*out, *torch.autograd.grad(out, [*q, *k, *v], gradients)]
        with torch.no_grad():
            return forward()

    def outputs() -> Outputs:
        results, count = step(), len(attends)
        names = ("out", "dq", "dk", "dv")[: len(results) // count]
        return {
            name: pack([part.detach() for part in results[index * count : (index + 1) * count]])
            for index, name in enumerate(names)
        }

    return Run(step=step, outputs=outputs)


def _sdpa(mask: Tensor | None) -> Attend:
    return lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask)


def _by_clip(workload: Workload) -> tuple[Split, Pack]:
    return (
        lambda x: [clip.transpose(0, 1)[None].contiguous() for clip in x.split(workload.lengths)],
        lambda clips: torch.cat([clip[0].transpose(0, 1) for clip in clips]),
    )


def _clip_masks(workload: Workload) -> list[Tensor | None]:
    if not workload.is_local:
        return [None] * len(workload.lengths)
    positions = [torch.arange(length, device=workload.device) for length in workload.lengths]
    return [_additive(_band(x[:, None], x, workload.window), workload.dtype) for x in positions]


def _band(query: Tensor, key: Tensor, window: tuple[int, int]) -> Tensor:
    return (key >= query - window[0]) & (key <= query + window[1])


def _additive(visible: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -math.inf)


def _flex_mask(workload: Workload) -> Any:
    """A block mask from the offsets of the clips: testing every pair of an hour would take 8 GB."""
    from torch.nn.attention.flex_attention import BlockMask

    layout, device = workload.layout(), workload.device
    clip = layout.segment_ids()
    position = torch.arange(workload.tokens, device=device)
    left, right = (workload.longest if side < 0 else side for side in workload.window)
    offsets = layout.cu_seqlens.long()
    first_key = torch.maximum(offsets[clip], position - left)
    last_key = torch.minimum(offsets[clip + 1] - 1, position + right)

    blocks = -(-workload.tokens // FLEX_BLOCK)
    starts = position[::FLEX_BLOCK]
    ends = (starts + FLEX_BLOCK - 1).clamp_max(workload.tokens - 1)
    # Neighboring queries see neighboring keys: a block sees one contiguous range of blocks.
    first_block, last_block = first_key[starts] // FLEX_BLOCK, last_key[ends] // FLEX_BLOCK
    counts = (last_block - first_block + 1).to(torch.int32)
    indices = (first_block[:, None] + torch.arange(blocks, device=device)).clamp_max(blocks - 1).to(torch.int32)

    def visible(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (key >= first_key[query]) & (key <= last_key[query])

    return BlockMask.from_kv_blocks(
        counts[None, None],
        indices[None, None],
        BLOCK_SIZE=FLEX_BLOCK,
        mask_mod=visible,
        seq_lengths=(workload.tokens, workload.tokens),
    )
