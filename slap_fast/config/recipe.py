"""Run configuration: the sections of a recipe as dataclasses.

The defaults of `Recipe` are the paper's; `recipes/paper.yaml` names the source of each value.
"""

from __future__ import annotations

import dataclasses
import typing
from dataclasses import dataclass, field
from typing import Literal

from slap_fast.config.model import OBJECTIVES, ModelConfig

Part = Literal[
    "audio_encoder",
    "text_encoder",
    "audio_pooling",
    "text_pooling",
    "caption_decoder",
    "logit_scale",
    "prototype_head",
]
"""A part of the model that can be frozen, and that can have a learning rate of its own."""

OBJECTIVE_OF_PART = {
    "text_encoder": "contrastive",
    "audio_pooling": "contrastive",
    "text_pooling": "contrastive",
    "logit_scale": "contrastive",
    "caption_decoder": "caption",
    "prototype_head": "self_distillation",
}
"""The objective without which a run does not have the part; the audio encoder is in every run."""


@dataclass(frozen=True)
class RecipeModelConfig(ModelConfig):
    """The architecture, the weights to start from, and the parts that are not trained."""

    max_duration: float = 0.0
    """Seconds, stored with the model: longer audio is embedded in windows. 0: `data.max_duration`."""
    init_from: str | None = None
    """Folder or hub id of a model or checkpoint to start from; keys of `model` that are not given take its values."""
    freeze: tuple[Part, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(set(self.freeze)) < len(self.freeze):
            raise ValueError(f"freeze lists {', '.join(self.freeze)}; list each part once")

    def _check_max_duration(self) -> None:
        if self.max_duration:
            super()._check_max_duration()


@dataclass(frozen=True)
class ObjectivesConfig:
    """Weights and temperatures of the three losses. The parts of a loss of weight 0 are neither built nor run."""

    contrastive_weight: float = 1.0
    self_distillation_weight: float = 1.0
    caption_weight: float = 0.5
    student_temperature: float = 0.1
    teacher_temperature: float = 0.07
    teacher_temperature_start: float = 0.04
    teacher_temperature_steps: int = 10_000
    sinkhorn_iterations: int = 3
    shared_pass: bool = False
    """Compute all losses from one masked pass of the audio encoder, instead of an unmasked pass for the contrastive and
    caption losses and a masked one for self-distillation."""

    def __post_init__(self) -> None:
        for name in ("contrastive_weight", "self_distillation_weight", "caption_weight"):
            _require(self, **{name: getattr(self, name) >= 0})
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            _require(self, **{name: getattr(self, name) > 0})
        _require(self, teacher_temperature_steps=self.teacher_temperature_steps >= 0)
        _require(self, sinkhorn_iterations=self.sinkhorn_iterations >= 1)
        if not self.active:
            raise ValueError(f"{', '.join(f'{name}_weight' for name in OBJECTIVES)} are all 0; set one of them above 0")

    @property
    def active(self) -> tuple[str, ...]:
        """The objectives of a weight above 0, in the order of `OBJECTIVES`."""
        return tuple(name for name in OBJECTIVES if getattr(self, f"{name}_weight") > 0)

    @property
    def masks_tokens(self) -> bool:
        """Whether a pass of the student's audio encoder has masked tokens."""
        return self.shared_pass or "self_distillation" in self.active

    @property
    def student_passes(self) -> int:
        """Passes of the student's audio encoder in a step."""
        return 2 if self.masks_tokens and not self.shared_pass and len(self.active) > 1 else 1


@dataclass(frozen=True)
class AugmentationConfig:
    """SpecAugment of the student's frames, and the student's token mask."""

    time_masks: int = 2
    time_mask_frames: int = 48
    time_mask_fraction: float = 0.2  # maximum width of a time mask, as a share of its clip
    mel_masks: int = 2
    mel_mask_bins: int = 12
    masked_fraction: float = 0.5


@dataclass(frozen=True)
class RateMultipliersConfig:
    """Factors of the learning rate, one for each part of the model."""

    audio_encoder: float = 1.0
    text_encoder: float = 1.0
    audio_pooling: float = 1.0
    text_pooling: float = 1.0
    caption_decoder: float = 1.0
    logit_scale: float = 1.0
    prototype_head: float = 1.0

    def __post_init__(self) -> None:
        for name in typing.get_args(Part):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; set it above 0, or use model.freeze=[{name}]")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW."""

    learning_rate: float = 1e-4
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    weight_decay: float = 0.1
    gradient_clipping: float = 1.0
    rate_multipliers: RateMultipliersConfig = field(default_factory=RateMultipliersConfig)
    layer_decay: float = 1.0
    """Factor of the learning rate from each layer of a tower to the one below it; the embeddings are lowest (BEiT)."""

    def __post_init__(self) -> None:
        _require(self, learning_rate=self.learning_rate > 0, eps=self.eps > 0, weight_decay=self.weight_decay >= 0)
        _require(self, layer_decay=0 < self.layer_decay <= 1)
        _require(self, betas=all(0 <= beta < 1 for beta in self.betas), gradient_clipping=self.gradient_clipping >= 0)


@dataclass(frozen=True)
class ScheduleConfig:
    """Length of the run, batch size, and schedules of learning rate and EMA momentum."""

    steps: int = 106_446
    warmup_steps: int = 2000
    batch_size: int = 2048  # over all ranks
    ema_momentum: float = 0.994
    ema_final_momentum: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, steps=self.steps >= 1, warmup_steps=self.warmup_steps >= 0)
        _require(self, batch_size=self.batch_size >= 1, seed=0 <= self.seed < 2**31)
        _require(self, ema_momentum=0 <= self.ema_momentum <= 1, ema_final_momentum=0 <= self.ema_final_momentum <= 1)


