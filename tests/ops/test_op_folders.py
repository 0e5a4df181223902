"""Every op folder has the same files, and its `__init__.py` the same order."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import slap_fast.ops
from slap_fast.ops import dispatch

OPS = Path(slap_fast.ops.__file__).parent
KERNELS = OPS.parents[1] / "kernels"
FOLDERS = sorted(path.parent for path in OPS.rglob("call.py"))
REQUIRED = {"__init__.py", "call.py", "backend_native.py"}
# Serves every call where PyTorch runs; FLAC has no PyTorch code, but a library.
FALLBACK = {"decode_flac": "backend_soundfile.py"}
ORDER = ["docstring", "imports", "BACKENDS", "dispatch.register", "op and fake", "autograd", "public function"]

each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.relative_to(OPS).as_posix())


def _module(folder: Path, name: str = "") -> ModuleType:
    return importlib.import_module(".".join(["slap_fast.ops", *folder.relative_to(OPS).parts, *name.split()]))


def _decorators(function: ast.FunctionDef) -> list[str]:
    return [ast.unparse(decorator) for decorator in function.decorator_list]


def _part(node: ast.stmt) -> str | None:
    """Which part of `ORDER` a statement is; None for a private helper or a class, which stand where they are used."""
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "imports"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return "docstring"
    if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "BACKENDS":
        return "BACKENDS"
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        function = ast.unparse(node.value.func)
        if function == "dispatch.register":
            return function
        return "autograd" if function.endswith("register_autograd") else None
    if isinstance(node, ast.FunctionDef):
        if any(name.startswith("custom_op") or name.endswith("register_fake") for name in _decorators(node)):
            return "op and fake"
        return None if node.name.startswith("_") else "public function"
    return None


def test_every_op_is_a_folder() -> None:
    assert {path.parent for path in OPS.glob("*/__init__.py")} <= set(FOLDERS)


@each_folder
def test_a_folder_has_the_same_files_as_the_others(folder: Path) -> None:
    files = {path.name for path in folder.glob("*.py")}
    assert files >= {*REQUIRED, FALLBACK.get(folder.name, "backend_torch.py")}
    assert ("backend_triton.py" in files) == any(
        (KERNELS / name).exists() for name in (folder.name, folder.name + ".py")
    )


@each_folder
def test_each_backend_is_a_module_of_its_name(folder: Path) -> None:
    modules = {path.stem.removeprefix("backend_") for path in folder.glob("backend_*.py")}
    registered = {name for name, _ in dispatch.report()[_registered_name(folder)]}
    assert registered == modules
    assert set(_module(folder).BACKENDS) <= modules
    for name in modules:
        module = _module(folder, f"backend_{name}")
        assert callable(module.unavailable)
        assert callable(module.rejects)


def _registered_name(folder: Path) -> str:
    for node in ast.parse((folder / "__init__.py").read_text()).body:
        if _part(node) == "dispatch.register":
            assert isinstance(node, ast.Expr)
            assert isinstance(node.value, ast.Call)
            return str(ast.literal_eval(node.value.args[0]))
    raise AssertionError(f"{folder} registers no op")


@each_folder
def test_call_has_the_backend_protocol_and_the_selection(folder: Path) -> None:
    call = _module(folder, "call")
    assert getattr(call.Backend, "_is_protocol", False)
    assert "dispatch.select(" in inspect.getsource(call.select)


@each_folder
def test_call_validates_selects_and_checks(folder: Path) -> None:
    call = _module(folder, "call")
    for name in ("validate", "select", "check"):
        assert inspect.isfunction(getattr(call, name)), name
        assert getattr(call, name).__module__ == call.__name__, name
    source = inspect.getsource(call.select)
    assert "raise " not in source
    assert "validate" not in source


@each_folder
def test_the_init_has_no_checks_of_its_own(folder: Path) -> None:
    package = ast.parse((folder / "__init__.py").read_text())
    assert not [node.lineno for node in ast.walk(package) if isinstance(node, ast.Raise)]
    functions = [node for node in package.body if isinstance(node, ast.FunctionDef)]
    decorators = [name for function in functions for name in _decorators(function) if name.startswith("custom_op(")]
    checks = [name.partition("check=")[2].partition(",")[0].rstrip(")") for name in decorators if "check=" in name]
    assert checks[0] == "check"
    assert all(hasattr(_module(folder, "call"), name) for name in checks), checks


@each_folder
def test_the_init_is_in_order(folder: Path) -> None:
    parts = [_part(node) for node in ast.parse((folder / "__init__.py").read_text()).body]
    places = [ORDER.index(part) for part in parts if part is not None]
    assert places == sorted(places), [part for part in parts if part is not None]
    wanted = {*ORDER} - {"autograd"}
    assert wanted <= {*parts}


@each_folder
def test_each_registered_op_is_followed_by_its_fake(folder: Path) -> None:
    functions = [node for node in ast.parse((folder / "__init__.py").read_text()).body if _part(node) == "op and fake"]
    for place, function in enumerate(functions):
        assert isinstance(function, ast.FunctionDef)
        (decorator,) = _decorators(function)
        if decorator.startswith("custom_op") and "mutates_args" not in decorator:
            following = functions[place + 1]
            assert isinstance(following, ast.FunctionDef)
            assert _decorators(following) == [f"{function.name}.register_fake"]


@each_folder
def test_the_docstring_has_a_usage_line(folder: Path) -> None:
    tree = ast.parse((folder / "__init__.py").read_text())
    public = {node.name for node in tree.body if _part(node) == "public function" and isinstance(node, ast.FunctionDef)}
    usage = [line for line in (ast.get_docstring(tree) or "").splitlines() if line.startswith("    ")]
    assert any(f"{name}(" in line for name in public for line in usage), usage


def test_a_public_name_is_never_the_module_of_that_name() -> None:
    for module in pkgutil.walk_packages(slap_fast.ops.__path__, "slap_fast.ops."):
        importlib.import_module(module.name)
    for name in slap_fast.ops.__all__:
        assert not isinstance(getattr(slap_fast.ops, name), ModuleType), name


def test_a_submodule_imported_first_registers_all_ops_and_hides_no_function() -> None:
    code = (
        "import slap_fast.ops.rms_norm.backend_native, slap_fast.ops.log_mel.config, torch\n"
        "from slap_fast.ops import log_mel, rms_norm, swiglu, waveform_stats\n"
        "print(*(type(each).__name__ for each in (log_mel, rms_norm, swiglu, waveform_stats)))\n"
        "print(sum(name.startswith('slap_fast::') for name in torch._C._dispatch_get_all_op_names()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    kinds, count = done.stdout.splitlines()
    assert kinds.split() == ["function"] * 4
    assert int(count) >= 25
