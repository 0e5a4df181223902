"""soundfile backend, CPU: libFLAC, one file after another. For machines without native code."""

from __future__ import annotations

import hashlib
import importlib.util
import io

import numpy as np
import torch
from torch import Tensor

from slap_fast.ops.decode_flac.call import FlacCall, empty_result
from slap_fast.ops.decode_flac.errors import FlacError


def unavailable() -> str | None:
    """Why soundfile cannot serve; None if it can."""
    return None if importlib.util.find_spec("soundfile") else "soundfile is not installed"


def rejects(*, device: torch.device) -> str | None:
    """Why soundfile cannot serve files on `device`; None if it can."""
    return None if device.type == "cpu" else f"the files are on {device}; soundfile reads CPU memory"


def decode(call: FlacCall) -> tuple[Tensor, Tensor]:
    """See `Backend.decode`. libFLAC checks the CRC of each frame in any case."""
    waveform, errors = empty_result(call)
    bytes_of, rows_of = call.offsets.tolist(), call.cu_seqlens.tolist()
    starts = call.starts.tolist() if call.starts is not None else None
    for file in range(errors.shape[0]):
        blob = bytes(call.data[bytes_of[file] : bytes_of[file + 1]].numpy())
        out = waveform[rows_of[file] : rows_of[file + 1]]
        error = _decode(blob, out, call.channels, None if starts is None else starts[file])
        if error == FlacError.OK and call.verify == "md5" and not _md5_matches(blob, out.numpy()):
            error = FlacError.BAD_MD5
        if error != FlacError.OK:
            out.zero_()
        errors[file] = int(error)
    return waveform, errors


def _decode(blob: bytes, out: Tensor, channels: int, start: int | None) -> FlacError:
    import soundfile

    is_flac = blob[:4] == b"fLaC" or blob[:3] == b"ID3"
    try:
        with soundfile.SoundFile(io.BytesIO(blob)) as file:
            if file.format != "FLAC":
                return FlacError.NOT_FLAC
            if file.channels != channels:
                return FlacError.WRONG_CHANNELS
            if start is None and file.frames not in (len(out), 2**63 - 1):
                return FlacError.WRONG_LENGTH
            if start is not None and not 0 <= start <= file.frames - len(out):
                return FlacError.WRONG_LENGTH
            if start:
                file.seek(start)
            if len(file.read(out=out.numpy())) < len(out):
                return FlacError.TRUNCATED
            # Only the frames tell how long a file is whose header does not.
            return FlacError.WRONG_LENGTH if start is None and len(file.read(1)) else FlacError.OK
    except (soundfile.LibsndfileError, RuntimeError):
        return FlacError.BAD_SUBFRAME if is_flac else FlacError.NOT_FLAC


def _md5_matches(blob: bytes, samples: np.ndarray) -> bool:
    """Whether all samples, float32 or left-aligned int32, are those of which the encoder took the sum, if it did."""
    info = blob.find(b"fLaC") + 8
    expected = blob[info + 18 : info + 34]
    bits = (int.from_bytes(blob[info + 12 : info + 14], "big") >> 4 & 31) + 1
    integers = samples * np.float32(2.0 ** (bits - 1)) if samples.dtype == np.float32 else samples >> (32 - bits)
    little = integers.astype("<i4").reshape(-1, 1).view(np.uint8)[:, : (bits + 7) // 8]
    return not any(expected) or hashlib.md5(little.tobytes(), usedforsecurity=False).digest() == expected
