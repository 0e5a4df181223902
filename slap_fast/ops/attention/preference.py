"""Which backend of `varlen_attention` is the fastest where, as the benchmark found it.

varlen_attention_preference.json is written by `python -m benchmarks.attention_preference` from results of the attention
benchmark, and by nothing else. A call of a kind that no result covers is served in the order of registration.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from slap_fast import native

FILE = Path(__file__).with_suffix(".json")
FORMAT = 1

# A clip of more tokens is long; two minutes of audio are half of it.
LONGEST_CLIP = 8192
# (least, most) width of a head in each class.
HEAD_DIMS = ((1, 32), (33, 96), (97, 1 << 30))


def device_kind(device: torch.device) -> str:
    """What results of one machine hold for: a GPU's compute capability, or the instruction set of native code."""
    if device.type == "cuda":
        major, minor = torch.cuda.get_device_capability(device)
        return f"cuda {major}.{minor}"
    return f"cpu {native.isa() or 'without native code'}" if device.type == "cpu" else device.type


def window_kind(left: int, right: int) -> str:
    return "local" if left >= 0 and right >= 0 else "global"


def head_dim_kind(head_dim: int) -> str:
    for least, most in HEAD_DIMS:
        if head_dim <= most:
            return f"from {least}"
    raise AssertionError(head_dim)


def lengths_kind(is_long: bool) -> str:
    return "long" if is_long else "clips"


def pass_kind(needs_grad: bool) -> str:
    return "forward and backward" if needs_grad else "forward"


def order(
    *,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    left: int,
    right: int,
    is_long: bool,
    needs_grad: bool,
    **_traits: object,
) -> tuple[str, ...]:
    """The backends that were measured for such a call, the fastest first; none where nothing was."""
    # Sizes become words before the table is asked: the compiler may hold a size for a symbol.
    window, head_dims = window_kind(left, right), head_dim_kind(head_dim)
    return _measured(device, dtype, window, head_dims, lengths_kind(is_long), pass_kind(needs_grad))


def _measured(
    device: torch.device, dtype: torch.dtype, window: str, head_dim: str, lengths: str, direction: str
) -> tuple[str, ...]:
    key = (device_kind(device), str(dtype).removeprefix("torch."), window, head_dim, lengths, direction)
    return _table().get(key, ())


# See `dispatch`: the compiler takes the answer for a constant.
_measured._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _table() -> dict[tuple[str, ...], tuple[str, ...]]:
    return {row_key(row): tuple(row["order"]) for row in load(FILE)["rows"]}


def row_key(row: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(row[name] for name in ("device", "dtype", "window", "head_dim", "lengths", "pass"))


def load(path: Path) -> dict[str, Any]:
    """Raises ValueError for a file of another format."""
    table = json.loads(path.read_text(encoding="utf-8"))
    if table.get("format") != FORMAT:
        raise ValueError(f"{path} is not a table of format {FORMAT}; write it anew from results of the benchmark")
    return table


def describe() -> str:
    """For `slap-fast info`: on which of the devices here the order was measured."""
    devices = [torch.device("cpu"), *(torch.device("cuda", index) for index in range(torch.cuda.device_count()))]
    kinds = dict.fromkeys(device_kind(device) for device in devices)
    measured = {key[0] for key in _table()}
    return "; ".join(f"{kind}: order {'measured' if kind in measured else 'not measured'}" for kind in kinds)
