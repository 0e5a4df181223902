from __future__ import annotations

import dataclasses

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend

from slap_fast import native
from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.patches import log_mel_patches
from slap_fast.ops.packed import PackedLayout

SLAP = MelConfig(mean=-4.0, std=3.0)
# 0, 1, around a window, around the last frame of a column, and a few seconds.
LENGTHS = [0, 1, 399, 400, 2799, 2800, 2801, 2960, 0, 40_000]
BACKENDS = ["torch", *(["native"] if native.unavailable() is None else [])]


def _clips(lengths: list[int], dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, PackedLayout]:
    return 0.1 * torch.randn(sum(lengths), dtype=dtype), PackedLayout.from_lengths(lengths, dtype=torch.int64)


def _masks(config: MelConfig, lengths: list[int]) -> dict[str, torch.Tensor]:
    frames = sum(map(config.num_frames, lengths))
    return {
        "time_masked": torch.rand(frames) < 0.2,
        "mel_masked": torch.rand(len(lengths), config.n_mels) < 0.2,
    }


def _expected(waveform, layout, config, patch_frames, patch_mels, masks, mask_value):
    """Patches by definition, value by value."""
    frames = log_mel(waveform, layout.cu_seqlens, config)
    rows, tokens, first = config.n_mels // patch_mels, [], 0
    for clip, length in enumerate(layout.lengths):
        count = config.num_frames(length)
        for begin in range(0, count, patch_frames):
            column = torch.full((patch_frames, config.n_mels), config.normalized_floor, dtype=frames.dtype)
            for i in range(min(patch_frames, count - begin)):
                hidden = masks["mel_masked"][clip] | masks["time_masked"][first + begin + i]
                column[i] = torch.where(hidden, mask_value, frames[first + begin + i])
            tokens += [column[:, row * patch_mels : (row + 1) * patch_mels].flatten() for row in range(rows)]
        first += count
    return torch.stack(tokens) if tokens else frames.new_empty(0, patch_frames * patch_mels)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("patch_frames", "patch_mels"), [(16, 16), (1, 64), (5, 4), (100, 32)])
def test_patches_are_the_frames_in_token_order_masked_and_padded(backend, patch_frames, patch_mels):
    waveform, layout = _clips(LENGTHS)
    masks = _masks(SLAP, LENGTHS)
    patches = log_mel_patches(
        waveform,
        layout.cu_seqlens,
        SLAP,
        patch_frames=patch_frames,
        patch_mels=patch_mels,
        mask_value=0.25,
        backend=backend,
        **masks,
    )
    assert torch.equal(patches, _expected(waveform, layout, SLAP, patch_frames, patch_mels, masks, 0.25))


@pytest.mark.parametrize("backend", BACKENDS)
def test_masks_are_optional(backend):
    waveform, layout = _clips(LENGTHS)
    nothing = {name: torch.zeros_like(mask) for name, mask in _masks(SLAP, LENGTHS).items()}
    expected = log_mel_patches(waveform, layout.cu_seqlens, SLAP, backend=backend, **nothing)
    assert torch.equal(log_mel_patches(waveform, layout.cu_seqlens, SLAP, backend=backend), expected)


@pytest.mark.parametrize("lengths", [[], [0], [1], [0, 0]])
def test_empty_and_tiny_clips(lengths):
    waveform, layout = _clips(lengths)
    tokens = 4 * sum(length > 0 for length in lengths)
    assert log_mel_patches(waveform, layout.cu_seqlens, SLAP).shape == (tokens, 256)


def test_int16_equals_float_samples():
    samples = torch.randint(-32768, 32768, (9000,), dtype=torch.int16)
    cu_seqlens = torch.tensor([0, 1000, 9000])
    assert torch.equal(log_mel_patches(samples, cu_seqlens, SLAP), log_mel_patches(samples / 32768.0, cu_seqlens, SLAP))


