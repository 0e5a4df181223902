from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.rotary import BACKENDS, apply_rotary, apply_rotary_qkv
from slap_fast.ops.rotary.call import Angles
from tests.ops._native import native_code, needs_native

pytestmark = needs_native

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Around the number of positions that are tabulated, and more tokens than one task takes.
LENGTHS = [4, 0, 1, 13, 63, 64, 65, 259, 1000]
THETAS = {None: [10_000.0], 4: [10_000.0, 100.0], 7: [50.0, 20.0]}


def _qkv(lengths: list[int], dtype: torch.dtype, *, heads: int = 3, head_dim: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    qkv = torch.randn(sum(lengths), 3, heads, head_dim, generator=generator).to(dtype)
    return qkv, PackedLayout.from_lengths(lengths).cu_seqlens


def _rotate(backend: str, q: Tensor, k: Tensor, cu_seqlens: Tensor, tokens_per_frame: int | None, inverse: bool):
    """Writes into memory filled with NaN."""
    outputs = [torch.full(x.shape, torch.nan, dtype=x.dtype) for x in (q, k)]
    angles = Angles(cu_seqlens, tokens_per_frame or 1, THETAS[tokens_per_frame])
    BACKENDS[backend].rotate(q, k, angles, inverse, *outputs)
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("tokens_per_frame", THETAS)
@pytest.mark.parametrize("head_dim", [4, 12, 60, 64, 136])
def test_as_exact_as_pytorch_from_strided_views_both_ways(isa, dtype, tokens_per_frame, head_dim):
    qkv, cu_seqlens = _qkv(LENGTHS, dtype, head_dim=head_dim)
    q, k = qkv[:, 0], qkv[:, 1, 1:2]
    for inverse in (False, True):
        arguments = (cu_seqlens, tokens_per_frame, inverse)
        with native_code(isa=isa):
            actual = _rotate("native", q, k, *arguments)
        exact = _rotate("torch", q.double(), k.double(), *arguments)
        pytorch = _rotate("torch", q, k, *arguments)
        allowed = torch.maximum(2 * (pytorch - exact).abs().amax(), torch.finfo(dtype).eps * exact.abs().amax())
        assert (actual - exact).abs().amax() <= allowed


def test_an_hour_of_positions_is_as_exact_as_the_first_second(isa):
    q = torch.randn(90_000, 1, 16, generator=torch.Generator().manual_seed(2))
    cu_seqlens = PackedLayout.from_lengths([90_000]).cu_seqlens
    for tokens_per_frame in (4, None):
        with native_code(isa=isa):
            actual, _ = apply_rotary(q, q, cu_seqlens, tokens_per_frame=tokens_per_frame, backend="native")
        exact, _ = apply_rotary(q.double(), q.double(), cu_seqlens, tokens_per_frame=tokens_per_frame)
        assert (actual - exact).abs().max() < 1e-6


@pytest.mark.parametrize("dtype", DTYPES)
def test_bits_depend_on_neither_threads_nor_batch(isa, dtype):
    lengths = [*LENGTHS, 1003]
    qkv, cu_seqlens = _qkv(lengths, dtype)
    with native_code(isa=isa):
        alone = [
            apply_rotary_qkv(clip, torch.tensor([0, len(clip)], dtype=torch.int32), tokens_per_frame=4)
            for clip in qkv.split(lengths)
        ]
    expected = [torch.cat(parts) for parts in zip(*alone, strict=True)]
    for threads in (1, 2, 5):
        with native_code(isa=isa, threads=threads):
            together = apply_rotary_qkv(qkv, cu_seqlens, tokens_per_frame=4, backend="native")
        assert all(map(torch.equal, together, expected))


@pytest.mark.parametrize("dtype", DTYPES)
def test_position_0_leaves_every_value_of_a_dtype_unchanged(isa, dtype):
    """The angle is 0: values pass through load, store and rounding unchanged; NaN stays NaN."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32)
    values = (patterns << 16).view(torch.float32) if dtype == torch.float32 else patterns.short().view(dtype)
    # Heads of one pair each: the partner is 0, times the sine 0.
    q = torch.stack([values, torch.zeros_like(values)], dim=-1)[None].contiguous()  # [1, 65536, 2]
    with native_code(isa=isa):
        rotated, _ = apply_rotary(q, q[:, :1], torch.tensor([0, 1], dtype=torch.int32), backend="native")
    finite = values.isfinite()
    assert torch.equal(rotated[0, finite, 0], values[finite])
    assert torch.equal(rotated[0, values.isnan(), 0].isnan(), torch.ones_like(values[values.isnan()], dtype=torch.bool))
    assert torch.equal(rotated[0, values.isinf(), 0], values[values.isinf()])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rounds_to_nearest_even_including_subnormals_and_overflow(isa, dtype):
    generator = torch.Generator().manual_seed(4)
    magnitudes = torch.logspace(-44, 4.9, 4000) if dtype == torch.bfloat16 else torch.logspace(-9, 4.9, 4000)
    first, second = (torch.randn(4000, generator=generator) * magnitudes for _ in range(2))
    q = torch.stack([first, second], dim=-1)[None].to(dtype)  # [1, 4000, 2]
    q = q.expand(7, -1, -1).contiguous()
    cu_seqlens = torch.tensor([0, 7], dtype=torch.int32)
    with native_code(isa=isa):
        wide, _ = apply_rotary(q.float(), q[:, :1].float(), cu_seqlens, backend="native")
        narrow, _ = apply_rotary(q, q[:, :1], cu_seqlens, backend="native")
    torch.testing.assert_close(narrow, wide.to(dtype), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("offsets", [[0, 4], [0, 4, 2, 5], [0, 9, 5], [1, 5], [0, -1, 5]])
def test_malformed_offsets_are_rejected(offsets):
    q = torch.zeros(5, 1, 8)
    with pytest.raises(ValueError, match="cu_seqlens"):
        apply_rotary(q, q, torch.tensor(offsets, dtype=torch.int32), backend="native")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"thetas": []}, "0 bases"),
        ({"thetas": [0.0]}, "theta is 0"),
        ({"thetas": [float("nan")]}, "theta is nan"),
        ({"head_dim": 7}, "head dimension 7"),
        ({"tokens_per_frame": 0}, "tokens_per_frame is 0"),
        ({"dtype": "float64"}, "dtype 'float64'"),
        ({"parts": [(0, 0, -1, 0, 0, 0, 0)]}, "-1 heads"),
        ({"total": -1}, "-1 tokens"),
    ],
)
def test_native_code_rejects_inconsistent_arguments(change, message):
    offsets = torch.zeros(1, dtype=torch.int64)
    arguments = {
        "parts": [],
        "dtype": "float32",
        "head_dim": 8,
        "tokens_per_frame": 1,
        "thetas": [10.0],
        "inverse": False,
        "cu_seqlens": offsets.data_ptr(),
        "sequences": 0,
        "total": 0,
        "threads": 1,
    }
    module = native.load()
    assert module is not None
    module.rotate(**arguments)
    with pytest.raises(ValueError, match=message):
        module.rotate(**arguments | change)


def test_an_unsupported_dtype_is_named():
    q = torch.zeros(4, 1, 8, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"q and k are torch\.float64; native code takes"):
        apply_rotary(q, q, torch.tensor([0, 4], dtype=torch.int32), backend="native")