@dataclass(frozen=True)
class WeightedFolder:
    """One dataset of a mixture."""

    folder: str
    weight: float
    """Its share of each batch, relative to the weights of the others."""

    def __post_init__(self) -> None:
        _require(self, weight=self.weight > 0)


@dataclass(frozen=True)
class DataConfig:
    """Training data and tokenizer."""

    train: str | tuple[WeightedFolder, ...] = ""
    """Folder written by `slap-fast prepare`, or several: `[{folder: A, weight: 2}, {folder: B, weight: 1}]`."""
    tokenizer: str | None = None
    """Folder or hub name; None: that of the pretrained text encoder, else the one next to the training shards."""
    max_duration: float = 30.0
    """Seconds; longer clips are left out, and counted in the log."""
    crop_above_max_duration: bool = False
    """Use a random crop of `max_duration` of each longer clip instead, a new one each epoch."""
    shuffle_shards: int = 64
    """Shards whose clips are shuffled together. More shards mix batches better; fewer mean fewer random reads."""

    def __post_init__(self) -> None:
        _require(self, max_duration=self.max_duration > 0, shuffle_shards=self.shuffle_shards >= 1)
        folders = [part.folder for part in self.folders]
        if not folders or len(set(folders)) < len(folders):
            raise ValueError(f"train lists the folders {folders}; list at least one, and each once")

    @property
    def folders(self) -> tuple[WeightedFolder, ...]:
        """The datasets, also where `train` is a single folder."""
        return (WeightedFolder(self.train, 1.0),) if isinstance(self.train, str) else self.train


