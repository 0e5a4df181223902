"""Backends that dispatch selects on a GPU, for the calls of a real training step."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from slap_fast import native
from slap_fast.ops import dispatch
from slap_fast.ops.attention import backend_flash_attn_2, library_kernels
from tests.training import tiny

pytest.importorskip("triton")

MODEL = {
    "varlen_attention": {"triton"},
    "rms_norm": {"triton"},
    "apply_rotary": {"triton"},
    "swiglu": {"triton"},
    "contrastive_loss": {"triton"},
    "linear_cross_entropy": {"triton"},
    "prototype_cross_entropy": {"triton"},
    "linear": {"torch"},  # cuBLAS
    "log_mel": {"cuda"},
    "log_mel_patches": {"torch"},  # log_mel, then patches in PyTorch
}
# Only for mel conventions that normalize per clip, and for data preparation and loading.
NOT_IN_THE_MODEL = {"decode_flac", "mel_normalization", "waveform_stats"}

Call = tuple[str, dict[str, Any]]


def _calls_of_a_training_step(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> list[Call]:
    calls: list[Call] = []
    select = dispatch.select

    def record(op: str, requested: str, **traits: Any) -> str:
        calls.append((op, traits))
        # As on a GPU: the native backend would compute patches without calling log_mel.
        return select(op, "torch" if op == "log_mel_patches" else requested, **traits)

    config = tiny.run_config()
    with monkeypatch.context() as patch:
        patch.setattr(dispatch, "select", record)
        tiny.build(config).train().to(dtype)(tiny.batch(config, 0), 0.05)["loss"].backward()
    return calls


def _on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make torch and the native module report an H100."""
    module = SimpleNamespace(CudaLogMel=object, cuda_unavailable=lambda: None)
    monkeypatch.setattr(dispatch, "_reasons", {})
    monkeypatch.setattr(native, "unavailable", lambda: None)
    monkeypatch.setattr(native, "load", lambda: module)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.backends.cuda, "is_flash_attention_available", lambda: True)


def _chosen(calls: list[Call]) -> dict[str, set[str]]:
    chosen: dict[str, set[str]] = {}
    for op, traits in calls:
        chosen.setdefault(op, set()).add(dispatch.select(op, "auto", **{**traits, "device": torch.device("cuda", 0)}))
    return chosen


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_op_of_the_model_has_its_gpu_backend(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    calls = _calls_of_a_training_step(monkeypatch, dtype)
    assert {traits["dtype"] for op, traits in calls if op == "swiglu"} == {dtype}
    _on_a_gpu(monkeypatch)
    assert _chosen(calls) == MODEL
    assert set(dispatch.report()) == MODEL.keys() | NOT_IN_THE_MODEL


def test_attention_by_an_installed_flash_attention_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [call for call in _calls_of_a_training_step(monkeypatch, torch.bfloat16) if call[0] == "varlen_attention"]
    _on_a_gpu(monkeypatch)
    monkeypatch.setattr(library_kernels.importlib, "import_module", lambda _name: object())
    assert backend_flash_attn_2.unavailable() is None
    assert _chosen(calls)["varlen_attention"] <= {"flash_attn_4", "flash_attn_3", "flash_attn_2"}
