"""What the headers of FLAC files say: `flac_info`."""

from __future__ import annotations

import io
from typing import NamedTuple

import torch
from torch import Tensor

from slap_fast import native
from slap_fast.ops.decode_flac.call import packed_files
from slap_fast.ops.decode_flac.errors import FlacError


class FlacInfo(NamedTuple):
    """Of each of N files, `[N]` int64 each; 0 where the error is not `FlacError.OK` and the value is not known.

    Attributes:
        sample_rate: in Hz.
        channels: 1 to 8.
        bits: of a sample.
        samples: of each channel; 0 for every error, so that a wrong header claims no memory.
        max_block: most samples of a frame.
        points: seek points; 0 without native code, which alone reads them.
        errors: `FlacError`; a header alone cannot tell whether the frames are intact.
    """

    sample_rate: Tensor
    channels: Tensor
    bits: Tensor
    samples: Tensor
    max_block: Tensor
    points: Tensor
    errors: Tensor


def flac_info(data: Tensor, offsets: Tensor) -> FlacInfo:
    """Reads the headers of N FLAC files in memory.

    Args:
        data: `[B]` uint8 on the CPU, the files end to end.
        offsets: `[N + 1]` int64 or int32, where each file is.

    Raises:
        ValueError: a wrong dtype, shape or device, or malformed offsets.
    """
    data, offsets = packed_files(data, offsets)
    if data.device.type != "cpu":
        raise ValueError(f"data is on {data.device}; headers are read on the CPU: pass the bytes before they are moved")
    fields = torch.zeros(len(FlacInfo._fields), offsets.shape[0] - 1, dtype=torch.int64)
    if native.unavailable() is None:
        native.require().flac_info(
            data=data.data_ptr(), offsets=offsets.data_ptr(), files=fields.shape[1], fields=fields.data_ptr()
        )
    else:
        for file, (begin, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
            fields[:, file] = torch.tensor(_by_soundfile(bytes(data[begin:end].numpy())))
    info = FlacInfo(*fields)
    return info._replace(samples=info.samples.where(info.errors == FlacError.OK, 0))


def samples_by_headers(data: Tensor, offsets: Tensor, starts: Tensor | None) -> Tensor:
    """`[N]` samples of whole files, 0 where the length is not known; raises ValueError if they cannot be read."""
    if data.device.type != "cpu":
        raise ValueError("samples is None, and headers on a GPU are not read back; pass flac_info(...).samples")
    if starts is not None:
        raise ValueError("samples is None, but starts are given; pass how many samples are wanted of each file")
    return flac_info(data, offsets).samples


def _by_soundfile(blob: bytes) -> tuple[int, ...]:
    import soundfile

    try:
        with soundfile.SoundFile(io.BytesIO(blob)) as file:
            if file.format != "FLAC":
                return 0, 0, 0, 0, 0, 0, FlacError.NOT_FLAC
            bits = {"PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}[file.subtype]
            error = FlacError.OK
            if file.frames == 2**63 - 1:
                error = FlacError.UNKNOWN_LENGTH
            elif file.frames > len(blob) // 10 * 65535:  # frames have at least 10 bytes and at most 65,535 samples
                error = FlacError.WRONG_LENGTH
            return file.samplerate, file.channels, bits, file.frames, 0, 0, error
    except (soundfile.LibsndfileError, RuntimeError):
        return 0, 0, 0, 0, 0, 0, FlacError.BAD_HEADER if blob[:4] == b"fLaC" else FlacError.NOT_FLAC
