"""Peers of the log-mel benchmark: slap-fast, and log-mel frames written in PyTorch.

"One batch" is the common way: one call of each operation for the whole padded batch. Each operation then streams tens
of megabytes through newly allocated memory. "In chunks" runs the same operations over at most 500 frames (a clip of 5
s) at a time, which stay in the cache: several times as fast on a CPU, and the fastest way found in PyTorch. A transform
as a matrix product, with the conditioning folded into the matrix, reaches a quarter to a third of that speed.
torch.compile, which keeps the transform and the product as calls, gains no more than the measurement noise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from benchmarks.harness.case import Outputs, Run
from benchmarks.log_mel_clips import Clips
from slap_fast.ops import MelConfig, log_mel
from slap_fast.ops.log_mel.tables import mel_filters, window

FRAMES_PER_CHUNK = 500

Transform = Callable[[Tensor], Tensor]


def reference(clips: Clips, *, backward: bool) -> Outputs:
    """Frames, and the gradient of the waveform, by the PyTorch backend in float64."""
    waveform = clips.waveform().double().requires_grad_(backward)
    frames = log_mel(waveform, clips.cu_seqlens(), clips.config, total_frames=sum(clips.frames), backend="torch")
    if not backward:
        return {"frames": frames}
    (gradient,) = torch.autograd.grad(frames, waveform, clips.gradient().double())
    return {"frames": frames.detach(), "gradient": gradient}


def slap_fast(clips: Clips, backend: str = "auto", *, backward: bool) -> Run:
    waveform, cu_seqlens, total_frames = clips.waveform(), clips.cu_seqlens(), sum(clips.frames)

    def frames_of(waveform: Tensor) -> Tensor:
        return log_mel(waveform, cu_seqlens, clips.config, total_frames=total_frames, backend=backend)

    return _run(frames_of, waveform, clips.gradient() if backward else None)


def one_batch(clips: Clips, transform: Transform, *, backward: bool) -> Run:
    """`transform` over the padded batch; padding is left out of the check and of the gradient."""
    return _run(
        transform,
        clips.padded_waveform(),
        clips.padded_gradient() if backward else None,
        lambda frames: clips.packed(frames, clips.frames),
        lambda gradient: clips.packed(gradient, clips.samples),
    )


def one_by_one(clips: Clips, transform: Transform, *, backward: bool) -> Run:
    """`transform` over each clip as a batch of one."""
    waveforms = [clip[None] for clip in clips.split()]
    gradients = [gradient[None] for gradient in clips.gradient().split(clips.frames)] if backward else []

    def step() -> list[Tensor]:
        if not backward:
            with torch.no_grad():
                return [transform(clip) for clip in waveforms]
        leaves = [clip.detach().requires_grad_() for clip in waveforms]
        frames = [transform(leaf) for leaf in leaves]
        return [*frames, *torch.autograd.grad(frames, leaves, gradients)]

    def outputs() -> Outputs:
        results = [result[0].detach() for result in step()]
        count = len(waveforms)
        frames = {"frames": torch.cat(results[:count])}
        return {**frames, "gradient": torch.cat(results[count:])} if backward else frames

    return Run(step, outputs)


def in_chunks(clips: Clips, transform: Transform, *, backward: bool) -> Run:
    """`transform` over chunks of the clips. All run forward before any runs backward, as with a loss."""
    waveform = clips.waveform()
    chunks = clips.chunks(FRAMES_PER_CHUNK)
    gradients = [clips.gradient()[frames] for _, frames in chunks] if backward else []

    def forward() -> Tensor:
        result = waveform.new_empty(sum(clips.frames), clips.config.n_mels)
        with torch.no_grad():
            for samples, frames in chunks:
                result[frames] = transform(waveform[samples])
        return result

    def forward_backward() -> tuple[list[Tensor], Tensor]:
        leaves = [waveform[samples].detach().requires_grad_() for samples, _ in chunks]
        results = [transform(leaf) for leaf in leaves]
        gradient = torch.zeros_like(waveform)
        for (samples, _), part in zip(chunks, torch.autograd.grad(results, leaves, gradients), strict=True):
            gradient[samples] += part  # adjacent chunks share samples
        return results, gradient

    def outputs() -> Outputs:
        if not backward:
            return {"frames": forward()}
        results, gradient = forward_backward()
        return {"frames": torch.cat(results).detach(), "gradient": gradient}

    return Run(forward_backward if backward else forward, outputs)


def copy_of_all_bytes(clips: Clips) -> Run:
    """Read half and write half of the bytes of a waveform and its frames: a bound for any kernel."""
    count = (sum(clips.samples) + sum(clips.frames) * clips.config.n_mels) // 2
    source = _numbers(count, clips.device)
    target = torch.empty_like(source)

    def step() -> None:
        target.copy_(source)

    def outputs() -> Outputs:
        step()
        return {"bytes": target}

    return Run(step, outputs)


def copied_bytes(clips: Clips) -> Outputs:
    count = (sum(clips.samples) + sum(clips.frames) * clips.config.n_mels) // 2
    return {"bytes": _numbers(count, "cpu")}


def _numbers(count: int, device: str) -> Tensor:
    return torch.arange(count, dtype=torch.float32, device=device)


def kaldi_frames(config: MelConfig, device: str) -> Transform:
    """`[..., samples]` to `[..., frames, n_mels]`, with conditioning per frame, which torch.stft cannot do."""
    taper, filters = _tables(config, device)

    def transform(waveform: Tensor) -> Tensor:
        frames = waveform.unfold(-1, config.win_length, config.hop_length)
        frames = frames - frames.mean(-1, keepdim=True)
        previous = torch.cat([frames[..., :1], frames[..., :-1]], -1)
        spectrum = torch.fft.rfft((frames - config.preemphasis * previous) * taper, n=config.n_fft)
        power = spectrum.real.square() + spectrum.imag.square()
        return (power @ filters).clamp_min(config.log_floor).log()

    return transform


def stft_frames(config: MelConfig, device: str) -> Transform:
    """`[batch, samples]` to `[batch, frames, n_mels]` in decibels, by torch.stft."""
    taper, filters = _tables(config, device)

    def transform(waveform: Tensor) -> Tensor:
        power = _power(_stft(waveform, config, taper, "reflect"))
        return (power @ filters).clamp_min(config.log_floor).log10() * 10.0

    return transform


def nemo_frames(clips: Clips) -> Transform:
    """`[batch, samples]` to `[batch, frames, n_mels]` by torch.stft, with masks from the clips' lengths as in NeMo."""
    config, device = clips.config, clips.device
    taper, filters = _tables(config, device)
    samples, counts = (torch.tensor(values, device=device)[:, None] for values in (clips.samples, clips.frames))

    def transform(waveform: Tensor) -> Tensor:
        emphasized = waveform[:, 1:] - config.preemphasis * waveform[:, :-1]
        waveform = torch.cat([waveform[:, :1], emphasized], 1)
        waveform = waveform.masked_fill(torch.arange(waveform.shape[1], device=device) >= samples, 0.0)
        power = _power(_stft(waveform, config, taper, "constant"))[:, : max(clips.frames)]
        logarithm = (power @ filters + config.log_guard).log()
        beyond = (torch.arange(logarithm.shape[1], device=device) >= counts)[..., None]
        count = counts[..., None]
        mean = logarithm.masked_fill(beyond, 0.0).sum(1, keepdim=True) / count
        centered = (logarithm - mean).masked_fill(beyond, 0.0)
        deviation = (centered.square().sum(1, keepdim=True) / (count - 1)).sqrt()
        return centered / (deviation + 1e-5)

    return transform


