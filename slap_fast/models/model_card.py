"""Model card: the README.md of a published model, with what is recorded of its training and scores."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from slap_fast._version import __version__
from slap_fast.config.saved_files import weights_digest

if TYPE_CHECKING:
    from slap_fast.models.slap import SLAP

CARD = "README.md"
_UNKNOWN = "Not recorded with the weights. Please complete this section."


@dataclass(frozen=True)
class TrainingRecord:
    """What the files of a run say about one of its models.

    Attributes:
        recipe: config.yaml of the run; empty if there is none.
        step: training steps of the weights; None if unknown.
        scores: score by name, of each evaluation by its title.
        sources: the files that were read.
        left_out: files that were not used, each with the reason.
    """

    recipe: Mapping[str, Any] = field(default_factory=dict)
    step: int | None = None
    scores: dict[str, dict[str, float]] = field(default_factory=dict)
    sources: tuple[Path, ...] = ()
    left_out: tuple[str, ...] = ()


def read_training_record(folder: Path) -> TrainingRecord:
    """What is beside a model that training wrote: config.yaml, log.jsonl, best.json, and evaluation/ of `evaluate`.

    A file that is missing is no error; one that cannot be read, or is of another model, is listed in `left_out`.
    """
    folder = folder.resolve()
    run = folder.parent
    found: dict[Path, Any] = {}
    left_out: list[str] = []

    def read(path: Path) -> dict[str, Any]:
        if not path.is_file():
            return {}
        try:
            text = path.read_text(encoding="utf-8")
            values = yaml.safe_load(text) if path.suffix == ".yaml" else json.loads(text)
            if not isinstance(values, dict):
                raise ValueError(f"it holds a {type(values).__name__}")
        except (OSError, ValueError, yaml.YAMLError) as error:
            left_out.append(f"{path} (cannot be read: {' '.join(str(error).split())})")
            return {}
        found[path] = values
        return values

    recipe = read(run / "config.yaml").get("recipe") or {}
    if recipe and not isinstance(recipe.get("schedule", {}).get("steps"), int):
        left_out.append(f"{run / 'config.yaml'} (it is no configuration of a run)")
        recipe, found = {}, {}
    best = read(folder / "best.json")
    scores: dict[str, dict[str, float]] = {}
    if best:
        scores["during training"] = _numbers(best.get("scores"))
    for name in ("metrics.json", "suite.json"):
        path = run / "evaluation" / name
        values = read(path)
        if not values:
            continue
        # evaluation/ is shared by the models of a run.
        if (evaluated := Path(str(values.get("model", ""))).name) != folder.name:
            left_out.append(f"{path} (scores of {evaluated or 'an unknown model'}, not of {folder.name})")
            del found[path]
            continue
        if values.get("weights") != weights_digest(folder):
            left_out.append(f"{path} (scores of other weights than those in {folder.name}; evaluate the model again)")
            del found[path]
            continue
        for title, group in values.items():
            if isinstance(group, dict) and (numbers := _numbers(group)):
                where = f" on {_short(values['dataset'])}" if title == "retrieval" and "dataset" in values else ""
                scores[f"{title}{where}"] = numbers
    step = best.get("step")
    if step is None and folder.name == "model" and _last_step(run / "log.jsonl") == recipe["schedule"]["steps"]:
        step = recipe["schedule"]["steps"]  # training writes model/ after the last step
    return TrainingRecord(recipe, step, scores, tuple(found), tuple(left_out))


def _last_step(log: Path) -> int | None:
    """The step of the last line of a run's log; None if there is none."""
    try:
        with open(log, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - (1 << 16)))
            return int(json.loads(file.read().splitlines()[-1])["step"])
    except (OSError, ValueError, KeyError, IndexError, TypeError):
        return None


