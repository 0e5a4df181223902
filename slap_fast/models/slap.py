"""SLAP in use: embeddings, captions, and how a model is saved and loaded."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, overload

import torch
from torch import Tensor, nn

from slap_fast.durable_files import open_to_readers, replace_file
from slap_fast.models import inference
from slap_fast.models.config import model_config_from_dict
from slap_fast.models.errors import ModelError
from slap_fast.models.inference import Audio
from slap_fast.models.network import SLAPNetwork


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
        from safetensors.torch import save_file

        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
        temporary = folder / ".model.safetensors.partial"
        try:
            save_file(weights, temporary)
            open_to_readers(temporary)
            os.replace(temporary, folder / "model.safetensors")
        finally:
            temporary.unlink(missing_ok=True)
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

        Raises:
            FileNotFoundError: `folder` lacks one of the files.
            ModelError: a file is malformed, or the weights are of another shape than the configuration says.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file
        from transformers import AutoConfig, AutoTokenizer

        folder = Path(folder)
        for name in ("config.json", "model.safetensors", "text_config/config.json"):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"{folder / name} is missing; {folder} is not a folder of SLAP.save_pretrained")
        try:
            config = model_config_from_dict(json.loads((folder / "config.json").read_text()))
            weights = load_file(folder / "model.safetensors")
        except (ValueError, SafetensorError) as error:
            raise ModelError(f"a file of the model in {folder} is damaged ({error}); copy it again") from error
        model = cls(
            config,
            load_pretrained_text=False,
            text_hf_config=AutoConfig.from_pretrained(folder / "text_config"),
        )
        _check_weights(model, weights, folder / "model.safetensors")
        model.load_state_dict(weights)
        if (folder / "tokenizer").is_dir():
            model.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        return model.to(device).eval()


def _check_weights(model: nn.Module, weights: dict[str, Tensor], path: Path) -> None:
    expected = model.state_dict()
    for name in sorted(expected.keys() | weights.keys()):
        if name not in weights:
            raise ModelError(f"{path} lacks {name}; the weights do not belong to the config.json beside them")
        if name not in expected:
            raise ModelError(f"{path} holds {name}, which the model of the config.json beside it does not have")
        if weights[name].shape != expected[name].shape:
            raise ModelError(
                f"{name} has shape {tuple(weights[name].shape)} in {path}, but {tuple(expected[name].shape)} by the "
                "config.json beside it"
            )
