from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.normalization import normalize_clips
from slap_fast.ops.packed import PackedLayout
from tests.ops._native import native_code, needs_native
from tests.oracles import log_mel as oracle
from tests.tolerance import assert_as_exact_as

COUNTS = [0, 1, 4, 0, 7, 2, 0]
KINDS = [
    MelConfig(n_mels=3, dynamic_range=dynamic_range, normalize_per_clip=per_clip, mean=1.0, std=2.0)
    for dynamic_range in (None, 3.0)
    for per_clip in (False, True)
]
IDS = ["mean and deviation", "per clip", "range", "range, per clip"]
NON_LOCAL = [config for config in KINDS if not config.is_local]


def _frames(counts, *, seed=0, dtype=torch.float64):
    frames = 2 * torch.randn(sum(counts), 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return frames.to(dtype), PackedLayout.from_lengths(counts, dtype=torch.int64).cu_seqlens


def _with_gradient(frames, cu_frames, config, grad):
    frames = frames.clone().requires_grad_()
    normalized = normalize_clips(frames, cu_frames, config)
    normalized.backward(grad)
    return normalized.detach(), frames.grad


@pytest.mark.parametrize("config", KINDS, ids=IDS)
@given(counts=st.lists(st.integers(0, 9), min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_equals_the_oracle_clip_by_clip(config, counts, seed):
    frames, cu_frames = _frames(counts, seed=seed)
    expected = [oracle.normalize(clip.numpy(), config) for clip in frames.split(counts)]
    np.testing.assert_allclose(normalize_clips(frames, cu_frames, config).numpy(), np.concatenate(expected), atol=1e-9)


@needs_native
@pytest.mark.parametrize("config", KINDS, ids=IDS)
def test_native_code_equals_float64_on_every_instruction_set_and_thread_count(config, isa):
    frames, cu_frames = _frames([*COUNTS, 255, 256, 257, 90_000], dtype=torch.float32)
    expected = normalize_clips(frames.double(), cu_frames, config)
    results = []
    for threads in (1, 3):
        with native_code(isa=isa, threads=threads):
            results.append(normalize_clips(frames, cu_frames, config, backend="native"))
    assert_as_exact_as(results[:1], [normalize_clips(frames, cu_frames, config, backend="torch")], [expected])
    assert torch.equal(*results)


def test_nan_reaches_what_it_is_compared_with_and_no_other_clip():
    frames, cu_frames = _frames([5, 6, 7], dtype=torch.float32)
    frames[7, 1] = torch.nan
    for config in NON_LOCAL:
        normalized = [normalize_clips(frames, cu_frames, config, backend=backend) for backend in ("auto", "torch")]
        for result in normalized:
            touched = result.isnan()
            assert not touched[:5].any()
            assert not touched[11:].any()
            assert touched[5:11, 1].all()
            assert bool(touched[5:11].all()) == (config.dynamic_range is not None)


@needs_native
@pytest.mark.parametrize("offsets", [[0, 4], [0, 4, 2, 5], [0, 9, 5], [1, 5], [0, -1, 5], [0, 2**62, 5]])
def test_native_code_rejects_malformed_offsets(offsets):
    with pytest.raises(ValueError, match="cu_frames"):
        normalize_clips(torch.zeros(5, 3), torch.tensor(offsets), KINDS[-1], backend="native")


@pytest.mark.parametrize("config", KINDS, ids=IDS)
def test_gradcheck(config):
    frames, cu_frames = _frames(COUNTS)
    assert torch.autograd.gradcheck(lambda x: normalize_clips(x, cu_frames, config), frames.requires_grad_())


@pytest.mark.parametrize("config", KINDS, ids=IDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_packed_equals_one_by_one_bitwise(config, dtype):
    counts = [*COUNTS, 1500, 33]
    frames, cu_frames = _frames(counts, dtype=dtype)
    grad, _ = _frames(counts, seed=1, dtype=dtype)
    packed = _with_gradient(frames, cu_frames, config, grad)
    alone = [
        _with_gradient(clip, torch.tensor([0, len(clip)]), config, clip_grad)
        for clip, clip_grad in zip(frames.split(counts), grad.split(counts), strict=True)
    ]
    for together, parts in zip(packed, zip(*alone, strict=True), strict=True):
        assert torch.equal(together, torch.cat(parts))


def test_the_gradient_of_the_limit_goes_to_all_maxima_in_equal_parts():
    config = MelConfig(n_mels=3, dynamic_range=1.0)
    frames = torch.tensor([[5.0, 0.0, 4.5], [1.0, 5.0, 4.2]], requires_grad=True)
    normalized = normalize_clips(frames, torch.tensor([0, 2]), config)
    normalized.backward(torch.tensor([[1.0, 10.0, 2.0], [20.0, 3.0, 4.0]]))
    assert torch.equal(normalized, torch.tensor([[5.0, 4.0, 4.5], [4.0, 5.0, 4.2]]))
    assert torch.equal(frames.grad, torch.tensor([[16.0, 0.0, 2.0], [0.0, 18.0, 4.0]]))


def test_a_constant_bin_is_normalized_to_zero_with_zero_gradient():
    config = MelConfig(n_mels=3, normalize_per_clip=True)
    frames = torch.full((6, 3), -16.0)
    normalized, grad = _with_gradient(frames, torch.tensor([0, 1, 6]), config, torch.ones(6, 3))
    assert torch.equal(normalized, torch.zeros(6, 3))
    assert torch.equal(grad, torch.zeros(6, 3))


@pytest.mark.parametrize("config", NON_LOCAL, ids=IDS[1:])
def test_nan_stays_in_its_clip(config):
    frames, cu_frames = _frames(COUNTS)
    grad, _ = _frames(COUNTS, seed=1)
    frames[2, 1] = torch.nan
    normalized, grad = _with_gradient(frames, cu_frames, config, grad)
    outside = torch.ones(len(frames), dtype=torch.bool)
    outside[1:5] = False
    for values in (normalized, grad):
        assert values[outside].isfinite().all()
        assert values[1:5, 1].isnan().all()


def test_an_hour_in_float32_is_summed_in_float64():
    config = MelConfig(n_mels=3, normalize_per_clip=True)
    frames = _frames([360_000], dtype=torch.float32)[0] * 1e-3 - 15.0
    normalized = normalize_clips(frames, torch.tensor([0, 360_000]), config)
    np.testing.assert_allclose(normalized.numpy(), oracle.normalize(frames.double().numpy(), config), atol=1e-5)


@pytest.mark.parametrize("config", NON_LOCAL, ids=IDS[1:])
def test_opcheck(config):
    frames, cu_frames = _frames(COUNTS)
    torch.library.opcheck(
        torch.ops.slap_fast.mel_normalization, (frames.requires_grad_(), cu_frames, config.serialized, "torch")
    )


def test_compiles_to_one_graph_once_for_changing_counts():
    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def normalize(frames, cu_frames):
        return normalize_clips(frames, cu_frames, KINDS[-1]) + 1

    # The compiler would treat equal numbers of offsets, mel bins or frames as one size.
    for counts in ([3, 4, 8], [2, 9, 5, 1], [7, 0, 3, 8, 2]):
        frames, cu_frames = _frames(counts)
        torch.testing.assert_close(normalize(frames, cu_frames), normalize_clips(frames, cu_frames, KINDS[-1]) + 1)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frames": torch.zeros(5)}, r"shape \(5,\); pass \[F, 3\]"),
        ({"frames": torch.zeros(5, 4)}, r"shape \(5, 4\); pass \[F, 3\]"),
        ({"frames": torch.zeros(5, 3, dtype=torch.float16)}, "float16"),
        ({"cu_frames": torch.tensor([0, 5], dtype=torch.int16)}, "int16"),
        ({"cu_frames": torch.tensor([0, 4])}, "cu_frames runs from 0 to 4; it must run from 0 to the 5 frames"),
        ({"cu_frames": torch.tensor([0, 4, 2, 5])}, "falls from 4 to 2 at item 1"),
        ({"cu_frames": torch.tensor([0, 9, 5])}, "falls from 9 to 5 at item 1"),
        # In int64 the difference is positive.
        ({"cu_frames": torch.tensor([0, 2**63 - 1, -(2**63), 5])}, f"falls from {2**63 - 1} to {-(2**63)} at item 1"),
        ({"backend": "cuda"}, "no backend 'cuda'"),
    ],
)
def test_bad_input_is_named(change, message):
    change = {"backend": "torch"} | change
    arguments = {"frames": torch.zeros(5, 3), "cu_frames": torch.tensor([0, 5]), "config": KINDS[-1]} | change
    with pytest.raises(ValueError, match=message):
        normalize_clips(**arguments)
