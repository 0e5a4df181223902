"""No op depends on torch's default dtype: buffers, above all those that native code fills, state their dtype."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from slap_fast.ops import (
    MelConfig,
    add_rms_norm,
    apply_rotary,
    contrastive_loss,
    linear_cross_entropy,
    log_mel,
    log_mel_patches,
    prototype_cross_entropy,
    rms_norm,
    swiglu,
    varlen_attention,
)


def _outputs_and_gradients(backend: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> Tensor:
        return (torch.rand(shape, generator=generator, dtype=torch.float32) - 0.5).requires_grad_()

    cu_seqlens = torch.tensor([0, 3, 8], dtype=torch.int32)
    samples = torch.tensor([0, 1000, 4000])
    q, k, v = values(8, 2, 16), values(8, 2, 16), values(8, 2, 16)
    wave, audio, text, hidden, vocabulary = values(4000), values(5, 8), values(5, 8), values(8, 12), values(40, 12)
    scale, weight, prototypes = torch.full((1,), 5.0, dtype=torch.float32), values(12), values(24, 12)
    config, target = MelConfig(), torch.arange(8) * 4
    prototype_loss = prototype_cross_entropy(
        hidden,
        hidden.detach().flip(0),
        prototypes,
        prototypes.detach(),
        student_temperature=0.1,
        teacher_temperature=0.07,
        cu_seqlens=cu_seqlens,
        backend=backend,
    )
    attended, lse = varlen_attention(q, k, v, cu_seqlens, max_seqlen_q=5, return_lse=True, backend=backend)
    results = {
        "log_mel": [log_mel(wave, samples, config, backend=backend)],
        "log_mel_patches": [log_mel_patches(wave, samples, config, backend=backend)],
        "varlen_attention": [attended, lse],
        "apply_rotary": list(apply_rotary(q, k, cu_seqlens, backend=backend)),
        "rms_norm": [rms_norm(hidden, weight, eps=1e-6, backend=backend)],
        "add_rms_norm": list(add_rms_norm(hidden, hidden, weight, eps=1e-6, backend=backend)),
        "swiglu": [swiglu(hidden, backend=backend)],
        "contrastive_loss": [contrastive_loss(audio, text, scale, backend=backend).loss],
        "linear_cross_entropy": [linear_cross_entropy(hidden, vocabulary, target, backend=backend)],
        "prototype_cross_entropy": [prototype_loss],
    }
    leaves = [q, k, v, wave, audio, text, hidden, vocabulary, weight, prototypes]
    named: dict[str, Tensor] = {}
    for op, outputs in results.items():
        total = torch.stack([output.square().sum() for output in outputs]).sum()
        gradients = torch.autograd.grad(total, leaves, allow_unused=True, retain_graph=True)
        tensors = [*outputs, *(gradient for gradient in gradients if gradient is not None)]
        named |= {f"{op} {number}": tensor.detach() for number, tensor in enumerate(tensors)}
    return named


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_no_op_depends_on_the_default_dtype(backend):
    expected = _outputs_and_gradients(backend)
    assert {tensor.dtype for tensor in expected.values()} == {torch.float32}
    # A float64 buffer would be half filled, a bfloat16 one overrun.
    for dtype in (torch.float64, torch.bfloat16):
        torch.set_default_dtype(dtype)
        try:
            results = _outputs_and_gradients(backend)
        finally:
            torch.set_default_dtype(torch.float32)
        assert results.keys() == expected.keys()
        for name, tensor in results.items():
            assert tensor.dtype == torch.float32, f"{name} by {backend}, {dtype}"
            assert torch.equal(tensor, expected[name]), f"{name} by {backend}, {dtype}"
