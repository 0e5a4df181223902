"""From the plan to packed batches, built in the background."""

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

_REASONS_TOLD = 5

_T = TypeVar("_T")


class TooManyBadClips(SlapFastError, RuntimeError):
    """So many clips in a row were bad that the data set itself, or the way to it, must be at fault."""

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
    """The clips that the plan gives to a step, as they were read."""

    number: int
    planned: list[ClipRef]
    contents: list[_Content | DecodeFailure]


class Loader:
    """Iterates over `(step, batch)` for one rank, from `start_step` up to but without `stop_step`.

    Batches are built `prefetch` ahead in the background: one thread reads, one decodes (on threads of the decoder), one
    tokenises and packs, each at a batch of its own. The batches are the same bits for any `prefetch`, thread count and
    decoder, and for any number of ranks together the same global batch. A clip that cannot be used is replaced by a
    spare of the plan, so a batch never shrinks; it is tried again when its turn comes again, since a batch depends on
    no other. A rank reads no clips but its own.

    Use it as a context manager, or exhaust or drop the iterator: each of these ends the threads.

    Attributes:
        dropped: every unusable clip met so far, in order; also logged.
        waited_seconds: how long the consumer has waited for batches so far.
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
            tokenizer: adds a start and an end token to a caption.
            seed: in [0, 2^64); keys the masks.
            prefetch: batches to build ahead; 0 builds each when it is asked for.
            max_consecutive_failures: more bad clips in a row than this end the iteration.
            pin_memory: page-lock the batches, on the current CUDA device, for asynchronous copies.
            report: is told of every clip that is dropped, before the batch that it is missing from appears.

        Raises:
            ValueError: an argument is out of range or does not fit another.
        """
        if not 0 <= start_step <= stop_step:
            raise ValueError(f"steps [{start_step}, {stop_step}) are no range; need 0 <= start_step <= stop_step")
        for name, count in (("prefetch", prefetch), ("max_consecutive_failures", max_consecutive_failures)):
            if count < 0:
                raise ValueError(f"{name} is {count}; it cannot be negative")
        if decoder.sample_rate != model_config.mel.sample_rate:
            raise ValueError(
                f"the decoder is for {decoder.sample_rate} Hz, the model for {model_config.mel.sample_rate} Hz; "
                "pass sample_rate=model_config.mel.sample_rate to make_decoder"
            )
        if tokenizer.num_special_tokens_to_add() < 2:
            raise TokenizerError(
                "the tokenizer does not put a start and an end token around a caption, which the caption decoder "
                "needs; use one that does, such as the one that `slap-fast prepare` trains"
            )
        if pin_memory and not torch.cuda.is_available():
            raise ValueError("pin_memory needs a CUDA device; pass pin_memory=False")
        # Ranks that do not fit the plan are told here, not in the background.
        sampler.rank_batch(start_step, rank, world_size)
        self._index = index if isinstance(index, Mixture) else Mixture([index], [1.0])
        self._sampler = sampler
        self._model_config = model_config
        self._masks = MaskSampler(augmentation, seed=seed)
        # A fast tokenizer changes its own truncation settings as it works, so threads must not share one.
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
        # Weak: an iterator that its user drops must end its thread.
        self._iterator: weakref.ref[Generator[tuple[int, Batch], None, None]] | None = None
        self.dropped: list[DroppedClip] = []
        self.waited_seconds = 0.0
        self._share_since = (time.perf_counter(), 0.0)

    def __iter__(self) -> Generator[tuple[int, Batch], None, None]:
        """Starts at `start_step`, whatever was iterated before; an iteration under way ends.

        The iterator raises `TooManyBadClips`, and whatever else goes wrong in the background thread.
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
        """End the iteration under way and its threads, after the batches that they are at."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()

    def waited_share(self) -> float:
        """Which part of the time since the last call, or else the beginning, the consumer has waited: in [0, 1]."""
        (then, waited), now = self._share_since, time.perf_counter()
        self._share_since = (now, self.waited_seconds)
        return (self.waited_seconds - waited) / max(now - then, 1e-9)

    def _batches(self) -> Generator[tuple[int, Batch], None, None]:
        self._failures_in_a_row = 0
        self._share_since = (time.perf_counter(), self.waited_seconds)
        # One thread for each stage: batches are built in order, and the decoder brings threads of its own.
        # The device is chosen per thread: one left at the default would open a context on device 0 to pin memory.
        initializer = partial(torch.cuda.set_device, torch.cuda.current_device()) if self._pin_memory else None
        stages = [ThreadPoolExecutor(1, f"loader-{name}", initializer) for name in ("read", "decode", "pack")]
        pending: deque[Future[Batch]] = deque()
        broken = False

        def unless_broken(stage: Callable[[], _T]) -> _T:
            nonlocal broken
            # Nothing is built, and no clip dropped, beyond the step at which the consumer will see the failure.
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
                # Else the frame would keep it alive while the next one is awaited.
                del batch
        finally:
            for stage in stages:
                stage.shutdown(wait=True, cancel_futures=True)

    def _read_step(self, step: int) -> _Step:
        planned = self._sampler.rank_batch(step, self._rank, self._world_size)
        return _Step(step, planned, self._read(planned))

    def _gather(self, step: _Step) -> list[_DecodedClip]:
        """The clips of this rank in a step, each bad one replaced by the first of its spares that is good."""
        first_drop = len(self.dropped)
        gathered: dict[int, _DecodedClip] = {}
        spares: dict[int, Iterator[ClipRef]] = {}
        wanted, contents = dict(enumerate(step.planned)), step.contents
        try:
            while True:
                for position, clip in zip(wanted, self._load(step.number, wanted.values(), contents), strict=True):
                    if clip is not None:
                        gathered[position] = clip
                missing = [position for position in wanted if position not in gathered]
                if not missing:
                    return [gathered[position] for position in range(len(step.planned))]
                wanted = {}
                for position in missing:
                    if position not in spares:
                        spares[position] = self._sampler.replacements(step.number, step.planned[position].clip)
                    spare = next(spares[position], None)
                    if spare is None:
                        raise TooManyBadClips(
                            f"no clip can replace a bad one in step {step.number}{self._last_reasons()}"
                        )
                    wanted[position] = spare
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
        """Each clip, or None where it is bad, which is recorded."""
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
            outcome: _DecodedClip | DecodeFailure
            if isinstance(content, _Content):
                waveform = next(decoded)
                outcome = (
                    _DecodedClip(ref.clip, waveform, content.caption) if isinstance(waveform, Tensor) else waveform
                )
            else:
                outcome = content
            if isinstance(outcome, DecodeFailure):
                self._drop(step, ref, outcome.reason)
                clips.append(None)
            else:
                self._failures_in_a_row = 0
                clips.append(outcome)
        return clips

    def _read(self, refs: Sequence[ClipRef]) -> list[_Content | DecodeFailure]:
        clips = np.array([ref.clip for ref in refs], np.int64)
        records = self._index.records(clips)
        # Before anything is read: the plan bounds a clip's duration, and with the rate that bounds its memory.
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
            raise TooManyBadClips(
                f"{self._failures_in_a_row} clips in a row cannot be used, more than "
                f"loading.max_consecutive_failures={self._max_consecutive_failures}{self._last_reasons()}"
            )

    def _last_reasons(self) -> str:
        last = self.dropped[-_REASONS_TOLD:]
        return "; the last of them: " + "; ".join(f"{drop.key} of {drop.shard}: {drop.reason}" for drop in last)


def _content(stored: StoredClip | DatasetError, samples: int, ref: ClipRef) -> _Content | DecodeFailure:
    if isinstance(stored, DatasetError):
        return DecodeFailure(str(stored))
    captions = stored.metadata["captions"]
    if len(captions) <= ref.caption:
        return DecodeFailure(f"the clip has {len(captions)} captions, the index says at least {ref.caption + 1}")
    return _Content(stored.audio, samples, ref.crop, captions[ref.caption])
