"""One small call of each public op, for tests that all ops must pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from slap_fast.ops import (
    MelConfig,
    add_rms_norm,
    apply_rotary,
    apply_rotary_qkv,
    contrastive_loss,
    linear,
    linear_cross_entropy,
    log_mel,
    log_mel_patches,
    prototype_cross_entropy,
    rms_norm,
    swiglu,
    varlen_attention,
)
from slap_fast.ops.log_mel.normalization import normalize_clips

LENGTHS = (3, 0, 7)
TOKENS = sum(LENGTHS)
OFFSETS = torch.tensor([0, 3, 3, 10])
SAMPLE_OFFSETS = 100 * OFFSETS
CONFIG = MelConfig(n_mels=8, n_fft=64, win_length=64, hop_length=16)
FRAMES = [CONFIG.num_frames(100 * length) for length in LENGTHS]
TOTAL_FRAMES = sum(FRAMES)
COLUMNS = sum(-(-frames // 16) for frames in FRAMES)
CLIPWISE = MelConfig(n_mels=8, normalize_per_clip=True, dynamic_range=1.0)
TARGET = torch.tensor([3, 0, 16, 5, -100])

Run = Callable[..., Tensor | tuple[Tensor, ...]]


@dataclass(frozen=True)
class Call:
    """A call of an op: `run(backend, *tensors, offsets=...)`.

    Attributes:
        run: returns differentiable tensors.
        shapes: of the tensors that it takes.
        offsets: default offsets; None: the op takes none.
        differentiable: positions of the tensors that get gradients.
    """

    run: Run
    shapes: tuple[tuple[int, ...], ...]
    offsets: Tensor | None = None
    differentiable: tuple[int, ...] = (0,)

    def tensors(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return [torch.randn(shape, generator=generator).to(dtype) for shape in self.shapes]

    def leaves(self, *, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        return [x.requires_grad_(i in self.differentiable) for i, x in enumerate(self.tensors(dtype=dtype))]


def _attention(backend: str, q: Tensor, k: Tensor, v: Tensor, offsets: Tensor = OFFSETS) -> Tensor:
    return varlen_attention(q, k, v, offsets, max_seqlen_q=7, backend=backend)


def _rotary(backend: str, q: Tensor, k: Tensor, offsets: Tensor = OFFSETS) -> tuple[Tensor, Tensor]:
    return apply_rotary(q, k, offsets, tokens_per_frame=2, backend=backend)


def _rotary_qkv(backend: str, qkv: Tensor, offsets: Tensor = OFFSETS) -> tuple[Tensor, ...]:
    return apply_rotary_qkv(qkv, offsets, backend=backend)


def _prototypes(
    backend: str, student: Tensor, teacher: Tensor, prototypes: Tensor, others: Tensor, offsets: Tensor = OFFSETS
) -> Tensor:
    return prototype_cross_entropy(
        student,
        teacher,
        prototypes,
        others,
        student_temperature=2.0,
        teacher_temperature=1.5,
        cu_seqlens=offsets,
        backend=backend,
    )


def _contrastive(kind: str) -> Run:
    def run(backend: str, audio: Tensor, text: Tensor) -> Tensor:
        bias = torch.tensor(-1.0) if kind == "sigmoid" else None
        return contrastive_loss(audio, text, torch.tensor(3.0), bias, kind=kind, backend=backend).loss

    return run


def _patches(backend: str, waveform: Tensor, offsets: Tensor = SAMPLE_OFFSETS) -> Tensor:
    masked = torch.zeros(len(LENGTHS), CONFIG.n_mels, dtype=torch.bool)
    masked[2, 3] = True
    return log_mel_patches(
        waveform,
        offsets,
        CONFIG,
        patch_mels=4,
        mel_masked=masked,
        total_frames=TOTAL_FRAMES,
        total_tokens=2 * COLUMNS,
        backend=backend,
    )


CALLS = {
    "varlen_attention": Call(_attention, ((TOKENS, 4, 16), (TOKENS, 2, 16), (TOKENS, 2, 16)), OFFSETS, (0, 1, 2)),
    "apply_rotary": Call(_rotary, ((TOKENS, 2, 8), (TOKENS, 1, 8)), OFFSETS, (0, 1)),
    "apply_rotary_qkv": Call(_rotary_qkv, ((TOKENS, 3, 2, 8),), OFFSETS),
    "rms_norm": Call(lambda backend, x, w: rms_norm(x, w, eps=1e-6, backend=backend), ((5, 9), (9,)), None, (0, 1)),
    "add_rms_norm": Call(
        lambda backend, x, y, w: add_rms_norm(x, y, w, eps=1e-6, backend=backend),
        ((5, 9), (5, 9), (9,)),
        None,
        (0, 1, 2),
    ),
    "swiglu": Call(lambda backend, x: swiglu(x, backend=backend), ((5, 34),)),
    "linear": Call(lambda backend, x, w, b: linear(x, w, b, backend=backend), ((5, 9), (7, 9), (7,)), None, (0, 1, 2)),
    "linear_cross_entropy": Call(
        lambda backend, h, w: linear_cross_entropy(h, w, TARGET, label_smoothing=0.1, z_loss=0.01, backend=backend),
        ((5, 8), (17, 8)),
        None,
        (0, 1),
    ),
    "prototype_cross_entropy": Call(_prototypes, ((TOKENS, 8), (TOKENS, 8), (17, 8), (17, 8)), OFFSETS, (0, 2)),
    "contrastive_loss": Call(_contrastive("infonce"), ((7, 8), (7, 8)), None, (0, 1)),
    "contrastive_loss of sigmoids": Call(_contrastive("sigmoid"), ((7, 8), (7, 8)), None, (0, 1)),
    "log_mel": Call(
        lambda backend, x, offsets=SAMPLE_OFFSETS: log_mel(
            x, offsets, CONFIG, total_frames=TOTAL_FRAMES, backend=backend
        ),
        ((100 * TOKENS,),),
        SAMPLE_OFFSETS,
    ),
    "log_mel_patches": Call(_patches, ((100 * TOKENS,),), SAMPLE_OFFSETS),
    "normalize_clips": Call(
        lambda backend, x, offsets=OFFSETS: normalize_clips(x, offsets, CLIPWISE, backend=backend),
        ((TOKENS, 8),),
        OFFSETS,
    ),
}


def as_tuple(result: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (result,) if isinstance(result, Tensor) else result


def loss_of(result: Tensor | tuple[Tensor, ...]) -> Tensor:
    """A weighted sum, with weights that differ so that no op makes it constant."""
    return sum((x * torch.linspace(0.5, 1.5, x.numel()).view(x.shape)).sum() for x in as_tuple(result))  # type: ignore[return-value]
