"""Loader: reads, decodes and packs the batches of one rank in background threads."""

from __future__ import annotations

import copy
import logging
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from slap_fast.config.model import ModelConfig
from slap_fast.config.recipe import AugmentationConfig
from slap_fast.data.decoding import PREPARE, Crop, DecodeFailure, Decoder
from slap_fast.data.format.index import ClipIndex, DatasetError, StoredClip
from slap_fast.data.loading.augmentation import MaskSampler
from slap_fast.data.loading.batch import Batch
from slap_fast.data.loading.collate import LoadedClip, collate
from slap_fast.data.loading.dropped_clips import DroppedClip, DropReport
from slap_fast.data.sampling.global_batch_sampler import ClipRef, GlobalBatchSampler
from slap_fast.data.sampling.mixture import Mixture
from slap_fast.data.tokenizer import TokenizerError, encode_captions
from slap_fast.errors import SlapFastError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_REASONS_SHOWN = 5

_T = TypeVar("_T")


class TooManyBadClipsError(SlapFastError, RuntimeError):
    """So many clips in a row were bad that the dataset or the storage must be the cause."""

    retryable = True


class _Content(NamedTuple):
    audio: memoryview
    samples: int
    crop: Crop | None
    caption: str


class _DecodedClip(NamedTuple):
    row: int
    waveform: Tensor
    caption: str


class _Step(NamedTuple):
    """The sampled clips of a step, read from storage."""

    number: int
    refs: list[ClipRef]
    contents: list[_Content | DecodeFailure]


