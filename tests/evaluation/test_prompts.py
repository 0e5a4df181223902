from __future__ import annotations

from pathlib import Path

import pytest

from slap_fast.data.labeled import LabelError
from slap_fast.evaluation.prompts import PROMPT_SETS, open_prompts


def test_an_ensemble_has_each_template_of_its_sets_once(tmp_path: Path) -> None:
    (tmp_path / "own.txt").write_text("# templates\n{}\n\na sound like {}\n")
    prompts = open_prompts(["labels", str(tmp_path / "own.txt")])
    assert prompts.prompts("dog bark") == ["dog bark", "a sound like dog bark"]
    assert open_prompts([]) is PROMPT_SETS["default"]


def test_a_file_may_rename_classes(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text('{"templates": ["{}", "a {}"], "class_names": {"dog bark": ["dog", "hound"]}}')
    prompts = open_prompts([str(tmp_path / "own.json")])
    assert prompts.prompts("dog bark") == ["dog", "a dog", "hound", "a hound"]
    assert prompts.prompts("rain") == ["rain", "a rain"]
    with pytest.raises(LabelError, match="it renames 'dog bark', which is no class; the classes: rain"):
        prompts.check_classes(["rain"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", "the sound\n", r"template 'the sound' has no \{\}"),
        ("a.txt", "\n", "no template"),
        ("a.json", '{"template": ["{}"]}', "it must be a list of templates"),
        ("a.json", '{"templates": ["{}"], "class_names": {"a": 3}}', "must give each class a name"),
        ("a.json", "[", "not JSON"),
        ("none.txt", None, "neither a file nor a prompt set; the sets: default"),
    ],
)
def test_prompts_that_cannot_be_used_are_an_error(tmp_path: Path, name: str, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(LabelError, match=message):
        open_prompts([str(tmp_path / name)])
