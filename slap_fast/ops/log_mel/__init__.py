"""Waveforms to log-mel frames, packed or dense, differentiable with respect to the waveform.

    frames = log_mel(waveform, cu_seqlens, MelConfig())             # [S] packed clips -> [F, n_mels]
    frames = log_mel(batch, None, MelConfig.preset("whisper"))      # [B, S] -> [B, F, n_mels]

Every step from samples to normalised frames is a field of `MelConfig`. Native code does all of them in one pass, on
CPUs and on NVIDIA GPUs: nothing of a spectrogram's size is stored, and a frame's bits depend on its own samples alone,
whatever else is in the batch and however many threads there are.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops import autocast, dispatch
from slap_fast.ops.custom_op import custom_op
from slap_fast.ops.log_mel import (
    backend_cuda as log_mel_cuda,
)
from slap_fast.ops.log_mel import (
    backend_native as log_mel_native,
)
from slap_fast.ops.log_mel import (
    backend_torch as log_mel_torch,
)
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.log_mel.normalization import normalize_clips, normalize_clips_backward
from slap_fast.ops.packed import check_offset_values, checked_offsets
from slap_fast.ops.tensor_checks import require


def check_packed(
    waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: MelConfig, total_frames: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Contiguous samples and int64 offsets of clips; the ValueError for what native code would misread."""
    require_samples(waveform)
    device = waveform.device
    cu_seqlens = checked_offsets("cu_seqlens", cu_seqlens, waveform.shape[0], device, torch.int64, of="samples")
    cu_frames = checked_offsets("cu_frames", cu_frames, total_frames, device, torch.int64, of="frames")
    if device.type == "cpu":
        expected = _cu_frames(cu_seqlens, config)
        if not torch.equal(cu_frames, expected):
            raise ValueError(f"cu_frames is {cu_frames.tolist()}; by the convention it is {expected.tolist()}")
    return waveform.contiguous(), cu_seqlens.contiguous(), cu_frames.contiguous()


def _check(
    waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: str, total_frames: int, backend: str
) -> tuple:
    convention = MelConfig.parse(config)
    packed = check_packed(waveform, cu_seqlens, cu_frames, convention, total_frames)
    chosen = _select(waveform, convention, backend)
    return *packed, config, total_frames, chosen


def _check_backward(
    grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: str, backend: str
) -> tuple:
    total_frames = grad.shape[0] if grad.dim() else 0
    waveform, cu_seqlens, cu_frames, *_, chosen = _check(waveform, cu_seqlens, cu_frames, config, total_frames, backend)
    if waveform.dtype == torch.int16:
        raise ValueError("waveform is torch.int16; integers have no gradient")
    require("grad", grad, (total_frames, MelConfig.parse(config).n_mels), waveform.dtype, waveform.device)
    return grad.contiguous(), waveform, cu_seqlens, cu_frames, config, chosen


@custom_op("slap_fast::log_mel", check=_check, rule=autocast.full)
def _log_mel(
    waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: str, total_frames: int, backend: str
) -> Tensor:
    return _FORWARD[backend](waveform, cu_seqlens, cu_frames, MelConfig.parse(config), total_frames)


@_log_mel.register_fake
def _(waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: str, total_frames: int, backend: str) -> Tensor:
    dtype = torch.float32 if waveform.dtype == torch.int16 else waveform.dtype
    return waveform.new_empty(total_frames, MelConfig.parse(config).n_mels, dtype=dtype)


@custom_op("slap_fast::log_mel_backward", check=_check_backward)
def _log_mel_backward(
    grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: str, backend: str
) -> Tensor:
    return _BACKWARD[backend](grad, waveform, cu_seqlens, cu_frames, MelConfig.parse(config))


@_log_mel_backward.register_fake
def _(grad: Tensor, waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: str, backend: str) -> Tensor:
    return torch.empty_like(waveform)


_FORWARD: dict[str, Callable[[Tensor, Tensor, Tensor, MelConfig, int], Tensor]] = {
    "cuda": log_mel_cuda.forward,
    "native": log_mel_native.forward,
    "torch": log_mel_torch.forward,
}
_BACKWARD: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, MelConfig], Tensor]] = {
    "cuda": log_mel_cuda.backward,
    "native": log_mel_native.backward,
    "torch": log_mel_torch.backward,
}
dispatch.register(
    "log_mel",
    [
        dispatch.Backend("cuda", unavailable=log_mel_cuda.unavailable, rejects=log_mel_cuda.rejects),
        dispatch.Backend("native", unavailable=native.unavailable, rejects=log_mel_native.rejects),
        dispatch.Backend("torch"),
    ],
)


