"""What a run is: typed sections, read from YAML, changed by `key=value`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from slap_fast.config.model import ModelConfig


@dataclass(frozen=True)
class ObjectivesConfig:
    """Weights and temperatures of the three objectives."""

    contrastive_weight: float = 1.0  # paper
    self_distillation_weight: float = 1.0  # paper
    caption_weight: float = 0.5  # paper
    student_temperature: float = 0.1  # DINOv2
    teacher_temperature: float = 0.07  # DINOv2
    teacher_temperature_start: float = 0.04  # DINOv2
    teacher_temperature_steps: int = 10_000  # DINOv2
    sinkhorn_iterations: int = 3  # DINOv2
    shared_pass: bool = False  # SigLIP 2: contrastive and caption losses see an unmasked pass of their own

    def __post_init__(self) -> None:
        for name in ("contrastive_weight", "self_distillation_weight", "caption_weight"):
            _require(self, **{name: getattr(self, name) >= 0})
        for name in ("student_temperature", "teacher_temperature", "teacher_temperature_start"):
            _require(self, **{name: getattr(self, name) > 0})
        _require(self, teacher_temperature_steps=self.teacher_temperature_steps >= 0)
        _require(self, sinkhorn_iterations=self.sinkhorn_iterations >= 1)


@dataclass(frozen=True)
class AugmentationConfig:
    """SpecAugment on the student's frames, and the student's token mask."""

    time_masks: int = 2  # SpecAugment
    time_mask_frames: int = 48  # ours
    time_mask_fraction: float = 0.2  # SpecAugment: no mask is wider than this share of its clip
    mel_masks: int = 2  # SpecAugment
    mel_mask_bins: int = 12  # ours
    masked_fraction: float = 0.5  # paper


@dataclass(frozen=True)
class OptimizerConfig:
    learning_rate: float = 1e-4  # paper
    betas: tuple[float, float] = (0.9, 0.95)  # CAPI
    eps: float = 1e-8  # PyTorch
    weight_decay: float = 0.1  # CAPI
    gradient_clipping: float = 1.0  # CAPI

    def __post_init__(self) -> None:
        _require(self, learning_rate=self.learning_rate > 0, eps=self.eps > 0, weight_decay=self.weight_decay >= 0)
        _require(self, betas=all(0 <= beta < 1 for beta in self.betas), gradient_clipping=self.gradient_clipping >= 0)


@dataclass(frozen=True)
class ScheduleConfig:
    steps: int = 106_446  # paper: 2 epochs of 109 M pairs at batch 2048
    warmup_steps: int = 2000  # paper
    batch_size: int = 2048  # paper; over all ranks
    ema_momentum: float = 0.994  # paper
    ema_final_momentum: float = 1.0  # paper
    seed: int = 0

    def __post_init__(self) -> None:
        _require(self, steps=self.steps >= 1, warmup_steps=self.warmup_steps >= 0)
        _require(self, batch_size=self.batch_size >= 1, seed=0 <= self.seed < 2**31)
        _require(self, ema_momentum=0 <= self.ema_momentum <= 1, ema_final_momentum=0 <= self.ema_final_momentum <= 1)


@dataclass(frozen=True)
class WeightedFolder:
    """A dataset of a mixture."""

    folder: str
    weight: float
    """Its share of every batch, relative to the weights of the others."""

    def __post_init__(self) -> None:
        _require(self, weight=self.weight > 0)


@dataclass(frozen=True)
class DataConfig:
    train: str | tuple[WeightedFolder, ...] = ""
    """Folder that `slap-fast prepare` wrote, or several: `[{folder: A, weight: 2}, {folder: B, weight: 1}]`."""
    tokenizer: str | None = None
    """Folder or hub name; None: the pretrained text encoder's own, else the one beside the training shards."""
    max_duration: float = 30.0  # paper; seconds, longer clips are left out and counted
    crop_above_max_duration: bool = False
    """Use a random stretch of `max_duration` of a longer clip instead, another one each epoch."""
    shuffle_shards: int = 64
    """Shards whose clips are shuffled together: more mix a batch better, fewer are kinder to storage."""

    def __post_init__(self) -> None:
        _require(self, max_duration=self.max_duration > 0, shuffle_shards=self.shuffle_shards >= 1)
        folders = [part.folder for part in self.folders]
        if not folders or len(set(folders)) < len(folders):
            raise ValueError(f"train lists the folders {folders}; list at least one, and each once")

    @property
    def folders(self) -> tuple[WeightedFolder, ...]:
        """The datasets that are mixed, also if there is one."""
        return (WeightedFolder(self.train, 1.0),) if isinstance(self.train, str) else self.train


