"""Recipe loader: YAML files and `section.key=value` arguments to a typed `RunConfig`."""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import yaml

from slap_fast.config.initial_model import ConfigError, InitialModel, inherit_model
from slap_fast.config.recipe import RunConfig

RECIPES = Path(__file__).resolve().parent.parent / "recipes"

_Path = tuple[str, ...]  # such as ("efficiency", "training", "zero_stage"); users write training.zero_stage


@dataclasses.dataclass(frozen=True)
class Settings:
    """The values that a recipe and its overrides give, by key.

    Attributes:
        values: checked values by path, such as `("recipe", "model", "audio", "width")`.
    """

    values: Mapping[_Path, Any]

    def get(self, key: str) -> Any:
        """The value of a key such as `model.init_from`; its default if it is not given."""
        path, default = next((path, default) for path, default in _defaults(RunConfig()) if ".".join(path[1:]) == key)
        return self.values.get(path, default)

    def config(self, initial: InitialModel | None = None) -> RunConfig:
        """The complete configuration.

        Args:
            initial: the model that `model.init_from` names. Keys of `model` that are not given take its values.

        Raises:
            ConfigError: a value is out of range; or a key of `model` is given that does not fit the weights of the
                initial model.
        """
        values = self.values if initial is None else inherit_model(self.values, initial, self.get)
        return _build(RunConfig, values, ())


