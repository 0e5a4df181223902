"""Waveforms to log-mel frames, packed or dense, differentiable with respect to the waveform.

    frames = log_mel(waveform, cu_seqlens, MelConfig())             # [S] packed clips -> [F, n_mels]
    frames = log_mel(batch, None, MelConfig.preset("whisper"))      # [B, S] -> [B, F, n_mels]

`MelConfig` has a field for every step from samples to normalized frames. Native code does all steps in one pass, on
CPUs and on NVIDIA GPUs: it stores no intermediate of a spectrogram's size, and the bits of a frame depend only on its
own samples, not on the rest of the batch or the number of threads.

Beside it: `patches` (patches in token order), `normalization` (steps over a whole clip), `stream` (clips in chunks).
"""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.log_mel import backend_cuda, backend_native, backend_torch, normalization
from slap_fast.ops.log_mel.call import (
    Backend,
    LogMelCall,
    check,
    check_backward,
    check_dense_backward,
    frame_dtype,
    frame_offsets,
    pack,
    select,
    validate_dense,
    validate_packed,
)
from slap_fast.ops.log_mel.config import MelConfig

# In order of preference.
BACKENDS: dict[str, Backend] = {"cuda": backend_cuda, "native": backend_native, "torch": backend_torch}
dispatch.register(
    "log_mel",
    [dispatch.Backend(name, module.unavailable, module.rejects) for name, module in BACKENDS.items()],
)


@custom_op("slap_fast::log_mel", check=check, rule=autocast.full)
def _log_mel(call: LogMelCall, total_frames: int, backend: str) -> Tensor:
    return BACKENDS[backend].forward(call, total_frames)


@_log_mel.register_fake
def _(call: LogMelCall, total_frames: int, backend: str) -> Tensor:
    return call.waveform.new_empty(total_frames, call.mel.n_mels, dtype=frame_dtype(call.waveform))


@custom_op("slap_fast::log_mel_backward", check=check_backward)
def log_mel_backward(call: LogMelCall, grad: Tensor, backend: str) -> Tensor:
    """`[S]` gradient of the waveform from the `[F, n_mels]` gradient of the frames, before the steps over a clip.

    No leading underscore: `patches` calls it too.
    """
    return BACKENDS[backend].backward(call, grad)


@log_mel_backward.register_fake
def _(call: LogMelCall, grad: Tensor, backend: str) -> Tensor:
    return torch.empty_like(call.waveform)


@custom_op("slap_fast::log_mel_dense", rule=autocast.full)
def _log_mel_dense(waveform: Tensor, config: str, backend: str) -> Tensor:
    return log_mel(waveform.detach(), None, MelConfig.parse(config), backend=backend)


@_log_mel_dense.register_fake
def _(waveform: Tensor, config: str, backend: str) -> Tensor:
    mel = MelConfig.parse(config)
    *batch, length = waveform.shape
    frames = mel.num_frames(length)
    if isinstance(frames, torch.SymInt):
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # 250 ms to import, unless tracing

        # PyTorch asks whether the formula equals 1, and rejects lengths whose answer differs from the example's.
        if not statically_known_true(frames > 1):
            frames = torch.library.get_ctx().new_dynamic_size()
    return waveform.new_empty(*batch, frames, mel.n_mels, dtype=frame_dtype(waveform))


@custom_op("slap_fast::log_mel_dense_backward", check=check_dense_backward)
def _log_mel_dense_backward(waveform: Tensor, config: str, grad: Tensor, backend: str) -> Tensor:
    mel = MelConfig.parse(config)
    call, chosen = pack(waveform, mel, grad.shape[-2]), select(waveform, mel, backend)
    grad = grad.reshape(-1, mel.n_mels).contiguous()
    if not mel.is_local:
        frames = _log_mel(call, grad.shape[0], chosen)
        grad = normalization.backend_torch.backward(normalization.NormalizationCall(frames, *call[2:]), grad)
    return log_mel_backward(call, grad, chosen).view(waveform.shape)


