"""Initial weights of a run: from a saved model, a hub id or a checkpoint (`model.init_from`).

A run that continues from its own checkpoint does not read them again. It takes the architecture of the text tower, the
tokenizer and the values of `model` that its command does not give from that checkpoint.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from torch import Tensor, nn

from slap_fast.config.initial_model import InitialModel, changed_settings
from slap_fast.config.loading import ConfigError, Settings
from slap_fast.config.model import ModelConfig, model_config_from_dict
from slap_fast.config.recipe import OBJECTIVE_OF_PART, Recipe, RunConfig
from slap_fast.config.saved_files import read_text_config, read_tokenizer
from slap_fast.errors import ModelError, one_line
from slap_fast.models import hub
from slap_fast.models.caption_decoder import CaptionDecoder
from slap_fast.models.logit_scale import LogitScale
from slap_fast.models.slap import SLAP
from slap_fast.models.text_encoder import TextEncoder
from slap_fast.training.checkpoint.export import read_weights
from slap_fast.training.checkpoint.folder import (
    MANIFEST,
    Manifest,
    file_digest,
    model_folder,
    newest_checkpoint,
    read_manifest,
)
from slap_fast.training.checkpoint.output_folder import saved_config
from slap_fast.training.distributed.process_group import ranks_that_differ
from slap_fast.training.frozen import frozen_notes, model_parts
from slap_fast.training.model import PretrainingModel

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class WeightSource:
    """A model or a checkpoint, whose weights are not read yet.

    Attributes:
        model: its architecture.
        folder: of the model, or of the checkpoint.
        checkpoint: its manifest; None for a model.
        continued: a checkpoint of the run itself, which restores all weights later.
    """

    model: InitialModel
    folder: Path
    checkpoint: Manifest | None = None
    continued: bool = False

    @property
    def files(self) -> Path:
        """The folder of config.json, text_config/ and tokenizer/."""
        return self.folder if self.checkpoint is None else model_folder(self.folder)

    @property
    def commit(self) -> str | None:
        """Of a download of the Hugging Face hub."""
        return self.folder.name if self.folder.parent.name == "snapshots" else None

    @property
    def text_hf_config(self) -> Any:
        """The transformers configuration of the text tower; None if the model has none."""
        path = self.files / "text_config" / "config.json"
        return read_text_config(path) if "contrastive" in self.model.objectives else None

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        folder = self.files / "tokenizer"
        return read_tokenizer(folder) if folder.is_dir() else None

    @property
    def vocab_size(self) -> int | None:
        """Number of token ids; None for a model of audio alone."""
        if (text := self.text_hf_config) is not None:
            return text.vocab_size
        return self.model.config.text.vocab_size if "caption" in self.model.objectives else None


def complete_config(settings: Settings) -> RunConfig:
    """The configuration of a run, with the values of `model` that are not given taken from `model.init_from`.

    Raises:
        ConfigError: the recipe needs `model.init_from`, and it is not set; or a given value does not fit the weights.
        ModelError: there is no model, or its files are damaged.
    """
    name = settings.get("model.init_from")
    if name is None:
        return settings.config()
    if not name:
        raise ConfigError(
            "model.init_from is not set, and this recipe starts from a trained model: set model.init_from=FOLDER or "
            "OWNER/NAME of the hub, or model.init_from=null to train from scratch"
        )
    saved = saved_config(Path(settings.get("training.output")))
    if saved is None:
        return settings.config(find_source(name).model)
    return settings.config(InitialModel(name, _model_of_run(saved)))


def source_of(config: RunConfig) -> WeightSource | None:
    """Where a run takes its architecture, tokenizer and weights from; None if it does not start from a model."""
    name = config.recipe.model.init_from
    if name is None:
        return None
    found = newest_checkpoint(Path(config.efficiency.training.output) / "checkpoints")
    if found is None:
        return find_source(name)
    folder, manifest = found
    return WeightSource(InitialModel.read(name, model_folder(folder)), folder, manifest, continued=True)


def find_source(name: str) -> WeightSource:
    """
    Args:
        name: folder of a model or checkpoint, or a hub id as `owner/name` or `owner/name@revision`.

    Raises:
        ModelError: there is none.
    """
    try:
        model = hub.hub_id(name)
        folder = Path(name) if model is None else _download(model)
    except ModelError as error:
        raise ModelError(f"model.init_from={name}: {error}") from error
    if (folder / MANIFEST).exists() or folder.name.startswith("step-"):
        manifest = read_manifest(folder)
        if not isinstance(manifest, Manifest):
            raise ModelError(f"model.init_from={name} is a checkpoint that is incomplete or damaged: {manifest}")
        return WeightSource(InitialModel.read(name, model_folder(folder)), folder, manifest)
    if not (folder / "config.json").exists():
        inside = [str(folder / part) for part in ("model", "best") if (folder / part / "config.json").is_file()]
        if (found := newest_checkpoint(folder / "checkpoints")) is not None:
            inside.append(str(found[0]))
        hint = f"it is the output of a run: use {' or '.join(inside)}" if inside else "SLAP.save_pretrained writes one"
        raise ModelError(f"model.init_from={name}: {folder} is not the folder of a model (no config.json); {hint}")
    return WeightSource(InitialModel.read(name, folder), folder)


@functools.cache
def _download(model: hub.HubId) -> Path:
    """Once per process: a branch may move between two calls, which would mix the files of two models."""
    return hub.model_folder(model)


def files_digest(source: WeightSource | None) -> int:
    """A hash, of 63 bits, of the files that the initial weights are read from; 0 if the run reads none."""
    if source is None or source.continued:
        return 0
    folder = source.folder
    # The manifest of a checkpoint has the hashes of its other files.
    used = [MANIFEST] if source.checkpoint else [str(p.relative_to(folder)) for p in _model_files(folder)]
    content = repr([(name, file_digest(folder / name)["sha256"]) for name in sorted(used)])
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") >> 1


def require_same_files(source: WeightSource | None, digest: int, device: torch.device) -> None:
    """Check that all ranks start from the same weights. A collective call.

    ZeRO takes the weights of rank 0, but frozen weights and settings, such as the mel statistics, are those of a rank.

    Args:
        digest: `files_digest` of this rank.

    Raises:
        ModelError: the files differ, because a branch of the hub moved or a folder is not shared; on all ranks.
    """
    if source is None or not (others := ranks_that_differ(digest, device)):
        return
    commit = f" (here commit {source.commit})" if source.commit else ""
    raise ModelError(
        f"model.init_from={source.model.name}: the files of rank {', '.join(map(str, others))} are not those of rank 0"
        f"{commit}: start again, with a commit as OWNER/NAME@COMMIT, or a folder that all machines share"
    )


def _model_files(folder: Path) -> list[Path]:
    """The files of a model that `SLAP.from_pretrained` may read."""
    names = ("*.safetensors", "*.json", "text_config/*.json", "tokenizer/*.json")
    return [path for name in names for path in folder.glob(name)]


def starting_notes(model: PretrainingModel, source: WeightSource | None, recipe: Recipe) -> list[str]:
    """Load the initial weights, if the run starts from some; messages about them and about what is not trained."""
    notes = []
    if source is not None and source.continued:
        notes.append(f"model.init_from={source.model.name} is not read again: the run continues from its checkpoint")
    elif source is not None:
        notes += initialize(model, source, recipe)
    return notes + frozen_notes(model, recipe)


def initialize(model: PretrainingModel, source: WeightSource, recipe: Recipe) -> list[str]:
    """Copy the weights of a source into a model, and those of the student into its teacher.

    Rows of the token embeddings are copied by token: if the tokenizers differ, the rows of tokens that both have (by
    text, or by role, such as the start token) are the source's, and the others keep their random values.

    Returns:
        A message for each part: what was loaded, left out, or initialized at random, and why.

    Raises:
        ModelError: the weights cannot be read.
    """
    saved, head = _read(source)
    what = f"the checkpoint of step {source.checkpoint.step}" if source.checkpoint else "the model"
    commit = f" at commit {source.commit}" if source.commit else ""
    notes = [f"initial weights of {what} {source.model.name}{commit}:"]
    rows = _TokenRows.of(saved.tokenizer, model.student.tokenizer)
    own = model_parts(model)
    theirs = _parts_of(saved, head)
    for name in dict.fromkeys([*own, *theirs]):
        if name not in own:
            reason = f"objectives.{OBJECTIVE_OF_PART[name]}_weight is 0 in this run"
            notes.append(f"  {name}: {_size(theirs[name].values())} left out, because {reason}")
        elif name not in theirs:
            notes.append(_absent(name, own[name], source, recipe))
        elif name == "prototype_head":
            notes += _load_head(own[name], theirs[name])
        else:
            notes += _load_part(name, own[name], theirs[name], rows)
    if model.student.logit_scale is not None and saved.logit_scale is not None:
        _keep_temperature(model.student.logit_scale, saved.logit_scale)
    if model.teacher_encoder is not None:
        model.teacher_encoder.load_state_dict(model.student.audio_encoder.state_dict())
        model.teacher_head.load_state_dict(model.student_head.state_dict())
        notes.append("  teacher: a copy of the audio encoder and the prototype head")
    pretrained = recipe.model.text.pretrained
    if "text_encoder" in theirs and pretrained != source.model.config.text.pretrained:
        notes.append(f"  model.text.pretrained={pretrained} has no effect: the text tower is that of the weights")
    if changed := changed_settings(source.model.config, recipe.model):
        notes.append(f"  settings that differ from those of the weights: {', '.join(changed)}")
    return notes


def _model_of_run(saved: str) -> ModelConfig:
    """The architecture in the YAML configuration of a run."""
    values = (yaml.safe_load(saved) or {})["recipe"]["model"]
    architecture = {key: value for key, value in values.items() if key not in ("init_from", "freeze")}
    try:
        return model_config_from_dict(architecture)
    except ValueError as error:
        raise ModelError(f"the configuration of the run to continue is damaged: {error}") from error


def _read(source: WeightSource) -> tuple[SLAP, dict[str, Tensor]]:
    """The student, and the weights of the prototype head, which only a checkpoint has."""
    if source.checkpoint is None:
        return SLAP.from_pretrained(source.folder), {}
    from transformers.initialization import no_init_weights

    weights = read_weights(source.folder)
    with no_init_weights():
        saved = SLAP(
            source.model.config,
            objectives=source.model.objectives,
            load_pretrained_text=False,
            text_hf_config=source.text_hf_config,
        )
    saved.load_state_dict(_below(weights, "student."))
    saved.tokenizer = source.tokenizer
    return saved, _below(weights, "student_head.")


def _below(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}


def _parts_of(saved: SLAP, head: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """Weights of each part that the source has."""
    parts = {name: getattr(saved, name, None) for name in ("audio_encoder", *OBJECTIVE_OF_PART)}
    weights = {name: part.state_dict() for name, part in parts.items() if part is not None}
    return weights | ({"prototype_head": head} if head else {})


def _absent(name: str, part: nn.Module, source: WeightSource, recipe: Recipe) -> str:
    """The message for a part that the source does not have."""
    start = "initialized at random"
    if name == "text_encoder" and recipe.model.text.pretrained is not None:
        start = f"loaded from model.text.pretrained={recipe.model.text.pretrained}"
    objective = OBJECTIVE_OF_PART[name]
    if objective == "self_distillation" and source.checkpoint is None:
        reason = "a saved model has no prototypes; a checkpoint has them"
    else:
        reason = f"the weights were trained with objectives.{objective}_weight=0"
    return f"  {name}: {_size(part.state_dict().values())} {start}: {reason}"


def _load_head(head: nn.Module, saved: Mapping[str, Tensor]) -> list[str]:
    own = head.state_dict()
    other = [name for name in own if own[name].shape != saved[name].shape]
    if other == ["prototypes"]:
        head.load_state_dict({**saved, "prototypes": own["prototypes"]})
        mlp = [value for name, value in saved.items() if name != "prototypes"]
        there, here = (list(weights["prototypes"].shape) for weights in (saved, own))
        return [
            f"  prototype_head: {_size(mlp)} loaded, prototypes initialized at random: they are {there} in the weights "
            f"and {here} in this run (model.prototype.prototypes)"
        ]
    if other:
        there, here = (list(weights[other[0]].shape) for weights in (saved, own))
        return [
            f"  prototype_head: {_size(own.values())} initialized at random: {other[0]} is {there} in the weights and "
            f"{here} in this run (model.prototype)"
        ]
    head.load_state_dict(saved)
    return [f"  prototype_head: {_size(own.values())} loaded"]


def _load_part(name: str, part: nn.Module, saved: dict[str, Tensor], rows: _TokenRows | None) -> list[str]:
    table = _token_table(part)
    weights, notes = dict(saved), []
    if table is not None and rows is not None:
        key, own = table
        weights[key] = own.detach().clone()
        weights[key][rows.own] = saved[key][rows.saved]
        notes.append(f"  {name}, {key}: {rows.describe(own.shape[0], saved[key].shape[0])}")
    try:
        part.load_state_dict(weights)
    except RuntimeError as error:
        raise ModelError(f"model.init_from: the weights do not fit the {name}: {one_line(error)}") from error
    whole = [value for key, value in saved.items() if rows is None or table is None or key != table[0]]
    return [f"  {name}: {_size(whole)} loaded", *notes]


def _token_table(part: nn.Module) -> tuple[str, nn.Parameter] | None:
    """Name and weight `[V, width]` of the token embeddings of a part."""
    if isinstance(part, TextEncoder):
        weight = part.model.get_input_embeddings().weight
    elif isinstance(part, CaptionDecoder):
        weight = part.token_embedding.weight
    else:
        return None
    return next((name, parameter) for name, parameter in part.named_parameters() if parameter is weight)


@dataclass(frozen=True)
class _TokenRows:
    """Rows of the token embeddings of equal tokens in two tokenizers.

    Attributes:
        own: `[n]` token ids in the tokenizer of the run.
        saved: `[n]` the ids of the same tokens in that of the weights.
        missing: a token of the run that the weights do not have; None if they have all.
    """

    own: Tensor
    saved: Tensor
    missing: str | None

    @classmethod
    def of(cls, saved: Any, own: Any) -> _TokenRows | None:
        """None if the tokenizers have the same tokens, or if one is not known."""
        if same_tokens(saved, own):
            return None
        there, here = saved.get_vocab(), own.get_vocab()
        by_role = {
            getattr(own, role): there[getattr(saved, role)]
            for role in ("cls_token", "sep_token", "pad_token", "bos_token", "eos_token", "unk_token", "mask_token")
            if getattr(own, role, None) is not None and getattr(saved, role, None) in there
        }
        found = {number: there.get(token, by_role.get(token)) for token, number in here.items()}
        pairs = sorted((number, row) for number, row in found.items() if row is not None)
        missing = min((token for token, number in here.items() if found[number] is None), default=None)
        columns = torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T
        return cls(columns[0], columns[1], missing)

    def describe(self, own_rows: int, saved_rows: int) -> str:
        loaded, unused = len(self.own), saved_rows - len(self.saved.unique())
        text = f"another tokenizer: {loaded} of {own_rows} rows loaded by token, {unused} of the weights left out"
        if self.missing is None:
            return text
        return f"{text}, {own_rows - loaded} initialized at random: the weights have no token such as {self.missing!r}"


def same_tokens(first: Any, second: Any) -> bool:
    """Whether two tokenizers have the same ids for the same tokens; True if one is not known."""
    return first is None or second is None or first.get_vocab() == second.get_vocab()


def _keep_temperature(own: LogitScale, saved: LogitScale) -> None:
    """Make the logit scale that of the weights, also if `model.logit_scale_init`, to which it is relative, differs."""
    with torch.no_grad():
        own.delta.add_(saved.initial - own.initial)


def _size(tensors: Iterable[Tensor]) -> str:
    listed = list(tensors)
    return f"{len(listed)} tensors, {sum(tensor.numel() for tensor in listed):,} parameters"
