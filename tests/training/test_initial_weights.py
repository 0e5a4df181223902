"""Runs that start from a saved model or a checkpoint: what is loaded, what is not, and what the log says."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from slap_fast import SLAP
from slap_fast.config.initial_model import ConfigError
from slap_fast.config.loading import Settings, load_run_config, read_arguments
from slap_fast.config.recipe import Recipe
from slap_fast.data.tokenizer import train_tokenizer
from slap_fast.errors import ModelError
from slap_fast.training import build
from slap_fast.training.initial_weights import WeightSource, complete_config, find_source, initialize, source_of
from slap_fast.training.model import PretrainingModel
from tests.hub_server import HubServer
from tests.training import tiny
from tests.training.ranks import finish, start_program, tail
from tests.training.tiny_run import write_dataset, write_recipe

WORDS = ["a dog barks at a bell", "rain falls on the roof"]
MEL: dict[str, Any] = {"mean": -3.25, "std": 2.5}
FINE_TUNING = "recipe: {schedule: {steps: 4, warmup_steps: 1, batch_size: 6}}\nefficiency: {training: {log_every: 1}}\n"


def saved_model(folder: Path, **arguments: Any) -> SLAP:
    """A model with a tokenizer of `WORDS`, a trained temperature and measured mel statistics."""
    tokenizer = train_tokenizer(WORDS, 300)
    config = tiny.model_config()
    text = dataclasses.replace(config.text, vocab_size=len(tokenizer))
    config = dataclasses.replace(config, text=text, mel=dataclasses.replace(config.mel, **MEL))
    torch.manual_seed(5)
    model = SLAP(config, **arguments)
    model.logit_scale.delta.data.fill_(0.5)
    model.tokenizer = tokenizer
    model.save_pretrained(folder)
    return model


def settings(source: Path | str, *arguments: str) -> Settings:
    return read_arguments(["recipe=finetune-clotho", f"model.init_from={source}", *arguments])


def started(source: WeightSource, recipe: Recipe, tokenizer: Any = None) -> tuple[PretrainingModel, list[str]]:
    """The model of a run that starts from a source, and the messages about its weights."""
    tokenizer = tokenizer or build.build_tokenizer(recipe.data, recipe.model, source)
    config = dataclasses.replace(load_run_config("quickstart"), recipe=recipe)
    statistics: Any = None  # no data set is read: the weights have their own statistics
    complete = build.complete_model_config(recipe.model, statistics, tokenizer, source=source)
    model = build.build_model(config, complete, tokenizer, source)
    return model, initialize(model, source, recipe)


def test_a_run_takes_the_size_of_its_initial_model_and_every_weight(tmp_path: Path) -> None:
    saved = saved_model(tmp_path / "model")
    config = complete_config(settings(tmp_path / "model"))
    assert config.recipe.model.architecture == saved.config
    source = source_of(config)
    assert source is not None
    model, notes = started(source, config.recipe)
    for name, value in saved.state_dict().items():
        assert torch.equal(model.student.state_dict()[name], value), name
    assert notes[0] == f"initial weights of the model {tmp_path / 'model'}:"
    parts = ["audio_encoder", "text_encoder", "audio_pooling", "text_pooling", "caption_decoder", "logit_scale"]
    assert sorted(note.split(":")[0].strip() for note in notes[1:]) == sorted(parts)
    assert all(note.endswith("parameters loaded") for note in notes[1:])


def test_the_teacher_is_a_copy_and_what_the_source_lacks_is_random_and_named(tmp_path: Path) -> None:
    saved_model(tmp_path / "model")
    config = complete_config(settings(tmp_path / "model", "objectives.self_distillation_weight=1"))
    model, notes = started(find_source(str(tmp_path / "model")), config.recipe)
    for name, teacher, student in model.teacher_pairs():
        assert torch.equal(teacher, student), name
    (head,) = (note for note in notes if "prototype_head" in note)
    assert head.endswith("initialized at random: a saved model has no prototypes; a checkpoint has them")

    saved_model(tmp_path / "contrastive", objectives=("contrastive",))
    config = complete_config(settings(tmp_path / "contrastive"))
    _, notes = started(find_source(str(tmp_path / "contrastive")), config.recipe)
    (decoder,) = (note for note in notes if "caption_decoder" in note)
    assert decoder.endswith("initialized at random: the weights were trained with objectives.caption_weight=0")
    config = complete_config(settings(tmp_path / "model", "objectives.caption_weight=0"))
    _, notes = started(find_source(str(tmp_path / "model")), config.recipe)
    assert notes[-1].endswith("left out, because objectives.caption_weight is 0 in this run")


def test_with_another_tokenizer_the_rows_of_equal_tokens_are_loaded_and_the_others_counted(tmp_path: Path) -> None:
    saved = saved_model(tmp_path / "model")
    other = train_tokenizer(["a cat meows", *WORDS], 320)
    there, here = saved.tokenizer.get_vocab(), other.get_vocab()  # type: ignore[union-attr]
    assert there != here
    recipe = complete_config(settings(tmp_path / "model")).recipe
    model, notes = started(find_source(str(tmp_path / "model")), recipe, other)
    tables: dict[str, tuple[Any, str]] = {
        "text_encoder": (saved.text_encoder.model.get_input_embeddings(), "model.embeddings.tok_embeddings.weight"),
        "caption_decoder": (saved.caption_decoder.token_embedding, "token_embedding.weight"),
    }
    for part, (table, name) in tables.items():
        own = getattr(model.student, part).get_parameter(name)
        assert own.shape[0] == len(other)
        for token, row in here.items():
            assert token not in there or torch.equal(own[row], table.weight[there[token]]), token
        shared = len(here.keys() & there.keys())
        counts = f"{shared} of {len(other)} rows loaded by token, {len(there) - shared} of the weights left out"
        assert any(note.startswith(f"  {part}, {name}: another tokenizer: {counts}, ") for note in notes)


def test_settings_that_change_results_are_named_and_the_temperature_is_kept(tmp_path: Path) -> None:
    saved = saved_model(tmp_path / "model")
    arguments = ["model.audio.window_columns=6", "model.logit_scale_init=1.5", "model.text.pretrained=some/encoder"]
    recipe = complete_config(settings(tmp_path / "model", *arguments)).recipe
    model, notes = started(find_source(str(tmp_path / "model")), recipe)
    assert float(model.student.logit_scale().detach()) == pytest.approx(float(saved.logit_scale().detach()))
    assert "  settings that differ from those of the weights: model.audio.window_columns 2 -> 6" in notes
    assert any(note.startswith("  model.text.pretrained=some/encoder has no effect") for note in notes)


@pytest.mark.parametrize(
    ("argument", "key", "own", "saved"),
    [
        ("model.audio.width=32", "model.audio.width", 32, 16),
        ("model.audio.heads=4", "model.audio.heads", 4, 2),
        ("model.text.layers=3", "model.text.layers", 3, 2),
        ("model.caption.mlp_width=48", "model.caption.mlp_width", 48, 24),
    ],
)
def test_a_key_that_does_not_fit_the_weights_is_named_with_both_values(
    argument: str, key: str, own: int, saved: int, tmp_path: Path
) -> None:
    saved_model(tmp_path)
    with pytest.raises(ConfigError) as error:
        complete_config(settings(tmp_path, argument))
    assert f"{key} is {own}, but {saved} in the model of model.init_from={tmp_path}" in str(error.value)
    assert f"set {key}={saved}" in str(error.value)
    # The decoder is not built, so its size does not matter.
    if "caption" in key:
        complete_config(settings(tmp_path, argument, "objectives.caption_weight=0"))


def test_a_source_that_is_missing_or_damaged_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"model.init_from is not set, .* set model.init_from=FOLDER"):
        complete_config(read_arguments(["recipe=finetune-clotho"]))
    saved_model(tmp_path / "run" / "model")
    for name, message in (
        ("nowhere", "no such folder"),
        ("run", f"it is the output of a run: use {tmp_path / 'run' / 'model'}"),
        ("run/model/tokenizer", "no config.json"),
    ):
        with pytest.raises(ModelError) as error:
            complete_config(settings(tmp_path / name))
        assert f"model.init_from={tmp_path / name}" in str(error.value)
        assert message in str(error.value)
    (tmp_path / "step-00000003").mkdir()
    with pytest.raises(ModelError, match=r"a checkpoint that is incomplete or damaged: no MANIFEST.json"):
        find_source(str(tmp_path / "step-00000003"))
    shutil.rmtree(tmp_path / "run" / "model" / "tokenizer")
    config = complete_config(settings(tmp_path / "run" / "model"))
    with pytest.raises(ModelError, match=r"tokenizer is missing: set data.tokenizer"):
        build.build_tokenizer(config.recipe.data, config.recipe.model, source_of(config))


def test_a_run_fine_tunes_a_checkpoint_and_continues_without_it(tmp_path: Path) -> None:
    (tmp_path / "clips").mkdir()
    dataset = write_dataset(tmp_path / "clips", tmp_path / "data")
    first = [f"recipe={write_recipe(tmp_path / 'first.yaml', steps=2)}", f"data.train={dataset}"]
    (tmp_path / "fine-tuning.yaml").write_text(FINE_TUNING)
    checkpoint = tmp_path / "moved" / "step-00000002"
    second = [f"recipe={tmp_path / 'fine-tuning.yaml'}", f"data.train={dataset}", f"model.init_from={checkpoint}"]
    second += [f"training.output={tmp_path / 'second'}", "model.freeze=[text_encoder]", "training.zero_stage=2"]
    second += ["model.prototype.prototypes=24", "optimizer.rate_multipliers.audio_encoder=0.5"]
    log = tmp_path / "log.txt"

    def train(*arguments: str) -> None:
        assert finish([start_program("slap_fast.train", arguments, log)], log) == [0], tail(log)

    train(*first, f"training.output={tmp_path / 'first'}")
    shutil.copytree(tmp_path / "first" / "checkpoints", tmp_path / "moved")
    train(*second, "training.stop_after=2")
    shutil.rmtree(tmp_path / "moved")
    train(*second)
    lines = [line.strip() for line in log.read_text().splitlines()]
    assert f"initial weights of the checkpoint of step 2 {checkpoint}:" in lines
    assert any(
        line.startswith("prototype_head: 6 tensors") and "[20, 8] in the weights and [24, 8]" in line for line in lines
    )
    assert "teacher: a copy of the audio encoder and the prototype head" in lines
    assert any(line.startswith("frozen: text_encoder (") for line in lines)
    assert f"model.init_from={checkpoint} is not read again: the run continues from its checkpoint" in lines
    before, after = (SLAP.from_pretrained(tmp_path / name / "model") for name in ("first", "second"))
    assert before.config.mel == after.config.mel
    same = {name for name, value in before.state_dict().items() if torch.equal(value, after.state_dict()[name])}
    text_tower = {name for name in before.state_dict() if name.startswith("text_encoder.")}
    assert text_tower <= same
    assert "audio_encoder.patch_embedding.weight" not in same
    rates = [json.loads(line) for line in (tmp_path / "second" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in rates] == [1, 2, 3, 4]
    assert all(line["learning_rate/audio_encoder"] == 0.5 * line["learning_rate"] for line in rates)


def test_a_hub_id_with_a_revision_is_a_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = saved_model(tmp_path / "model")
    with HubServer().running() as hub:
        hub.connect(monkeypatch, tmp_path / "cache")
        repo = hub.add("owner/clap", tmp_path / "model")
        repo.refs["v1"] = repo.refs["main"]
        assert find_source("owner/clap@v1").model.config == saved.config
        with pytest.raises(ModelError, match=r"model.init_from=owner/clap@v2: .*no revision 'v2'"):
            find_source("owner/clap@v2")
        # The branch moves between the calls for the architecture and for the weights.
        config = complete_config(settings("owner/clap"))
        commit, files = repo.refs["main"], repo.files()
        repo.commit({**files, "config.json": files["config.json"].replace(b"-3.25", b"-9.75")})
        source = source_of(config)
        assert source is not None
        assert source.commit == commit
        _, notes = started(source, config.recipe)
        assert notes[0] == f"initial weights of the model owner/clap at commit {commit}:"
