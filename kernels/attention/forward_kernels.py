"""Forward kernel of packed attention: one program per query tile and head, with an online softmax over its keys."""

import triton
import triton.language as tl

from slap_fast.kernels.packing import find_rows, load_rows, store_rows


@triton.jit
def key_range(
    first: tl.tensor,
    last: tl.tensor,
    length: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor, tl.tensor]:
    """Bounds `(begin, inner, outer, end)` of the columns that rows `first` to `last`, inclusive, see.

    Some row sees each column in [begin, end), every row sees all columns in [inner, outer); either range may be empty.
    Rows are given by their position among the columns.
    """
    begin = 0
    inner = 0
    end = length
    outer = length
    if HAS_LEFT:
        begin = tl.minimum(tl.maximum(first - left, 0), length)
        inner = last - left
    if HAS_RIGHT:
        end = tl.maximum(tl.minimum(last + right + 1, length), begin)
        outer = tl.minimum(first + right + 1, length)
    return begin, inner, outer, end


@triton.jit
def row_bounds(
    rows: tl.tensor,
    length: tl.tensor,
    left: tl.tensor,
    right: tl.tensor,
    HAS_LEFT: tl.constexpr,
    HAS_RIGHT: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor]:
    """The first column that each row sees, and the count of visible columns after it.

    For a row that sees none, the first is beyond all columns. Without a left limit, the first is 0 and the count may be
    negative.
    """
    last = tl.zeros_like(rows) + (length - 1)
    if HAS_RIGHT:
        last = tl.minimum(rows + right, last)
    if not HAS_LEFT:
        return tl.zeros_like(rows), last
    first = tl.maximum(rows - left, 0)
    sees_none = last < first
    return tl.where(sees_none, 1 << 30, first), tl.where(sees_none, 0, last - first)


@triton.jit
def hide(
    scores: tl.tensor,
    start: tl.tensor,
    first: tl.tensor,
    following: tl.tensor,
    HAS_LEFT: tl.constexpr,
    COLUMNS: tl.constexpr,
) -> tl.tensor:
    """`scores` of the columns from `start`, with -inf where a row does not see a column, given `row_bounds`."""
    columns = tl.arange(0, COLUMNS)[None, :]
    if HAS_LEFT:
        # One unsigned comparison for both sides: columns to the left wrap around.
        place = (columns + (start - first)[:, None]).to(tl.uint32, bitcast=True)
        return tl.where(place <= following.to(tl.uint32, bitcast=True)[:, None], scores, float("-inf"))
    return tl.where(columns <= (following - start)[:, None], scores, float("-inf"))


@triton.jit(do_not_specialize=["stride_lh", "clips", "total_q", "total_k", "left", "right"])
def forward_kernel(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
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
    scale *= 1.4426950408889634  # log2(e): the hardware has exp2, not exp
    lowest, inner, outer, highest = key_range(first, first + present - 1, length_k, left, right, HAS_LEFT, HAS_RIGHT)

    q += tl.cast(begin_q, tl.int64) * stride_qt + head * stride_qh
    k += tl.cast(begin_k, tl.int64) * stride_kt + head // GROUP * stride_kh
    v += tl.cast(begin_k, tl.int64) * stride_vt + head // GROUP * stride_vh
    q_tile = load_rows(q, stride_qt, present, HEAD_DIM, BLOCK_D, BLOCK_Q)
    accumulator = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    row_max = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    row_sum = tl.zeros([BLOCK_Q], tl.float32)
    k += tl.cast(lowest, tl.int64) * stride_kt
    v += tl.cast(lowest, tl.int64) * stride_vt
    for start in range(lowest, highest, BLOCK_K):
        k_tile = load_rows(k, stride_kt, length_k - start, HEAD_DIM, BLOCK_D, BLOCK_K)
        scores = tl.dot(q_tile, tl.trans(k_tile), input_precision=PRECISION)  # [BLOCK_Q, BLOCK_K]
        if not BRANCH or (start < inner) | (start + BLOCK_K > outer):
            scores = hide(scores, start, seen_first, seen_following, HAS_LEFT, BLOCK_K)
        # The scale is positive. Below, its product and the subtraction are one instruction.
        new_max = tl.maximum(row_max, tl.max(scores, 1) * scale)
        # For a row that has seen no key yet, -inf minus -inf would be NaN.
        reference = tl.where(new_max == float("-inf"), 0.0, new_max)
        weights = tl.exp2(scores * scale - reference[:, None])
        decay = tl.exp2(row_max - reference)
        row_sum = row_sum * decay + tl.sum(weights, 1)
        row_max = new_max
        v_tile = load_rows(v, stride_vt, length_k - start, HEAD_DIM, BLOCK_D, BLOCK_K)
        weights = weights.to(v_tile.dtype)
        accumulator = tl.dot(weights, v_tile, accumulator * decay[:, None], input_precision=PRECISION)
        k += BLOCK_K * stride_kt
        v += BLOCK_K * stride_vt

    accumulator *= (1.0 / tl.where(row_sum == 0.0, 1.0, row_sum))[:, None]
    out += tl.cast(begin_q, tl.int64) * stride_ot + head * stride_oh
    store_rows(out, stride_ot, present, accumulator, HEAD_DIM, BLOCK_D, BLOCK_Q)
    lse += head * stride_lh + begin_q
    tl.store(lse + rows, (row_max + tl.log2(row_sum)) * 0.6931471805599453, mask=rows < present)
