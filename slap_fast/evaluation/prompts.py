"""Prompt sets: templates for class names, built in or from a file, and ensembles of several sets."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from slap_fast.data.labeled import LabelError
from slap_fast.data.prepare.table_rows import RepeatedKey, json_object

TEMPLATES = ("{}", "the sound of {}", "a recording of {}", "{} can be heard")


@dataclass(frozen=True)
class PromptSet:
    """Templates with `{}` for a class name; the embedding of a class is the mean over its prompts.

    Attributes:
        name: for reports.
        templates: each with `{}`.
        origin: where they come from.
        class_names: other names of a class, used instead of its own; each is put into each template.
    """

    name: str
    templates: tuple[str, ...]
    origin: str = ""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.templates:
            raise LabelError(f"{self.name}: no template; give at least one, such as 'the sound of {{}}'")
        for template in self.templates:
            if "{}" not in template:
                raise LabelError(f"{self.name}: template {template!r} has no {{}} for the class name")

    def prompts(self, name: str) -> list[str]:
        """The texts of a class."""
        names = self.class_names.get(name, (name,))
        return list(dict.fromkeys(template.replace("{}", one) for one in names for template in self.templates))

    def check_classes(self, classes: Sequence[str]) -> None:
        """Raises LabelError if `class_names` has a name that is not among `classes`."""
        if unknown := [name for name in self.class_names if name not in set(classes)]:
            raise LabelError(
                f"{self.name}: it renames {unknown[0]!r}, which is no class; the classes: {', '.join(classes)}"
            )

    def describe(self) -> dict[str, Any]:
        """JSON values for a report."""
        renamed = {"class_names": {name: list(names) for name, names in self.class_names.items()}}
        return {
            "name": self.name,
            "templates": list(self.templates),
            **({"origin": self.origin} if self.origin else {}),
            **(renamed if self.class_names else {}),
        }


PROMPT_SETS = {
    prompts.name: prompts
    for prompts in (
        PromptSet("default", TEMPLATES, "slap-fast"),
        PromptSet("labels", ("{}",), "the class name alone"),
        PromptSet("clap", ("This is a sound of {}",), "Elizalde et al., CLAP, ICASSP 2023"),
        PromptSet("msclap", ("this is the sound of {}",), "microsoft/CLAP, src/zero_shot_classification.py"),
        PromptSet("emotion", ("this person is feeling {}",), "Elizalde et al., CLAP, ICASSP 2023"),
        PromptSet("music", ("{} music", "a {} song", "this is {} music"), "slap-fast"),
    )
}


def open_prompts(names: Sequence[str]) -> PromptSet:
    """An ensemble of prompt sets: all their templates, each once.

    Args:
        names: names of PROMPT_SETS, and files: a text file with one template per line, a JSON list of templates, or
            `{"templates": [...], "class_names": {"dog bark": ["dog", "barking"]}}`. Empty: `default`.

    Raises:
        LabelError: there is no such set or file, it cannot be read, or a template has no `{}`.
    """
    sets = [PROMPT_SETS.get(name) or _read(Path(name)) for name in names or ("default",)]
    if len(sets) == 1:
        return sets[0]
    class_names: dict[str, tuple[str, ...]] = {}
    for one in sets:
        for name, others in one.class_names.items():
            class_names[name] = tuple(dict.fromkeys((*class_names.get(name, ()), *others)))
    return PromptSet(
        " + ".join(one.name for one in sets),
        tuple(dict.fromkeys(template for one in sets for template in one.templates)),
        "; ".join(dict.fromkeys(one.origin for one in sets if one.origin)),
        class_names,
    )


def _read(path: Path) -> PromptSet:
    if not path.is_file():
        raise LabelError(f"{path}: neither a file nor a prompt set; the sets: {', '.join(PROMPT_SETS)}")
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise LabelError(f"{path}: cannot be read ({error})") from error
    if path.suffix.lower() != ".json":
        lines = [line.strip() for line in text.splitlines()]
        return PromptSet(str(path), tuple(line for line in lines if line and not line.startswith("#")))
    try:
        value = json.loads(text, object_pairs_hook=json_object)
    except (ValueError, RecursionError) as error:
        raise LabelError(f"{path}: not JSON ({error})") from error
    if isinstance(value, list):
        value = {"templates": value}
    if isinstance(value, RepeatedKey):
        raise LabelError(f"{path}: the key {value.key!r} appears twice")
    if (
        not isinstance(value, dict)
        or not value.keys() <= {"templates", "class_names"}
        or not _texts(value.get("templates"))
    ):
        raise LabelError(f'{path}: it must be a list of templates, or {{"templates": [...], "class_names": {{...}}}}')
    names = value.get("class_names") or {}
    if not isinstance(names, dict) or not all(isinstance(one, str) or _texts(one) for one in names.values()):
        raise LabelError(f"{path}: class_names must give each class a name or a list of names")
    class_names = {name: (others,) if isinstance(others, str) else tuple(others) for name, others in names.items()}
    return PromptSet(str(path), tuple(value["templates"]), class_names=class_names)


def _texts(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, str) for one in value)