def _stft(waveform: Tensor, config: MelConfig, taper: Tensor, pad_mode: str) -> Tensor:
    """`[batch, frames, n_fft // 2 + 1]`, complex; a transposed view of the output of torch.stft."""
    sizes = (config.n_fft, config.hop_length, config.win_length)
    return torch.stft(waveform, *sizes, taper, center=True, pad_mode=pad_mode, return_complex=True).transpose(1, 2)


def _power(spectrum: Tensor) -> Tensor:
    """The faster of two ways, as measured: under autograd the gradient of `abs` is slow."""
    if spectrum.requires_grad:
        return torch.view_as_real(spectrum).square().sum(-1)
    return spectrum.abs().square()


def _tables(config: MelConfig, device: str) -> tuple[Tensor, Tensor]:
    """The window, `[win_length]`, and the filters, `[n_fft // 2 + 1, n_mels]`."""
    taper, filters = (torch.tensor(table, dtype=torch.float32) for table in (window(config), mel_filters(config)))
    return taper.to(device), filters.t().contiguous().to(device)


def _run(
    transform: Transform,
    waveform: Tensor,
    gradient: Tensor | None,
    pack_frames: Transform = lambda frames: frames,
    pack_gradient: Transform = lambda gradient: gradient,
) -> Run:
    if gradient is None:

        def step() -> tuple[Tensor, ...]:
            with torch.no_grad():
                return (transform(waveform),)
    else:

        def step() -> tuple[Tensor, ...]:
            leaf = waveform.detach().requires_grad_()
            frames = transform(leaf)
            return frames, *torch.autograd.grad(frames, leaf, gradient)

    def outputs() -> Outputs:
        frames, *gradients = step()
        result = {"frames": pack_frames(frames.detach())}
        return {**result, "gradient": pack_gradient(gradients[0])} if gradients else result

    return Run(step, outputs)


def on_threads(setup: Callable[[], Run], threads: int) -> Run:
    """The peer of `setup` on `threads` CPU threads, independent of the run."""
    with _torch_threads(threads):
        run = setup()

    def step() -> object:
        with _torch_threads(threads):
            return run.step()

    def outputs() -> Outputs:
        with _torch_threads(threads):
            return run.outputs()

    return Run(step, outputs)


@contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
