"""`slap-fast info`: the page, and that importing the package is light."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import slap_fast
from slap_fast import native
from slap_fast.commands import info
from slap_fast.ops import dispatch

ROOT = Path(__file__).parents[2]


def test_report_names_versions_devices_and_every_op() -> None:
    page = info.report()
    for expected in (slap_fast.__version__, metadata.version("torch"), "flash-attn", "cpu", "waveform_stats"):
        assert expected in page
    for op in dispatch.report():
        assert op in page


def test_a_missing_package_names_the_extra_that_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(info, "PACKAGES", {"no-such-package-here": "gpu"})
    assert info.versions()["no-such-package-here"] == 'not installed (pip install "slap-fast[gpu]")'


def test_a_backend_that_does_not_serve_is_shown_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_backends", {"op": (dispatch.Backend("gpu", unavailable=lambda: "no GPU"),)})
    assert info.backends()["op"] == "gpu (no: no GPU)"


def test_a_wrong_instruction_set_is_shown_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> str | None:
        raise ValueError("SLAP_FAST_ISA=sse9: unknown instruction set")

    monkeypatch.setattr(native, "unavailable", refuse)
    assert "SLAP_FAST_ISA=sse9" in info.report()


def test_a_torch_that_does_not_load_is_shown_not_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert "does not load" in info.report()


def test_python_m_slap_fast_prints_the_report_and_imports_nothing_heavy_and_neither_do_plots() -> None:
    code = """
import runpy, sys
sys.argv = ["slap-fast"]
try:
    runpy.run_module("slap_fast", run_name="__main__")
except SystemExit as end:
    assert end.code == 0
import slap_fast.evaluation.plots
print("heavy:", {"transformers", "deepspeed", "matplotlib", "pyarrow", "nvidia.dali"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "backends, in order of preference" in done.stdout
    assert "heavy: set()" in done.stdout


def test_python_m_slap_fast_runs_a_command() -> None:
    command = [sys.executable, "-m", "slap_fast", "search", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "TEXT" in done.stdout


def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import slap_fast, sys; print(slap_fast.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [slap_fast.__version__, "False"]


def test_an_unknown_attribute_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'SLIP'"):
        slap_fast.SLIP  # noqa: B018
