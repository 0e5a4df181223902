"""Arguments of `log_mel`, their validation, frame counts, backend selection, and the backend protocol."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from slap_fast.ops import dispatch
from slap_fast.ops.log_mel.config import MelConfig
from slap_fast.ops.packed import check_offset_values, checked_offsets
from slap_fast.ops.tensor_checks import require


class LogMelCall(NamedTuple):
    """Packed clips and their convention: arguments of the registered ops and of every backend.

    Attributes:
        waveform: `[S]` float32, float64 or int16 samples of N clips end to end, contiguous.
        cu_seqlens: `[N + 1]` int64 sample offsets of the clips, contiguous.
        cu_frames: `[N + 1]` int64 frame offsets of the clips, contiguous.
        config: `MelConfig.serialized`: a schema takes no dataclass.
    """

    waveform: Tensor
    cu_seqlens: Tensor
    cu_frames: Tensor
    config: str

    @property
    def mel(self) -> MelConfig:
        return MelConfig.parse(self.config)


class Backend(Protocol):
    """A backend module. Importing it must be cheap. Arguments are validated, except offsets on a GPU."""

    def unavailable(self) -> str | None:
        """Why it cannot serve on this machine at all; None if it can."""

    def rejects(self, *, device: torch.device, dtype: torch.dtype, config: MelConfig) -> str | None:
        """Why it cannot serve such a call; None if it can. Traced by the compiler: plain comparisons only."""

    def forward(self, call: LogMelCall, total_frames: int) -> Tensor:
        """`[total_frames, n_mels]` of the waveform's dtype, float32 for int16.

        Without the steps over the whole clip: where `config.is_local` is False, without dynamic range, normalization,
        `mean` and `std`.
        """

    def backward(self, call: LogMelCall, grad: Tensor) -> Tensor:
        """`[S]` gradient of the waveform from the contiguous gradient of what `forward` returned.

        Mel values at or below `log_floor` pass no gradient, nor does a magnitude of 0.
        """


def frame_dtype(waveform: Tensor) -> torch.dtype:
    """Dtype of the frames of `waveform`."""
    return torch.float32 if waveform.dtype == torch.int16 else waveform.dtype


def _require_dtype(waveform: Tensor) -> None:
    if waveform.dtype not in (torch.float32, torch.float64, torch.int16):
        raise ValueError(f"waveform is {waveform.dtype}; pass float32, float64 or int16 samples")


def require_samples(waveform: Tensor) -> None:
    """Raise ValueError unless `waveform` is `[S]` samples."""
    _require_dtype(waveform)
    if waveform.dim() != 1:
        raise ValueError(f"waveform has shape {tuple(waveform.shape)}; pass [S] samples of packed clips")


def frame_offsets(
    waveform: Tensor, cu_seqlens: Tensor, config: MelConfig, total_frames: int | None
) -> tuple[Tensor, Tensor, int]:
    """`[N + 1]` int64 offsets of packed clips in samples and in frames, and the total number of frames.

    Raises:
        ValueError: as `log_mel`, for offsets and `total_frames`.
    """
    compiling = torch.compiler.is_compiling()
    if compiling and total_frames is None:
        raise ValueError("log_mel needs total_frames under torch.compile: the sum of config.num_frames(length)")
    cu_seqlens = checked_offsets(
        "cu_seqlens", cu_seqlens, waveform.shape[0], waveform.device, torch.int64, of="samples"
    )
    if total_frames is None and cu_seqlens.device.type != "cpu":  # this call waits for the device anyway
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
    """`[N + 1]` int64 frame offsets from `[N + 1]` int64 sample offsets."""
    return torch.nn.functional.pad(_frame_counts(cu_seqlens.diff(), config).cumsum(0), (1, 0))


def _frame_counts(lengths: Tensor, config: MelConfig) -> Tensor:
    """`config.num_frames` of each of `[N]` lengths."""
    hop = config.hop_length
    if config.padding == "kaldi":
        counts = (lengths + hop // 2) // hop
    else:
        # Samples that the padding on both sides leaves to fill for a first frame.
        missing = config.span - 2 * config.pad
        counts = 1 + (lengths - missing).clamp_min(0) // hop
    counts = (counts - int(config.drop_last_frame)).clamp_min(0)
    return torch.where(lengths > 0, counts, 0)


def validate_packed(waveform: Tensor) -> None:
    """Raise the ValueErrors of `log_mel` for the samples of packed clips; `frame_offsets` validates their offsets."""
    _require_dtype(waveform)
    if waveform.dim() != 1:
        raise ValueError(
            f"waveform has shape {tuple(waveform.shape)}; with cu_seqlens it must be [S], without, [..., S]"
        )


def validate_dense(waveform: Tensor, config: MelConfig, total_frames: int | None) -> tuple[int, int]:
    """Number of clips of equal length, and frames of each; raises the ValueErrors of `log_mel`."""
    _require_dtype(waveform)
    if waveform.dim() == 0:
        raise ValueError("waveform has no dimension; pass [..., S] samples")
    length = waveform.shape[-1]
    clips = waveform.numel() // length if length else 0
    per_clip = config.num_frames(length)
    if total_frames is not None and total_frames != clips * per_clip:
        raise ValueError(f"total_frames is {total_frames}, but the clips have {clips * per_clip} frames")
    return clips, per_clip


def pack(waveform: Tensor, config: MelConfig, per_clip: int) -> LogMelCall:
    """The call for `[..., S]` clips of equal length, `per_clip` frames each."""
    length = waveform.shape[-1]
    clips = waveform.numel() // length if length else 0
    ends = torch.arange(clips + 1, device=waveform.device)
    samples = waveform.reshape(-1).contiguous()  # a strided vector is its own reshape
    return LogMelCall(samples, ends * length, ends * per_clip, config.serialized)


def select(waveform: Tensor, config: MelConfig, requested: str) -> str:
    """The backend that serves a valid call.

    Raises:
        ValueError: no backend is named `requested`.
        CannotServeError: it cannot serve this call.
    """
    return dispatch.select("log_mel", requested, device=waveform.device, dtype=waveform.dtype, config=config)


def validate(call: LogMelCall, total_frames: int) -> LogMelCall:
    """The call with contiguous tensors and int64 offsets; raises ValueError for what a backend would misread."""
    waveform, cu_seqlens, cu_frames, _ = call
    require_samples(waveform)
    device = waveform.device
    cu_seqlens = checked_offsets("cu_seqlens", cu_seqlens, waveform.shape[0], device, torch.int64, of="samples")
    cu_frames = checked_offsets("cu_frames", cu_frames, total_frames, device, torch.int64, of="frames")
    if device.type == "cpu":
        expected = _cu_frames(cu_seqlens, call.mel)
        if not torch.equal(cu_frames, expected):
            raise ValueError(f"cu_frames is {cu_frames.tolist()}; for this config it must be {expected.tolist()}")
    return LogMelCall(waveform.contiguous(), cu_seqlens.contiguous(), cu_frames.contiguous(), call.config)


def check(call: LogMelCall, total_frames: int, backend: str) -> tuple[LogMelCall, int, str]:
    """Arguments of the registered op, validated; raises ValueError."""
    return validate(call, total_frames), total_frames, select(call.waveform, call.mel, backend)


def check_backward(call: LogMelCall, grad: Tensor, backend: str) -> tuple[LogMelCall, Tensor, str]:
    """As `check`, for the backward op."""
    total_frames = grad.shape[0] if grad.dim() else 0
    call, _, chosen = check(call, total_frames, backend)
    if call.waveform.dtype == torch.int16:
        raise ValueError("waveform is torch.int16; integers have no gradient")
    require("grad", grad, (total_frames, call.mel.n_mels), call.waveform.dtype, call.waveform.device)
    return call, grad.contiguous(), chosen


def check_dense_backward(waveform: Tensor, config: str, grad: Tensor, backend: str) -> tuple[Tensor, str, Tensor, str]:
    """As `check`, for the backward op of clips of equal length."""
    mel = MelConfig.parse(config)
    if waveform.dim() == 0 or waveform.dtype not in (torch.float32, torch.float64):
        raise ValueError(
            f"waveform is {waveform.dtype} of shape {tuple(waveform.shape)}; pass [..., S] float32 or float64"
        )
    *batch, length = waveform.shape
    require("grad", grad, (*batch, mel.num_frames(length), mel.n_mels), waveform.dtype, waveform.device)
    return waveform, config, grad, backend