def _setup_context(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    waveform, cu_seqlens, cu_frames, ctx.config, _, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(waveform, cu_seqlens, cu_frames)


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
    waveform, cu_seqlens, cu_frames = ctx.saved_tensors  # type: ignore[attr-defined]
    settings = ctx.config, ctx.backend  # type: ignore[attr-defined]
    grad = _log_mel_backward(grad.contiguous(), waveform, cu_seqlens, cu_frames, *settings)
    return grad, None, None, None, None, None


_log_mel.register_autograd(_backward, setup_context=_setup_context)


@custom_op("slap_fast::log_mel_dense", rule=autocast.full)
def _log_mel_dense(waveform: Tensor, config: str, backend: str) -> Tensor:
    return log_mel(waveform.detach(), None, MelConfig.parse(config), backend=backend)


@_log_mel_dense.register_fake
def _(waveform: Tensor, config: str, backend: str) -> Tensor:
    convention = MelConfig.parse(config)
    *batch, length = waveform.shape
    dtype = torch.float32 if waveform.dtype == torch.int16 else waveform.dtype
    frames = convention.num_frames(length)
    if isinstance(frames, torch.SymInt):
        from torch.fx.experimental.symbolic_shapes import statically_known_true  # a quarter of a second, and loaded now

        # PyTorch asks of any formula whether it is 1, and refuses lengths that answer otherwise than the example does.
        if not statically_known_true(frames > 1):
            frames = torch.library.get_ctx().new_dynamic_size()
    return waveform.new_empty(*batch, frames, convention.n_mels, dtype=dtype)


def _check_dense_backward(grad: Tensor, waveform: Tensor, config: str, backend: str) -> tuple:
    convention = MelConfig.parse(config)
    if waveform.dim() == 0 or waveform.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"waveform is {waveform.dtype} of shape {tuple(waveform.shape)}; pass [..., S] float32 or float64"
        )
    *batch, length = waveform.shape
    shape = (*batch, convention.num_frames(length), convention.n_mels)
    require("grad", grad, shape, waveform.dtype, waveform.device)
    return grad, waveform, config, backend


@custom_op("slap_fast::log_mel_dense_backward", check=_check_dense_backward)
def _log_mel_dense_backward(grad: Tensor, waveform: Tensor, config: str, backend: str) -> Tensor:
    convention = MelConfig.parse(config)
    packed = _end_to_end(waveform, convention.num_frames(waveform.shape[-1]))
    settings = config, _select(waveform, convention, backend)
    grad = grad.reshape(-1, convention.n_mels).contiguous()
    if not convention.is_local:
        frames = _log_mel(*packed, config, grad.shape[0], settings[1])
        grad = normalize_clips_backward(grad, frames, packed[2], convention)
    return _log_mel_backward(grad, *packed, *settings).view(waveform.shape)


@_log_mel_dense_backward.register_fake
def _(grad: Tensor, waveform: Tensor, config: str, backend: str) -> Tensor:
    return torch.empty_like(waveform)


def _setup_dense(ctx: torch.autograd.function.FunctionCtx, inputs: tuple, output: Tensor) -> None:
    waveform, ctx.config, ctx.backend = inputs  # type: ignore[attr-defined]
    ctx.save_for_backward(waveform)


def _dense_backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, None, None]:
    (waveform,) = ctx.saved_tensors  # type: ignore[attr-defined]
    return _log_mel_dense_backward(grad, waveform, ctx.config, ctx.backend), None, None  # type: ignore[attr-defined]


_log_mel_dense.register_autograd(_dense_backward, setup_context=_setup_dense)


def log_mel(
    waveform: Tensor,
    cu_seqlens: Tensor | None,
    config: MelConfig,
    *,
    total_frames: int | None = None,
    backend: str = "auto",
) -> Tensor:
    """Log-mel frames of packed or equally long clips.

    Args:
        waveform: `[S]` samples of packed clips end to end, or, without `cu_seqlens`, `[..., S]` of equal length.
            float32 or float64 in [-1, 1], or int16, which is divided by 32768 (and has no gradient). Under autocast
            16-bit floats are taken in float32.
        cu_seqlens: `[N + 1]` int64 or int32 offsets of the clips on the device of `waveform`, from 0 to S.
        config: the convention; `config.num_frames(length)` is each clip's frame count.
        total_frames: the sum of those counts. Without it a packed call on a GPU waits for the device to read the
            lengths, and `torch.compile(fullgraph=True)` cannot trace it.
        backend: "auto" or the name of one that `slap-fast info` lists.

    Returns:
        `[F, n_mels]` frames of packed clips end to end, or `[..., F, n_mels]`; float32 for int16 samples, else of the
        waveform's dtype. A NaN or infinite sample makes the frames that hold it NaN, and no others unless the
        convention normalises by clip.

    Raises:
        ValueError: wrong shape or dtype, offsets that do not rise from 0 to S, a `total_frames` that does not fit,
            or a backend that cannot serve.

    Offsets on a GPU are not read back, hence not checked, when `total_frames` is given. Whatever they are, nothing is
    read or written outside the tensors; where they are malformed or do not make `total_frames` frames, what a frame
    holds that no clip accounts for is undefined.
    """
    (waveform,) = autocast.cast(autocast.full, waveform)
    require_dtype(waveform)
    if cu_seqlens is None:
        return _dense(waveform, config, total_frames, backend)
    if waveform.dim() != 1:
        raise ValueError(
            f"waveform has shape {tuple(waveform.shape)}; with cu_seqlens it must be [S], without, [..., S]"
        )
    cu_seqlens, cu_frames, total_frames = frame_offsets(waveform, cu_seqlens, config, total_frames)
    return _packed(waveform, cu_seqlens, cu_frames, config, total_frames, backend)


