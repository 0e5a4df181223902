"""`SlapConfig`: the config.json of a SLAP model as a configuration of Hugging Face transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

if TYPE_CHECKING:
    from slap_fast.config.model import ModelConfig

_KEYS = (
    "mel",
    "audio",
    "text",
    "caption",
    "prototype",
    "logit_scale_init",
    "logit_scale_max",
    "max_duration",
    "objectives",
)


class SlapConfig(PreTrainedConfig):
    """The keys of `ModelConfig`, and `objectives`; those that are left out have the values of the paper.

    Args:
        mel, audio, text, caption, prototype: sections of `ModelConfig`, as mappings.
        logit_scale_init, logit_scale_max, max_duration: of `ModelConfig`.
        objectives: for which the model is trained; see `SLAP`.
        others: of `PreTrainedConfig`.
    """

    model_type = "slap"

    def __init__(
        self,
        mel: dict[str, Any] | None = None,
        audio: dict[str, Any] | None = None,
        text: dict[str, Any] | None = None,
        caption: dict[str, Any] | None = None,
        prototype: dict[str, Any] | None = None,
        logit_scale_init: float | None = None,
        logit_scale_max: float | None = None,
        max_duration: float | None = None,
        objectives: list[str] | None = None,
        **others: Any,
    ) -> None:
        from slap_fast.models.hugging_face.registration import register_classes

        self.mel, self.audio, self.text, self.caption, self.prototype = mel, audio, text, caption, prototype
        self.logit_scale_init, self.logit_scale_max = logit_scale_init, logit_scale_max
        self.max_duration, self.objectives = max_duration, objectives
        super().__init__(**others)
        register_classes()

    @property
    def hidden_size(self) -> int:
        """Width of the embeddings."""
        return self.settings()[1].audio.width

    def settings(self) -> tuple[tuple[str, ...], ModelConfig]:
        """The objectives and the configuration of `SLAP`.

        Raises:
            ModelError: a key is unknown, of the wrong type or out of range.
        """
        from slap_fast.errors import ModelError
        from slap_fast.models.saving import read_config

        values = {name: value for name in _KEYS if (value := getattr(self, name)) is not None}
        try:
            return read_config(values)
        except ValueError as error:
            raise ModelError(f"SlapConfig: {error}") from error
