"""Imports run downwards: from each floor of the package only to floors below it, and never in a circle."""

from __future__ import annotations

import ast
import functools
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
# From the lowest to the highest. A module directly in slap_fast/ is a floor of its own.
FLOORS = (
    "_version",
    "__init__",
    "errors",
    "runtime",
    "native_sources",
    "native",
    "kernels",
    "ops",
    "audio",
    "config",
    "integrations",
    "models",
    "data",
    "synthetic",
    "inference",
    "training",
    "evaluation",
    "library",
    "app",
    "train",
    "planning",
    "commands",
    "cli",
    "__main__",
)
# `slap_fast.SLAP`, `Library` and the classes for transformers are imported when they are first asked for.
LAZY = {
    ("slap_fast", "slap_fast.models.slap"),
    ("slap_fast", "slap_fast.library.library"),
    ("slap_fast", "slap_fast.models.hugging_face.registration"),
    ("slap_fast", "slap_fast.models.hugging_face.configuration"),
    ("slap_fast", "slap_fast.models.hugging_face.modeling"),
    ("slap_fast", "slap_fast.models.hugging_face.processing"),
    # A configuration registers the other classes, which are built on it.
    ("slap_fast.models.hugging_face.registration", "slap_fast.models.hugging_face.configuration"),
    ("slap_fast.models.hugging_face.configuration", "slap_fast.models.hugging_face.registration"),
}


def _modules() -> dict[str, Path]:
    modules = {}
    for folder, package in ((ROOT / "slap_fast", "slap_fast"), (ROOT / "kernels", "slap_fast.kernels")):
        for path in folder.rglob("*.py"):
            parts = (package, *path.relative_to(folder).with_suffix("").parts)
            modules[".".join(parts).removesuffix(".__init__")] = path
    return modules


MODULES = _modules()


@functools.cache
def _imports(module: str, *, for_types: bool) -> set[str]:
    """The modules of the package that `module` imports, in functions too; `for_types`: also under TYPE_CHECKING."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and isinstance(block.test, ast.Name) and block.test.id == "TYPE_CHECKING"
        for node in ast.walk(block)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in typing_only and not for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} has a relative import"
            for alias in node.names:
                submodule = f"{node.module}.{alias.name}"
                found.add(submodule if submodule in MODULES else str(node.module))
    return {name for name in found & MODULES.keys() if name != module and (module, name) not in LAZY}


def _floor(module: str) -> int:
    parts = module.split(".")
    return FLOORS.index(parts[1] if len(parts) > 1 else "__init__")


@pytest.mark.parametrize("floor", FLOORS)
def test_a_floor_imports_from_floors_below_alone(floor: str) -> None:
    upwards = [
        f"{module} imports {imported}"
        for module in MODULES
        if FLOORS[_floor(module)] == floor
        for imported in _imports(module, for_types=True)
        if _floor(imported) > _floor(module)
    ]
    assert not upwards


def test_no_modules_import_each_other_in_a_circle() -> None:
    graph = {module: _imports(module, for_types=False) for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def test_every_module_of_a_floor_is_found() -> None:
    assert {FLOORS[_floor(module)] for module in MODULES} == set(FLOORS)
