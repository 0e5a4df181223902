"""PackedLayout and offsets: int32 and int64 are equivalent, and no op reads memory through malformed ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils import _pytree

from slap_fast.ops import PackedLayout, varlen_attention, waveform_stats
from slap_fast.ops.packed import check_offset_values, item_of_each
from tests.ops._calls import CALLS, OFFSETS, SAMPLE_OFFSETS, Call, as_tuple, loss_of
from tests.ops._native import BACKENDS

STATS = Call(lambda backend, x, offsets: tuple(waveform_stats(x, offsets, backend=backend)), ((1000,),), SAMPLE_OFFSETS)
PACKED = {name: call for name, call in CALLS.items() if call.offsets is not None} | {"waveform_stats": STATS}
each_packed_op = pytest.mark.parametrize("call", PACKED.values(), ids=PACKED.keys())
each_backend = pytest.mark.parametrize("backend", BACKENDS)
BIG = {torch.int32: 2**31 - 1, torch.int64: 2**63 - 1}


def _malformed(good: Tensor, dtype: torch.dtype) -> list[tuple[Tensor, str]]:
    last, big = int(good[-1]), BIG[dtype]
    values = {
        "runs from 1": [1, *good.tolist()[1:]],
        f"to {last - 1}; it must run from 0 to the {last}": [0, last - 1],
        f"to {last + 1}; it must run from 0 to the {last}": [0, last + 1],
        "to 0; it must run": [0],
        "falls from 100000 to 5 at item 1": [0, 100_000, 5, last],
        "falls from 0 to -1 at item 0": [0, -1, last],
        # In the dtype of the offsets, all differences are positive here.
        f"falls from {big} to {-big - 1} at item 1": [0, big, -big - 1, last],
    }
    return [(torch.tensor(offsets, dtype=dtype), message) for message, offsets in values.items()]


@each_packed_op
@each_backend
def test_malformed_offsets_are_refused_by_every_op(call: Call, backend: str) -> None:
    assert call.offsets is not None
    tensors = call.tensors()
    for dtype in (torch.int32, torch.int64):
        for offsets, message in _malformed(call.offsets, dtype):
            with pytest.raises(ValueError, match=message):
                call.run(backend, *tensors, offsets=offsets)
            longer = torch.cat([offsets[:1].expand(300), offsets])  # too many for the path that compares a list
            with pytest.raises(ValueError, match=r"cu_.* (runs|falls) from"):
                call.run(backend, *tensors, offsets=longer)
    others: tuple[tuple[Any, str], ...] = (
        (call.offsets.tolist(), "is a list; pass a torch tensor"),
        (call.offsets.numpy(), "is a ndarray; pass a torch tensor"),
        (call.offsets.to(torch.int16), "int16 .* int32 or int64"),
        (call.offsets.double(), "float64"),
        (call.offsets[None], r"\(1, 4\)"),
        (call.offsets[:0], r"\(0,\)"),
        (call.offsets.to("meta"), "is on meta"),
    )
    for other, message in others:
        with pytest.raises(ValueError, match=message):
            call.run(backend, *tensors, offsets=other)


@pytest.mark.parametrize("call", [*CALLS.values(), STATS], ids=[*CALLS.keys(), "waveform_stats"])
def test_arrays_and_lists_are_refused_with_the_advice_to_pass_tensors(call: Call) -> None:
    tensors = call.tensors()
    settings = {} if call.offsets is None else {"offsets": call.offsets}
    for place, x in enumerate(tensors):
        for other in (x.numpy(), x.tolist()):
            with pytest.raises(ValueError, match="pass a torch tensor"):
                call.run("auto", *tensors[:place], other, *tensors[place + 1 :], **settings)


@each_packed_op
@each_backend
def test_both_dtypes_and_any_strides_give_the_same_bits(call: Call, backend: str) -> None:
    assert call.offsets is not None
    results = []
    for offsets in (call.offsets.int(), call.offsets.long(), torch.stack([call.offsets] * 2, 1)[:, 0]):
        leaves = call.leaves() if call is not STATS else call.tensors()
        out = as_tuple(call.run(backend, *leaves, offsets=offsets))
        if call is not STATS:
            loss_of(out).backward()
        results.append([*(x.detach() for x in out), *(x.grad for x in leaves if x.grad is not None)])
    for other in results[1:]:
        assert all(map(torch.equal, results[0], other))


def test_the_error_names_an_item_longer_than_max_seqlen() -> None:
    q = torch.zeros(10, 1, 16)
    for offsets in (OFFSETS, torch.cat([OFFSETS, torch.full((300,), 10)])):
        with pytest.raises(ValueError, match=r"item 2 of cu_seqlens_q has length 7; .* max_seqlen_q \(6\)"):
            varlen_attention(q, q, q, offsets, max_seqlen_q=6)


@given(st.lists(st.integers(-3, 9), max_size=8), st.sampled_from([0, 400]), st.integers(-3, 12))
def test_values_pass_exactly_where_they_rise_from_0_to_the_total(values: list[int], repeats: int, total: int) -> None:
    offsets = torch.tensor([*[0] * repeats, *values], dtype=torch.int32)
    if not len(offsets):
        return
    listed = offsets.tolist()
    if listed == sorted(listed) and (listed[0], listed[-1]) == (0, total):
        check_offset_values("cu_seqlens", offsets, total, "tokens")
    else:
        with pytest.raises(ValueError, match="must"):
            check_offset_values("cu_seqlens", offsets, total, "tokens")


@given(st.lists(st.integers(0, 4), max_size=6))
def test_item_of_each_position(lengths: list[int]) -> None:
    layout = PackedLayout.from_lengths(lengths)
    expected = np.repeat(np.arange(len(lengths)), lengths)
    assert item_of_each(layout.cu_seqlens, layout.total).tolist() == expected.tolist()
    assert layout.segment_ids().tolist() == expected.tolist()


def test_item_of_each_is_in_range_for_malformed_offsets() -> None:
    # As on a GPU, where values are not checked: repeat_interleave would write 100,000 elements.
    items = item_of_each(torch.tensor([0, 100_000, 5, 8]), 8)
    assert items.shape == (8,)
    assert 0 <= items.min() <= items.max() < 3


def test_a_layout_is_a_pytree() -> None:
    layout = PackedLayout.from_lengths([3, 4])
    moved = _pytree.tree_map_only(Tensor, lambda x: x.long(), {"tokens": layout})["tokens"]
    assert moved.lengths == (3, 4)
    assert moved.cu_seqlens.dtype == torch.int64
