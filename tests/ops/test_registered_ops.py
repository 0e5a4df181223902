"""torch.ops.slap_fast is public: for any tensors, it reads and writes no memory outside of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import Tensor

from slap_fast.ops import MelConfig
from tests.ops._calls import CLIPWISE, COLUMNS, CONFIG, FRAMES, OFFSETS, SAMPLE_OFFSETS, TARGET, TOKENS
from tests.ops._native import needs_native
from tests.ops.decode_flac._cases import encoded_batch

OPS = torch.ops.slap_fast
CU_FRAMES = torch.tensor([0, FRAMES[0], sum(FRAMES[:2]), sum(FRAMES)])


def _randn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def _contrastive() -> tuple[Any, ...]:
    ids = torch.arange(5), torch.arange(7)
    return _randn(5, 8), _randn(7, 8), torch.tensor(3.0), torch.tensor(-1.0), *ids, 0, "sigmoid", 0, "native"


def _attention() -> tuple[Any, ...]:
    heads = _randn(TOKENS, 4, 16), _randn(TOKENS, 2, 16), _randn(TOKENS, 2, 16)
    return *heads, OFFSETS.int(), OFFSETS.int(), 7, 7, -1, -1, 0.25, "native"


def _prototypes() -> tuple[Any, ...]:
    features = _randn(TOKENS, 8), _randn(TOKENS, 8), _randn(17, 8), _randn(17, 8)
    return *features, _randn(17), _randn(TOKENS), torch.tensor(1.0), torch.tensor(1.0), True, True, None, "native"


def _flac() -> tuple[Any, ...]:
    batch = encoded_batch(1)
    starts, counts = torch.zeros(len(batch.counts), dtype=torch.int64), torch.tensor([0, *accumulate(batch.counts)])
    return batch.data, batch.offsets, starts, counts, sum(batch.counts), batch.channels, torch.float32, "crc", "native"


def _waveform() -> Tensor:
    return _randn(100 * TOKENS)


_mel = (SAMPLE_OFFSETS, CU_FRAMES, CONFIG.serialized)
ROTATION = (OFFSETS.int(), 2, [1e4, 1e2], False, "native")

# Valid arguments of each registered op.
ARGUMENTS: dict[str, Callable[[], tuple[Any, ...]]] = {
    "varlen_attention": _attention,
    "varlen_attention_backward": lambda: (
        *_attention()[:-1], _randn(TOKENS, 4, 16), _randn(4, TOKENS), _randn(TOKENS, 4, 16), _randn(4, TOKENS), "native"
    ),
    "apply_rotary": lambda: (_randn(TOKENS, 2, 8), _randn(TOKENS, 1, 8), *ROTATION),
    "apply_rotary_": lambda: (_randn(TOKENS, 2, 8), _randn(TOKENS, 1, 8), *ROTATION[:3], "native"),
    "rotary_unpack": lambda: (_randn(TOKENS, 3, 2, 8), *ROTATION),
    "rotary_pack": lambda: (_randn(TOKENS, 2, 8), _randn(TOKENS, 2, 8), _randn(TOKENS, 2, 8), *ROTATION),
    "rms_norm": lambda: (_randn(5, 9), _randn(9), 1e-6, "native"),
    "add_rms_norm": lambda: (_randn(5, 9), _randn(5, 9), _randn(9), 1e-6, "native"),
    "rms_norm_backward": lambda: (_randn(5, 9), _randn(9), _randn(5), _randn(5, 9), _randn(5, 9), "native"),
    "swiglu": lambda: (_randn(5, 34), "native"),
    "swiglu_backward": lambda: (_randn(5, 34), _randn(5, 17), "native"),
    "linear": lambda: (_randn(5, 9), _randn(7, 9), _randn(7), "native"),
    "linear_cross_entropy": lambda: (_randn(5, 8), _randn(17, 8), TARGET, -100, 0.1, 0.0, True, True, "native"),
    "scale_gradient": lambda: (_randn(5, 8), torch.tensor(2.0), torch.bfloat16),
    "prototype_cross_entropy": _prototypes,
    "sinkhorn_sweep": lambda: (_randn(TOKENS, 8), _randn(17, 8), torch.tensor(1.0), _randn(17), "native"),
    "contrastive_sums": _contrastive,
    "contrastive_sums_backward": lambda: (
        *_contrastive()[:-1], _randn(5), _randn(7), _randn(4, 5), _randn(2, 7),
        _randn(5), _randn(7), _randn(5), "native",
    ),
    "log_mel": lambda: (_waveform(), *_mel, sum(FRAMES), "native"),
    "log_mel_backward": lambda: (_waveform(), *_mel, _randn(sum(FRAMES), 8), "native"),
    "log_mel_dense": lambda: (_randn(2, 300), CONFIG.serialized, "native"),
    "log_mel_dense_backward": lambda: (
        _randn(2, 300), CONFIG.serialized, _randn(2, CONFIG.num_frames(300), 8), "native"
    ),
    "log_mel_patches": lambda: (
        _waveform(), SAMPLE_OFFSETS, CU_FRAMES, torch.zeros(sum(FRAMES), dtype=torch.bool),
        torch.zeros(3, 8, dtype=torch.bool), CONFIG.serialized, sum(FRAMES), COLUMNS, 16, 4, 0.0,
    ),
    "mel_normalization": lambda: (_randn(TOKENS, 8), OFFSETS, CLIPWISE.serialized, "native"),
    "mel_normalization_backward": lambda: (
        _randn(TOKENS, 8), OFFSETS, CLIPWISE.serialized, _randn(TOKENS, 8), "native"
    ),
    "waveform_stats": lambda: (_waveform(), SAMPLE_OFFSETS, "native"),
    "decode_flac": _flac,
}  # fmt: skip
# Registered for GPUs only.
ON_GPUS = {"sinkhorn_first_sweep", "sinkhorn_later_sweep"}
ROWS = {"shorter", "longer", "empty"}
SCALAR = {"of another type", "of another rank"}  # scalars of any dtype, and [1] in place of []
BATCH = {*ROWS, "of another rank"}
# op -> argument -> changes that give another valid call.
RIGHT = {
    "linear_cross_entropy": {"weight": {"shorter", "longer"}},  # a vocabulary of another size
    "scale_gradient": {"gradient": {*BATCH, "of another type"}, "factor": SCALAR},
    "sinkhorn_sweep": {"teacher": ROWS},
    "contrastive_sums": {"logit_scale": SCALAR, "logit_bias": SCALAR},
    "contrastive_sums_backward": {"logit_scale": SCALAR, "logit_bias": SCALAR},
    "rms_norm": {"x": BATCH},
    "swiglu": {"gate_up": BATCH},
    "linear": {"x": BATCH},
    "log_mel_dense": {"waveform": BATCH},
}


def _changes(x: Tensor) -> Iterator[tuple[str, Tensor]]:
    if x.dim():
        yield "shorter", x[:-1].clone()
        yield "longer", torch.cat([x, x[-1:] + 1 if x.dtype in (torch.int32, torch.int64) else x[-1:]])
        yield "empty", x[:0].clone()
    yield "of another type", x.double() if x.dtype == torch.float32 else x.to(torch.int16)
    yield "of whole numbers", x.to(torch.int8)
    yield "of another rank", x[None]
    if x.dim():
        yield "without a dimension", x.flatten()[:1].reshape(())


def _names() -> set[str]:
    every = torch._C._dispatch_get_all_op_names()
    return {name.partition("::")[2] for name in every if name.startswith("slap_fast::")}


def test_every_registered_op_is_tested_here() -> None:
    assert _names() == set(ARGUMENTS) | ON_GPUS


@needs_native
@pytest.mark.parametrize("name", ARGUMENTS)
def test_misfitting_tensors_are_refused(name: str) -> None:
    op = getattr(OPS, name)
    arguments = ARGUMENTS[name]()
    op(*arguments)
    names = [argument.name for argument in op.default._schema.arguments]
    taken: dict[str, set[str]] = {}
    for place, (argument, x) in enumerate(zip(names, arguments, strict=True)):
        if not isinstance(x, Tensor):
            continue
        for change, other in _changes(x):
            with suppress(ValueError):
                op(*arguments[:place], other, *arguments[place + 1 :])
                taken.setdefault(argument, set()).add(change)
    assert taken == RIGHT.get(name, {})


@needs_native
def test_an_unknown_backend_or_convention_is_an_error() -> None:
    for name, make in ARGUMENTS.items():
        arguments = make()
        schema = getattr(OPS, name).default._schema.arguments
        for place, argument in enumerate(schema):
            if argument.name in ("backend", "config"):
                with pytest.raises((ValueError, KeyError)):
                    getattr(OPS, name)(*arguments[:place], "nonsense", *arguments[place + 1 :])


@pytest.mark.parametrize("name", ["apply_rotary_", "apply_rotary"])
def test_rotating_a_tensor_twice_is_refused(name: str) -> None:
    q, *settings = _randn(TOKENS, 2, 8), *ROTATION[:3]
    if name == "apply_rotary_":
        with pytest.raises(ValueError, match="share memory"):
            OPS.apply_rotary_(q, q, *settings, "torch")
        with pytest.raises(ValueError, match="share memory"):
            OPS.apply_rotary_(q, q[:, 1:], *settings, "torch")
    else:
        assert torch.equal(*OPS.apply_rotary(q, q, *settings, False, "torch"))


def test_a_mel_config_with_another_number_of_frames_is_refused() -> None:
    other = MelConfig(n_mels=8, n_fft=64, win_length=64, hop_length=32).serialized
    with pytest.raises(ValueError, match="for this config it must be"):
        OPS.log_mel(_waveform(), SAMPLE_OFFSETS, CU_FRAMES, other, sum(FRAMES), "torch")