@dataclass(frozen=True)
class TrainingConfig:
    """Parallelism, memory, checkpoints and logging."""

    output: str = "runs/slap"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on a GPU that supports it and on a CPU with bf16 dot products, else fp32."""
    micro_batch_size: int | None = None
    """Clips whose activations a rank holds at once; None: its whole share of the batch."""
    activation_checkpointing: bool = False
    """Keep only the input of each transformer block, and recompute the block in the backward pass."""
    compile: bool = False
    """Compile each transformer block with `torch.compile`, at ZeRO stages 0 to 2."""
    offload_optimizer: bool = False
    """Keep the optimizer state in host memory and update there, at ZeRO stages 1 to 3."""
    offload_parameters: bool = False
    """Also keep parameters in host memory while they are not in use, at ZeRO stage 3."""
    contrastive_exchange: Literal["gather", "ring"] = "gather"
    """ring: the memory of the contrastive loss does not grow with the number of ranks."""
    save_every: int = 1000
    keep_checkpoints: int = 2
    """How many of the newest checkpoints to keep."""
    keep_every: int | None = None
    """Also keep every checkpoint whose step is a multiple of this."""
    async_checkpoints: bool = True
    """Write checkpoints in the background, from a copy of the state in host memory."""
    resume: bool = True
    """Continue from the newest complete checkpoint in `output`."""
    log_every: int = 10
    stop_after: int | None = None
    """Save and stop after this step, without changing the schedule."""
    timeout: float = 600.0
    """Seconds without a response from a rank after which the run ends."""

    def __post_init__(self) -> None:
        _require(self, save_every=self.save_every >= 1, keep_checkpoints=self.keep_checkpoints >= 1)
        _require(self, keep_every=self.keep_every is None or self.keep_every >= 1)
        _require(self, micro_batch_size=self.micro_batch_size is None or self.micro_batch_size >= 1)
        _require(self, log_every=self.log_every >= 1, stop_after=self.stop_after is None or self.stop_after >= 1)
        _require(self, timeout=self.timeout > 0)
        for name, lowest in (("offload_optimizer", 1), ("offload_parameters", 3)):
            if getattr(self, name) and self.zero_stage < lowest:
                raise ValueError(
                    f"{name} is true at zero_stage={self.zero_stage}; set training.zero_stage={lowest}"
                    f"{' or higher' if lowest < 3 else ''}, or training.{name}=false"
                )


@dataclass(frozen=True)
class LoadingConfig:
    """Decoding and prefetching of clips, per rank."""

    decoder: Literal["auto", "dali", "soundfile", "native", "gpu"] = "auto"
    """"gpu" decodes FLAC on the GPU of the rank, the others on the CPU; all give the same samples."""
    threads: int = 2
    """Decoder threads."""
    prefetch: int = 2
    """Batches to prepare ahead."""
    max_consecutive_failures: int = 100
    """More unusable clips in a row than this end the run."""


@dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training; on if `dataset` or `zero_shot` is set."""

    every: int = 1000
    """Steps; the last step is always evaluated."""
    dataset: str | None = None
    """Folder written by `slap-fast prepare`, for retrieval."""
    relevance: str | None = None
    """Table of `query` and `audio_filenames` (DCASE 2025) about the clips of `dataset`, for the metric `map16`."""
    zero_shot: str | None = None
    """Folder with one subfolder of audio files per class, a table of file and class, or a dataset as published."""
    limit: int | None = None
    """Use only this many clips of each, evenly spaced."""
    captions: bool = False
    """Also caption the clips of `dataset`, greedily, and score the captions: CIDEr-D, ROUGE-L and BLEU."""
    metric: Literal["r1", "r5", "r10", "map10", "map16", "zero_shot", "cider_d"] = "r1"
    """Chooses the best model: retrieval averaged over both directions; text to audio with `relevance` (`map16`);
    zero-shot accuracy, which is the mAP if clips have several labels; or CIDEr-D of `captions`."""

    def __post_init__(self) -> None:
        _require(self, every=self.every >= 1, limit=self.limit is None or self.limit >= 1)
        if self.relevance is not None and (self.dataset is None or self.limit is not None):
            wrong = "without evaluation.dataset" if self.dataset is None else f"with limit {self.limit}"
            raise ValueError(f"relevance is given {wrong}; it needs all clips of a dataset")
        needed = {"zero_shot": "zero_shot", "map16": "relevance"}.get(self.metric, "dataset")
        if self.enabled and getattr(self, needed) is None:
            raise ValueError(f"metric is {self.metric!r}, which needs evaluation.{needed}; give it, or another metric")
        if self.captions and self.dataset is None:
            raise ValueError(
                "captions is true, which needs evaluation.dataset; give it, or set evaluation.captions=false"
            )
        if self.enabled and self.metric == "cider_d" and not self.captions:
            raise ValueError("metric is 'cider_d', which needs evaluation.captions=true; set it, or another metric")

    @property
    def enabled(self) -> bool:
        return self.dataset is not None or self.zero_shot is not None