class Loader:
    """Iterates over `(step, batch)` of one rank for the steps [start_step, stop_step).

    Prefetches `prefetch` batches: one thread reads, one decodes (with the threads of the decoder), one tokenizes and
    packs, each working on its own batch. The batches are bit-identical for any `prefetch`, thread count and decoder,
    and the ranks together always get the same global batch. A clip that cannot be used is replaced
    (`GlobalBatchSampler.replacements`), so a batch never shrinks. It is tried again in its next epoch, so that a batch
    does not depend on earlier ones. A rank reads only its own clips.

    The threads end when the context manager exits, or when the iterator is exhausted or dropped.

    Attributes:
        dropped: all unusable clips so far, in order; also logged.
        waited_seconds: total time that the consumer has waited for batches.
    """

    def __init__(
        self,
        index: ClipIndex | Mixture,
        sampler: GlobalBatchSampler,
        model_config: ModelConfig,
        augmentation: AugmentationConfig,
        tokenizer: PreTrainedTokenizerBase,
        decoder: Decoder,
        *,
        seed: int,
        start_step: int,
        stop_step: int,
        rank: int = 0,
        world_size: int = 1,
        prefetch: int = 2,
        max_consecutive_failures: int = 100,
        pin_memory: bool = False,
        report: DropReport | None = None,
    ) -> None:
        """
        Args:
            tokenizer: must add a start and an end token to a caption.
            seed: in [0, 2^64); keys the masks.
            prefetch: number of batches to build ahead; 0 builds each on request.
            max_consecutive_failures: more bad clips in a row than this end the iteration with an error.
            pin_memory: page-lock the batches (on the current CUDA device) for asynchronous copies.
            report: records every dropped clip before the batch that it was sampled for is returned.

        Raises:
            ValueError: an argument is out of range or does not match another.
        """
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"steps [{start_step}, {stop_step}) are not a range; need 0 <= start_step <= stop_step")
        for name, count in (("prefetch", prefetch), ("max_consecutive_failures", max_consecutive_failures)):
            if count < 0:
                raise ValueError(f"{name} is {count}; it must not be negative")
        if decoder.sample_rate != model_config.mel.sample_rate:
            raise ValueError(
                f"the decoder returns {decoder.sample_rate} Hz, the model needs {model_config.mel.sample_rate} Hz; "
                "pass sample_rate=model_config.mel.sample_rate to make_decoder"
            )
        if tokenizer.num_special_tokens_to_add() < 2:
            raise TokenizerError(
                "the tokenizer does not add a start and an end token to a caption, which the caption decoder needs; "
                "use one that does, such as the one that `slap-fast prepare` trains"
            )
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory needs a CUDA device; pass pin_memory=False")
        # Raises here, not in the background, if the ranks cannot split the batch.
        sampler.rank_batch(start_step, rank, world_size)
        self._index = index if isinstance(index, Mixture) else Mixture([index], [1.0])
        self._sampler = sampler
        self._model_config = model_config
        self._masks = MaskSampler(augmentation, seed=seed)
        # A fast tokenizer changes its own truncation settings when called, so threads must not share one.
        self._tokenizer = copy.deepcopy(tokenizer)
        self._decoder = decoder
        self._steps = range(start_step, stop_step)
        self._rank = rank
        self._world_size = world_size
        self._prefetch = prefetch
        self._max_consecutive_failures = max_consecutive_failures
        self._pin_memory = pin_memory
        self._report = report
        self._failures_in_a_row = 0
        # Weak, so that dropping the iterator ends its threads.
        self._iterator: weakref.ref[Generator[tuple[int, Batch], None, None]] | None = None
        self.dropped: list[DroppedClip] = []
        self.waited_seconds = 0.0
        self._share_since = (time.perf_counter(), 0.0)

    def __iter__(self) -> Generator[tuple[int, Batch], None, None]:
        """Starts again at `start_step`; ends an earlier iteration that is still running.

        The iterator raises `TooManyBadClipsError` and any other exception of the background threads.
        """
        self.close()
        iterator = self._batches()
        self._iterator = weakref.ref(iterator)
        return iterator

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Ends the running iteration and its threads, after the batches that they are working on."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()

    def waited_share(self) -> float:
        """Fraction of the time since the last call (or the start) that the consumer has waited, in [0, 1]."""
        (then, waited), now = self._share_since, time.perf_counter()
        self._share_since = (now, self.waited_seconds)
        return (self.waited_seconds - waited) / max(now - then, 1e-9)

    def _batches(self) -> Generator[tuple[int, Batch], None, None]:
        self._failures_in_a_row = 0
        self._share_since = (time.perf_counter(), self.waited_seconds)
        # One thread per stage, so that batches are built in order; the decoder has its own threads.
        # The CUDA device is set per thread: otherwise pinning memory would open a context on device 0.
        initializer = partial(torch.cuda.set_device, torch.cuda.current_device()) if self._pin_memory else None
        stages = [ThreadPoolExecutor(1, f"loader-{name}", initializer) for name in ("read", "decode", "pack")]
        pending: deque[Future[Batch]] = deque()
        broken = False

        def unless_broken(stage: Callable[[], _T]) -> _T:
            nonlocal broken
            # After a failure nothing more is built, so that no clip of a later step is reported as dropped.
            if broken:
                raise CancelledError
            try:
                return stage()
            except BaseException:
                broken = True
                raise

        def build(step: int) -> Future[Batch]:
            read, decode, pack = stages
            contents = read.submit(self._read_step, step)
            clips = decode.submit(unless_broken, lambda: self._gather(contents.result()))
            return pack.submit(lambda: self._pack(step, clips.result()))

        try:
            ahead = iter(self._steps)
            for step in self._steps:
                for upcoming in ahead:
                    pending.append(build(upcoming))
                    if len(pending) > self._prefetch:
                        break
                began = time.perf_counter()
                batch = pending.popleft().result()
                self.waited_seconds += time.perf_counter() - began
                yield step, batch
                del batch  # this frame must not keep it alive while waiting for the next one
        finally:
            for stage in stages:
                stage.shutdown(wait=True, cancel_futures=True)

    def _read_step(self, step: int) -> _Step:
        refs = self._sampler.rank_batch(step, self._rank, self._world_size)
        return _Step(step, refs, self._read(refs))

    def _gather(self, step: _Step) -> list[_DecodedClip]:
        """The decoded clips of a step; each bad one is replaced by its first good replacement."""
        first_drop = len(self.dropped)
        gathered: dict[int, _DecodedClip] = {}
        replacements: dict[int, Iterator[ClipRef]] = {}
        wanted, contents = dict(enumerate(step.refs)), step.contents
        try:
            while True:
                for position, clip in zip(wanted, self._load(step.number, wanted.values(), contents), strict=True):
                    if clip is not None:
                        gathered[position] = clip
                missing = [position for position in wanted if position not in gathered]
                if not missing:
                    return [gathered[position] for position in range(len(step.refs))]
                wanted = {}
                for position in missing:
                    if position not in replacements:
                        replacements[position] = self._sampler.replacements(step.number, step.refs[position].clip)
                    replacement = next(replacements[position], None)
                    if replacement is None:
                        raise TooManyBadClipsError(
                            f"no clip can replace a bad one in step {step.number}{self._last_reasons()}"
                        )
                    wanted[position] = replacement
                contents = self._read(list(wanted.values()))
        finally:
            if self._report is not None:
                self._report.add(self.dropped[first_drop:])

    def _pack(self, step: int, clips: list[_DecodedClip]) -> Batch:
        captions = [clip.caption for clip in clips]
        token_ids = encode_captions(self._tokenizer, captions, self._model_config.text.max_length)
        loaded = [LoadedClip(clip.row, clip.waveform, ids) for clip, ids in zip(clips, token_ids, strict=True)]
        batch = collate(loaded, self._model_config, self._masks, step)
        self._index.release()
        return batch.pin_memory() if self._pin_memory else batch

    def _load(
        self, step: int, refs: Collection[ClipRef], contents: Sequence[_Content | DecodeFailure]
    ) -> list[_DecodedClip | None]:
        """The decoded clips; None for a bad clip, which is recorded as dropped."""
        readable = [content for content in contents if isinstance(content, _Content)]
        decoded = iter(
            self._decoder.decode(
                [content.audio for content in readable],
                [content.samples for content in readable],
                [content.crop for content in readable],
            )
        )
        clips: list[_DecodedClip | None] = []
        for ref, content in zip(refs, contents, strict=True):
            outcome = next(decoded) if isinstance(content, _Content) else content
            if isinstance(content, _Content) and isinstance(outcome, Tensor):
                self._failures_in_a_row = 0
                clips.append(_DecodedClip(ref.clip, outcome, content.caption))
            else:
                assert isinstance(outcome, DecodeFailure)
                self._drop(step, ref, outcome.reason)
                clips.append(None)
        return clips

    def _read(self, refs: Sequence[ClipRef]) -> list[_Content | DecodeFailure]:
        clips = np.array([ref.clip for ref in refs], np.int64)
        records = self._index.records(clips)
        # Checked before reading: the sampler bounds the duration of a clip, and duration and rate bound its memory.
        fitting = records["sample_rate"] == self._decoder.sample_rate
        stored = iter(self._index.read_clips(clips[fitting]))
        return [
            _content(next(stored), samples, ref)
            if rate == self._decoder.sample_rate
            else DecodeFailure(f"the index says {rate} Hz, not {self._decoder.sample_rate} Hz; {PREPARE}")
            for ref, samples, rate in zip(
                refs, records["samples"].tolist(), records["sample_rate"].tolist(), strict=True
            )
        ]

    def _drop(self, step: int, ref: ClipRef, reason: str) -> None:
        key = self._index.name(ref.clip)
        shard = self._index.shard_name(ref.clip)
        self.dropped.append(DroppedClip(key, shard, reason, step))
        logger.warning("dropped clip %s of %s: %s", key, shard, reason)
        self._failures_in_a_row += 1
        if self._failures_in_a_row > self._max_consecutive_failures:
            raise TooManyBadClipsError(
                f"{self._failures_in_a_row} clips in a row cannot be used, more than "
                f"loading.max_consecutive_failures={self._max_consecutive_failures}{self._last_reasons()}"
            )

    def _last_reasons(self) -> str:
        last = self.dropped[-_REASONS_SHOWN:]
        return "; the last of them: " + "; ".join(f"{drop.key} of {drop.shard}: {drop.reason}" for drop in last)


def _content(stored: StoredClip | DatasetError, samples: int, ref: ClipRef) -> _Content | DecodeFailure:
    if isinstance(stored, DatasetError):
        return DecodeFailure(str(stored))
    captions = stored.metadata["captions"]
    if len(captions) <= ref.caption:
        return DecodeFailure(f"the clip has {len(captions)} captions, the index says at least {ref.caption + 1}")
    return _Content(stored.audio, samples, ref.crop, captions[ref.caption])