def test_a_convention_that_normalizes_over_the_clip_is_served():
    waveform, layout = _clips([4000, 9000])
    config = MelConfig.preset("whisper")
    masks = {"time_masked": torch.zeros(25 + 56, dtype=torch.bool), "mel_masked": torch.rand(2, 80) < 0.5}
    patches = log_mel_patches(waveform, layout.cu_seqlens, config, **masks)
    assert torch.equal(patches, _expected(waveform, layout, config, 16, 16, masks, 0.0))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_equal_float64_and_skip_masked_values(backend):
    lengths = [0, 1, 3000, 5000]
    waveform, layout = _clips(lengths)
    masks = _masks(SLAP, lengths)
    waveform.requires_grad_()
    patches = log_mel_patches(waveform, layout.cu_seqlens, SLAP, backend=backend, **masks)
    weight = torch.randn_like(patches)
    (grad,) = torch.autograd.grad((patches * weight).sum(), waveform)
    double = waveform.detach().double().requires_grad_()
    reference = log_mel_patches(double, layout.cu_seqlens, SLAP, **masks)
    (expected,) = torch.autograd.grad((reference * weight).sum(), double)
    assert (grad - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("lengths", [[], [0], [0, 0]])
def test_a_batch_without_frames_has_a_gradient_too(lengths, backend):
    waveform, layout = _clips(lengths)
    waveform.requires_grad_()
    patches = log_mel_patches(waveform, layout.cu_seqlens, SLAP, backend=backend, **_masks(SLAP, lengths))
    assert patches.shape == (0, 256)
    assert torch.equal(torch.autograd.grad(patches.sum(), waveform)[0], torch.zeros(sum(lengths)))


@pytest.mark.skipif("native" not in BACKENDS, reason="no native module")
def test_opcheck():
    waveform, layout = _clips([3000, 500])
    config = dataclasses.replace(SLAP, n_mels=32)
    frames = [config.num_frames(length) for length in (3000, 500)]
    cu_frames = torch.tensor([0, frames[0], sum(frames)])
    masks = _masks(config, [3000, 500])
    tensors = (waveform.requires_grad_(), layout.cu_seqlens, cu_frames, masks["time_masked"], masks["mel_masked"])
    numbers = (config.serialized, sum(frames), 3, 16, 16, 0.0)
    torch.library.opcheck(torch.ops.slap_fast.log_mel_patches, (*tensors, *numbers))


def test_compiles_to_one_graph_once_for_changing_lengths():
    import torch._dynamo.testing

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")

    @torch.compile(fullgraph=True, backend=counter, dynamic=True)
    def frontend(waveform, cu_seqlens, mel_masked, total_frames, total_tokens):
        sizes = {"total_frames": total_frames, "total_tokens": total_tokens}
        return log_mel_patches(waveform, cu_seqlens, SLAP, mel_masked=mel_masked, **sizes) + 1

    compilations = set()
    # No two sizes of the first call are equal: the compiler would treat them as one.
    for lengths in ([500, 9100], [500, 4000, 4400], [1000, 3000, 1700, 6000]):
        waveform, layout = _clips(lengths)
        masked = _masks(SLAP, lengths)["mel_masked"]
        frames = [SLAP.num_frames(length) for length in lengths]
        tokens = sum(4 * -(-count // 16) for count in frames)
        compiled = frontend(waveform, layout.cu_seqlens, masked, sum(frames), tokens)
        assert torch.equal(compiled, log_mel_patches(waveform, layout.cu_seqlens, SLAP, mel_masked=masked) + 1)
        compilations.add(counter.frame_count)
    assert len(compilations) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"patch_mels": 24}, "16 frames x 24 mel bins does not divide 64"),
        ({"patch_frames": 0}, "0 frames"),
        ({"time_masked": torch.zeros(3, dtype=torch.bool)}, r"time_masked is torch.bool of shape \(3,\).*\(23,\)"),
        ({"mel_masked": torch.zeros(1, 64)}, r"mel_masked is torch.float32"),
        ({"total_tokens": 4}, "total_tokens is 4, but the clips have 8"),
        ({"waveform": torch.zeros(2, 2000)}, r"\(2, 2000\)"),
        ({"cu_seqlens": torch.tensor([0, 10])}, "0 to the 4000 samples"),
    ],
)
def test_bad_input_is_named(change, message):
    arguments = {"waveform": torch.zeros(4000), "cu_seqlens": torch.tensor([0, 4000]), "config": SLAP} | change
    with pytest.raises(ValueError, match=message):
        log_mel_patches(**arguments)