@_log_mel_dense_backward.register_fake
def _(waveform: Tensor, config: str, grad: Tensor, backend: str) -> Tensor:
    return torch.empty_like(waveform)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    (*tensors, ctx.config), _, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(*tensors)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    waveform, cu_seqlens, cu_frames = ctx.saved_tensors  # type: ignore[attr-defined]
    call = LogMelCall(waveform, cu_seqlens, cu_frames, ctx.config)  # type: ignore[attr-defined]
    return log_mel_backward(call, grad.contiguous(), ctx.backend), *[None] * 5  # type: ignore[attr-defined]


def _setup_dense(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    waveform, ctx.config, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(waveform)


def _dense_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (waveform,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return _log_mel_dense_backward(waveform, ctx.config, grad, ctx.backend), None, None  # type: ignore[attr-defined]


_log_mel.register_autograd(_backward, setup_context=_setup_context)
_log_mel_dense.register_autograd(_dense_backward, setup_context=_setup_dense)


def log_mel(
    waveform: Tensor,
    cu_seqlens: Tensor | None,
    config: MelConfig,
    *,
    total_frames: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-mel frames of packed clips, or of clips of equal length.

    Args:
        waveform: `[S]` samples of packed clips end to end, or, without `cu_seqlens`, `[..., S]` of equal length.
            float32 or float64 in [-1, 1], or int16, which is divided by 32768 (and has no gradient). Autocast casts
            16-bit floats to float32.
        cu_seqlens: `[N + 1]` int64 or int32 offsets of the clips on the device of `waveform`, from 0 to S.
        config: the convention; `config.num_frames(length)` is the number of frames of a clip.
        total_frames: the sum of those numbers. Without it a packed call on a GPU waits for the device to read the
            lengths, and `torch.compile(fullgraph=True)` cannot trace it.
        backend: "auto", or a name that `slap-fast info` lists.

    Returns:
        `[F, n_mels]` frames of packed clips end to end, or `[..., F, n_mels]`; float32 for int16 samples, otherwise of
        the waveform's dtype. A NaN or infinite sample makes the frames that contain it NaN, and no others unless the
        convention normalizes over the clip.

    Raises:
        ValueError: wrong shape or dtype, offsets that do not rise from 0 to S, a `total_frames` that does not fit,
            or a backend that cannot serve.

    With `total_frames`, offsets on a GPU are not read back, hence not checked. Whatever they are, nothing is read or
    written outside the tensors. Where they are malformed or do not make `total_frames` frames, frames that belong to no
    clip have undefined values.
    """
    (waveform,) = autocast.cast(autocast.full, waveform)
    if cu_seqlens is None:
        return _dense(waveform, config, total_frames, backend)
    validate_packed(waveform)
    cu_seqlens, cu_frames, total_frames = frame_offsets(waveform, cu_seqlens, config, total_frames)
    call = LogMelCall(waveform.contiguous(), cu_seqlens.contiguous(), cu_frames, config.serialized)
    return _packed(call, config, total_frames, backend)


def _packed(call: LogMelCall, config: MelConfig, total_frames: int, backend: str) -> Tensor:
    frames = _log_mel(call, total_frames, select(call.waveform, config, backend))
    return frames if config.is_local else normalization.normalize_clips(frames, call.cu_frames, config)


def _dense(waveform: Tensor, config: MelConfig, total_frames: int | None, backend: str) -> Tensor:
    clips, per_clip = validate_dense(waveform, config, total_frames)
    if torch.compiler.is_exporting():
        # One op: a view of packed frames would limit the lengths that the exported program accepts.
        return _log_mel_dense(waveform, config.serialized, backend)
    frames = _packed(pack(waveform, config, per_clip), config, clips * per_clip, backend)
    return frames.view(*waveform.shape[:-1], per_clip, config.n_mels)