def _packed(
    waveform: Tensor, cu_seqlens: Tensor, cu_frames: Tensor, config: MelConfig, total_frames: int, backend: str
) -> Tensor:
    chosen = _select(waveform, config, backend)
    frames = _log_mel(
        waveform.contiguous(), cu_seqlens.contiguous(), cu_frames, config.serialized, total_frames, chosen
    )
    return frames if config.is_local else normalize_clips(frames, cu_frames, config)


def _end_to_end(waveform: Tensor, per_clip: int) -> tuple[Tensor, Tensor, Tensor]:
    """Clips of equal length, `per_clip` frames each, as one vector, and where they end in samples and in frames."""
    length = waveform.shape[-1]
    clips = waveform.numel() // length if length else 0
    ends = torch.arange(clips + 1, device=waveform.device)
    return waveform.reshape(-1), ends * length, ends * per_clip


def _select(waveform: Tensor, config: MelConfig, backend: str) -> str:
    return dispatch.select("log_mel", backend, device=waveform.device, dtype=waveform.dtype, config=config)


def _dense(waveform: Tensor, config: MelConfig, total_frames: int | None, backend: str) -> Tensor:
    if waveform.dim() == 0:
        raise ValueError("waveform has no dimension; pass [..., S] samples")
    *batch, length = waveform.shape
    clips = waveform.numel() // length if length else 0
    per_clip = config.num_frames(length)
    if total_frames is not None and total_frames != clips * per_clip:
        raise ValueError(f"total_frames is {total_frames}, but the clips have {clips * per_clip} frames")
    if torch.compiler.is_exporting():
        # One op: a view of packed frames would bound the lengths that may vary.
        return _log_mel_dense(waveform, config.serialized, backend)
    frames = _packed(*_end_to_end(waveform, per_clip), config, clips * per_clip, backend)
    return frames.view(*batch, per_clip, config.n_mels)


def require_samples(waveform: Tensor) -> None:
    """Raise the ValueError for what is no vector of samples."""
    require_dtype(waveform)
    if waveform.dim() != 1:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}; pass [S] samples of packed clips")


def require_dtype(waveform: Tensor) -> None:
    """Raise the ValueError for samples of another dtype."""
    if waveform.dtype not in (torch.float32, torch.float64, torch.int16):
        raise ValueError(f"waveform is {waveform.dtype}; pass float32, float64 or int16 samples")


def frame_offsets(
    waveform: Tensor, cu_seqlens: Tensor, config: MelConfig, total_frames: int | None
) -> tuple[Tensor, Tensor, int]:
    """`[N + 1]` int64 offsets of packed clips in samples and in frames, and the last of these.

    Checks what `log_mel` promises to check.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and total_frames is None:
        raise ValueError("log_mel needs total_frames under torch.compile: the sum of config.num_frames(length)")
    cu_seqlens = checked_offsets(
        "cu_seqlens", cu_seqlens, waveform.shape[0], waveform.device, torch.int64, of="samples"
    )
    if total_frames is None and cu_seqlens.device.type != "cpu":  # the call waits for the device in any case
        check_offset_values("cu_seqlens", cu_seqlens, waveform.shape[0], "samples")
    cu_frames = _cu_frames(cu_seqlens, config)
    if not compiling and (total_frames is None or cu_seqlens.device.type == "cpu"):
        expected = int(cu_frames[-1])
        if total_frames is not None and total_frames != expected:
            raise ValueError(f"total_frames is {total_frames}, but the clips have {expected} frames")
        total_frames = expected
    assert total_frames is not None
    return cu_seqlens, cu_frames, total_frames


def _cu_frames(cu_seqlens: Tensor, config: MelConfig) -> Tensor:
    """`[N + 1]` int64 frame offsets of clips between `[N + 1]` int64 sample offsets."""
    return torch.nn.functional.pad(_frame_counts(cu_seqlens.diff(), config).cumsum(0), (1, 0))


def _frame_counts(lengths: Tensor, config: MelConfig) -> Tensor:
    """`config.num_frames` of each of `[N]` lengths."""
    hop = config.hop_length
    if config.padding == "kaldi":
        counts = (lengths + hop // 2) // hop
    else:
        # What a clip of no samples still lacks to a whole frame: the span less the padding on both sides.
        missing = config.span - 2 * config.pad
        counts = 1 + (lengths - missing).clamp_min(0) // hop
    counts = (counts - int(config.drop_last_frame)).clamp_min(0)
    return torch.where(lengths > 0, counts, 0)
