"""The steps of a log-mel convention that look at a whole clip: dynamic range, and mean and deviation of each mel bin.

    frames = normalize_clips(frames, cu_frames, MelConfig.preset("nemo"))    # [F, n_mels] -> [F, n_mels]

`log_mel` calls it. Sums run over one clip in float64, in order: a clip has the same bits in any batch.
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.normalization import backend_native, backend_torch
from slap_fast.ops.log_mel.normalization.call import (
    Backend,
    NormalizationCall,
    check,
    check_backward,
    select,
    validate,
)

# In order of preference.
BACKENDS: dict[str, Backend] = {"native": backend_native, "torch": backend_torch}
dispatch.register(
    "mel_normalization",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::mel_normalization", check=check, rule=autocast.full)
def _mel_normalization(call: NormalizationCall, backend: str) -> Tensor:
    return BACKENDS[backend].forward(call)


@_mel_normalization.register_fake
def _(call: NormalizationCall, backend: str) -> Tensor:
    return torch.empty_like(call.frames)


@custom_op("slap_fast::mel_normalization_backward", check=check_backward)
def _mel_normalization_backward(call: NormalizationCall, grad: Tensor, backend: str) -> Tensor:
    return BACKENDS[backend].backward(call, grad)


@_mel_normalization_backward.register_fake
def _(call: NormalizationCall, grad: Tensor, backend: str) -> Tensor:
    return torch.empty_like(call.frames)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    (*tensors, ctx.config), ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*tensors)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    frames, cu_frames = ctx.saved_tensors  # type: ignore[attr-defined]
    call = NormalizationCall(frames, cu_frames, ctx.config)  # type: ignore[attr-defined]
    return _mel_normalization_backward(call, grad.contiguous(), ctx.backend), None, None, None  # type: ignore[attr-defined]


_mel_normalization.register_autograd(_backward, setup_context=_setup_context)


def normalize_clips(frames: Tensor, cu_frames: Tensor, config: MelConfig, *, backend: str = "auto") -> Tensor:
    """Limit each clip to its `dynamic_range`, normalize its mel bins over time, subtract `mean` and divide by `std`.

    Differentiable: a value below the limit passes its gradient to the clip's maximum, in equal parts to all elements
    that share it; a deviation of 0 has slope 0.

    Args:
        frames: `[F, n_mels]` float32 or float64 log-mel frames, clips end to end.
        cu_frames: `[N + 1]` int64 or int32 frame offsets of the clips on the same device, rising from 0 to F.
        config: selects the steps and their parameters.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `[F, n_mels]` of the dtype of `frames`. A NaN spreads over its clip with `dynamic_range`, and over its mel bin
        of the clip with `normalize_per_clip`.

    Raises:
        ValueError: a wrong dtype, shape or device, a backend that cannot serve, or, on the CPU, offsets that do not
            rise from 0 to F. Offsets on a GPU are not read back.
    """
    (frames,) = autocast.cast(autocast.full, frames)
    call = validate(NormalizationCall(frames, cu_frames, config.serialized), config)
    return _mel_normalization(call, select(call, backend))
