"""Attention kernels in Triton's interpreter, run by tests/kernels/test_interpreted.py.

By hand: TRITON_INTERPRET=1 pytest tests/kernels/interpreted/varlen_attention.py
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import accumulate, pairwise

import pytest
import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from slap_fast.kernels import attention as kernels
from slap_fast.kernels import variants
from slap_fast.kernels.packing import find_clip, tile_count
from slap_fast.kernels.variants import VARIANTS
from slap_fast.ops import PackedLayout, varlen_attention
from tests.canaries import Guarded
from tests.oracles.varlen_attention import varlen_attention as oracle

# No bfloat16: the interpreter's products of it are wrong.
WINDOWS = [(-1, -1), (0, 0), (1, 0), (0, 1), (47, 48), (-1, 0), (0, -1), (200, 90)]
# One token, an empty clip, and the edges of tiles of 16, 32 and 64.
LENGTHS = [1, 0, 15, 17, 63, 64, 65, 129]


@pytest.fixture(autouse=True)
def poisoned_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel leaves unwritten reads as NaN."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *size, **options: empty(*size, **options).fill_(math.nan))
    monkeypatch.setattr(torch, "empty_like", lambda x: empty_like(x).fill_(math.nan))


class Case:
    def __init__(
        self,
        lengths_q: list[int],
        lengths_k: list[int] | None = None,
        *,
        heads: int = 2,
        kv_heads: int = 2,
        head_dim: int = 16,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        self.lengths_q, self.lengths_k = lengths_q, lengths_q if lengths_k is None else lengths_k
        queries, keys = PackedLayout.from_lengths(self.lengths_q), PackedLayout.from_lengths(self.lengths_k)
        shapes = [(queries.total, heads, head_dim), *[(keys.total, kv_heads, head_dim)] * 2]
        self.tensors = [torch.randn(shape, generator=generator).to(dtype).requires_grad_() for shape in shapes]
        self.grad = torch.randn(shapes[0], generator=generator).to(dtype)
        self.grad_lse = torch.randn(heads, queries.total, generator=generator)
        self.layouts = queries, keys

    def run(self, tensors: list[Tensor], window: tuple[int, int] = (-1, -1)) -> list[Tensor]:
        """Output, lse and the gradients of q, k, v."""
        queries, keys = self.layouts
        q, k, v = tensors
        out, lse = varlen_attention(
            q,
            k,
            v,
            queries.cu_seqlens,
            keys.cu_seqlens,
            max_seqlen_q=queries.max_seqlen,
            max_seqlen_k=keys.max_seqlen,
            window=window,
            return_lse=True,
            backend="triton",
        )
        return [out, lse, *torch.autograd.grad((out, lse), tensors, (self.grad, self.grad_lse))]

    def expected(self, window: tuple[int, int], scale: float) -> list[Tensor]:
        """The same by the oracle in float64; a query without keys has a gradient of 0."""
        q, k, v = exact = [x.detach().double().requires_grad_() for x in self.tensors]
        out, lse = oracle(q, k, v, self.lengths_q, self.lengths_k, window, scale)
        weighted = (out * self.grad.double()).sum() + (lse * self.grad_lse)[lse.isfinite()].sum()
        return [out, lse, *(torch.nan_to_num(g) for g in torch.autograd.grad(weighted, exact))]


def assert_close(actual: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    for name, value, wanted in zip(("out", "lse", "grad_q", "grad_k", "grad_v"), actual, expected, strict=True):
        visible = wanted.isfinite()
        assert torch.equal(value[~visible].double(), wanted[~visible]), name
        error = (value[visible].double() - wanted[visible]).norm() / wanted[visible].norm().clamp_min(1e-9)
        assert error <= 4 * torch.finfo(dtype).eps, (name, float(error))


@pytest.mark.parametrize("window", WINDOWS)
def test_output_lse_and_gradients_equal_the_oracle(window: tuple[int, int]) -> None:
    case = Case(LENGTHS, heads=1, kv_heads=1)
    assert_close(case.run(case.tensors, window), case.expected(window, 0.25), torch.float32)


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([3, 1, 7, 0, 70], [9, 4, 2, 3, 90]), ([90, 5, 2], [10, 0, 70])])
@pytest.mark.parametrize(
    ("window", "dtype"), [((-1, -1), torch.float16), ((-1, 0), torch.float32), ((2, 1), torch.float16)]
)
def test_cross_attention_with_shared_key_heads_and_a_head_dimension_that_is_padded(
    window: tuple[int, int], lengths_q: list[int], lengths_k: list[int], dtype: torch.dtype
) -> None:
    case = Case(lengths_q, lengths_k, heads=3, kv_heads=1, head_dim=24, dtype=dtype)
    assert_close(case.run(case.tensors, window), case.expected(window, 24**-0.5), dtype)


@pytest.mark.parametrize(
    ("window", "dtype", "choice"),
    [((-1, -1), torch.float32, {}), ((48, 48), torch.float32, {})]
    + [
        ((48, 48) if name.endswith("local") else (-1, -1), torch.float16, {name: variant})
        for name, names in VARIANTS.items()
        if name.startswith("attention")
        for variant in names
    ],
)
def test_error_is_at_most_twice_that_of_sdpa_in_the_same_dtype(
    window: tuple[int, int], dtype: torch.dtype, choice: dict[str, str]
) -> None:
    lengths = [33, 140]
    case = Case(lengths, heads=1, kv_heads=1, head_dim=64, dtype=dtype)
    case.grad_lse.zero_()
    peers = [x.detach().clone().requires_grad_() for x in case.tensors]
    outputs = []
    for clip in zip(*(x.split(lengths) for x in peers), strict=True):
        q, k, v = (x.transpose(0, 1)[None] for x in clip)
        position = torch.arange(clip[0].shape[0])
        distance = position - position[:, None]
        mask = None if window == (-1, -1) else (distance >= -window[0]) & (distance <= window[1])
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        outputs.append(attended[0].transpose(0, 1))
    peer = torch.cat(outputs)
    same_dtype = [peer, *torch.autograd.grad(peer, peers, case.grad)]
    with variants.use(**choice):
        out, _, *grads = case.run(case.tensors, window)
    wanted_out, _, *wanted_grads = case.expected(window, 0.125)
    for actual, other, wanted in zip([out, *grads], same_dtype, [wanted_out, *wanted_grads], strict=True):
        assert actual.dtype == dtype
        assert (actual.double() - wanted).norm() <= 2 * (other.double() - wanted).norm()


def test_strided_views_a_scale_of_any_sign_and_an_expanded_gradient() -> None:
    lengths = [7, 70]
    layout = PackedLayout.from_lengths(lengths)
    qkv = torch.randn(77, 3, 2, 16, generator=torch.Generator().manual_seed(1)).requires_grad_()
    every_other = torch.randn(77, 2, 32, generator=torch.Generator().manual_seed(2)).requires_grad_()
    spread = every_other[..., ::2]
    for q, source, scale in ((qkv[:, 0], qkv, 0.5), (qkv[:, 0], qkv, 0.0), (spread, every_other, -0.5)):
        k, v = qkv[:, 1], qkv[:, 2]
        out = varlen_attention(q, k, v, layout.cu_seqlens, max_seqlen_q=70, scale=scale, backend="triton")
        expected, _ = oracle(q.double(), k.double(), v.double(), lengths, lengths, (-1, -1), scale)
        torch.testing.assert_close(out.double(), expected, rtol=1e-5, atol=1e-5)
        wanted = torch.autograd.grad(expected.sum(), source)
        torch.testing.assert_close(torch.autograd.grad(out.sum(), source), wanted, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("window", [(-1, -1), (48, 48)])
def test_the_bits_of_a_clip_do_not_depend_on_the_batch(window: tuple[int, int]) -> None:
    lengths = [66, 1, 40]
    together = Case(lengths, heads=2, kv_heads=1)
    results = together.run(together.tensors, window)
    for clip, (begin, end) in enumerate(pairwise(together.layouts[0].cu_seqlens.tolist())):
        alone = Case([lengths[clip]], heads=2, kv_heads=1)
        alone.grad, alone.grad_lse = together.grad[begin:end], together.grad_lse[:, begin:end]
        own = [x.detach()[begin:end].clone().requires_grad_() for x in together.tensors]
        for name, value, packed in zip(("out", "lse", "q", "k", "v"), alone.run(own, window), results, strict=True):
            expected = packed[:, begin:end] if name == "lse" else packed[begin:end]
            assert torch.equal(value, expected), (clip, name)


@pytest.mark.parametrize("window", [(-1, -1), (2, 2)])
def test_a_clip_does_not_change_the_others(window: tuple[int, int]) -> None:
    case = Case([4, 1, 70, 3], heads=1, kv_heads=1)
    before = case.run(case.tensors, window)
    for clip, (begin, end) in enumerate(pairwise(case.layouts[0].cu_seqlens.tolist())):
        changed = [x.detach().clone() for x in case.tensors]
        for x in changed:
            x[begin:end] = math.nan
        after = case.run([x.requires_grad_() for x in changed], window)
        untouched = torch.ones(78, dtype=torch.bool)
        untouched[begin:end] = False
        for name, value, reference in zip(("out", "lse", "q", "k", "v"), after, before, strict=True):
            index = (slice(None), untouched) if name == "lse" else untouched
            assert torch.equal(value[index], reference[index]), (clip, name)


@pytest.mark.parametrize(("lengths_q", "lengths_k"), [([], []), ([0, 0], [0, 0]), ([2, 70], [0, 0]), ([0], [3])])
def test_without_queries_or_without_keys(lengths_q: list[int], lengths_k: list[int]) -> None:
    case = Case(lengths_q, lengths_k)
    out, lse, *grads = case.run(case.tensors)
    assert (lse == -math.inf).all()
    for value, like in zip([out, *grads], [case.tensors[0], *case.tensors], strict=True):
        assert torch.equal(value, torch.zeros_like(like))


def test_many_short_clips() -> None:
    lengths = torch.randint(0, 5, (30,), generator=torch.Generator().manual_seed(1)).tolist()
    case = Case(lengths, heads=1, kv_heads=1)
    assert_close(case.run(case.tensors), case.expected((-1, -1), 0.25), torch.float32)


@triton.jit
def _owners(
    cu_seqlens: tl.tensor,
    clips: tl.tensor,
    total: tl.tensor,
    owners: tl.tensor,
    STEP: tl.constexpr,
    BLOCK: tl.constexpr,
) -> None:
    tile = tl.program_id(0) * STEP
    tl.store(owners + tl.program_id(0), find_clip(cu_seqlens, clips, total, tile, BLOCK))


@pytest.mark.parametrize("clips", [1, 2, 63, 64, 65, 5000])
def test_every_clip_owns_tiles_for_all_its_tokens_and_the_search_finds_them(clips: int) -> None:
    lengths = torch.randint(0, 300, (clips,), generator=torch.Generator().manual_seed(clips)).tolist()
    offsets = [0, *accumulate(lengths)]
    firsts = [offset // 64 + clip for clip, offset in enumerate(offsets)]
    assert firsts[-1] + 1 == tile_count(offsets[-1], clips, 64)
    assert all(end - begin >= -(-length // 64) for (begin, end), length in zip(pairwise(firsts), lengths, strict=True))
    expected = [clip for clip, (begin, end) in enumerate(pairwise(firsts)) for _ in range(begin, end)]
    step = max(1, len(expected) // 40)
    expected = expected[::step]
    owners = torch.zeros(len(expected), dtype=torch.int32)
    _owners[(len(expected),)](torch.tensor(offsets, dtype=torch.int32), clips, offsets[-1], owners, STEP=step, BLOCK=64)
    assert owners.tolist() == expected


class GuardedMemory:
    """Tensors between two guards, whose values show whether a kernel writes or reads out of bounds.

    A write changes the guard. A read from the guard of an input gives NaN.
    """

    ELEMENTS = 1 << 16  # of each guard: as far as a misplaced clip of the tests reaches

    def __init__(self) -> None:
        self._guarded: list[Guarded] = []

    def holding(self, x: Tensor, guard: float) -> Tensor:
        self._guarded.append(Guarded(x, sentinel=guard, margin=self.ELEMENTS))
        return self._guarded[-1].tensor

    def assert_untouched(self) -> None:
        for guarded in self._guarded:
            guarded.assert_untouched_around()


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[GuardedMemory]:
    """Guards around what launchers allocate. After the test, all guards must be untouched."""
    memory, empty = GuardedMemory(), torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, **options: memory.holding(empty(*size, **options), 12345.0))
    yield memory
    memory.assert_untouched()


FAR = 2**31 - 1


def _all_passes(
    memory: GuardedMemory, offsets_q: list[int], offsets_k: list[int], window: tuple[int, int]
) -> list[Tensor]:
    """Output, lse and gradients of 70 tokens."""
    generator = torch.Generator().manual_seed(0)
    q, k, v, grad = (memory.holding(torch.randn(70, 1, 16, generator=generator), math.nan) for _ in range(4))
    offsets = [memory.holding(torch.tensor(each, dtype=torch.int32), 7) for each in (offsets_q, offsets_k)]
    out, lse = kernels.forward(q, k, v, *offsets, *window, 0.5)
    grad_lse = memory.holding(torch.zeros_like(lse), math.nan)
    return [out, lse, *kernels.backward(grad, grad_lse, q, k, v, out, lse, *offsets, *window, 0.5)]


@triton.jit
def _copy_too_many(source: tl.tensor, target: tl.tensor, count: tl.constexpr) -> None:
    place = tl.arange(0, count)
    tl.store(target + place, tl.load(source + place))


def test_guards_show_a_write_and_a_read_out_of_bounds() -> None:
    memory = GuardedMemory()
    source, target = memory.holding(torch.ones(8), math.nan), memory.holding(torch.zeros(8), 12345.0)
    _copy_too_many[(1,)](source, target, 8)
    memory.assert_untouched()
    _copy_too_many[(1,)](source[4:], target[:4], 8)
    assert target[4:].isnan().all()
    memory.assert_untouched()
    _copy_too_many[(1,)](source, target[4:], 8)
    with pytest.raises(AssertionError):
        memory.assert_untouched()


@pytest.mark.parametrize(
    ("malformed", "meant"),
    [
        ([0, 30, 50], [0, 30, 50, 70]),  # ends early: the tokens that follow see nothing
        ([5, 30, 70], [0, 30, 70]),
        ([0, 30, FAR], [0, 30, 70]),
        ([-FAR, -1, FAR], [0, 0, 70]),
        ([0, 30, FAR, FAR], [0, 30, 70, 70]),
        ([7], [0, 70]),  # no sequence at all
    ],
)
def test_offsets_that_end_early_start_late_or_exceed_the_total_are_clamped(
    malformed: list[int], meant: list[int], memory: GuardedMemory
) -> None:
    actual, expected = (_all_passes(memory, offsets, offsets, (3, 2)) for offsets in (malformed, meant))
    end = 0 if len(malformed) == 1 else min(malformed[-1], 70)
    for name, value, wanted in zip(("out", "lse", "q", "k", "v"), actual, expected, strict=True):
        value, wanted = (x.t() if name == "lse" else x for x in (value, wanted))
        assert torch.equal(value[:end], wanted[:end]), name
        assert (value[end:] == (-math.inf if name == "lse" else 0.0)).all(), name


@pytest.mark.parametrize("bad", [[0, FAR, 70], [0, 69, 20], [70, 0, 0], [5, 5, 5], [0, 70, 0, 70], [0, 640, -5, 64]])
def test_decreasing_offsets_leave_no_row_unwritten_and_no_access_is_out_of_bounds(
    bad: list[int], memory: GuardedMemory
) -> None:
    good = [0, *range(30, 30 + len(bad) - 2), 70]
    for queries, keys in ((bad, good), (good, bad), (bad, bad)):
        for value in _all_passes(memory, queries, keys, (-1, 0)):
            assert not value.isnan().any()


def test_the_search_finds_the_last_clip_that_begins_at_or_before_a_tile_for_any_offsets() -> None:
    clips, total = 700, 7000  # more than one step of the search reads
    offsets = torch.randint(-100, 8000, (clips + 1,), generator=torch.Generator().manual_seed(0), dtype=torch.int32)
    firsts = offsets.clamp(0, total) // 64 + torch.arange(clips + 1)
    tiles = range(0, tile_count(total, clips, 64), 97)
    owners = torch.zeros(len(tiles), dtype=torch.int32)
    _owners[(len(tiles),)](offsets, clips, total, owners, STEP=97, BLOCK=64)
    assert owners.tolist() == [max([0, *(firsts <= tile).nonzero().flatten().tolist()]) for tile in tiles]
