"""`LogMelStream`: log-mel frames of a clip that arrives in chunks, bitwise equal to those of the whole clip."""

from __future__ import annotations

import torch
from torch import Tensor

from slap_fast.ops.log_mel import log_mel
from slap_fast.ops.log_mel.config import MelConfig


class LogMelStream:
    """Takes a clip in chunks of any size and returns each frame as soon as its samples have arrived.

    The frames from `push` and `flush` in order equal `log_mel` of the whole clip bit for bit; with the backend "torch"
    up to rounding, because the rounding of a frame in PyTorch depends on the number of frames. A stream keeps only the
    samples that later frames need, whatever the length of the clip. It is not differentiable.

    >>> stream = LogMelStream(MelConfig())
    >>> frames = [stream.push(chunk) for chunk in microphone]
    >>> frames.append(stream.flush())  # the stream is ready for the next clip

    Args:
        config: a convention whose frames are local: `config.is_local`.
        backend: as for `log_mel`.

    Raises:
        ValueError: the convention normalizes over the whole clip.
    """

    def __init__(self, config: MelConfig, *, backend: str = "auto") -> None:
        for field, off in (("dynamic_range", None), ("normalize_per_clip", False)):
            if getattr(config, field) != off:
                raise ValueError(
                    f"MelConfig.{field} is {getattr(config, field)}, which needs the whole clip, and a stream does not "
                    f"keep it: pass dataclasses.replace(config, {field}={off}) and normalize when the clip has ended"
                )
        self.config = config
        self.backend = backend
        # Preemphasis over the clip reads one sample before the window.
        self._lookback = int(config.preemphasis_scope == "clip" and config.preemphasis > 0.0)
        # How far the reflection at the end of the clip reads back from the last sample.
        self._reach = {
            "reflect": (config.span - config.win_length) // 2 - config.first_sample,
            "kaldi": config.win_length,
        }.get(config.padding, 0)
        # The reflection at the start reads ahead; Kaldi's repeats the edge.
        mirrored = {"reflect": 1 - config.first_sample, "kaldi": -config.first_sample}.get(config.padding, 1)
        self._samples_of_frame_0 = max(1, mirrored)
        self._reset()

    def _reset(self) -> None:
        self._parts: list[Tensor] = []  # [n_samples received - origin], in order
        self._origin = 0  # a multiple of hop_length: a clip that starts here has the same frames
        self._n_samples = 0
        self._n_frames = 0

    def push(self, chunk: Tensor) -> Tensor:
        """Add the next samples and return the frames that no later sample can change.

        Args:
            chunk: `[S]` float32 or float64 samples in [-1, 1], or int16; S may be 0. One dtype and device for the
                whole clip. It is copied: the caller may reuse it.

        Returns:
            `[f, n_mels]` frames on the device of the chunk, of its dtype, or float32 for int16.

        Raises:
            ValueError: not a tensor, or another shape, dtype or device.
        """
        self._check(chunk)
        if chunk.shape[0] or not self._parts:  # of empty chunks only the first is kept, for its dtype
            self._parts.append(chunk.detach().clone())
        self._n_samples += chunk.shape[0]
        return self._frames_up_to(self._determined())

    def flush(self) -> Tensor:
        """End the clip: return the remaining frames and reset the stream.

        Returns:
            `[f, n_mels]` frames as from `push`; float32 on the CPU if nothing was pushed.
        """
        frames = self._frames_up_to(self.config.num_frames(self._n_samples))
        self._reset()
        return frames

    def _check(self, chunk: Tensor) -> None:
        if not isinstance(chunk, Tensor):
            raise ValueError(f"chunk is a {type(chunk).__name__}; pass a tensor (torch.from_numpy makes one)")
        if chunk.dim() != 1 or chunk.dtype not in (torch.float32, torch.float64, torch.int16):
            raise ValueError(
                f"chunk is {chunk.dtype} of shape {tuple(chunk.shape)}; pass [S] float32, float64 or int16 samples"
            )
        if self._parts and (chunk.dtype, chunk.device) != (self._parts[0].dtype, self._parts[0].device):
            raise ValueError(
                f"chunk is {chunk.dtype} on {chunk.device}, the clip so far {self._parts[0].dtype} on "
                f"{self._parts[0].device}; push one dtype and device, or flush first"
            )

    def _determined(self) -> int:
        """Number of frames that later samples cannot change: they exist, and their samples have arrived."""
        if self._n_samples < self._samples_of_frame_0:
            return 0
        config = self.config
        inside = 1 + (self._n_samples - config.first_sample - config.win_length) // config.hop_length
        return min(config.num_frames(self._n_samples), inside)

    def _frames_up_to(self, end: int) -> Tensor:
        config = self.config
        if end <= self._n_frames:
            like = self._parts[0] if self._parts else torch.empty(0, dtype=torch.float32, device="cpu")
            dtype = like.dtype if like.is_floating_point() else torch.float32
            return torch.empty(0, config.n_mels, dtype=dtype, device=like.device)
        segment = torch.cat(self._parts)
        frames = log_mel(segment, None, config, backend=self.backend)
        # Frames before and after these overlap the ends of the segment, which are not ends of the clip.
        skipped = self._origin // config.hop_length
        frames = frames[self._n_frames - skipped : end - skipped]
        self._n_frames = end
        self._forget(segment)
        return frames

    def _forget(self, segment: Tensor) -> None:
        """Keep the part of `segment` that the next frame, or a reflection at the end of the clip, may read."""
        config = self.config
        # A clip that starts at the origin must contain the next frame: the origin is at most that frame's hop.
        next_frame = self._n_frames * config.hop_length + min(0, config.first_sample - self._lookback)
        needed = min(next_frame, self._n_samples - 1 - self._reach - self._lookback)
        origin = max(0, needed) // config.hop_length * config.hop_length
        self._parts = [segment[origin - self._origin :].clone()]
        self._origin = origin
