"""`python -m benchmarks.sampler`: time, memory and balance of the global batch sampler, on one rank at full scale.

A synthetic dataset of 109 million clips is created in a temporary folder (5 GB: index and durations are real, the tars
are sparse files). A child process opens it and samples the batches of one of 64 ranks at batch size 2,048, for random
steps of the first hundred epochs, so that no step profits from the one before. Files are in the page cache: the first
read from storage takes longer.

The command fails if a figure exceeds its bound. `--whole-epoch` also iterates over an epoch and counts how often each
clip is sampled (minutes).
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness.process_memory import status_bytes
from slap_fast.data.format.dataset_files import (
    FORMAT_VERSION,
    INDEX_DTYPE,
    INDEX_NAME,
    INFO_NAME,
    write_index,
    write_json,
)
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.sampling.global_batch_sampler import GlobalBatchSampler

CLIPS = 109_000_000
CLIPS_PER_SHARD = 10_000
BATCH_SIZE = 2048
RANKS = 64
STEPS = 200
LONGEST = 30.0
SAMPLE_RATE = 16_000

BOUNDS = {
    "slowest batch (ms)": 50.0,
    "resident (MB)": 200.0,
    "worst token imbalance (%)": 2.0,
    "clips not once in an epoch": 1.0,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Returns 0 if all figures are within their bounds, else 1."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sampler", description=__doc__)
    parser.add_argument("--clips", type=int, default=CLIPS, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=STEPS, help="random steps to sample (default: %(default)s)")
    parser.add_argument("--whole-epoch", action="store_true", help="count how often each clip is sampled in an epoch")
    parser.add_argument("--folder", type=Path, help="for temporary files (default: the system's)")
    parser.add_argument("--out", type=Path, help="folder to write the figures to, as a result of this benchmark")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(argv)
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.steps, whole_epoch=options.whole_epoch)))
        return 0
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        make_dataset(Path(folder), options.clips)
        arguments = ["--measure", folder, "--steps", str(options.steps)]
        arguments += ["--whole-epoch"] if options.whole_epoch else []
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.sampler", *arguments], stdout=subprocess.PIPE, text=True, check=True
        )
    figures = {"clips": options.clips, **json.loads(child.stdout)}
    if options.out is not None:
        from benchmarks.harness.results import save_result

        save_result(_result(figures), options.out)
    exceeded = False
    for name, value in figures.items():
        bound = BOUNDS.get(name)
        bad = bound is not None and not value < bound
        exceeded |= bad
        remark = "" if bound is None else f"   must be below {bound:g}{': MISSED' if bad else ''}"
        print(f"{name:36} {value:>14,.6g}{remark}")
    return 1 if exceeded else 0


def _result(figures: Mapping[str, float]) -> dict[str, Any]:
    # Imported here, because the measuring process must not import more than sampling needs.
    from benchmarks.harness.case import Settings
    from benchmarks.harness.results import build_result

    settings = Settings(quick=figures["clips"] < CLIPS)
    rows = [{"name": name, "value": value, "bound": BOUNDS.get(name)} for name, value in figures.items()]
    return build_result("sampler", "Sampling at the paper's scale", [], settings) | {"figures": rows}


def make_dataset(folder: Path, clips: int) -> None:
    """A dataset folder whose tars are sparse files of the right size."""
    sizes = [min(CLIPS_PER_SHARD, clips - first) for first in range(0, clips, CLIPS_PER_SHARD)]
    shards: list[dict[str, Any]] = []

    def parts() -> Iterator[np.ndarray]:
        for number, size in enumerate(sizes):
            records = _records(number, size)
            end = int(records["meta_offset"][-1] + records["meta_size"][-1])
            name = f"shard-{number:06d}.tar"
            with open(folder / name, "wb") as tar:
                tar.truncate(end)
            seconds = int(records["samples"].sum()) / SAMPLE_RATE
            shards.append({"name": name, "bytes": end, "clips": size, "seconds": seconds})
            yield records

    write_index(folder / INDEX_NAME, parts(), clips)
    info = {
        "format_version": FORMAT_VERSION,
        "name": "synthetic",
        "shards": shards,
        "clips": clips,
        "seconds": sum(shard["seconds"] for shard in shards),
        "captions": 3 * clips,
        "sample_rate": SAMPLE_RATE,
        "mel_mean": 0.0,
        "mel_std": 1.0,
    }
    write_json(folder / INFO_NAME, info)


def _records(shard: int, clips: int) -> np.ndarray:
    """Durations as in audio collections: log-normal around 7 s, a third of them 10 s, about 5 % above 30 s."""
    generator = np.random.default_rng(shard)
    seconds = np.clip(np.exp(generator.normal(2.0, 0.9, clips)), 0.5, 60.0)
    seconds[generator.random(clips) < 0.33] = 10.0
    records = np.zeros(clips, INDEX_DTYPE)
    records["shard"] = shard
    records["samples"] = (seconds * SAMPLE_RATE).astype(np.int64)
    records["sample_rate"] = SAMPLE_RATE
    records["captions"] = 3
    records["audio_size"] = records["samples"]
    records["meta_size"] = 300
    ends = np.cumsum(records["audio_size"].astype(np.int64) + 2048)
    records["audio_offset"][1:] = ends[:-1]
    records["meta_offset"] = ends - 1024
    return records


def measure(folder: Path, steps: int, *, whole_epoch: bool) -> dict[str, float]:
    """Opens and samples the dataset, in a process that has imported only what that needs, and not PyTorch."""
    figures = {"resident before (MB)": _megabytes("VmRSS")}
    began = time.perf_counter()
    ClipIndex.open(folder)
    figures["first opening (s)"] = time.perf_counter() - began
    figures["first opening, peak resident (MB)"] = _megabytes("VmHWM")

    _reset_peak()
    began = time.perf_counter()
    index = ClipIndex.open(folder)
    figures["later opening (s)"] = time.perf_counter() - began
    began = time.perf_counter()
    sampler = GlobalBatchSampler(index, batch_size=BATCH_SIZE, seed=0, max_duration=LONGEST)
    figures["creating the sampler (s)"] = time.perf_counter() - began
    figures["clips per epoch"] = sampler.clips_per_epoch

    generator = np.random.default_rng(0)
    drawn = generator.integers(100 * sampler.clips_per_epoch // BATCH_SIZE, size=steps).tolist()
    times = []
    for step in drawn:
        began = time.perf_counter()
        sampler.rank_batch(step, step % RANKS, RANKS)
        times.append(1e3 * (time.perf_counter() - began))
    figures["median batch (ms)"] = float(np.median(times))
    figures["slowest batch (ms)"] = max(times)
    figures["resident (MB)"] = _megabytes("VmHWM")
    figures["resident at the end (MB)"] = _megabytes("VmRSS")

    if whole_epoch:
        figures["clips not once in an epoch"] = _count_not_once(index)
    figures["worst token imbalance (%)"] = max(_imbalance(index, sampler, step) for step in drawn[:20])
    return figures


def _imbalance(index: ClipIndex, sampler: GlobalBatchSampler, step: int) -> float:
    """Difference between the most and the fewest audio tokens of a rank, in percent of the mean."""
    from slap_fast.config.model import ModelConfig

    config = ModelConfig()
    tokens = [
        sum(config.num_tokens(int(index.records[ref.clip]["samples"])) for ref in sampler.rank_batch(step, rank, RANKS))
        for rank in range(RANKS)
    ]
    return 100 * (max(tokens) - min(tokens)) / float(np.mean(tokens))


def _count_not_once(index: ClipIndex) -> int:
    """Number of usable clips not sampled exactly once in the first epoch, and of unusable clips sampled."""
    # The order of an epoch does not depend on the batch size; large batches iterate faster.
    batch_size = min(1 << 16, int((index.durations <= np.float32(LONGEST)).sum()))
    sampler = GlobalBatchSampler(index, batch_size=batch_size, seed=0, max_duration=LONGEST)
    seen = np.zeros(len(index), np.uint8)
    for step in range(-(-sampler.clips_per_epoch // batch_size)):
        clips = [ref.clip for ref in sampler.rank_batch(step, 0, 1)]
        np.add.at(seen, clips[: sampler.clips_per_epoch - step * batch_size], 1)
    return int((seen != (index.durations <= np.float32(LONGEST))).sum())


def _megabytes(key: str) -> float:
    return status_bytes(key) / 1e6


def _reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    raise SystemExit(main())
