"""GPU against CPU: every op, forward and backward, and a whole training step, without host synchronization."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from slap_fast.config.recipe import ObjectivesConfig
from slap_fast.models.slap import SLAP
from slap_fast.ops import (
    MelConfig,
    PackedLayout,
    add_rms_norm,
    apply_rotary,
    contrastive_loss,
    linear_cross_entropy,
    log_mel,
    prototype_cross_entropy,
    swiglu,
    triton_support,
    varlen_attention,
    waveform_stats,
)
from slap_fast.training.model import PretrainingModel
from tests.models.builders import TINY, random_clips
from tests.ops._gpu_checks import check_swiglu, serving
from tests.oracles.varlen_attention import varlen_attention as attention_oracle
from tests.training import tiny

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
LENGTHS = [1, 0, 97, 128, 260]
SAMPLES = [0, 399, 400, 16_000, 5_000]
UNIT = torch.nn.functional.normalize


@contextmanager
def _no_host_sync() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    layout = PackedLayout.from_lengths(LENGTHS, device=q.device)
    return varlen_attention(q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen, window=(48, 48))


def _global_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    layout = PackedLayout.from_lengths(LENGTHS, device=q.device)
    return varlen_attention(q, k, v, layout.cu_seqlens, max_seqlen_q=layout.max_seqlen)


def _rotary(q: Tensor, k: Tensor) -> Tensor:
    layout = PackedLayout.from_lengths(LENGTHS, device=q.device)
    return torch.cat(apply_rotary(q, k, layout.cu_seqlens, tokens_per_frame=4), dim=1)


def _rms_norm(x: Tensor, residual: Tensor, weight: Tensor) -> Tensor:
    return torch.stack(add_rms_norm(x, residual, weight, eps=1e-6))


def _log_mel(waveform: Tensor) -> Tensor:
    layout = PackedLayout.from_lengths(SAMPLES, device=waveform.device, dtype=torch.int64)
    config = MelConfig()
    frames = sum(config.num_frames(length) for length in SAMPLES)
    return log_mel(waveform, layout.cu_seqlens, config, total_frames=frames)


def _contrastive(audio: Tensor, text: Tensor, scale: Tensor) -> Tensor:
    return contrastive_loss(UNIT(audio, dim=-1), UNIT(text, dim=-1), scale).loss


def _captions(hidden: Tensor, vocabulary: Tensor) -> Tensor:
    targets = torch.arange(hidden.shape[0], device=hidden.device) % vocabulary.shape[0]
    return linear_cross_entropy(hidden, vocabulary, targets)


def _prototypes(student: Tensor, prototypes: Tensor) -> Tensor:
    layout = PackedLayout.from_lengths([3, 0, 30, 7], device=student.device)
    return prototype_cross_entropy(
        UNIT(student, dim=-1),
        UNIT(student.detach().flip(0), dim=-1),
        UNIT(prototypes, dim=-1),
        UNIT(prototypes.detach().flip(0), dim=-1),
        student_temperature=0.1,
        teacher_temperature=0.07,
        cu_seqlens=layout.cu_seqlens,
    )


TOKENS = sum(LENGTHS)
OPS: list[tuple[Callable[..., Tensor], list[Tensor]]] = [
    (_attention, [_normal(TOKENS, 4, 32, seed=seed) for seed in range(3)]),
    (_global_attention, [_normal(TOKENS, 4, 32, seed=seed) for seed in range(3)]),
    (_rotary, [_normal(TOKENS, 4, 32), _normal(TOKENS, 2, 32)]),
    (_rms_norm, [_normal(TOKENS, 48), _normal(TOKENS, 48, seed=1), _normal(48, seed=2)]),
    (swiglu, [_normal(TOKENS, 2 * 36)]),
    (_log_mel, [0.1 * _normal(sum(SAMPLES))]),
    (_contrastive, [_normal(33, 24), _normal(33, 24, seed=1), torch.tensor([20.0], dtype=torch.float64)]),
    (_captions, [_normal(50, 24), _normal(300, 24)]),
    (_prototypes, [_normal(40, 16), _normal(64, 16)]),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("op", "inputs"), OPS, ids=lambda value: getattr(value, "__name__", ""))
def test_an_op_has_the_values_and_gradients_of_the_cpu(
    op: Callable[..., Tensor], inputs: list[Tensor], dtype: torch.dtype
) -> None:
    exact = [x.clone().requires_grad_() for x in inputs]
    expected = op(*exact)
    grad = torch.randn(expected.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    wanted = [expected, *torch.autograd.grad(expected, exact, grad)]

    moved = [x.to(DEVICE, dtype).requires_grad_() for x in inputs]
    moved_grad = grad.to(DEVICE, dtype)
    op(*moved)  # the first call may load kernels and fill caches
    with _no_host_sync():
        actual = op(*moved)
        gradients = torch.autograd.grad(actual, moved, moved_grad)
    again = op(*moved)
    assert torch.equal(again, actual)
    for repeated, gradient in zip(torch.autograd.grad(again, moved, moved_grad), gradients, strict=True):
        assert torch.equal(repeated, gradient)
    tolerance = 1e-9 if dtype == torch.float64 else 1e-4
    for value, reference in zip([actual, *gradients], wanted, strict=True):
        assert value.device.type == DEVICE
        error = (value.detach().double().cpu() - reference.detach()).norm() / reference.detach().norm()
        assert error < tolerance


needs_triton = pytest.mark.skipif(triton_support.unavailable() is not None, reason=str(triton_support.unavailable()))


class _Packed:
    """Views of a packed projection on the GPU, four query and two key heads, with gradients of output and lse."""

    def __init__(self, lengths: list[int], dtype: torch.dtype, seed: int = 0) -> None:
        self.layout = PackedLayout.from_lengths(lengths, device=DEVICE)
        self.qkv = _normal(sum(lengths), 8, 64, seed=seed).to(DEVICE, dtype)
        self.grad = _normal(sum(lengths), 4, 64, seed=seed + 1).to(DEVICE, dtype)
        self.grad_lse = _normal(4, sum(lengths), seed=seed + 2).to(DEVICE, torch.float32)

    def views(self) -> tuple[Tensor, Tensor, Tensor]:
        q, k, v = (part.detach().requires_grad_() for part in self.qkv.split([4, 2, 2], dim=1))
        return q, k, v

    def attend(self, window: tuple[int, int]) -> list[Tensor]:
        q, k, v = self.views()
        out, lse = varlen_attention(
            q,
            k,
            v,
            self.layout.cu_seqlens,
            max_seqlen_q=max(LENGTHS),
            window=window,
            return_lse=True,
            backend="triton",
        )
        return [out, lse, *torch.autograd.grad((out, lse), (q, k, v), (self.grad, self.grad_lse))]

    def expected(self, window: tuple[int, int], dtype: torch.dtype) -> list[Tensor]:
        """Results of the oracle in `dtype` on the CPU."""
        q, k, v = (x.detach().cpu().to(dtype).requires_grad_() for x in self.views())
        lengths = list(self.layout.lengths)
        out, lse = attention_oracle(q, k, v, lengths, lengths, window, 0.125)
        grads = self.grad.cpu().to(dtype), self.grad_lse.cpu().to(lse.dtype)
        return [out, lse, *torch.autograd.grad((out, lse), (q, k, v), grads)]


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("window", [(-1, -1), (-1, 0), (0, 1), (48, 48), (300, 100)])
def test_the_error_of_triton_attention_is_at_most_twice_that_of_pytorch(
    window: tuple[int, int], dtype: torch.dtype
) -> None:
    packed = _Packed(LENGTHS, dtype)
    packed.attend(window)
    with _no_host_sync():
        actual = packed.attend(window)
    exact, same_dtype = (packed.expected(window, precision) for precision in (torch.float64, dtype))
    for ours, theirs, wanted, again in zip(actual, same_dtype, exact, packed.attend(window), strict=True):
        assert torch.equal(ours, again)
        error = (ours.double().cpu() - wanted).norm()
        assert error <= 2 * (theirs.double() - wanted).norm() + torch.finfo(dtype).eps / 8 * wanted.norm()


@needs_triton
def test_a_cuda_graph_of_triton_kernels_replays_with_new_tensors_and_lengths() -> None:
    def step(packed: _Packed) -> list[Tensor]:
        q, k, _ = packed.qkv.split([4, 2, 2], dim=1)
        rotated = apply_rotary(q, k, packed.layout.cu_seqlens, tokens_per_frame=4, backend="triton")
        return [*packed.attend((48, 48)), *rotated]

    first, second = _Packed(LENGTHS, torch.bfloat16), _Packed(LENGTHS[::-1], torch.bfloat16, seed=5)
    expected = step(second)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(first)
    for held, new in ((first.qkv, second.qkv), (first.grad, second.grad), (first.grad_lse, second.grad_lse)):
        held.copy_(new)
    first.layout.cu_seqlens.copy_(second.layout.cu_seqlens)
    graph.replay()
    torch.cuda.synchronize()
    for value, wanted in zip(captured, expected, strict=True):
        assert torch.equal(value, wanted)


@needs_triton
def test_triton_kernels_are_compiled_once_for_all_lengths(monkeypatch: pytest.MonkeyPatch) -> None:
    import triton

    compiled: list[str] = []
    _Packed(LENGTHS, torch.bfloat16).attend((48, 48))
    monkeypatch.setattr(triton.knobs.runtime, "jit_cache_hook", lambda **seen: compiled.append(seen["repr"]))
    for lengths in ([1], [16] * 16, [3, 0, 5], [260] * 9):
        _Packed(lengths, torch.bfloat16).attend((48, 48))
    assert not compiled


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("tokens_per_frame", [None, 4])
def test_triton_rotates_as_pytorch_does(tokens_per_frame: int | None, dtype: torch.dtype) -> None:
    packed = _Packed(LENGTHS, dtype)
    q, k, _ = packed.qkv.split([4, 2, 2], dim=1)
    cu_seqlens = packed.layout.cu_seqlens
    exact = apply_rotary(q.double(), k.double(), cu_seqlens, tokens_per_frame=tokens_per_frame, backend="torch")
    theirs = apply_rotary(q, k, cu_seqlens, tokens_per_frame=tokens_per_frame, backend="torch")
    for inplace in (False, True):
        ours = apply_rotary(q, k, cu_seqlens, tokens_per_frame=tokens_per_frame, inplace=inplace, backend="triton")
        for value, other, wanted in zip(ours, theirs, exact, strict=True):
            limit = max(2 * float((other - wanted).abs().amax()), torch.finfo(dtype).eps / 2)
            assert float((value - wanted).abs().amax()) <= limit


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (70, 12), (3000, 768), (5, 8192)])
def test_triton_adds_and_normalizes_as_pytorch_does(rows: int, width: int, dtype: torch.dtype) -> None:
    tensors = [_normal(rows, width, seed=seed).to(DEVICE, dtype) for seed in range(4)]
    tensors.append(_normal(width, seed=4).to(DEVICE, dtype))

    def results(backend: str, precision: torch.dtype) -> list[Tensor]:
        x, residual, *grads, weight = (tensor.to(precision, copy=True) for tensor in tensors)
        inputs = [tensor.requires_grad_() for tensor in (x, residual, weight)]
        out = add_rms_norm(*inputs, eps=1e-6, backend=backend)
        return [*(value.detach() for value in out), *torch.autograd.grad(out, inputs, grads)]

    ours, again = results("triton", dtype), results("triton", dtype)
    theirs, exact = results("torch", dtype), results("torch", torch.float64)
    for value, repeated, other, wanted in zip(ours, again, theirs, exact, strict=True):
        assert torch.equal(value, repeated)
        error = (value.double() - wanted).norm()
        assert error <= 2 * (other.double() - wanted).norm() + torch.finfo(dtype).eps / 4 * wanted.norm()


@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("rows", "width"), [(1, 1), (3, 7), (1000, 2048), (65, 1031)])
def test_triton_gates_as_pytorch_does(rows: int, width: int, dtype: torch.dtype) -> None:
    check_swiglu(serving("swiglu", "triton"), rows, width, dtype)


def test_waveform_stats_equal_those_of_the_cpu() -> None:
    waveform = _normal(sum(SAMPLES)).float()
    waveform[500] = float("nan")
    layout = PackedLayout.from_lengths(SAMPLES, dtype=torch.int64)
    expected = waveform_stats(waveform, layout.cu_seqlens)
    actual = waveform_stats(waveform.to(DEVICE), layout.cu_seqlens.to(DEVICE))
    for value, reference in zip(actual, expected, strict=True):
        torch.testing.assert_close(value.cpu(), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_training_step_has_the_losses_and_gradients_of_the_cpu(dtype: torch.dtype) -> None:
    config = tiny.run_config()
    torch.manual_seed(0)
    exact = PretrainingModel(config.recipe.model, ObjectivesConfig()).double()
    batch = tiny.batch(config, step=0)
    expected = exact(batch, 0.05)
    expected["loss"].backward()

    model = PretrainingModel(config.recipe.model, ObjectivesConfig()).to(DEVICE, dtype)
    model.load_state_dict(exact.state_dict())
    losses = model(batch.to(DEVICE), 0.05)
    losses["loss"].backward()
    tolerance = 1e-3 if dtype == torch.float32 else 3e-2
    for name in ("contrastive", "self_distillation", "caption"):
        assert float(losses[name]) == pytest.approx(float(expected[name]), rel=tolerance), name
    grads = torch.cat([p.grad.flatten().double().cpu() for p in model.parameters() if p.grad is not None])
    wanted = torch.cat([p.grad.flatten() for p in exact.parameters() if p.grad is not None])
    assert (grads - wanted).norm() / wanted.norm() < 10 * tolerance


def test_packing_on_the_gpu_changes_an_embedding_only_by_rounding() -> None:
    torch.manual_seed(0)
    model = SLAP(TINY).to(DEVICE).eval()
    clips = random_clips([1.0, 0.005, 2.7, 0.3])
    together = model.encode_audio(clips)
    alone = torch.cat([model.encode_audio([clip]) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)
    torch.testing.assert_close(together, model.cpu().encode_audio(clips), rtol=0, atol=1e-4)
