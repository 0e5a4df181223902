"""SLAP in use: embeddings, captions, and how a model is saved and loaded."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

from slap_fast.durable_files import replace_file, replace_whole, save_safetensors
from slap_fast.models import inference
from slap_fast.models.config import model_config_from_dict
from slap_fast.models.errors import ModelError
from slap_fast.models.inference import Audio
from slap_fast.models.network import SLAPNetwork
from slap_fast.models.saved_files import largest_id, read_object, read_text_config, read_tokenizer, words
from slap_fast.models.saved_weights import read_weights
from slap_fast.ops.packing import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class SLAP(SLAPNetwork):
    """The model that is trained, saved and used: audio of any duration and text in one embedding space."""

    @overload
    def encode_audio(
        self,
        audio: Sequence[Audio],
        *,
        dense: Literal[False] = False,
        batch_seconds: float = 600.0,
        progress: bool = False,
    ) -> Tensor: ...

    @overload
    def encode_audio(
        self, audio: Sequence[Audio], *, dense: Literal[True], batch_seconds: float = 600.0, progress: bool = False
    ) -> list[Tensor]: ...

    def encode_audio(
        self, audio: Sequence[Audio], *, dense: bool = False, batch_seconds: float = 600.0, progress: bool = False
    ) -> Tensor | list[Tensor]:
        """Embed clips of any duration.

        On a CPU every clip runs by itself, so its embedding is bitwise the same in whatever company it comes. On a GPU
        clips are packed up to `batch_seconds`, and the company moves an embedding by no more than rounding.

        Args:
            audio: 1-D float waveforms in [-1, 1] (or int16) at the model's sample rate, or paths of audio files, which
                are mixed to mono and resampled.
            dense: embed every column of patches (160 ms for the paper's model) instead of the whole clip.
            batch_seconds: audio to hold in a pack on a GPU.
            progress: show a progress bar.

        Returns:
            `[N, D]` float32 embeddings of unit length on the CPU; with `dense` a list of `[columns, D]`, each column
            pooled together with its neighbours and comparable with a text embedding.

        Raises:
            ValueError: a waveform that is empty, not 1-D, or not finite, by its index.
            AudioError: a file that cannot be read, by its path.
        """
        embed = inference.encode_columns if dense else inference.encode_clips
        return embed(self, audio, batch_seconds=batch_seconds, progress=progress)

    def encode_text(self, texts: Sequence[str], *, batch_size: int = 256, progress: bool = False) -> Tensor:
        """`[N, D]` float32 embeddings of unit length on the CPU.

        Raises:
            ValueError: the model carries no tokenizer, or an entry is not a string.
        """
        return inference.encode_text(self, texts, batch_size=batch_size, progress=progress)

    def caption(self, audio: Sequence[Audio], *, max_length: int = 64, progress: bool = False) -> list[str]:
        """Describe clips in words, by greedy decoding of at most `max_length` tokens."""
        return inference.caption(self, audio, max_length=max_length, progress=progress)

    def similarity_over_time(self, audio: Audio, text: str) -> tuple[Tensor, Tensor]:
        """Where in a clip a text fits: `[columns]` times in seconds (centres) and `[columns]` cosine similarities."""
        (columns,) = self.encode_audio([audio], dense=True)
        mel = self.config.mel
        seconds = self.config.audio.patch_frames * mel.hop_length / mel.sample_rate
        times = (torch.arange(columns.shape[0]) + 0.5) * seconds
        return times, columns @ self.encode_text([text])[0]

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
        """What `save_pretrained` writes but the weights."""
        folder = Path(folder)
        self.text_encoder.model.config.save_pretrained(folder / "text_config")
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder / "tokenizer")
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
        model = cls(config, load_pretrained_text=False, text_hf_config=text_config)
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