Tracker = Literal["none", "tensorboard", "trackio", "wandb"]


@dataclass(frozen=True)
class LoggingConfig:
    """Experiment trackers, beside log.jsonl."""

    tracker: Tracker | tuple[Tracker, ...] = "tensorboard"
    """One or a list: `[tensorboard, wandb]`."""
    project: str = "slap-fast"
    """Project of trackio and wandb."""
    run_name: str | None = None
    """Name of the run in trackio and wandb; None: that of the output folder."""

    def __post_init__(self) -> None:
        listed = (self.tracker,) if isinstance(self.tracker, str) else self.tracker
        if not listed or len(set(listed)) < len(listed) or ("none" in listed and len(listed) > 1):
            raise ValueError(f"tracker lists {', '.join(listed) or 'nothing'}; list each once, or 'none' alone")
        _require(
            self, project=bool(self.project.strip()), run_name=self.run_name is None or bool(self.run_name.strip())
        )

    @property
    def trackers(self) -> tuple[str, ...]:
        """The trackers in use; empty for `none`."""
        listed = (self.tracker,) if isinstance(self.tracker, str) else self.tracker
        return tuple(name for name in listed if name != "none")


@dataclass(frozen=True)
class Recipe:
    """Settings that change results."""

    model: RecipeModelConfig = field(default_factory=RecipeModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)

    def __post_init__(self) -> None:
        if not self.model.max_duration:
            # A crop of less than a column still is one column of the model.
            longest = max(self.data.max_duration, self.model.column_seconds)
            object.__setattr__(self, "model", dataclasses.replace(self.model, max_duration=longest))
        frozen = self.model.freeze
        for name in frozen:
            if name not in self.parts:
                raise ValueError(
                    f"model.freeze lists {name}, which this run does not have, because "
                    f"objectives.{OBJECTIVE_OF_PART[name]}_weight is 0; take it out of the list"
                )
        if set(frozen) == set(self.parts):
            raise ValueError(
                f"model.freeze lists every part of the model ({', '.join(frozen)}), so nothing is trained; leave one "
                "out"
            )

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the model that the active objectives have."""
        active = self.objectives.active
        return tuple(
            name for name in typing.get_args(Part) if name not in OBJECTIVE_OF_PART or OBJECTIVE_OF_PART[name] in active
        )


@dataclass(frozen=True)
class Efficiency:
    """Settings that must not change results."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True)
class RunConfig:
    """The configuration of a run."""

    recipe: Recipe = field(default_factory=Recipe)
    efficiency: Efficiency = field(default_factory=Efficiency)

    def __post_init__(self) -> None:
        evaluation, objectives = self.efficiency.evaluation, self.recipe.objectives.active
        if evaluation.captions and "caption" not in objectives:
            raise ValueError(
                "evaluation.captions is true, but objectives.caption_weight is 0, so there is no caption decoder; set "
                "evaluation.captions=false, or objectives.caption_weight above 0"
            )
        if "contrastive" in objectives:
            return
        captions_alone = evaluation.captions and evaluation.metric == "cider_d"
        for name in ("relevance", "zero_shot") if captions_alone else ("dataset", "zero_shot"):
            if (value := getattr(evaluation, name)) is not None:
                raise ValueError(
                    f"evaluation.{name} is {value!r}, but objectives.contrastive_weight is 0, so audio and text are "
                    f"not embedded in one space; set evaluation.{name}=null, or objectives.contrastive_weight above 0"
                )


def _require(section: object, **in_range: bool) -> None:
    for name, holds in in_range.items():
        if not holds:
            raise ValueError(f"{name} is {getattr(section, name)!r}, which is out of range")
