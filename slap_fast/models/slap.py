"""SLAP in use: embeddings, captions, and how a model is saved and loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from slap_fast.config.model import model_config_from_dict
from slap_fast.config.saved_files import (
    largest_id,
    read_object,
    read_text_config,
    read_tokenizer,
    save_tokenizer,
    words,
)
from slap_fast.errors import ModelError
from slap_fast.models import encoding as inference
from slap_fast.models.call_arguments import Audio, only_clip
from slap_fast.models.encoding import Embeddings, PackedBatch
from slap_fast.models.saved_weights import read_weights
from slap_fast.models.slap_network import SLAPNetwork
from slap_fast.ops.packed import PackedLayout
from slap_fast.runtime.durable_files import replace_file, replace_whole, save_safetensors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SLAP(SLAPNetwork):
    """The model that is trained, saved and used: audio of any duration and text in one embedding space."""

    def forward(
        self,
        audio: PackedBatch | Audio | Iterable[Audio] | None,
        texts: str | Iterable[str] | None = None,
        *,
        sampling_rate: float | None = None,
    ) -> Embeddings:
        """Embeddings with gradients, to train on by a loss of your own: `contrastive_loss(*model(audio, texts))`.

        Clips and texts are packed into one batch each, on the device of the model. The caption decoder and the mask
        token take no part: wrap the model as `DistributedDataParallel(model, find_unused_parameters=True)`.

        Args:
            audio: as `encode_audio` takes it (samples that require a gradient get theirs); or a `Batch` of
                `slap_fast.data`, alone, with its SpecAugment masks and its captions; None: no clips.
            texts: as `encode_text` takes it; None: no texts.
            sampling_rate: as in `encode_audio`.

        Raises:
            ValueError: as `encode_audio` and `encode_text`.
            AudioError: a file that cannot be read, by its index and path.
        """
        if isinstance(audio, PackedBatch):
            if texts is not None or sampling_rate is not None:
                raise ValueError("a Batch has its own captions and sample rate; pass it alone")
            return inference.embed_batch(self, audio)
        return inference.embed(self, audio, texts, sampling_rate=sampling_rate)

    @overload
    def encode_audio(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        dense: Literal[False] = False,
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> Tensor: ...

    @overload
    def encode_audio(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        dense: Literal[True],
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> list[Tensor]: ...

    def encode_audio(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        dense: bool = False,
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> Tensor | list[Tensor]:
        """Embed clips of any duration.

        On a CPU every clip runs by itself, so its embedding is bitwise the same in whatever company it comes. On a GPU
        clips are packed up to `batch_seconds`, and the company moves an embedding by no more than rounding.

        Args:
            audio: one clip or several (a list, or anything else in order). A clip is

                - the path of an audio file, its bytes, or an open binary file;
                - samples: `[S]`, `[1, S]` or `[S, 1]`, floats in [-1, 1] or int16;
                - samples with their rate, as a pair `(samples, Hz)` or a dict with `array` and `sampling_rate`; these
                  may be `[channels, S]` or `[S, channels]`, with at most 8 channels. A dict may have `bytes` or
                  `path` instead, and torchcodec's `AudioDecoder` is taken too, as `datasets` gives them.

                Channels are mixed by their mean, other rates are resampled (soxr, HQ).
            sampling_rate: Hz, of samples that come without their rate. Left out, they are taken to be at the model's
                (`config.mel.sample_rate`), which a warning says once.
            dense: embed every column of patches (160 ms for the paper's model) instead of the whole clip.
            batch_seconds: audio to hold in a pack on a GPU.
            progress: show a progress bar.

        Returns:
            `[N, D]` float32 embeddings of unit length on the CPU, `[1, D]` of a single clip; with `dense` a list of
            `[columns, D]`, each column pooled together with its neighbors and comparable with a text embedding. They
            have no gradient, but may be trained on; `forward` gives those with gradients.

        Raises:
            ValueError: what is no clip, or could be read in more ways than one; samples that are not finite, or at the
                scale of integers; by its index.
            AudioError: a file that cannot be read, by its index and path.
        """
        embed = inference.encode_columns if dense else inference.encode_clips
        return embed(self, audio, sampling_rate=sampling_rate, batch_seconds=batch_seconds, progress=progress)

    def encode_text(self, texts: str | Iterable[str], *, batch_size: int = 256, progress: bool = False) -> Tensor:
        """`[N, D]` float32 embeddings of unit length on the CPU, `[1, D]` of a single string.

        Texts of more than `config.text.max_length` tokens are cut, which a logged warning counts.

        Raises:
            ValueError: the model carries no tokenizer, or an entry is not a string.
        """
        return inference.encode_text(self, texts, batch_size=batch_size, progress=progress)

    def caption(
        self,
        audio: Audio | Iterable[Audio],
        *,
        sampling_rate: float | None = None,
        max_length: int = 64,
        progress: bool = False,
    ) -> list[str]:
        """Describe clips in words, by greedy decoding of at most `max_length` tokens: a list, also of a single clip.

        Audio is taken, and refused, as by `encode_audio`.
        """
        return inference.caption(self, audio, sampling_rate=sampling_rate, max_length=max_length, progress=progress)

    def similarity_over_time(
        self, audio: Audio, text: str, *, sampling_rate: float | None = None
    ) -> tuple[Tensor, Tensor]:
        """Where in a clip a text fits: `[columns]` times in seconds (centers) and `[columns]` cosine similarities.

        Both are float32 on the CPU. The clip is taken as by `encode_audio`.
        """
        if not isinstance(text, str):
            raise ValueError(f"text is a {type(text).__name__}; pass one string")
        (columns,) = self.encode_audio([only_clip(audio)], sampling_rate=sampling_rate, dense=True)
        mel = self.config.mel
        seconds = self.config.audio.patch_frames * mel.hop_length / mel.sample_rate
        times = (torch.arange(columns.shape[0], dtype=torch.float32, device="cpu") + 0.5) * seconds
        return times, columns @ self.encode_text(text)[0]

    def save_pretrained(self, folder: str | os.PathLike) -> None:
        """Write `config.json`, `model.safetensors`, `text_config/` and `tokenizer/` into `folder`.

        Files are replaced whole: an interrupted save leaves the earlier ones as they were.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        replace_whole(folder / "model.safetensors", lambda path: save_safetensors(path, weights))
        self.save_description(folder)

    def save_description(self, folder: str | os.PathLike) -> None:
        """What `save_pretrained` writes but the weights.

        Raises:
            OSError: a file cannot be written.
        """
        folder = Path(folder)
        self.text_encoder.model.config.save_pretrained(folder / "text_config")
        if self.tokenizer is not None:
            save_tokenizer(self.tokenizer, folder / "tokenizer")
        config = json.dumps(dataclasses.asdict(self.config), indent=2) + "\n"
        replace_file(folder / "config.json", [config.encode("utf-8")])

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike, *, device: torch.device | str = "cpu") -> SLAP:
        """Load what `save_pretrained` wrote, ready for use.

        The folder is data: no code that lies in it, or that it names, is run.

        Raises:
            FileNotFoundError: `folder` lacks one of the files.
            ModelError: a file is malformed or names code, or the weights are not finite, or of another shape than the
                configuration says.
        """
        from transformers.initialization import no_init_weights

        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "text_config/config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; {folder} is not a folder of SLAP.save_pretrained")
        path = folder / "config.json"
        values = read_object(path)
        try:
            config = model_config_from_dict(values)
        except ValueError as error:
            raise ModelError(f"{path}: is damaged: {error}; copy it again") from error
        text_config = read_text_config(folder / "text_config" / "config.json")
        tokenizer = read_tokenizer(folder / "tokenizer") if (folder / "tokenizer").is_dir() else None
        try:
            # Without memory for the weights: the sizes are not believed before they fit the file with the weights.
            with torch.device("meta"):
                expected = cls(config, load_pretrained_text=False, text_hf_config=copy.deepcopy(text_config))
        except ModelError:
            raise
        except Exception as error:  # Each of transformers' models refuses bad sizes in its own way.
            raise ModelError(
                f"{folder}: no model can be built of config.json and text_config/ ({words(error)})"
            ) from error
        weights = read_weights(folder / "model.safetensors", expected.state_dict())
        _check_vocabulary(tokenizer, expected, folder)
        # Drawing weights that are overwritten would take most of the time. They are float32, whatever torch's default.
        with no_init_weights():
            model = cls(config, load_pretrained_text=False, text_hf_config=text_config).float()
        model.load_state_dict(weights)
        model.tokenizer = tokenizer
        _try_out(model.eval(), folder)
        return model.to(device)


