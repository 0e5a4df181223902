from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch._dynamo.testing import CompileCounter

from slap_fast.ops.packed import PackedLayout
from slap_fast.ops.waveform_stats import waveform_stats
from tests.ops._native import BACKENDS, instruction_sets, native_code, needs_native
from tests.oracles import waveform_stats as oracle

BLOCK = 32768  # of the native kernel


def _clips(lengths: list[int], seed: int = 0, bad: float = 0.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    layout = PackedLayout.from_lengths(lengths, dtype=torch.int64)
    waveform = torch.randn(layout.total, generator=generator)
    if bad:
        values = torch.tensor([torch.nan, torch.inf, -torch.inf])
        chosen = torch.rand(layout.total, generator=generator) < bad
        waveform[chosen] = values[torch.randint(3, (int(chosen.sum()),), generator=generator)]
    return waveform, layout.cu_seqlens


def _assert_matches_oracle(waveform: Tensor, cu_seqlens: Tensor, backend: str) -> None:
    stats = waveform_stats(waveform, cu_seqlens, backend=backend)
    peak, mean_square, nonfinite = oracle.waveform_stats(waveform, cu_seqlens)
    torch.testing.assert_close(stats.peak, peak, rtol=0, atol=0)
    torch.testing.assert_close(stats.mean_square, mean_square, rtol=1e-12, atol=0)
    torch.testing.assert_close(stats.nonfinite, nonfinite, rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [0.0, 0.01, 1.0])
@pytest.mark.parametrize(
    "lengths",
    [
        [],
        [0],
        [1],
        [0, 0, 3, 0],
        [31, 32, 33, 1, 64],
        [BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 17],
        [5] * 2000,
    ],
)
def test_matches_the_oracle(lengths: list[int], bad: float, backend: str) -> None:
    _assert_matches_oracle(*_clips(lengths, bad=bad), backend)


@pytest.mark.parametrize("backend", BACKENDS)
@given(lengths=st.lists(st.integers(0, 200), max_size=12), seed=st.integers(0, 2**32), bad=st.sampled_from([0.0, 0.3]))
def test_matches_the_oracle_for_any_lengths(backend: str, lengths: list[int], seed: int, bad: float) -> None:
    _assert_matches_oracle(*_clips(lengths, seed, bad), backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_extreme_magnitudes_neither_overflow_nor_vanish(backend: str) -> None:
    limits = torch.finfo(torch.float32)
    waveform = torch.tensor([limits.max, -limits.max, limits.smallest_normal, -0.0])
    stats = waveform_stats(waveform, torch.tensor([0, 2, 3, 4]), backend=backend)
    assert stats.peak.tolist() == [limits.max, limits.smallest_normal, 0.0]
    assert stats.mean_square.tolist() == [limits.max**2, limits.smallest_normal**2, 0.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_clip_without_a_finite_sample_has_zero_peak_and_energy(backend: str) -> None:
    stats = waveform_stats(torch.full((40,), torch.nan), torch.tensor([0, 40]), backend=backend)
    assert [values.tolist() for values in stats] == [[0.0], [0.0], [40]]


@needs_native
def test_bits_do_not_depend_on_threads_instruction_set_or_batch() -> None:
    lengths = [7, 1_000_003, 0, BLOCK, 33, 400_001]
    waveform, cu_seqlens = _clips(lengths, bad=1e-4)
    clips = waveform.split(lengths)
    expected = None
    for isa, threads in itertools.product(instruction_sets(), (1, 2, 5)):
        with native_code(isa=isa, threads=threads):
            stats = waveform_stats(waveform, cu_seqlens, backend="native")
            alone = [waveform_stats(clip, torch.tensor([0, len(clip)]), backend="native") for clip in clips]
        expected = expected or stats
        for field, values in enumerate(stats):
            assert torch.equal(values, expected[field]), (isa, threads)
            assert torch.equal(values, torch.cat([one[field] for one in alone])), (isa, threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([1, 10], "from 1 to 10; it must run from 0 to the 10 samples"),
        ([0, 9], "from 0 to 9; it must run from 0 to the 10 samples"),
        ([0, 11], "from 0 to 11; it must run from 0 to the 10 samples"),
        ([0, 7, 3, 10], "falls from 7 to 3 at item 1"),
        ([0, -4, 10], "falls from 0 to -4 at item 0"),
        ([0, 2**62, 10], f"falls from {2**62} to 10 at item 1"),
        ([0], "from 0 to 0; it must run from 0 to the 10 samples"),
    ],
)
def test_malformed_offsets_are_rejected(offsets: list[int], message: str, backend: str) -> None:
    with pytest.raises(ValueError, match=message):
        waveform_stats(torch.zeros(10), torch.tensor(offsets), backend=backend)


@pytest.mark.parametrize(
    ("waveform", "cu_seqlens", "message"),
    [
        (torch.zeros(4, dtype=torch.float64), torch.tensor([0, 4]), "waveform is torch.float64"),
        (torch.zeros(4), torch.tensor([0, 4], dtype=torch.int16), "cu_seqlens is torch.int16"),
        (torch.zeros(2, 2), torch.tensor([0, 4]), r"waveform has shape \(2, 2\)"),
        (torch.zeros(0), torch.zeros(0, dtype=torch.int64), r"cu_seqlens is torch.int64 of shape \(0,\)"),
        (torch.zeros(4, device="meta"), torch.tensor([0, 4]), "cu_seqlens is on cpu, the samples on meta"),
    ],
)
def test_wrong_types_and_shapes_are_rejected(waveform: Tensor, cu_seqlens: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        waveform_stats(waveform, cu_seqlens)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strided_inputs_give_the_same_result(backend: str) -> None:
    waveform, cu_seqlens = _clips([3, 0, 50])
    strided = torch.stack([waveform, waveform + 1], 1)[:, 0], torch.stack([cu_seqlens, cu_seqlens + 1], 1)[:, 0]
    for values, expected in zip(
        waveform_stats(*strided, backend=backend), waveform_stats(waveform, cu_seqlens, backend=backend), strict=True
    ):
        assert torch.equal(values, expected)


def test_an_unknown_backend_is_rejected_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="choose one of auto, native, torch"):
        waveform_stats(torch.zeros(1), torch.tensor([0, 1]), backend="triton")


@pytest.mark.parametrize("backend", BACKENDS)
def test_custom_op_passes_opcheck(backend: str) -> None:
    torch.library.opcheck(torch.ops.slap_fast.waveform_stats.default, (*_clips([3, 0, 50]), backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_compiles_to_one_graph_once_for_changing_lengths(backend: str) -> None:
    compilations = CompileCounter()

    @torch.compile(fullgraph=True, dynamic=True, backend=compilations)
    def level(waveform: Tensor, cu_seqlens: Tensor) -> Tensor:
        return waveform_stats(waveform, cu_seqlens, backend=backend).mean_square.sqrt()

    for lengths in ([40, 9], [7, 100, 3], [55, 1, 2, 3]):
        waveform, cu_seqlens = _clips(lengths)
        expected = oracle.waveform_stats(waveform, cu_seqlens)[1].sqrt()
        torch.testing.assert_close(level(waveform, cu_seqlens), expected, rtol=1e-12, atol=0)
    assert compilations.frame_count == 1


def test_results_carry_no_gradient() -> None:
    stats = waveform_stats(torch.ones(3, requires_grad=True), torch.tensor([0, 3]))
    assert not stats.peak.requires_grad
    assert not stats.mean_square.requires_grad


@pytest.mark.gpu
def test_gpu_matches_the_oracle_and_marks_malformed_offsets_with_nan() -> None:
    waveform, cu_seqlens = _clips([3, 0, 70_000], bad=0.01)
    expected = oracle.waveform_stats(waveform, cu_seqlens)
    stats = waveform_stats(waveform.cuda(), cu_seqlens.cuda())
    for values, reference in zip(stats, expected, strict=True):
        torch.testing.assert_close(values.cpu(), reference, rtol=1e-12, atol=0)
    wrong = waveform_stats(waveform.cuda(), torch.tensor([0, 10**9], device="cuda"))
    assert wrong.peak.isnan().all()
    assert wrong.mean_square.isnan().all()
