"""From the plan to packed batches, built in the background."""

from __future__ import annotations

import copy
import logging
import time
import weakref
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from slap_fast.data.augmentation import AugmentationSettings, MaskSampler
from slap_fast.data.batch import Batch
from slap_fast.data.collate import LoadedClip, collate
from slap_fast.data.decoding import PREPARE, DecodeFailure, Decoder
from slap_fast.data.index import ClipIndex, DatasetError
from slap_fast.data.mixture import Mixture
from slap_fast.data.plan import ClipRef, Plan
from slap_fast.data.tokenizer import TokenizerError, encode_captions
from slap_fast.models.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

_REASONS_TOLD = 5


class DroppedClip(NamedTuple):
    """A clip that could not be used: its key, the shard it lies in, and why."""

    key: str
    shard: str
    reason: str


class TooManyBadClips(RuntimeError):
    """So many clips in a row were bad that the data set itself, or the way to it, must be at fault."""


class _Content(NamedTuple):
    audio: bytes
    caption: str


class _DecodedClip(NamedTuple):
    row: int
    waveform: Tensor
    caption: str


class Loader:
    """Iterates over `(step, batch)` for one rank, from `start_step` up to but without `stop_step`.

    A background thread reads, decodes, tokenises and packs `prefetch` batches ahead. The batches are the same bits for
    any `prefetch`, thread count and decoder, and for any number of ranks together the same global batch. A clip that
    cannot be used is replaced by a spare of the plan, so a batch never shrinks. A rank reads no clips but its own.

    Use it as a context manager, or exhaust or drop the iterator: each of these ends the thread.

    Attributes:
        dropped: every unusable clip met so far, in order; also logged.
        waited_seconds: how long the consumer has waited for batches so far.
    """

    def __init__(
        self,
        index: ClipIndex | Mixture,
        plan: Plan,
        model_config: ModelConfig,
        augmentation: AugmentationSettings,
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
    ) -> None:
        """
        Args:
            tokenizer: adds a start and an end token to a caption.
            seed: in [0, 2^64); keys the masks.
            prefetch: batches to build ahead; 0 builds each when it is asked for.
            max_consecutive_failures: more bad clips in a row than this end the iteration.
            pin_memory: page-lock the batches, on the current CUDA device, for asynchronous copies.

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
        plan.step(start_step, rank, world_size)
        self._index = index
        self._plan = plan
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
        self._failures_in_a_row = 0
        # Weak: an iterator that its user drops must end its thread.
        self._iterator: weakref.ref[Generator[tuple[int, Batch], None, None]] | None = None
        self.dropped: list[DroppedClip] = []
        self.waited_seconds = 0.0

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
        """End the iteration under way and its thread, after the batch that is being built."""
        iterator = self._iterator() if self._iterator is not None else None
        if iterator is not None:
            iterator.close()

    def _batches(self) -> Generator[tuple[int, Batch], None, None]:
        self._failures_in_a_row = 0
        # One thread: batches are built in order, and the decoder brings threads of its own.
        # The device is chosen per thread: one left at the default would open a context on device 0 to pin memory.
        initializer = partial(torch.cuda.set_device, torch.cuda.current_device()) if self._pin_memory else None
        pool = ThreadPoolExecutor(1, thread_name_prefix="loader", initializer=initializer)
        pending: deque[Future[Batch]] = deque()
        broken = False

        def build(step: int) -> Batch:
            nonlocal broken
            # Nothing is built, and no clip dropped, beyond the step at which the consumer will see the failure.
            if broken:
                raise CancelledError
            try:
                return self._build(step)
            except BaseException:
                broken = True
                raise

        try:
            ahead = iter(self._steps)
            for step in self._steps:
                for upcoming in ahead:
                    pending.append(pool.submit(build, upcoming))
                    if len(pending) > self._prefetch:
                        break
                began = time.perf_counter()
                batch = pending.popleft().result()
                self.waited_seconds += time.perf_counter() - began
                yield step, batch
                # Else the frame would keep it alive while the next one is awaited.
                del batch
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _build(self, step: int) -> Batch:
        clips = self._gather(step)
        captions = [clip.caption for clip in clips]
        token_ids = encode_captions(self._tokenizer, captions, self._model_config.text.max_length)
        loaded = [LoadedClip(clip.row, clip.waveform, ids) for clip, ids in zip(clips, token_ids, strict=True)]
        batch = collate(loaded, self._model_config, self._masks, step)
        self._index.release()
        return batch.pin_memory() if self._pin_memory else batch

    def _gather(self, step: int) -> list[_DecodedClip]:
        """The clips of this rank in `step`, each bad one replaced by the first of its spares that is good."""
        planned = self._plan.step(step, self._rank, self._world_size)
        gathered: dict[int, _DecodedClip] = {}
        spares: dict[int, Iterator[ClipRef]] = {}
        wanted = dict(enumerate(planned))
        while wanted:
            for position, clip in zip(wanted, self._load(list(wanted.values())), strict=True):
                if clip is not None:
                    gathered[position] = clip
            missing = [position for position in wanted if position not in gathered]
            wanted = {}
            for position in missing:
                if position not in spares:
                    spares[position] = self._plan.spares(step, planned[position].clip)
                spare = next(spares[position], None)
                if spare is None:
                    raise TooManyBadClips(f"no clip can replace a bad one in step {step}{self._last_reasons()}")
                wanted[position] = spare
        return [gathered[position] for position in range(len(planned))]

    def _load(self, refs: Sequence[ClipRef]) -> list[_DecodedClip | None]:
        """Each clip, or None where it is bad, which is recorded."""
        contents = [self._read(ref) for ref in refs]
        readable = [(item, content) for item, content in enumerate(contents) if isinstance(content, _Content)]
        decoded = self._decoder.decode(
            [content.audio for _, content in readable],
            [int(self._index.record(refs[item].clip)["samples"]) for item, _ in readable],
            [refs[item].crop for item, _ in readable],
        )
        outcomes: dict[int, _DecodedClip | DecodeFailure] = {
            item: content for item, content in enumerate(contents) if isinstance(content, DecodeFailure)
        }
        for (item, content), waveform in zip(readable, decoded, strict=True):
            if isinstance(waveform, Tensor):
                outcomes[item] = _DecodedClip(refs[item].clip, waveform, content.caption)
            else:
                outcomes[item] = waveform
        clips: list[_DecodedClip | None] = []
        for item, ref in enumerate(refs):
            outcome = outcomes[item]
            if isinstance(outcome, DecodeFailure):
                self._drop(ref, outcome.reason)
                clips.append(None)
            else:
                self._failures_in_a_row = 0
                clips.append(outcome)
        return clips

    def _read(self, ref: ClipRef) -> _Content | DecodeFailure:
        rate = int(self._index.record(ref.clip)["sample_rate"])
        # Before anything is read: the plan bounds a clip's duration, and with the rate that bounds its memory.
        if rate != self._decoder.sample_rate:
            return DecodeFailure(f"the index says {rate} Hz, not {self._decoder.sample_rate} Hz; {PREPARE}")
        try:
            captions = self._index.read_metadata(ref.clip)["captions"]
            audio = self._index.read_audio(ref.clip)
        except (DatasetError, OSError, RecursionError) as error:  # the last: JSON nested without end
            return DecodeFailure(str(error))
        if len(captions) <= ref.caption:
            return DecodeFailure(f"the clip has {len(captions)} captions, the index says at least {ref.caption + 1}")
        return _Content(audio, captions[ref.caption])

    def _drop(self, ref: ClipRef, reason: str) -> None:
        try:
            key = self._index.key(ref.clip)
        except (DatasetError, OSError):
            # Where the tar's own header is damaged, the row still names the clip.
            key = f"row {ref.clip}"
        shard = self._index.shard_name(ref.clip)
        self.dropped.append(DroppedClip(key, shard, reason))
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
