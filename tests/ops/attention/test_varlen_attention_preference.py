"""`backend="auto"` follows what was measured, and nothing else."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast import info, native
from slap_fast.ops import PackedLayout, varlen_attention
from slap_fast.ops.attention import BACKENDS
from slap_fast.ops.attention import preference as preference

CPU = torch.device("cpu")


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[str, ...], tuple[str, ...]]:
    """A table in which the slowest backend comes first, for windows in float32 without gradients."""
    key = (preference.device_kind(CPU), "float32", "local", "from 1", "clips", "forward")
    rows: dict[tuple[str, ...], tuple[str, ...]] = {key: ("torch_padded", "flash_attn_2", "torch")}
    monkeypatch.setattr(preference, "_table", lambda: rows)
    return rows


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The backends that served so far."""
    names: list[str] = []
    for name, module in BACKENDS.items():

        def forward(*arguments: Any, name: str = name, forward: Any = module.forward) -> tuple[Tensor, Tensor]:
            names.append(name)
            return forward(*arguments)

        monkeypatch.setattr(module, "forward", forward)
    return names


def _attend(q: Tensor, layout: PackedLayout, window: tuple[int, int] = (2, 2)) -> Tensor:
    return varlen_attention(q, q, q, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, window=window)


def test_the_packaged_table_names_backends_that_exist_and_no_case_twice() -> None:
    rows = preference.load(preference.FILE)["rows"]
    keys = [preference.row_key(row) for row in rows]
    assert len(set(keys)) == len(keys)
    for row in rows:
        assert set(row["order"]) <= set(BACKENDS)
        assert row["order"] == sorted(row["order"], key=row["times the fastest"].__getitem__)


def test_only_calls_of_a_measured_kind_follow_the_measurement(table: Any, chosen: list[str]) -> None:
    layout = PackedLayout.from_lengths([3, 8])
    q = torch.randn(11, 2, 16)
    _attend(q, layout)
    assert chosen == ["torch_padded"]
    wide, long = torch.randn(11, 2, 64), PackedLayout((9000,), torch.tensor([0, 11], dtype=torch.int32))
    for other in (q.double(), q.clone().requires_grad_(), wide):
        _attend(other, layout)
    _attend(q, layout, (-1, -1))
    _attend(q, long)
    assert len(chosen) == 6
    assert set(chosen[1:]) <= {"native", "torch"}


def test_a_measured_backend_that_cannot_serve_is_passed_over(table: Any, chosen: list[str]) -> None:
    (key,) = table
    table[key] = ("flash_attn_2", "sdpa_per_clip", "torch")
    _attend(torch.randn(11, 2, 16), PackedLayout.from_lengths([3, 8]))
    assert chosen == ["sdpa_per_clip"]


def test_the_table_is_followed_in_a_graph_that_is_compiled_once(table: Any, chosen: list[str]) -> None:
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    attend = torch.compile(_attend_by_offsets, fullgraph=True, backend=counter, dynamic=True)
    with torch.no_grad():
        for lengths in ([3, 8], [5, 2, 11], [4, 4, 9, 6], [700, 2]):
            layout = PackedLayout.from_lengths(lengths)
            attend(torch.randn(layout.total, 2, 16), layout.cu_seqlens, layout.max_seqlen)
    assert set(chosen) == {"torch_padded"}
    assert counter.frame_count == 1


def _attend_by_offsets(q: Tensor, cu_seqlens: Tensor, max_seqlen: int) -> Tensor:
    return varlen_attention(q, q, q, cu_seqlens, max_seqlen_q=max_seqlen, window=(2, 2))


def test_kinds_are_told_apart_where_the_table_does() -> None:
    assert [preference.head_dim_kind(each) for each in (1, 32, 33, 96, 97, 256)] == [
        "from 1",
        "from 1",
        "from 33",
        "from 33",
        "from 97",
        "from 97",
    ]
    assert [preference.window_kind(*each) for each in ((48, 48), (0, 0), (-1, 0), (-1, -1), (5, -1))] == [
        "local",
        "local",
        "global",
        "global",
        "global",
    ]


def test_the_instruction_set_is_part_of_a_cpu_s_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "isa", lambda: "avx2")
    assert preference.device_kind(CPU) == "cpu avx2"
    monkeypatch.setattr(native, "isa", lambda: None)
    assert preference.device_kind(CPU) == "cpu without native code"


def test_info_says_whether_the_order_was_measured(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = preference.device_kind(CPU)
    assert f"[{kind}: order measured" in info.backends()["varlen_attention"]
    table.clear()
    assert f"[{kind}: order not measured" in info.backends()["varlen_attention"]


def test_a_table_of_another_format_is_refused(tmp_path: Any) -> None:
    path = tmp_path / "table.json"
    path.write_text(json.dumps({"format": 0, "rows": []}))
    with pytest.raises(ValueError, match="not a table of format 1"):
        preference.load(path)