def _check_vocabulary(tokenizer: PreTrainedTokenizerBase | None, model: SLAP, folder: Path) -> None:
    """What the text tower would look up beyond its end."""
    if tokenizer is not None and (largest := largest_id(tokenizer)) >= model.text_encoder.vocab_size:
        raise ModelError(
            f"{folder / 'tokenizer'}: it has a token of id {largest}, but the model knows "
            f"{model.text_encoder.vocab_size}; the tokenizer is of another model"
        )
    positions = getattr(model.text_encoder.model.config, "max_position_embeddings", None)
    if isinstance(positions, int) and positions < model.config.text.max_length:
        raise ModelError(
            f"{folder}: text.max_length is {model.config.text.max_length} in config.json, but the text encoder has "
            f"{positions} positions"
        )


@torch.inference_mode()
def _try_out(model: SLAP, folder: Path) -> None:
    """Run the text tower on next to nothing: much of what its configuration says shows only when it is used."""
    ids = [0, 1] if model.tokenizer is None else model.tokenizer("a b")["input_ids"]
    layout = PackedLayout.from_lengths([len(ids)])
    try:
        features = model.text_encoder(torch.tensor(ids), layout)
    except Exception as error:  # Each of transformers' models fails in its own way.
        raise ModelError(
            f"{folder}: the text tower that text_config/config.json describes does not run ({words(error)})"
        ) from error
    if not bool(features.isfinite().all()):
        raise ModelError(
            f"{folder}: the text tower's output is not finite: a file of the folder is damaged; copy it again"
        )
