"""Backward kernels of packed attention: dQ and row statistics by tiles of queries, then dK and dV by tiles of keys.

Each gradient is summed by one program in a fixed order: no atomics, the same bits from run to run. The dQ kernel also
writes the two statistics per row that the dK, dV kernel needs: the log-sum-exp in base 2 (finite where a row sees no
key), and delta, the row sum of dO * O minus the gradient of the log-sum-exp, for which a separate pass would read both
tensors again. They are stored as four floats per row, two of them 0: Triton 3.6 copies tensors of fewer than 128
elements by 4 bytes, redundantly in each thread, which makes the loop a quarter longer.
"""

import triton
import triton.language as tl

from slap_fast.kernels.attention.forward_kernels import hide, key_range, row_bounds
from slap_fast.kernels.packing import find_rows, load_rows, store_rows


@triton.jit(do_not_specialize=["stride_lh", "clips", "total_q", "total_k", "left", "right"])
def grad_q_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    grad_out: tl.tensor,
    grad_lse: tl.tensor,
    lse: tl.tensor,
    row_stats: tl.tensor,
    grad_q: tl.tensor,
    cu_seqlens_q: tl.tensor,
    cu_seqlens_k: tl.tensor,
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    stride_vt: tl.tensor,
    stride_vh: tl.tensor,
    stride_ot: tl.tensor,
    stride_oh: tl.tensor,
    stride_gt: tl.tensor,
    stride_gh: tl.tensor,
    stride_dt: tl.tensor,
    stride_dh: tl.tensor,
    stride_lh: tl.tensor,
    clips: tl.tensor,
    total_q: tl.tensor,
    total_k: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    BRANCH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    head = tl.cast(tl.program_id(1), tl.int64)
    first, begin_q, length_q, begin_k, length_k = find_rows(
        cu_seqlens_q, cu_seqlens_k, clips, total_q, total_k, BLOCK_Q
    )
    if first >= length_q:
        return
    begin_q += first
    present = tl.minimum(length_q - first, BLOCK_Q)
    first += length_k - length_q  # from here on, the position of a query among the keys
    rows = tl.arange(0, BLOCK_Q)
    seen_first, seen_following = row_bounds(first + rows, length_k, left, right, HAS_LEFT, HAS_RIGHT)
    lowest, inner, outer, highest = key_range(first, first + present - 1, length_k, left, right, HAS_LEFT, HAS_RIGHT)

    q += tl.cast(begin_q, tl.int64) * stride_qt + head * stride_qh
    k += tl.cast(begin_k, tl.int64) * stride_kt + head // GROUP * stride_kh
    v += tl.cast(begin_k, tl.int64) * stride_vt + head // GROUP * stride_vh
    out += tl.cast(begin_q, tl.int64) * stride_ot + head * stride_oh
    grad_out += tl.cast(begin_q, tl.int64) * stride_gt + head * stride_gh
    row_offset = head * stride_lh + begin_q

    q_tile = load_rows(q, stride_qt, present, HEAD_DIM, BLOCK_D, BLOCK_Q)
    grad_tile = load_rows(grad_out, stride_gt, present, HEAD_DIM, BLOCK_D, BLOCK_Q)
    out_tile = load_rows(out, stride_ot, present, HEAD_DIM, BLOCK_D, BLOCK_Q)
    row_delta = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), 1)
    row_delta -= tl.load(grad_lse + row_offset + rows, mask=rows < present, other=0.0)
    row_lse = tl.load(lse + row_offset + rows, mask=rows < present, other=0.0)
    row_lse = tl.where(row_lse == float("-inf"), 0.0, row_lse * 1.4426950408889634)
    field = tl.arange(0, 4)[None, :]
    stats = tl.where(field == 0, row_lse[:, None], tl.where(field == 1, row_delta[:, None], 0.0))
    tl.store(row_stats + 4 * (row_offset + rows)[:, None] + field, stats, mask=(rows < present)[:, None])
    log2_scale = scale * 1.4426950408889634

    accumulator = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    k += tl.cast(lowest, tl.int64) * stride_kt
    v += tl.cast(lowest, tl.int64) * stride_vt
    for start in range(lowest, highest, BLOCK_K):
        k_tile = load_rows(k, stride_kt, length_k - start, HEAD_DIM, BLOCK_D, BLOCK_K)
        v_tile = load_rows(v, stride_vt, length_k - start, HEAD_DIM, BLOCK_D, BLOCK_K)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
        if not BRANCH or (start < inner) | (start + BLOCK_K > outer):
            scores = hide(scores, start, seen_first, seen_following, HAS_LEFT, BLOCK_K)
        weights = tl.exp2(scores * log2_scale - row_lse[:, None])
        grad_weights = tl.dot(grad_tile, tl.trans(v_tile), input_precision=PRECISION)
        grad_scores = (weights * (grad_weights - row_delta[:, None])).to(k_tile.dtype)
        accumulator = tl.dot(grad_scores, k_tile, accumulator, input_precision=PRECISION)
        k += BLOCK_K * stride_kt
        v += BLOCK_K * stride_vt

    grad_q += tl.cast(begin_q, tl.int64) * stride_dt + head * stride_dh
    store_rows(grad_q, stride_dt, present, accumulator * scale, HEAD_DIM, BLOCK_D, BLOCK_Q)