@dataclass(frozen=True)
class TrainingConfig:
    output: str = "runs/slap"
    zero_stage: Literal[0, 1, 2, 3] = 1
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """auto: bf16 on a GPU and on a CPU with bf16 dot products, else fp32."""
    micro_batch_size: int | None = None
    """Clips that a rank holds the activations of at once; None: its whole share of the batch."""
    activation_checkpointing: bool = False
    """Hold only the input of each transformer block, and compute the block again on the way back."""
    compile: bool = False
    """Compile each transformer block with `torch.compile`, at ZeRO stages 0 to 2."""
    offload_optimizer: bool = False
    """Hold the optimizer's state in the host's memory and update there, at ZeRO stages 1 to 3."""
    offload_parameters: bool = False
    """Hold parameters there too while they are not in use, at ZeRO stage 3."""
    contrastive_exchange: Literal["gather", "ring"] = "gather"
    """ring: a rank's memory for the contrastive loss does not grow with the number of ranks."""
    save_every: int = 1000
    keep_checkpoints: int = 2
    """The newest that are kept."""
    keep_every: int | None = None
    """Keep each checkpoint whose step is a multiple of this, too."""
    async_checkpoints: bool = True
    """Go on while a checkpoint is written, from a copy of the state in host memory."""
    resume: bool = True
    """Continue from the newest whole checkpoint in `output`."""
    log_every: int = 10
    stop_after: int | None = None
    """Save and stop after this step, without changing the schedule."""
    timeout: float = 600.0
    """Seconds after which a rank that does not answer ends the run."""

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
    decoder: Literal["auto", "dali", "soundfile"] = "auto"
    threads: int = 2
    prefetch: int = 2
    max_consecutive_failures: int = 100


@dataclass(frozen=True)
class EvaluationConfig:
    """Scores of the model while it trains; on if there is a `dataset` or a `zero_shot`."""

    every: int = 1000
    """Steps; the last step is one of them."""
    dataset: str | None = None
    """A folder that `slap-fast prepare` wrote, for retrieval."""
    zero_shot: str | None = None
    """A folder with one folder of audio files a class, or a CSV of file and class."""
    limit: int | None = None
    """Use this many clips of each, at even distances."""
    metric: Literal["r1", "r5", "r10", "map10", "zero_shot"] = "r1"
    """Chooses the best model: the mean of both ways of retrieval, or the accuracy of classification."""

    def __post_init__(self) -> None:
        _require(self, every=self.every >= 1, limit=self.limit is None or self.limit >= 1)
        needed = "zero_shot" if self.metric == "zero_shot" else "dataset"
        if self.enabled and getattr(self, needed) is None:
            raise ValueError(f"metric is {self.metric!r}, which needs evaluation.{needed}; give it, or another metric")

    @property
    def enabled(self) -> bool:
        return self.dataset is not None or self.zero_shot is not None


@dataclass(frozen=True)
class Recipe:
    """What changes results."""

    model: ModelConfig = field(default_factory=ModelConfig)
    objectives: ObjectivesConfig = field(default_factory=ObjectivesConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)


@dataclass(frozen=True)
class Efficiency:
    """What must not change results."""

    training: TrainingConfig = field(default_factory=TrainingConfig)
    loading: LoadingConfig = field(default_factory=LoadingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)


@dataclass(frozen=True)
class RunConfig:
    recipe: Recipe = field(default_factory=Recipe)
    efficiency: Efficiency = field(default_factory=Efficiency)


def _require(section: object, **in_range: bool) -> None:
    for name, holds in in_range.items():
        if not holds:
            raise ValueError(f"{name} is {getattr(section, name)!r}, which is out of range")
