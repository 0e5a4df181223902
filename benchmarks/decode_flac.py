"""FLAC decoding benchmark: files in memory to packed float32 samples, `decode_flac` against libFLAC in its packages.

Clips of 10 s of 16 kHz mono from the synthetic dataset, as `slap-fast prepare` stores them (noise would compress worse
and decode slower). A step decodes each batch of 256 clips once. All samples of every peer are those of soundfile.

- DALI: its pipeline with only the decoder. libFLAC inside, and a faster conversion to float than soundfile's build has.
- soundfile: a thread pool, each clip decoded into its place.
- slap-fast: `decode_flac` of packed bytes, with the CRC-16 of each frame as libFLAC has it.

Per sample, one thread, Zen 3: a clip has 187 kB, 9.3 bits a sample. Reading a Rice code is a chain of three
instructions, 3.75 cycles with the refill of the register that holds the bits; the prediction with 8 coefficients takes
2.3 instructions and so about 1 cycle in SIMD lanes, against 8 in scalar code; CRC, conversion and the passes over the
cache about 1.5. The floor of a decoder that reads the codes of one file one by one is thus about 4 cycles.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from benchmarks import loader_peers as peers
from benchmarks.harness.case import AUDIO_SECONDS, Case, Outputs, Peer, Run, Settings
from benchmarks.loader import missing, unable
from benchmarks.loader_workload import Workload
from slap_fast.ops import decode_flac

TITLE = "FLAC to samples"

BASELINE = "DALI"


def cases(settings: Settings) -> list[Case]:
    workload = Workload(12, 1.0, 6, 2) if settings.quick else Workload(512, 10.0, 256, 2)
    return [_case(workload, threads, settings.device) for threads in sorted({1, settings.threads})]


def _case(workload: Workload, threads: int, device: str) -> Case:
    rivals = [
        Peer(BASELINE, partial(peers.dali_alone, workload, threads), missing("nvidia.dali")),
        Peer("soundfile", partial(peers.soundfile_alone, workload, threads)),
        Peer("torchcodec", partial(peers.torchcodec_alone, workload, threads), missing("torchcodec")),
        Peer("slap-fast", partial(_ours, workload, threads, "native", "cpu"), unable("native", "cpu")),
    ]
    if device != "cpu":
        rivals.append(Peer("slap-fast, GPU", partial(_ours, workload, threads, "cuda", device), unable("cuda", device)))
    return Case(
        name=f"clips of {workload.seconds:g} s, {threads} thread{'s' * (threads > 1)}",
        peers=tuple(rivals),
        baseline=BASELINE,
        reference=partial(peers.reference, workload),
        tolerance=0.0,
        work={"clips": workload.loaded, AUDIO_SECONDS: workload.loaded * workload.seconds},
        facts={"clips in a batch": workload.batch_size, "seconds": workload.seconds, "threads": threads},
        replayable=False,
    )


def _ours(workload: Workload, threads: int, backend: str, device: str) -> Run:
    index = workload.open()
    batches: list[Callable[[], torch.Tensor]] = []
    for order in workload.order():
        blobs = [index.read_audio(clip) for clip, _ in order]
        data = torch.frombuffer(bytearray(b"".join(blobs)), dtype=torch.uint8)
        offsets = torch.tensor([0, *(len(blob) for blob in blobs)]).cumsum(0)
        samples = torch.full((len(blobs),), workload.samples)
        batches.append(partial(_waveform, data, offsets, samples, backend, device))

    def step() -> None:
        torch.set_num_threads(threads)
        for batch in batches:
            batch()

    def outputs() -> Outputs:
        return {"samples": torch.cat([workload.checked([batch().cpu()]) for batch in batches])}

    return Run(step, outputs)


def _waveform(
    data: torch.Tensor, offsets: torch.Tensor, samples: torch.Tensor, backend: str, device: str
) -> torch.Tensor:
    """Bytes on the host to samples where they are wanted: the copy of the bytes to a GPU counts."""
    total = int(samples.sum())
    decoded = decode_flac(data.to(device), offsets.to(device), samples, total_samples=total, backend=backend)
    if device != "cpu":
        torch.cuda.synchronize()
    return decoded.waveform
