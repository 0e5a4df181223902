"""Text tokenizer: loads one by folder or hub name, or trains a byte-level BPE on captions."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from slap_fast.config.saved_files import TOKENIZER_FILES, read_tokenizer, save_tokenizer
from slap_fast.errors import ModelError, SlapFastError, one_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_MIN_VOCAB = 256 + len(SPECIAL_TOKENS)  # every byte, so that no text is unknown
_BATCH_SIZE = 1024


class TokenizerError(SlapFastError, ValueError):
    """A tokenizer cannot be trained, loaded or used."""


def train_tokenizer(
    captions: Iterable[str], vocab_size: int, out: str | os.PathLike[str] | None = None
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE tokenizer: NFC, cased, no unknown tokens, adds `[CLS]` and `[SEP]`. Deterministic.

    Args:
        captions: training text, streamed.
        vocab_size: maximum number of tokens, including 256 bytes and 5 special tokens; scarce text gives fewer.
        out: folder to save to, for `load_tokenizer`.

    Raises:
        ValueError: `vocab_size` is below 261, or `captions` is a string instead of a list.
        TokenizerError: there is no text.
        OSError: `out` cannot be written.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    _refuse_one_string(captions)
    if vocab_size < _MIN_VOCAB:
        raise ValueError(f"vocab_size is {vocab_size}; 256 bytes and 5 special tokens need at least {_MIN_VOCAB}")
    tokenizer = Tokenizer(models.BPE(unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
    )
    batches = _CaptionBatches(captions)
    tokenizer.train_from_iterator(batches, trainer=trainer)
    if not batches.has_text:
        raise TokenizerError("there is no caption to train a tokenizer on")
    start, end = tokenizer.token_to_id("[CLS]"), tokenizer.token_to_id("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", start), ("[SEP]", end)]
    )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        clean_up_tokenization_spaces=False,
        model_input_names=["input_ids", "attention_mask"],
    )
    if out is not None:
        save_tokenizer(wrapped, Path(out))
    return wrapped


def load_tokenizer(name_or_folder: str | os.PathLike[str]) -> PreTrainedTokenizerBase:
    """Loads a tokenizer from a folder (`tokenizer/` of a dataset, a saved model) or by name from the Hugging Face hub.

    Only `tokenizer.json` and its settings are read; no code in the folder or on the hub is executed.

    Raises:
        TokenizerError: there is no tokenizer, it cannot be read, or it lacks a padding, start or end token.
    """
    name = os.fspath(name_or_folder)
    try:
        tokenizer = read_tokenizer(name if Path(name).is_dir() else _downloaded(name))
    except ModelError as error:
        raise TokenizerError(f"no tokenizer can be loaded from {name!r}: {error}") from error
    for role in ("pad", "cls", "sep"):
        if getattr(tokenizer, f"{role}_token_id") is None:
            raise TokenizerError(f"the tokenizer {name!r} has no {role} token, which SLAP needs")
    return tokenizer


def _downloaded(name: str) -> Path:
    """Downloads the tokenizer files of a model from the Hugging Face hub; returns their folder."""
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, allow_patterns=list(TOKENIZER_FILES)))
    except Exception as error:  # A wrong name, no network and a missing model raise unrelated types.
        raise TokenizerError(
            f"no tokenizer can be loaded from {name!r} ({type(error).__name__}: {one_line(error)}): give a folder "
            "with a tokenizer.json, or a model name if the Hugging Face hub can be reached"
        ) from error


def _refuse_one_string(captions: object) -> None:
    if isinstance(captions, str):
        raise ValueError(f"captions is one string, {captions[:40]!r}; pass a list of captions")


def encode_captions(tokenizer: PreTrainedTokenizerBase, captions: Sequence[str], max_length: int) -> list[list[int]]:
    """Token ids of each caption, unpadded, truncated to `max_length` with the start and end tokens kept."""
    _refuse_one_string(captions)
    if max_length < 3:
        raise ValueError(f"max_length is {max_length}; a start token, a word and an end token need at least 3")
    encoded = tokenizer(
        list(captions),
        truncation=True,
        max_length=max_length,
        padding=False,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoded["input_ids"]


class _CaptionBatches:
    """Batches captions for the trainer and records whether there was any text."""

    def __init__(self, captions: Iterable[str]) -> None:
        self._captions = captions
        self.has_text = False

    def __iter__(self) -> Iterator[list[str]]:
        batch: list[str] = []
        for caption in self._captions:
            self.has_text = self.has_text or bool(caption.strip())
            batch.append(caption)
            if len(batch) == _BATCH_SIZE:
                yield batch
                batch = []
        yield batch
