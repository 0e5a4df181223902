"""`SlapModel`: SLAP as a model of Hugging Face transformers, with the methods and outputs of `ClapModel`."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from slap_fast.errors import ModelError
from slap_fast.models.encoding import embed_token_ids, embed_waveforms
from slap_fast.models.hub import model_folder
from slap_fast.models.hugging_face.configuration import SlapConfig
from slap_fast.models.saving import save_model
from slap_fast.models.slap import SLAP
from slap_fast.ops.contrastive import contrastive_loss

# Arguments of `from_pretrained` that change nothing here: no code is ever run, and weights are one safetensors file.
_WITHOUT_EFFECT = {"trust_remote_code", "use_safetensors", "low_cpu_mem_usage", "_from_auto", "_from_pipeline"}


@dataclass
class SlapOutput(ModelOutput):
    """The output of `SlapModel`, with the names of `ClapOutput`.

    Attributes:
        loss: `[]` float32, with `return_loss`.
        logits_per_audio: `[N, M]`, the cosine similarities times the logit scale.
        logits_per_text: `[M, N]`, its transpose.
        text_embeds: `[M, D]` float32, unit length.
        audio_embeds: `[N, D]` float32, unit length.
    """

    loss: Tensor | None = None
    logits_per_audio: Tensor | None = None
    logits_per_text: Tensor | None = None
    text_embeds: Tensor | None = None
    audio_embeds: Tensor | None = None


class SlapModel(PreTrainedModel):
    """`model.slap` is the `SLAP` that does the work, with captions and dense embeddings.

    `SlapModel(config)` has random weights; `SlapModel.from_pretrained` loads what `SLAP.save_pretrained`,
    `SlapModel.save_pretrained` or training wrote.

    Raises:
        ModelError: `config` has a pretrained text tower, which it does not describe.
    """

    config_class = SlapConfig
    base_model_prefix = "slap"
    main_input_name = "input_values"

    def __init__(self, config: SlapConfig, slap: SLAP | None = None) -> None:
        super().__init__(config)
        if slap is None:
            objectives, settings = config.settings()
            if settings.text.pretrained is not None and "contrastive" in objectives:
                raise ModelError(
                    f"SlapModel(config): the text tower is {settings.text.pretrained!r}, which SlapConfig does not "
                    "describe; load a model by from_pretrained, or set text['pretrained'] to None for a new tower"
                )
            slap = SLAP(settings, objectives=objectives)
        self.slap = slap

    def _init_weights(self, module: torch.nn.Module) -> None:
        """SLAP initializes its own weights."""

    @classmethod
    def from_pretrained(  # type: ignore[override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike,
        *,
        config: SlapConfig | None = None,
        revision: str | None = None,
        token: str | None = None,
        dtype: torch.dtype | str | None = None,
        torch_dtype: torch.dtype | str | None = None,
        device_map: Any = None,
        **others: Any,
    ) -> SlapModel:
        """Load a folder or a model of the hub, in eval mode. No code of it is run, whatever `trust_remote_code` is.

        Args:
            config: must be that of the model.
            revision, token: as in `SLAP.from_pretrained`.
            dtype: of the weights; None and "auto": float32, as they are stored. `torch_dtype` is its former name.
            device_map: None, or one device.

        Raises:
            ModelError: as `SLAP.from_pretrained`, or an argument cannot be honored.
        """
        name = pretrained_model_name_or_path
        if unknown := {key: value for key, value in others.items() if key not in _WITHOUT_EFFECT and value}:
            raise ModelError(f"SlapModel.from_pretrained does not take {', '.join(unknown)}; leave them out")
        folder = model_folder(name, revision=None if os.path.isdir(name) else revision, token=token)
        slap = SLAP.from_pretrained(folder)
        own = SlapConfig(**dataclasses.asdict(slap.config), objectives=list(slap.objectives))
        own.name_or_path = str(name)
        if config is not None and config.settings() != own.settings():
            raise ModelError(f"{name}: config differs from the config.json of the model; leave config out")
        model = cls(own, slap)
        if (wanted := dtype if dtype is not None else torch_dtype) not in (None, "auto"):
            model.slap.to(dtype=getattr(torch, wanted) if isinstance(wanted, str) else wanted)
        if (device := _single_device(device_map)) is not None:
            model.slap.to(device=device)
        return model.eval()

    def save_pretrained(  # type: ignore[override]
        self,
        save_directory: str | os.PathLike,
        is_main_process: bool = True,
        state_dict: Mapping[str, Tensor] | None = None,
        push_to_hub: bool = False,
        **others: Any,
    ) -> None:
        """Write the folder that `SLAP.save_pretrained` writes, in float32.

        Args:
            is_main_process: False writes nothing.
            state_dict: weights by name to write instead of the model's own.
            push_to_hub: not supported; call `push_to_hub`.

        Raises:
            ModelError: an argument cannot be honored.
            OSError: a file cannot be written.
        """
        if push_to_hub or (unknown := [key for key, value in others.items() if value and key != "safe_serialization"]):
            raise ModelError(
                f"SlapModel.save_pretrained does not take {'push_to_hub' if push_to_hub else ', '.join(unknown)}"
            )
        if is_main_process:
            weights = None if state_dict is None else {k.removeprefix("slap."): v for k, v in state_dict.items()}
            save_model(self.slap, save_directory, weights)

    def push_to_hub(self, repo_id: str, **options: Any) -> str:  # type: ignore[override]
        """See `SLAP.push_to_hub`."""
        return self.slap.push_to_hub(repo_id, **options)

    def get_audio_features(
        self, input_values: Tensor, input_lengths: Tensor | None = None, return_dict: bool | None = None, **others: Any
    ) -> BaseModelOutputWithPooling | tuple[Tensor]:
        """Embeddings of clips, as `SLAP.encode_audio` gives them, with gradients unless they are disabled.

        Args:
            input_values: `[N, S]` samples in [-1, 1] at the model's rate, as `SlapFeatureExtractor` gives them.
            input_lengths: `[N]` samples of each clip before its padding; None: all S.
            return_dict: False returns a tuple.

        Returns:
            `pooler_output` `[N, D]` float32, unit length.

        Raises:
            ValueError: a shape is wrong or a length is not in [1, S].
            ModelError: the model was trained without the contrastive objective.
        """
        _reject(others)
        return _features(self._embed_audio(input_values, input_lengths), return_dict)

    def get_text_features(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> BaseModelOutputWithPooling | tuple[Tensor]:
        """Embeddings of texts, as `SLAP.encode_text` gives them, with gradients unless they are disabled.

        Args:
            input_ids: `[M, L]` token ids.
            attention_mask: `[M, L]`, 0 for padding on either side; None: no padding.
            return_dict: False returns a tuple.

        Returns:
            `pooler_output` `[M, D]` float32, unit length.

        Raises:
            ValueError: a shape is wrong, or a text is empty or has more than `config.text["max_length"]` tokens.
            ModelError: the model was trained without the contrastive objective.
        """
        _reject(others)
        return _features(self._embed_text(input_ids, attention_mask), return_dict)

    def forward(
        self,
        input_ids: Tensor,
        input_values: Tensor,
        attention_mask: Tensor | None = None,
        input_lengths: Tensor | None = None,
        return_loss: bool | None = None,
        return_dict: bool | None = None,
        **others: Any,
    ) -> SlapOutput | tuple[Any, ...]:
        """Similarities of all clips and all texts. `return_loss` adds the contrastive loss of pairs in order.

        Args as in `get_audio_features` and `get_text_features`.

        Raises:
            ValueError: as there, or `return_loss` with unequal numbers of clips and texts.
            ModelError: as there.
        """
        _reject(others)
        self.slap.require("logit_scale")
        audio = self._embed_audio(input_values, input_lengths)
        text = self._embed_text(input_ids, attention_mask)
        scale = self.slap.logit_scale()
        loss = contrastive_loss(audio, text, scale).loss if return_loss else None
        logits = scale * audio @ text.T
        output = SlapOutput(loss, logits, logits.T, text, audio)
        return output.to_tuple() if return_dict is False else output

    def _embed_audio(self, input_values: Tensor, input_lengths: Tensor | None) -> Tensor:
        self.slap.require("audio_pooling")
        return embed_waveforms(self.slap, _unpad(input_values, input_lengths))

    def _embed_text(self, input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
        self.slap.require("text_encoder")
        return embed_token_ids(self.slap, _token_lists(input_ids, attention_mask, self.slap.config.text.max_length))


def _features(pooled: Tensor, return_dict: bool | None) -> BaseModelOutputWithPooling | tuple[Tensor]:
    return (pooled,) if return_dict is False else BaseModelOutputWithPooling(pooler_output=pooled)


def _reject(others: Mapping[str, Any]) -> None:
    """Arguments of ClapModel that SLAP does not have: outputs of layers, and inputs of other models."""
    if given := [name for name, value in others.items() if value is not None and value is not False]:
        raise ValueError(f"SlapModel does not take {', '.join(given)}; its inputs are those of SlapProcessor")


def _unpad(input_values: Tensor, input_lengths: Tensor | None) -> list[Tensor]:
    if input_values.dim() != 2:
        raise ValueError(f"input_values has shape {tuple(input_values.shape)}; it must be [clips, samples]")
    count, size = input_values.shape
    lengths = [size] * count if input_lengths is None else input_lengths.tolist()
    if len(lengths) != count or not all(1 <= length <= size for length in lengths):
        raise ValueError(f"input_lengths is {lengths}; it must have {count} lengths from 1 to {size}")
    return [clip[:length].float() for clip, length in zip(input_values, lengths, strict=True)]


def _token_lists(input_ids: Tensor, attention_mask: Tensor | None, max_length: int) -> list[list[int]]:
    if input_ids.dim() != 2 or (attention_mask is not None and attention_mask.shape != input_ids.shape):
        shape = None if attention_mask is None else tuple(attention_mask.shape)
        raise ValueError(
            f"input_ids has shape {tuple(input_ids.shape)} and attention_mask {shape}; both must be [texts, tokens]"
        )
    rows = input_ids.tolist()
    if attention_mask is not None:
        masks = attention_mask.tolist()
        rows = [[i for i, m in zip(ids, mask, strict=True) if m] for ids, mask in zip(rows, masks, strict=True)]
    for row, ids in enumerate(rows):
        if not 1 <= len(ids) <= max_length:
            raise ValueError(
                f"text {row} has {len(ids)} tokens; this model takes 1 to {max_length}: tokenize with truncation=True, "
                f"max_length={max_length}"
            )
    return rows


def _single_device(device_map: Any) -> Any:
    if isinstance(device_map, Mapping):
        if list(device_map) != [""]:
            raise ModelError(f"device_map is {dict(device_map)!r}; SlapModel runs on one device")
        return device_map[""]
    if device_map == "auto":
        return "cuda" if torch.cuda.is_available() else None
    return device_map
