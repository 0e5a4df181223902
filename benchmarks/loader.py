"""Loader benchmark: from shards to packed batches, against bare decoders and PyTorch's DataLoader.

Clips are 10 s of 16 kHz mono FLAC from the synthetic dataset, stored as by `slap-fast prepare` (noise would compress
worse and decode slower). A step is a complete iteration over eight batches of 256 clips, so that prefetched batches are
not free. Files are in the page cache. The samples of every peer are compared with soundfile's, in sampling order.

"Alone" is a bare decoder fed from memory: the upper bound for a loader with it. Decoding uses both of two cores
(`--threads 2`), so all other work of a loader takes time from it. That work, per clip: read 190 kB, parse a JSON file,
tokenize a caption, draw the masks; 0.1 ms of a core in total, against 0.9 ms for decoding. A copy of the decoded clip
(640 kB, read and written, with fresh pages) would add another 0.1 ms.

Why DALI is faster than soundfile: both are libsndfile with libFLAC. In soundfile's build the function that converts
libFLAC's integers to floats takes 40 % of the time, in DALI's 15 %. The native decoder is code of its own.

The second case loads random crops of 10 s from clips of 60 s. The files have the seek tables of `slap-fast prepare`,
which libFLAC uses too. DALI cannot decode a part of a file. "GPU" leaves the waveforms in GPU memory.
"""

from __future__ import annotations

import importlib.util
from functools import partial

import torch

from benchmarks import loader_peers as peers
from benchmarks.harness.case import AUDIO_SECONDS, Case, Peer, Settings
from benchmarks.loader_workload import Workload
from slap_fast.ops import dispatch

TITLE = "Loading, from shards to packed batches"

CEILING = "DALI alone"
WORKERS = "DataLoader, soundfile"


def cases(settings: Settings) -> list[Case]:
    workload = Workload(12, 1.0, 6, 2) if settings.quick else Workload(512, 10.0, 256, 8)
    cropped = Workload(12, 3.0, 6, 2, crop=1.0) if settings.quick else Workload(256, 60.0, 256, 4, crop=10.0)
    threads = settings.threads
    no_dali, no_torchcodec = (missing(name) for name in ("nvidia.dali", "torchcodec"))
    no_native, no_gpu = (unable(backend, device) for backend, device in (("native", "cpu"), ("cuda", settings.device)))
    rivals = (
        Peer(CEILING, partial(peers.dali_alone, workload, threads), no_dali),
        Peer("soundfile alone", partial(peers.soundfile_alone, workload, threads)),
        Peer("torchcodec alone", partial(peers.torchcodec_alone, workload, threads), no_torchcodec),
        Peer(WORKERS, partial(peers.data_loader, workload, threads)),
        Peer("slap-fast, soundfile", partial(peers.slap_fast, workload, "soundfile", threads)),
        Peer("slap-fast, DALI", partial(peers.slap_fast, workload, "dali", threads), no_dali),
        Peer("slap-fast, native", partial(peers.slap_fast, workload, "native", threads), no_native),
        Peer("slap-fast, GPU", partial(peers.slap_fast, workload, "gpu", threads), no_gpu),
    )
    entering = (
        Peer(WORKERS, partial(peers.data_loader, cropped, threads)),
        Peer("slap-fast, soundfile", partial(peers.slap_fast, cropped, "soundfile", threads)),
        Peer("slap-fast, native", partial(peers.slap_fast, cropped, "native", threads), no_native),
        Peer("slap-fast, GPU", partial(peers.slap_fast, cropped, "gpu", threads), no_gpu),
    )
    return [
        _case(f"clips of {workload.seconds:g} s", workload, rivals, CEILING, threads),
        _case(f"{cropped.crop:g} s of clips of {cropped.seconds:g} s", cropped, entering, WORKERS, threads),
    ]


def _case(name: str, workload: Workload, rivals: tuple[Peer, ...], baseline: str, threads: int) -> Case:
    seconds = workload.crop or workload.seconds
    return Case(
        name=name,
        peers=rivals,
        baseline=baseline,
        reference=partial(peers.reference, workload),
        tolerance=0.0,
        work={"clips": workload.loaded, AUDIO_SECONDS: workload.loaded * seconds},
        facts={
            "clips": workload.loaded,
            "clips in a batch": workload.batch_size,
            "seconds": seconds,
            "decoding threads or worker processes": threads,
        },
    )


def unable(backend: str, device: str) -> str | None:
    """Why `decode_flac` cannot run by a backend on a device; None: it can."""
    try:
        dispatch.select("decode_flac", backend, device=torch.device(device))
    except dispatch.CannotServeError as error:
        return str(error)
    return None


def missing(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        found = False
    return None if found else f"{module} not installed"
