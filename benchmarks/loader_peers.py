"""Peers of the loader benchmark: bare decoders, PyTorch's DataLoader, and the loader of this project."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Literal

import numpy as np
import soundfile
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness.case import Outputs, Run
from benchmarks.loader_workload import Workload
from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import AugmentationConfig
from slap_fast.data.decoding import make_decoder
from slap_fast.data.format.index import ClipIndex
from slap_fast.data.loading.loader import Loader
from slap_fast.data.tokenizer import encode_captions, load_tokenizer

# Starts a new iteration over the packed waveforms of a step.
Batches = Callable[[], Iterator[Tensor]]


def reference(workload: Workload) -> Outputs:
    """Decodes whole clips with soundfile, one after another."""
    index = workload.open()
    decoded: dict[tuple[int, int], Tensor] = {}
    for clip, start in {clip for batch in workload.order() for clip in batch}:
        waveform, _ = soundfile.read(io.BytesIO(index.read_audio(clip)), dtype="float32")
        decoded[clip, start] = workload.checked([torch.from_numpy(waveform)[start : start + workload.samples]])
    return {"samples": torch.cat([decoded[clip] for batch in workload.order() for clip in batch])}


def slap_fast(workload: Workload, kind: Literal["dali", "gpu", "native", "soundfile"], threads: int) -> Run:
    """The whole loader: sampler, reading, decoding, captions to tokens, masks, packed batches."""
    index = workload.open()
    sampler, tokenizer = workload.sampler(index), load_tokenizer(index.folder / "tokenizer")
    decoder = make_decoder(kind, threads, workload.batch_size, device="cuda" if kind == "gpu" else "cpu")

    def batches() -> Iterator[Tensor]:
        loader = Loader(
            index,
            sampler,
            ModelConfig(),
            AugmentationConfig(),
            tokenizer,
            decoder,
            seed=0,
            start_step=0,
            stop_step=workload.batches,
        )
        for _, batch in loader:
            yield batch.waveform

    return _run(workload, batches)


def data_loader(workload: Workload, workers: int) -> Run:
    """PyTorch's DataLoader: worker processes read, decode and tokenize clip by clip; they persist between steps."""
    index = workload.open()
    loader = DataLoader(
        _Clips(index, workload.samples),
        batch_sampler=workload.order(),
        num_workers=workers,
        collate_fn=partial(_collate, load_tokenizer(index.folder / "tokenizer")),
        persistent_workers=True,
        # Forked workers would inherit locks held by threads of other peers.
        multiprocessing_context="spawn",
    )

    def batches() -> Iterator[Tensor]:
        for waveform, _, _ in loader:
            yield waveform

    return _run(workload, batches)


def soundfile_alone(workload: Workload, threads: int) -> Run:
    """Files in memory to packed batches on a thread pool, each clip decoded into its place."""

    def decode(blob: bytes, out: Tensor) -> None:
        with soundfile.SoundFile(io.BytesIO(blob)) as file:
            file.read(out=out.numpy())

    return _run(workload, partial(_on_threads, workload, _files(workload), threads, decode))


def torchcodec_alone(workload: Workload, threads: int) -> Run:
    from torchcodec.decoders import AudioDecoder

    def decode(blob: bytes, out: Tensor) -> None:
        out.copy_(AudioDecoder(blob).get_all_samples().data[0])

    return _run(workload, partial(_on_threads, workload, _files(workload), threads, decode))


def dali_alone(workload: Workload, threads: int) -> Run:
    """Files in memory to packed batches, by a DALI pipeline of only the decoder: the bound for any use of DALI."""
    from nvidia.dali import Pipeline, fn, types

    files = [[np.frombuffer(blob, np.uint8) for blob in batch] for batch in _files(workload)]
    pipeline = Pipeline(
        batch_size=workload.batch_size,
        num_threads=threads,
        device_id=None,
        prefetch_queue_depth=1,
        exec_dynamic=True,
    )
    with pipeline:
        blobs = fn.external_source(name="blobs", device="cpu", dtype=types.DALIDataType.UINT8, ndim=1, no_copy=True)
        waveforms, _ = fn.decoders.audio(blobs, dtype=types.DALIDataType.FLOAT, downmix=True)
        pipeline.set_outputs(waveforms)
    pipeline.build()

    def batches() -> Iterator[Tensor]:
        for batch in files:
            pipeline.feed_input("blobs", batch)
            (decoded,) = pipeline.run()
            yield torch.from_dlpack(decoded.as_reshaped_tensor([workload.samples * workload.batch_size]))

    return _run(workload, batches)


def _run(workload: Workload, batches: Batches) -> Run:
    def step() -> None:
        for _ in batches():
            pass

    def outputs() -> Outputs:
        return {"samples": torch.cat([workload.checked([batch]) for batch in batches()])}

    return Run(step, outputs)


def _files(workload: Workload) -> list[list[bytes]]:
    """The encoded clips of each batch; repeated clips share one object."""
    index = workload.open()
    order = [[clip for clip, _ in batch] for batch in workload.order()]
    blobs = {clip: index.read_audio(clip) for batch in order for clip in batch}
    return [[blobs[clip] for clip in batch] for batch in order]


def _on_threads(
    workload: Workload, files: list[list[bytes]], threads: int, decode: Callable[[bytes, Tensor], None]
) -> Iterator[Tensor]:
    packed = torch.empty(workload.batch_size, workload.samples)
    with ThreadPoolExecutor(threads) as pool:
        for batch in files:
            list(pool.map(decode, batch, packed))
            yield packed.view(-1)


class _Clips(Dataset[Any]):
    def __init__(self, index: ClipIndex, samples: int) -> None:
        self._index, self._samples = index, samples

    def __getitem__(self, place: tuple[int, int]) -> tuple[Tensor, str]:
        clip, start = place
        file = io.BytesIO(self._index.read_audio(clip))
        waveform, _ = soundfile.read(file, self._samples, start, dtype="float32")
        return torch.from_numpy(waveform), self._index.read_metadata(clip)["captions"][0]


def _collate(tokenizer: Any, clips: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, Tensor, Tensor]:
    tokens = encode_captions(tokenizer, [caption for _, caption in clips], ModelConfig().text.max_length)
    lengths = torch.tensor([[len(waveform), len(ids)] for (waveform, _), ids in zip(clips, tokens, strict=True)])
    return torch.cat([waveform for waveform, _ in clips]), torch.tensor([id for ids in tokens for id in ids]), lengths