@triton.jit(do_not_specialize=["stride_lh", "clips", "total_q", "total_k", "left", "right"])
def grad_kv_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    grad_out: tl.tensor,
    row_stats: tl.tensor,
    grad_k: tl.tensor,
    grad_v: tl.tensor,
    cu_seqlens_q: tl.tensor,
    cu_seqlens_k: tl.tensor,
    stride_qt: tl.tensor,
    stride_qh: tl.tensor,
    stride_kt: tl.tensor,
    stride_kh: tl.tensor,
    stride_vt: tl.tensor,
    stride_vh: tl.tensor,
    stride_gt: tl.tensor,
    stride_gh: tl.tensor,
    stride_dt: tl.tensor,
    stride_dh: tl.tensor,
    stride_lh: tl.tensor,
    clips: tl.tensor,
    total_q: tl.tensor,
    total_k: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    scale: tl.tensor,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
    BRANCH: tl.constexpr,
    PRECISION: tl.constexpr,
) -> None:
    head = tl.cast(tl.program_id(1), tl.int64)
    first, begin_k, length_k, begin_q, length_q = find_rows(
        cu_seqlens_k, cu_seqlens_q, clips, total_k, total_q, BLOCK_K
    )
    if first >= length_k:
        return
    begin_k += first
    present = tl.minimum(length_k - first, BLOCK_K)
    first += length_q - length_k  # from here on, the position of a key among the queries
    rows = first + tl.arange(0, BLOCK_K)
    # Keys see queries through the mirrored window: left and right are swapped.
    seen_first, seen_following = row_bounds(rows, length_q, right, left, HAS_RIGHT, HAS_LEFT)
    lowest, inner, outer, highest = key_range(first, first + present - 1, length_q, right, left, HAS_RIGHT, HAS_LEFT)

    k += tl.cast(begin_k, tl.int64) * stride_kt + head * stride_kh
    v += tl.cast(begin_k, tl.int64) * stride_vt + head * stride_vh
    k_tile = load_rows(k, stride_kt, present, HEAD_DIM, BLOCK_D, BLOCK_K)
    v_tile = load_rows(v, stride_vt, present, HEAD_DIM, BLOCK_D, BLOCK_K)
    q += tl.cast(begin_q, tl.int64) * stride_qt + head * GROUP * stride_qh
    grad_out += tl.cast(begin_q, tl.int64) * stride_gt + head * GROUP * stride_gh
    row_stats += 4 * (head * GROUP * stride_lh + begin_q)
    log2_scale = scale * 1.4426950408889634

    sum_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    sum_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    columns = tl.arange(0, BLOCK_Q)
    field = tl.arange(0, 4)[None, :]
    for _ in range(GROUP):
        q_block = q + tl.cast(lowest, tl.int64) * stride_qt
        grad_block = grad_out + tl.cast(lowest, tl.int64) * stride_gt
        for start in range(lowest, highest, BLOCK_Q):
            queries = start + columns
            q_tile = load_rows(q_block, stride_qt, length_q - start, HEAD_DIM, BLOCK_D, BLOCK_Q)
            grad_tile = load_rows(grad_block, stride_gt, length_q - start, HEAD_DIM, BLOCK_D, BLOCK_Q)
            # Beyond the clip, queries and gradients are loaded as 0 and add 0, since lse and delta are finite.
            stats = tl.load(row_stats + 4 * queries[:, None] + field, mask=(queries < length_q)[:, None], other=0.0)
            even, odd = tl.split(stats.reshape(BLOCK_Q, 2, 2))
            row_lse, _unused = tl.split(even)
            row_delta, _unused = tl.split(odd)
            # Transposed, as the following products need them.
            scores = tl.dot(k_tile, tl.trans(q_tile), input_precision=PRECISION)  # [BLOCK_K, BLOCK_Q]
            if not BRANCH or (start < inner) | (start + BLOCK_Q > outer):
                scores = hide(scores, start, seen_first, seen_following, HAS_RIGHT, BLOCK_Q)
            weights = tl.exp2(scores * log2_scale - row_lse[None, :])
            sum_v = tl.dot(weights.to(grad_tile.dtype), grad_tile, sum_v, input_precision=PRECISION)
            grad_weights = tl.dot(v_tile, tl.trans(grad_tile), input_precision=PRECISION)
            grad_scores = (weights * (grad_weights - row_delta[None, :])).to(q_tile.dtype)
            sum_k = tl.dot(grad_scores, q_tile, sum_k, input_precision=PRECISION)
            q_block += BLOCK_Q * stride_qt
            grad_block += BLOCK_Q * stride_gt
        q += stride_qh
        grad_out += stride_gh
        row_stats += 4 * tl.cast(stride_lh, tl.int64)

    grad_k += tl.cast(begin_k, tl.int64) * stride_dt + head * stride_dh
    grad_v += tl.cast(begin_k, tl.int64) * stride_dt + head * stride_dh
    store_rows(grad_k, stride_dt, present, sum_k * scale, HEAD_DIM, BLOCK_D, BLOCK_K)
    store_rows(grad_v, stride_dt, present, sum_v, HEAD_DIM, BLOCK_D, BLOCK_K)