def load_run_config(recipe: str, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe and apply overrides, without a look at the model that `model.init_from` names.

    Args:
        recipe: the name of a recipe of this package, or the path of a YAML file with the two top-level parts `recipe`
            and `efficiency`, and optionally `base`: the recipe whose values it changes. Keys that neither has keep
            their defaults.
        overrides: `section.key=value`, such as `training.zero_stage=2`; the section may be of either part.

    Raises:
        ConfigError: no such recipe, an unknown key, or a value of the wrong type or out of range.
    """
    return _read_settings(recipe, overrides).config()


def read_arguments(arguments: Sequence[str]) -> Settings:
    """Parse `recipe=NAME|PATH section.key=value ...`; ignores the `--local_rank` that launchers add.

    Raises:
        ConfigError: as `load_run_config`, or not exactly one `recipe=`.
    """
    arguments = [argument for argument in arguments if not argument.startswith("--local_rank")]
    recipes = [argument.partition("=")[2] for argument in arguments if argument.startswith("recipe=")]
    if len(recipes) != 1 or not recipes[0]:
        given = f"{len(recipes)} recipe= arguments" if len(recipes) > 1 else "no recipe"
        raise ConfigError(f"{given}; pass exactly one recipe=NAME or recipe=PATH ({_known_recipes()})")
    return _read_settings(recipes[0], [argument for argument in arguments if not argument.startswith("recipe=")])


def config_from_arguments(arguments: Sequence[str]) -> RunConfig:
    """`load_run_config` of the arguments that `read_arguments` takes."""
    return read_arguments(arguments).config()


def to_yaml(config: RunConfig) -> str:
    """The complete configuration as YAML; `load_run_config` reads it back to an equal one."""
    return yaml.safe_dump(_plain(config), sort_keys=False)


def _known_recipes() -> str:
    return "known recipes: " + ", ".join(sorted(path.stem for path in RECIPES.glob("*.yaml")))


def _read_settings(recipe: str, overrides: Sequence[str]) -> Settings:
    values = _read_recipe(_find_recipe(recipe), ())
    for argument in overrides:
        key, value = _parse_override(argument)
        values[key] = value
    return Settings(values)


def _read_recipe(path: Path, above: tuple[Path, ...]) -> dict[_Path, Any]:
    """The values that a recipe gives, with those of its `base`.

    Args:
        above: the recipes that led to this one by their `base`.
    """
    if path.resolve() in above:
        chain = " -> ".join(str(each) for each in (*above, path.resolve()))
        raise ConfigError(f"recipes that are the base of each other: {chain}; change the base of one")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read the recipe {path}: {error}") from error
    content = {} if content is None else content
    values: dict[_Path, Any] = {}
    if isinstance(content, Mapping) and "base" in content:
        if not isinstance(base := content["base"], str):
            raise ConfigError(f"{path}: base is {base!r}; it must be the name or path of a recipe")
        # A path is relative to the file that has it.
        beside = path.parent / base
        found = beside if beside.is_file() else _find_recipe(base, f"{path}: base")
        values = _read_recipe(found, (*above, path.resolve()))
        content = {key: value for key, value in content.items() if key != "base"}
    return values | _flatten(RunConfig, content, (), str(path))


def _find_recipe(recipe: str, key: str = "recipe") -> Path:
    named = RECIPES / f"{recipe}.yaml"
    if "/" not in recipe and named.is_file():
        return named
    if Path(recipe).is_file():
        return Path(recipe)
    nearest = difflib.get_close_matches(recipe, [path.stem for path in RECIPES.glob("*.yaml")], n=1)
    hint = f"did you mean {nearest[0]!r}? " if nearest else ""
    raise ConfigError(f"{key}={recipe}: neither a recipe nor a file; {hint}({_known_recipes()})")


def _parse_override(argument: str) -> tuple[_Path, Any]:
    key, equals, text = argument.partition("=")
    where = f"argument {argument!r}"
    if not equals:
        raise ConfigError(f"{where}: arguments are section.key=value, such as training.zero_stage=2")
    leaves = {".".join(path[1:]): (path, hint) for path, hint in _leaves()}
    if key not in leaves:
        _raise_unknown(key, where)
    path, hint = leaves[key]
    # If the key takes text or a list, brackets mark a list.
    takes_text = hint is str or str in typing.get_args(hint)
    if not text and type(None) in typing.get_args(hint):
        # Such as an unset variable of a shell. YAML would read null, which trains another model without an error.
        raise ConfigError(f"{where}: no value; write {key}=null for none")
    if hint is str or (takes_text and _list_type(hint) is not None and not text.lstrip().startswith("[")):
        return path, text
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where}: cannot read the value: {error}") from error
    if value is not None and str in typing.get_args(hint) and _list_type(hint) is None:
        value = text
    return path, coerce(value, hint, key, where)


def _flatten(cls: type, content: Any, prefix: _Path, where: str) -> dict[_Path, Any]:
    """Nested mappings to `{path of a leaf: checked value}`."""
    name = ".".join(prefix[1:]) or ".".join(prefix) or "the file"
    if not isinstance(content, Mapping):
        raise ConfigError(f"{where}: {name} must be a mapping of keys to values, not {content!r}")
    hints = typing.get_type_hints(cls)
    flat: dict[_Path, Any] = {}
    for key, value in content.items():
        path = (*prefix, str(key))
        if key not in hints:
            if not prefix:
                raise ConfigError(
                    f"{where}: unknown top-level section {key!r}; a recipe has 'recipe' and 'efficiency', and may have "
                    "'base'"
                )
            _raise_unknown(".".join(path[1:]), where)
        if dataclasses.is_dataclass(hints[key]):
            # YAML reads a section whose keys are all commented out as null.
            flat.update(_flatten(hints[key], {} if value is None else value, path, where))
        else:
            flat[path] = coerce(value, hints[key], ".".join(path[1:]), where)
    return flat


def _build(cls: Any, values: Mapping[_Path, Any], prefix: _Path) -> Any:
    arguments = {}
    for name, hint in typing.get_type_hints(cls).items():
        path = (*prefix, name)
        if dataclasses.is_dataclass(hint):
            arguments[name] = _build(hint, values, path)
        elif path in values:
            arguments[name] = values[path]
    try:
        return cls(**arguments)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"in {'.'.join(prefix[1:]) or 'the recipe'}: {error}") from error


def _leaves(cls: Any = RunConfig, prefix: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Path and type of each key that takes a value."""
    for name, hint in typing.get_type_hints(cls).items():
        path = (*prefix, name)
        if dataclasses.is_dataclass(hint):
            yield from _leaves(hint, path)
        else:
            yield path, hint


def _defaults(value: Any, prefix: _Path = ()) -> Iterator[tuple[_Path, Any]]:
    """Path and value of each key of a configuration."""
    for name in typing.get_type_hints(type(value)):
        path, part = (*prefix, name), getattr(value, name)
        if dataclasses.is_dataclass(part):
            yield from _defaults(part, path)
        else:
            yield path, part


def _raise_unknown(key: str, where: str) -> NoReturn:
    known = [".".join(path[1:]) for path, _ in _leaves()]
    below = [candidate for candidate in known if candidate.startswith(f"{key}.")]
    if below:
        raise ConfigError(f"{where}: {key!r} is a section; set one of its keys, such as {below[0]!r}")

    # A correct name in a wrong section is searched everywhere; a misspelled name only in its (most similar) section.
    leaf, section = key.rpartition(".")[2], key.partition(".")[0]
    section = next(iter(difflib.get_close_matches(section, {name.partition(".")[0] for name in known}, n=1)), section)
    if not any(candidate.endswith(f".{leaf}") for candidate in known):
        known = [candidate for candidate in known if candidate.startswith(f"{section}.")] or known

    def similarity(candidate: str) -> float:
        name = candidate.rpartition(".")[2]
        if leaf == "".join(word[:1] for word in name.split("_")):
            return 1.0  # its initials, such as lr
        ratios = [difflib.SequenceMatcher(None, *names).ratio() for names in ((key, candidate), (leaf, name))]
        return 0.4 * ratios[0] + 0.6 * ratios[1]

    raise ConfigError(f"{where}: unknown key {key!r}; did you mean {max(known, key=similarity)!r}?")


def coerce(value: Any, hint: Any, key: str, where: str) -> Any:
    """Check `value` against the type `hint`. The only conversions: int to float, and text such as YAML's `1e-4`.

    Args:
        key: for the message.
        where: the file or argument that sets the key; for the message.

    Raises:
        ConfigError: the value is of another type.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        listed = _list_type(hint)
        if listed is not None and isinstance(value, list):
            return coerce(value, listed, key, where)
        (hint,) = (argument for argument in arguments if argument not in (type(None), listed))
        return coerce(value, hint, key, where)
    if origin is Literal:
        matches = [choice for choice in arguments if type(choice) is type(value) and choice == value]
        if matches:
            return matches[0]
        choices = ", ".join(map(str, arguments))
        nearest = difflib.get_close_matches(str(value), [str(choice) for choice in arguments], n=1)
        hint_text = f"; did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigError(f"{where}: {key} is {value!r}; choose one of {choices}{hint_text}")
    if origin is tuple and arguments[1:] == (...,):
        if not isinstance(value, list | tuple):
            raise ConfigError(f"{where}: {key} is {value!r}; it must be a list, such as [{value}]")
        check = _item if dataclasses.is_dataclass(arguments[0]) else coerce
        return tuple(check(item, arguments[0], f"{key}[{number}]", where) for number, item in enumerate(value))
    if origin is tuple:
        if not isinstance(value, list | tuple) or len(value) != len(arguments):
            raise ConfigError(f"{where}: {key} is {value!r}; it must be a list of {len(arguments)} values")
        return tuple(coerce(item, item_hint, key, where) for item, item_hint in zip(value, arguments, strict=True))
    if hint in (bool, str):
        if isinstance(value, hint):
            return value
    elif isinstance(value, int | float | str) and not isinstance(value, bool):
        try:
            number = float(value)
            if math.isfinite(number) and (hint is float or number == int(number)):
                return hint(number)
        except ValueError:
            pass
    expected = {int: "a whole number", float: "a finite number", bool: "true or false", str: "text"}[hint]
    raise ConfigError(f"{where}: {key} is {value!r}; it must be {expected}")


def _list_type(hint: Any) -> Any:
    """The member of a union that is a tuple of any length, if there is one."""
    alternatives = typing.get_args(hint) if typing.get_origin(hint) in (types.UnionType, typing.Union) else ()
    return next((option for option in alternatives if typing.get_args(option)[1:] == (...,)), None)


def _item(value: Any, cls: Any, key: str, where: str) -> Any:
    """An element of a list of dataclasses: a mapping with exactly the fields of `cls`."""
    hints = typing.get_type_hints(cls)
    if not isinstance(value, Mapping) or set(value) != set(hints):
        example = "{" + ", ".join(f"{name}: ..." for name in hints) + "}"
        raise ConfigError(f"{where}: {key} is {value!r}; it must be {example}")
    fields = {name: coerce(value[name], hint, f"{key}.{name}", where) for name, hint in hints.items()}
    try:
        return cls(**fields)
    except ValueError as error:
        raise ConfigError(f"{where}: in {key}: {error}") from error


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {field.name: _plain(getattr(value, field.name)) for field in dataclasses.fields(value)}
    return [_plain(item) for item in value] if isinstance(value, tuple) else value
