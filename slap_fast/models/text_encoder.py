"""Text tower: a Hugging Face encoder over packed captions, with `varlen_attention` as its attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from slap_fast.config.model import TextEncoderConfig
from slap_fast.config.saved_files import reject_code
from slap_fast.errors import ModelError, one_line
from slap_fast.integrations import transformers_attention
from slap_fast.models.layers import Linear, initial_std
from slap_fast.ops.packed import PackedLayout

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel


class TextEncoder(nn.Module):
    """Wraps a transformers encoder that takes `input_ids`, `position_ids` and the packed-sequence arguments."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self.width: int = model.config.hidden_size
        self.vocab_size: int = model.config.vocab_size

    def forward(self, input_ids: Tensor, layout: PackedLayout) -> Tensor:
        """`[L]` int64 token ids of packed captions to `[L, width]` features."""
        offsets = layout.cu_seqlens.long()
        positions = torch.arange(layout.total, device=input_ids.device) - offsets[layout.segment_ids()]
        output = self.model(
            input_ids=input_ids.unsqueeze(0),
            position_ids=positions.unsqueeze(0),
            cu_seq_lens_q=layout.cu_seqlens,
            cu_seq_lens_k=layout.cu_seqlens,
            max_length_q=layout.max_seqlen,
            max_length_k=layout.max_seqlen,
        )
        return output.last_hidden_state[0]


def build_text_model(config: TextEncoderConfig, *, load_pretrained: bool, hf_config: Any = None) -> PreTrainedModel:
    """Build the transformers model of the text tower, with the linear layers of the other towers.

    Args:
        config: the name or folder of a pretrained model, or the dimensions of a ModernBERT to train from scratch.
        load_pretrained: load the weights of `config.pretrained`; False builds the architecture alone.
        hf_config: transformers configuration to build instead, as stored in a model folder.

    Raises:
        ModelError: the pretrained model cannot be loaded, or its width is not `config.width`.
    """
    from transformers import AutoModel, ModernBertConfig

    implementation = transformers_attention.register()
    if hf_config is None and config.pretrained is not None and load_pretrained:
        model = _load_pretrained(config.pretrained, implementation)
        if (width := getattr(model.config, "hidden_size", None)) != config.width:
            raise ModelError(f"model.text.width is {config.width}, but {config.pretrained!r} has width {width}")
        return _with_our_products(model)
    if hf_config is None:
        hf_config = ModernBertConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.width,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.mlp_width,
            initializer_range=initial_std(config.width),
            # The defaults are ids of ModernBERT's own tokenizer; nn.Embedding requires padding_idx < vocab_size.
            pad_token_id=0,
            bos_token_id=None,
            eos_token_id=None,
            cls_token_id=None,
            sep_token_id=None,
        )
    model = AutoModel.from_config(
        hf_config, attn_implementation=implementation, dtype=torch.float32, trust_remote_code=False
    )
    return _with_our_products(model)


def _with_our_products(model: PreTrainedModel) -> PreTrainedModel:
    """Makes the layers that are plain `nn.Linear` multiply by the op `linear`, as those of the audio tower do.

    Each remains the same module with the same parameters, so names of weights, hooks, and what looks for `nn.Linear`
    (adapters, initialization) are not affected. Subclasses have products of their own and are left alone.
    """
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear
    return model


def vocabulary_size(config: TextEncoderConfig, *, from_pretrained: bool) -> int:
    """Rows of the text tower's embedding, without building the tower.

    Args:
        from_pretrained: read it from the configuration of `config.pretrained`, if there is one.

    Raises:
        ModelError: the configuration cannot be read, or has no vocabulary.
    """
    if not from_pretrained or config.pretrained is None:
        return config.vocab_size
    try:
        size = getattr(read_pretrained_config(config.pretrained), "vocab_size", None)
    except OSError as error:
        raise ModelError(_not_found(config.pretrained, error)) from error
    if not isinstance(size, int) or size < 1:
        raise ModelError(
            f"model.text.pretrained is {config.pretrained!r}, whose config.json has the vocab_size {size!r}; choose "
            "another model"
        )
    return size


def _load_pretrained(name_or_folder: str, implementation: str) -> PreTrainedModel:
    from transformers import AutoModel

    try:
        model, found = AutoModel.from_pretrained(
            name_or_folder,
            attn_implementation=implementation,
            dtype=torch.float32,
            trust_remote_code=False,
            output_loading_info=True,
            **_no_dropout(read_pretrained_config(name_or_folder)),
        )
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(_not_found(name_or_folder, error)) from error
    except Exception as error:  # Transformers models and weight formats raise errors of many types.
        raise ModelError(
            f"model.text.pretrained is {name_or_folder!r}, which this version of transformers cannot load "
            f"({one_line(error)})"
        ) from error
    # Checkpoints of masked language models lack the pooler, which is not used here.
    if missing := sorted(name for name in found["missing_keys"] if not name.startswith("pooler.")):
        raise ModelError(
            f"model.text.pretrained is {name_or_folder!r}, whose weights lack {len(missing)} tensors of the encoder "
            f"that its config.json describes, such as {missing[0]}; they would be random. Download it again, or "
            "choose another model"
        )
    return model


def read_pretrained_config(name_or_folder: str) -> PreTrainedConfig:
    """Read the transformers configuration of a pretrained model, without running code that it names.

    Raises:
        ModelError: it names code, or this version of transformers does not support the model.
        OSError: it does not exist.
    """
    from transformers import AutoConfig, PreTrainedConfig

    values, _ = PreTrainedConfig.get_config_dict(name_or_folder)
    reject_code(values.items(), f"{name_or_folder}/config.json")
    try:
        return AutoConfig.from_pretrained(name_or_folder, trust_remote_code=False)
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"model.text.pretrained is {name_or_folder!r}, which this version of transformers cannot load "
            f"({one_line(error)})"
        ) from error


def _not_found(name_or_folder: str, error: OSError) -> str:
    return (
        f"model.text.pretrained is {name_or_folder!r}, which is neither a local folder nor a model that the hub "
        f"provides ({error}); download it first and give its folder, or set model.text.pretrained=null to train the "
        "text encoder from scratch"
    )


def _no_dropout(hf_config: Any) -> dict[str, float]:
    """Zero for each dropout that the configuration has: packed attention supports none."""
    names = (
        "attention_probs_dropout_prob",
        "hidden_dropout_prob",
        "attention_dropout",
        "mlp_dropout",
        "embedding_dropout",
    )
    return {name: 0.0 for name in names if hasattr(hf_config, name)}
