"""Models of the hub, with the real client against a local stand-in."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from huggingface_hub import constants

from slap_fast import cli
from slap_fast.config.saved_files import weights_digest
from slap_fast.errors import ModelError
from slap_fast.models.hub import model_folder
from slap_fast.models.slap import SLAP
from tests.hub_server import HubServer
from tests.models.builders import random_clips
from tests.models.saved import TEXTS, tiny_slap

FILES = {"config.json": b"{}", "model.safetensors": bytes(range(256)) * 4000}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with HubServer().running() as server:
        server.users = {"mine": "me", "other": "you"}
        server.connect(monkeypatch, tmp_path / "home", token="mine")
        monkeypatch.chdir(tmp_path)
        yield server


def _words(error: pytest.ExceptionInfo[ModelError]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)


def test_a_pushed_model_loads_by_id_revision_and_offline_with_the_same_embeddings(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, clips = tiny_slap(), random_clips([0.5, 1.3])
    url = model.push_to_hub("me/tiny", private=True, license="mit", commit_message="First")
    assert hub.repos["model", "me/tiny"].private
    assert url.startswith(f"{hub.url}/me/tiny/commit/")
    card = hub.repos["model", "me/tiny"].files()["README.md"].decode()
    assert card.startswith("---\nlicense: mit\nlibrary_name: slap-fast\npipeline_tag: zero-shot-audio-classification\n")
    assert 'SLAP.from_pretrained("me/tiny")' in card
    first = hub.repos["model", "me/tiny"].refs["main"]
    with torch.no_grad():
        model.logit_scale.delta.fill_(1.0)
    hub.repos["model", "me/tiny"].commits[first]["README.md"] = b"my own card"
    model.push_to_hub("me/tiny")
    assert hub.repos["model", "me/tiny"].files()["README.md"] == b"my own card"
    expected, other = model.encode_audio(clips, sampling_rate=16_000), model.encode_text(TEXTS)
    for name, revision, delta in (("me/tiny", None, 1.0), (f"me/tiny@{first}", None, 0.0), ("me/tiny", first, 0.0)):
        loaded = SLAP.from_pretrained(name, revision=revision)
        assert torch.equal(loaded.encode_audio(clips, sampling_rate=16_000), expected)
        assert torch.equal(loaded.encode_text(TEXTS), other)
        assert loaded.logit_scale.delta.item() == delta
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert torch.equal(SLAP.from_pretrained("me/tiny").encode_text(TEXTS), other)
    with pytest.raises(ModelError) as error:
        SLAP.from_pretrained("me/unseen")
    assert "switched off by HF_HUB_OFFLINE=1; unset it, or give a folder" in _words(error)


def test_files_that_can_hold_code_are_named_and_never_requested(
    hub: HubServer, caplog: pytest.LogCaptureFixture
) -> None:
    hub.add("you/code", {**FILES, "modeling.py": b"1/0", "pytorch_model.bin": b"pickle", "a.pkl": b"pickle"})
    folder = model_folder("you/code")
    assert sorted(path.name for path in folder.iterdir()) == sorted(FILES)
    assert "not downloaded, because they can hold code: modeling.py, pytorch_model.bin, a.pkl" in caplog.text
    hub.add("you/pickle", {"config.json": b"{}", "pytorch_model.bin": b"pickle"})
    with pytest.raises(ModelError) as error:
        model_folder("you/pickle")
    assert "no model.safetensors (it has pytorch_model.bin, which can hold code" in _words(error)
    assert not [line for line in hub.requests if line.endswith((".py", ".bin", ".pkl"))]
    hub.add("you/clap", {**FILES, "config.json": b'{"model_type": "clap"}'})
    with pytest.raises(ModelError, match="model_type is 'clap', which is another kind of model"):
        SLAP.from_pretrained("you/clap")


def test_a_download_that_breaks_off_continues_where_it_stopped(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("me/big", FILES)
    hub.cut_downloads = [0, 300_000]  # of either file, the smaller one being complete
    folder = model_folder("me/big")
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    monkeypatch.setattr(hub, "is_stopped", True)
    assert model_folder("me/big") == folder


def test_every_refusal_of_the_hub_is_one_line_with_what_to_do(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hub.add("you/gated", FILES, gated=True)
    hub.add("you/secret", FILES, private=True)
    hub.add("me/public", FILES)
    (tmp_path / "runs").mkdir()
    cases = {
        "you/none": "no such folder, and no such model at",
        "you/secret": "or it is private; check the name, or log in with `hf auth login`, or set HF_TOKEN",
        "you/gated": f"access is restricted; accept its terms at {hub.url}/you/gated, then log in",
        "me/public@v9": "the model has no revision 'v9'; give a branch, a tag or a commit",
        "runs/modle": "no such folder, but runs/ exists here, so this looks like a path; write hf://runs/modle",
        "./me/public": "no such folder",
        "me/public/model": "no such folder",
        "public": "a model of the Hugging Face hub is named as owner/name",
        "me/pub--lic": "it is no id of the Hugging Face hub",
        "me/públic": "no id of the Hugging Face hub either",
        "me/public@": "no id of the Hugging Face hub either",
    }
    for name, words in cases.items():
        with pytest.raises(ModelError) as error:
            model_folder(name)
        assert words in _words(error), name
    monkeypatch.setenv("HF_TOKEN", "expired")
    with pytest.raises(ModelError, match="the hub rejects the token as invalid; log in with `hf auth login`"):
        model_folder("me/public")
    model = tiny_slap()
    for token, repo, private, words in (
        ("expired", "me/new", None, "the hub rejects the token as invalid"),
        ("other", "me/new", None, r"the hub refuses access with this token \(.*rights.*\); use one that has it"),
        ("other", "me/public", None, "the hub refuses access with this token"),
        ("mine", "new", None, "no id of the Hugging Face hub; give owner/name"),
        ("mine", "me/new--er", None, "no id of the Hugging Face hub: "),
        ("mine", "me/public", True, "the repository exists and is public"),
    ):
        with pytest.raises(ModelError, match=words):
            model.push_to_hub(repo, token=token, private=private)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ModelError, match="nothing was uploaded: the hub asks for a token with write access; log in"):
        model.push_to_hub("me/new")
    assert ("model", "me/new") not in hub.repos
    assert hub.repos["model", "me/public"].files() == FILES
    monkeypatch.setattr(constants, "HF_HUB_CACHE", "/dev/full/cache")
    hub.add("you/open", FILES)
    with pytest.raises(ModelError, match=r"you/open.*: /dev/full"):
        model_folder("you/open")


def test_publish_uploads_what_the_dry_run_shows_and_the_commands_take_the_id(
    hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    tiny_slap().save_pretrained(run / "model")
    (run / "config.yaml").write_text(
        "recipe: {schedule: {steps: 7, batch_size: 4}, data: {train: /secret/place/data/train, max_duration: 30.0}}\n"
    )
    (run / "log.jsonl").write_text('{"step": 5}\n{"step": 7}\n')
    (run / "evaluation").mkdir()
    weights = weights_digest(run / "model")
    metrics = {
        "model": "run/model",
        "weights": weights,
        "dataset": "/secret/data/test",
        "retrieval": {"t2a_r1": 0.5, "clips": 8},
    }
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    (run / "evaluation" / "suite.json").write_text(json.dumps({"model": "run/best", "esc50": {"accuracy": 0.9}}))
    assert cli.main(["publish", "run/model", "me/tiny", "--license", "cc-by-4.0", "--dry-run"]) == 0
    shown = capsys.readouterr().out
    assert not hub.requests
    for words in (
        "model.safetensors",
        "| training steps | 7 |",
        "license: cc-by-4.0",
        "| t2a_r1 | 0.5 |",
        "data/train",
    ):
        assert words in shown, words
    assert "secret" not in shown
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics | {"weights": "of an earlier run"}))
    assert cli.main(["publish", "run/model", "me/tiny", "--dry-run"]) == 0
    retrained = capsys.readouterr().out
    assert "metrics.json (scores of other weights than those in model; evaluate the model again)" in retrained
    assert "t2a_r1" not in retrained
    (run / "evaluation" / "metrics.json").write_text(json.dumps(metrics))
    assert "suite.json (scores of best, not of model)" in shown
    assert "accuracy" not in shown
    assert cli.main(["publish", "run/model", "me/tiny", "--license", "cc-by-4.0"]) == 0
    assert f"{hub.url}/me/tiny/commit/" in capsys.readouterr().out
    files = hub.repos["model", "me/tiny"].files()
    assert files["README.md"].decode() in shown
    assert files["model.safetensors"] == (run / "model" / "model.safetensors").read_bytes()
    assert cli.main(["embed", "me/tiny@main", "a dog", "bell", "--text", "--out", "texts.npz", "--quiet"]) == 0
    assert cli.main(["embed", "me/tini", "a dog", "--text", "--out", "texts.npz", "--quiet"]) == 2
    assert "me/tini: no such folder, and no such model at" in capsys.readouterr().err
    assert cli.main(["embed", "me/tiny@refs/pr/1", "a dog", "--text", "--out", "texts.npz", "--quiet"]) == 2
    assert "the model has no revision 'refs/pr/1'" in capsys.readouterr().err
    for path in ("./me/tiny", "me/tiny/"):
        assert cli.main(["embed", path, "a dog", "--text", "--out", "texts.npz", "--quiet"]) == 2
        assert f"{tmp_path}/me/tiny: no such folder" in capsys.readouterr().err


def test_the_documented_use_of_the_hub_runs(hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (Path(__file__).parents[2] / "docs" / "hub.md").read_text(encoding="utf-8")
    tiny_slap().save_pretrained("local")
    hub.users["token"] = "owner"
    monkeypatch.setenv("HF_TOKEN", "token")
    hub.add("owner/name", tmp_path / "local", private=True)
    samples = np.sin(np.arange(48_000) / 20).astype(np.float32)
    soundfile.write("dog.wav", samples, 16_000)
    names: dict[str, Any] = {"samples": samples}
    for example in re.findall(r"```python\n(.*?)```", text, re.S):
        exec(example, names)
    assert names["output"].logits_per_audio.shape == (1, 2)
    assert "license: cc-by-4.0" in hub.repos["model", "owner/name"].files()["README.md"].decode()
