"""Clips from shards to packed batches: the loader against the decoders that it could use, and against a DataLoader.

Clips are 10 s of 16 kHz mono FLAC, made by the project's synthesis and stored as `slap-fast prepare` stores them; noise
would compress worse, and decode slower. A step goes through eight batches of 256 clips from the start to the end of the
iteration, so that what was built ahead of it is not counted as free. Files are in the page cache. Every peer's samples
are held against soundfile's, in the order of the plan.

"Alone" is a decoder fed from memory, that does nothing else: the wall for a loader. Decoding takes both of two cores
(`--threads 2`), so whatever else a loader does takes from it. What it does besides for a clip: read 190 kB, parse a
JSON file, tokenise a caption, draw the masks; in all a tenth of a millisecond of a core, against 0.9 of
decoding. A copy of the decoded clip (640 kB, read and written, with fresh pages) would be another tenth.

Why DALI is the fastest: both are libsndfile over libFLAC. In soundfile's build the function that moves libFLAC's
integers to the caller's floats takes 40 % of the time, in DALI's 15 %.
"""

from __future__ import annotations

import importlib.util
from functools import partial

from benchmarks import loader_peers as peers
from benchmarks.harness.case import AUDIO_SECONDS, Case, Peer, Settings
from benchmarks.loader_workload import Workload

TITLE = "Loading, from shards to packed batches"

CEILING = "DALI alone"


def cases(settings: Settings) -> list[Case]:
    workload = Workload(12, 1.0, 6, 2) if settings.quick else Workload(512, 10.0, 256, 8)
    threads = settings.threads
    no_dali, no_torchcodec = (_missing(name) for name in ("nvidia.dali", "torchcodec"))
    rivals = (
        Peer(CEILING, partial(peers.dali_alone, workload, threads), no_dali),
        Peer("soundfile alone", partial(peers.soundfile_alone, workload, threads)),
        Peer("torchcodec alone", partial(peers.torchcodec_alone, workload, threads), no_torchcodec),
        Peer("DataLoader, soundfile", partial(peers.data_loader, workload, threads)),
        Peer("slap-fast, soundfile", partial(peers.slap_fast, workload, "soundfile", threads)),
        Peer("slap-fast, DALI", partial(peers.slap_fast, workload, "dali", threads), no_dali),
    )
    return [
        Case(
            name=f"clips of {workload.seconds:g} s",
            peers=rivals,
            baseline=CEILING,
            reference=partial(peers.reference, workload),
            tolerance=0.0,
            work={"clips": workload.loaded, AUDIO_SECONDS: workload.loaded * workload.seconds},
            facts={
                "clips": workload.loaded,
                "clips in a batch": workload.batch_size,
                "seconds": workload.seconds,
                "decoding threads or worker processes": threads,
            },
        )
    ]


def _missing(module: str) -> str | None:
    try:
        found = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package
        found = False
    return None if found else f"{module} not installed"