def _numbers(values: Any, prefix: str = "") -> dict[str, float]:
    """The numbers of nested JSON objects, by their keys joined with `/`; lists and texts are no scores."""
    if not isinstance(values, dict):
        return {}
    found: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, dict):
            found |= _numbers(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found[f"{prefix}{name}"] = value
    return found


def model_card(repo_id: str, model: SLAP, *, license: str | None = None, record: TrainingRecord | None = None) -> str:
    """README.md with YAML metadata, of the hub's format for model cards.

    Args:
        repo_id: `owner/name` of the repository.
        license: of the weights, an identifier of the hub; None leaves it out and says so.
        record: of `read_training_record`.
    """
    record = record or TrainingRecord()
    has_text, captions = model.text_encoder is not None, model.caption_decoder is not None
    tags = ["audio", "slap", "slap-fast", *(["clap", "zero-shot-audio-classification"] if has_text else [])]
    metadata: dict[str, Any] = {
        **({"license": license} if license else {}),
        "library_name": "slap-fast",
        "pipeline_tag": "zero-shot-audio-classification" if has_text else "feature-extraction",
        "tags": [*tags, *(["audio-captioning"] if captions else [])],
    }
    if model.config.text.pretrained and "/" in model.config.text.pretrained and has_text:
        metadata["base_model"] = model.config.text.pretrained
    parts = [
        f"---\n{yaml.safe_dump(metadata, sort_keys=False)}---\n",
        f"# {repo_id}\n",
        f"A SLAP model (Scalable Language-Audio Pretraining, [arXiv 2601.12594](https://arxiv.org/abs/2601.12594)), "
        f"trained with slap-fast. It {_abilities(model)}.\n",
        f"## Use\n\n```bash\npip install slap-fast\n```\n\n```python\n{_example(repo_id, model)}```\n",
        f"## Model\n\n{_architecture(model)}",
        f"## Training\n\n{_training(model, record)}",
        f"## Scores\n\n{_scores(record)}",
        f"## License\n\n{license or 'No license was given for these weights. Without one, others may not use them.'}\n",
        f"## Limits\n\n{_limits(model)}",
    ]
    return "\n".join(parts)


def _abilities(model: SLAP) -> str:
    abilities = []
    if model.text_encoder is not None:
        abilities.append("embeds audio of any duration and text in one space")
    else:
        abilities.append("gives features of audio of any duration, without text embeddings")
    if model.caption_decoder is not None:
        abilities.append("captions audio")
    return " and ".join(abilities)


def _example(repo_id: str, model: SLAP) -> str:
    lines = ["from slap_fast import SLAP", "", f'model = SLAP.from_pretrained("{repo_id}")']
    if model.text_encoder is not None:
        lines += [
            'audio = model.encode_audio(["dog.wav"])                      # [1, D], unit length',
            'text = model.encode_text(["a dog barks", "rain"])            # [2, D]',
            "print(audio @ text.T)",
        ]
    else:
        lines.append('features = model.encode_audio(["dog.wav"], dense=True)       # list of [columns, D]')
    if model.caption_decoder is not None:
        lines.append('print(model.caption(["dog.wav"]))')
    return "\n".join(lines) + "\n"


def _architecture(model: SLAP) -> str:
    audio, mel = model.config.audio, model.config.mel
    count = sum(parameter.numel() for parameter in model.parameters())
    rows = {
        "parameters": f"{count:,}",
        "audio encoder": f"ViT, {audio.layers} layers of width {audio.width}, patches of {audio.patch_frames} frames "
        f"and {audio.patch_mels} mel bands",
        "audio input": f"{mel.sample_rate} Hz, mono; other rates are resampled",
    }
    if model.text_encoder is not None:
        text = model.text_encoder.model.config
        rows["text encoder"] = f"{text.model_type}, at most {model.config.text.max_length} tokens"
        rows["embedding"] = f"{model.embedding_dim} dimensions, unit length"
    if model.caption_decoder is not None:
        rows["caption decoder"] = f"{model.config.caption.layers} layers of width {model.config.caption.width}"
    rows["objectives"] = ", ".join(model.objectives)
    return _table(("", ""), rows)


def _training(model: SLAP, record: TrainingRecord) -> str:
    if not record.recipe:
        return f"{_UNKNOWN} Which data was used, and in which steps?\n"
    recipe = record.recipe
    schedule, data = recipe.get("schedule", {}), recipe.get("data", {})
    rows: dict[str, Any] = {}
    if record.step is not None:
        rows["training steps"] = f"{record.step:,}"
    if (batch := schedule.get("batch_size")) is not None:
        rows["clips per step"] = f"{batch:,}"
    rows["data"] = _data(data.get("train"))
    rows["maximum duration"] = f"{data.get('max_duration')} s"
    if init := recipe.get("model", {}).get("init_from"):
        rows["initialized from"] = f"`{_short(init)}`"
    details = yaml.safe_dump(_public(recipe), sort_keys=False)
    return (
        f"{_table(('', ''), rows)}\n<details><summary>Recipe</summary>\n\n```yaml\n{details}```\n\n"
        f"Trained with slap-fast; this card was written by version {__version__}.\n\n</details>\n"
    )


def _data(train: Any) -> str:
    names = [source.get("path", source) if isinstance(source, dict) else source for source in _listed(train)]
    return ", ".join(f"`{_short(name)}`" for name in names) or "not recorded"


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _public(value: Any) -> Any:
    """The value without folders of the machine: of a path, only the last two parts are published."""
    if isinstance(value, dict):
        return {name: _public(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_public(part) for part in value]
    return _short(value) if isinstance(value, str) and value.startswith(("/", "~", "./", "../")) else value


def _short(path: Any) -> str:
    return "/".join(Path(str(path)).parts[-2:])


def _scores(record: TrainingRecord) -> str:
    if not record.scores:
        return f"{_UNKNOWN} `slap-fast evaluate` measures retrieval and zero-shot classification.\n"
    tables = [
        f"{title}:\n\n{_table(('score', 'value'), {name: f'{value:.4g}' for name, value in scores.items()})}"
        for title, scores in record.scores.items()
    ]
    return "\n".join(tables)


def _limits(model: SLAP) -> str:
    limits = [
        "Similarities rank sounds and texts; they are no probabilities and have no fixed threshold.",
        "Sounds, languages and recording conditions that the training data lacks are embedded without a warning.",
    ]
    if model.text_encoder is not None:
        limits.append(f"Texts of more than {model.config.text.max_length} tokens are cut.")
    if model.caption_decoder is not None:
        limits.append("Captions can name sounds that are not in the audio.")
    return "".join(f"- {limit}\n" for limit in limits)


def _table(header: tuple[str, str], rows: Mapping[str, Any]) -> str:
    lines = [f"| {header[0]} | {header[1]} |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]
    return "\n".join(lines) + "\n"
