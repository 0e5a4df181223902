"""NaN of any payload gives NaN wherever PyTorch's backend gives NaN, on every instruction set."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from slap_fast.ops import (
    MelConfig,
    contrastive_loss,
    linear_cross_entropy,
    log_mel,
    prototype_cross_entropy,
    swiglu,
    varlen_attention,
)
from tests.ops._native import native_code, needs_native

# The default quiet NaN, its negative, one with a payload, signaling ones, all bits set.
BITS = {
    torch.float32: (0x7FC00000, 0xFFC00000, 0x7FC00001, 0x7F800001, 0xFFBFFFFF, 0x7FFFFFFF),
    torch.bfloat16: (0x7FC0, 0xFFC1, 0x7F81, 0x7FFF),
    torch.float16: (0x7E00, 0xFE01, 0x7C01, 0x7FFF),
}
OFFSETS = torch.tensor([0, 19, 40], dtype=torch.int32)
TARGET = torch.tensor([3, 0, 16, 5, 9])
CONFIG = MelConfig(n_mels=8, n_fft=64, win_length=64, hop_length=16)


def _attention(backend: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return varlen_attention(q, k, v, OFFSETS, max_seqlen_q=21, backend=backend)


def _contrastive(kind: str, scale: float) -> Callable[..., Tensor]:
    def loss(backend: str, audio: Tensor, text: Tensor) -> Tensor:
        bias = torch.tensor(-1.0) if kind == "sigmoid" else None
        return contrastive_loss(audio, text, torch.tensor(scale), bias, kind=kind, backend=backend).loss

    return loss


def _prototypes(backend: str, student: Tensor, teacher: Tensor, prototypes: Tensor) -> Tensor:
    return prototype_cross_entropy(
        student,
        teacher,
        prototypes,
        prototypes.detach(),
        student_temperature=0.5,
        teacher_temperature=0.4,
        backend=backend,
    )


SIXTEEN = (torch.float32, torch.bfloat16, torch.float16)
# (call, shapes of its tensors, dtypes).
CALLS: dict[str, tuple[Callable[..., Tensor], list[tuple[int, ...]], tuple[torch.dtype, ...]]] = {
    "attention": (_attention, [(40, 2, 16)] * 3, SIXTEEN),
    "swiglu": (lambda backend, x: swiglu(x, backend=backend), [(5, 34)], SIXTEEN),
    "linear_cross_entropy": (
        lambda backend, h, w: linear_cross_entropy(h, w, TARGET, label_smoothing=0.1, z_loss=0.01, backend=backend),
        [(5, 8), (17, 8)],
        (torch.float32,),
    ),
    "prototypes": (_prototypes, [(6, 8), (6, 8), (17, 8)], (torch.float32,)),
    "infonce": (_contrastive("infonce", 10.0), [(7, 8)] * 2, (torch.float32,)),
    "infonce of scale 0": (_contrastive("infonce", 0.0), [(7, 8)] * 2, (torch.float32,)),
    "sigmoid": (_contrastive("sigmoid", 10.0), [(7, 8)] * 2, (torch.float32,)),
    "log_mel": (lambda backend, x: log_mel(x, None, CONFIG, backend=backend), [(300,)], (torch.float32,)),
}


def _poisoned(x: Tensor, bits: int) -> Tensor:
    integer = torch.int32 if x.dtype == torch.float32 else torch.int16
    width = 8 * x.itemsize
    signed = bits - (1 << width) if bits >= 1 << (width - 1) else bits
    x = x.clone()
    x.view(integer).view(-1)[x.numel() // 2] = signed
    assert x.isnan().sum() == 1
    return x


def _where_nan(call: Callable[..., Tensor], backend: str, tensors: list[Tensor]) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in tensors]
    out = call(backend, *leaves)
    grads = torch.autograd.grad(out.sum(), leaves, allow_unused=True)
    return [x.isnan() for x in (out.detach(), *grads) if x is not None]


def _problems(shapes: list[tuple[int, ...]], dtype: torch.dtype) -> Iterator[list[Tensor]]:
    generator = torch.Generator().manual_seed(5)
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    for place in range(len(tensors)):
        for bits in BITS[dtype]:
            yield [_poisoned(x, bits) if i == place else x for i, x in enumerate(tensors)]


@needs_native
@pytest.mark.parametrize("name", CALLS)
def test_nan_spreads_to_the_same_elements_as_in_pytorch(name: str, isa: str) -> None:
    call, shapes, dtypes = CALLS[name]
    for dtype in dtypes:
        for tensors in _problems(shapes, dtype):
            with native_code(isa=isa):
                actual = _where_nan(call, "native", tensors)
            expected = _where_nan(call, "torch", tensors)
            assert expected[0].any()
            assert all(map(torch.equal, actual, expected)), (dtype, [x.isnan().any() for x in tensors])
