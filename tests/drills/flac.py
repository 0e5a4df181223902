"""FLAC drill: `decode_flac` against libFLAC, on random files of every shape and on real recordings.

`python -m tests.drills.flac --files 10000 /usr/share/asterisk` compares three decoders with the samples that were
written: the op, the code of CPUs and the emulated GPU, the last two under sanitizers. The same files are read by
libFLAC (soundfile); a random file can be too odd for it, which is counted. Recordings of the folders are compressed
first, at a level of compression that changes from file to file; FLAC files are taken as they are. `--fuzz N` damages
the files N times and compares CPUs with the emulated GPU.

Prints a line of JSON for each part. The exit code is 1 after the first difference, which is named.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import soundfile
import torch

from slap_fast.ops import decode_flac
from tests.drills.processes import DrillFailed
from tests.ops.decode_flac._cases import Batch, random_batch, read_results, write_cases
from tests.ops.decode_flac._native_program import build_program

_FILES_PER_BATCH = 5
_CHUNK = 40  # batches for each start of the program
_BITS = {"PCM_U8": 8, "PCM_S8": 8, "PCM_16": 16, "PCM_24": 24}
_FLAC_TYPES = {8: "PCM_S8", 16: "PCM_16", 24: "PCM_24"}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="*", type=Path, help="with recordings that soundfile reads")
    parser.add_argument("--files", type=int, default=10_000, help="random ones (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fuzz", type=int, default=0, help="inputs made of each chunk of files by damage")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        drill = _Drill(build_program(Path(folder), "-O1"), Path(folder), arguments.fuzz, arguments.seed)
        batches = arguments.files // _FILES_PER_BATCH
        try:
            if batches:
                drill.run("random files", _random_batches(arguments.seed, batches))
            for folder in arguments.folders:
                drill.run(str(folder), drill.recordings(folder))
        except DrillFailed as failure:
            print(f"error: {failure}", file=sys.stderr)
            return 1
    return 0


class _Drill:
    def __init__(self, program: Path, folder: Path, fuzz: int, seed: int) -> None:
        self._program = program
        self._cases, self._results = folder / "cases", folder / "results"
        self._fuzz = fuzz
        self._seed = seed
        self._counts: Counter[str] = Counter()

    def run(self, name: str, batches: Iterable[tuple[str, Batch]]) -> None:
        """Check all batches, and print what was checked."""
        remaining = iter(batches)
        while chunk := list(islice(remaining, _CHUNK)):
            for source, batch in chunk:
                self._check_op(source, batch)
                self._check_libflac(source, batch)
            self._check_program(chunk)
        print(json.dumps({"part": name, **self._counts}), flush=True)
        self._counts.clear()

    def recordings(self, folder: Path) -> Iterator[tuple[str, Batch]]:
        """A batch of each recording that has integer samples; others are counted."""
        for number, path in enumerate(sorted(path for path in folder.rglob("*") if path.is_file())):
            try:
                info = soundfile.info(path)
                bits = _BITS.get(info.subtype, 0)
                left, rate = soundfile.read(path, dtype="int32", always_2d=True)
            except soundfile.LibsndfileError:
                self._counts["files that soundfile does not read"] += 1
                continue
            if not bits or not 1 <= info.channels <= 8 or not len(left):
                self._counts["recordings without integer samples, or empty"] += 1
                continue
            if info.format == "FLAC":
                blob = path.read_bytes()
            else:
                file = io.BytesIO()
                level = (number % 5) / 4
                soundfile.write(file, left, rate, format="FLAC", subtype=_FLAC_TYPES[bits], compression_level=level)
                blob = file.getvalue()
            samples = left.astype(np.int64) >> (32 - bits)
            self._counts["seconds"] += round(len(left) / rate)
            yield str(path), Batch(info.channels, [blob], [samples], [bits], None, [len(left)])

    def _check_op(self, source: str, batch: Batch) -> None:
        dtype = self._counts["batches"] % 3
        found = decode_flac(
            batch.data, batch.offsets, batch.counts, channels=batch.channels, backend="native",
            dtype=(torch.float32, torch.int32, torch.int16)[dtype],
        )  # fmt: skip
        waveform = found.waveform.reshape(-1, batch.channels).numpy()
        if found.errors.any() or not np.array_equal(waveform, batch.expected(dtype)):
            raise DrillFailed(f"decode_flac differs from what was written, or has errors: {source}")
        self._counts["batches"] += 1
        self._counts["files"] += len(batch.blobs)
        self._counts["samples"] += waveform.size

    def _check_libflac(self, source: str, batch: Batch) -> None:
        for blob, samples, bits in zip(batch.blobs, batch.samples, batch.bits, strict=True):
            if bits not in _FLAC_TYPES:
                self._counts["files of other than 8, 16 or 24 bits, which libsndfile does not read"] += 1
                continue
            try:
                # One more than there are: libsndfile takes an unknown length for the longest that there is.
                read, _ = soundfile.read(io.BytesIO(blob), len(samples) + 1, dtype="int32", always_2d=True)
            except soundfile.LibsndfileError:
                self._counts["files that libFLAC does not read"] += 1
                continue
            if not np.array_equal(read, (samples << (32 - bits)).astype(np.int32)):
                raise DrillFailed(f"libFLAC differs from what was written: {source}")

    def _check_program(self, chunk: list[tuple[str, Batch]]) -> None:
        """The program compares CPUs with the emulated GPU itself."""
        batches = [(batch, number % 3, 1) for number, (_, batch) in enumerate(chunk)]
        write_cases(self._cases, batches)
        self._call("decode", self._cases, self._results)
        for (source, batch), (_, dtype, _), (errors, samples) in zip(
            chunk, batches, read_results(self._results, batches), strict=True
        ):
            if errors.any() or not np.array_equal(samples, batch.expected(dtype)):
                raise DrillFailed(f"the code of CPUs differs from what was written, or has errors: {source}")
        if self._fuzz:
            self._call("fuzz", self._cases, self._seed, self._fuzz)
            self._counts["damaged inputs"] += self._fuzz

    def _call(self, *arguments: object) -> None:
        done = subprocess.run([str(self._program), *map(str, arguments)], capture_output=True, text=True)
        if done.returncode:
            raise DrillFailed(f"{self._program.name} {arguments[0]}: {done.stdout}{done.stderr}")


def _random_batches(seed: int, count: int) -> Iterator[tuple[str, Batch]]:
    for number in range(seed, seed + count):
        yield f"random batch {number}", random_batch(number, files=_FILES_PER_BATCH, crops=False)


if __name__ == "__main__":
    sys.exit(main())
