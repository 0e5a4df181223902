"""What the README shows can be done as it is shown."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness.cli import main as benchmarks
from slap_fast.cli import build_parser
from slap_fast.config.loading import load_run_config

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.S)
STREAM = "from slap_fast.ops import LogMelStream"
OP_EXAMPLES = [block for block in EXAMPLES if block.startswith("from slap_fast.ops") and not block.startswith(STREAM)]
FRONTEND_EXAMPLES = [block for block in EXAMPLES if block.startswith((STREAM, "from slap_fast.integrations import"))]
COMMANDS = [
    line.split(" #")[0]
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.replace("\\\n", " ").splitlines()
]


def _packed(*shape: int) -> torch.Tensor:
    return torch.randn(20, *shape, generator=torch.Generator().manual_seed(0)).requires_grad_()


def _names() -> dict[str, Any]:
    offsets = torch.tensor([0, 8, 20], dtype=torch.int32)
    q, unit = _packed(4, 16), torch.nn.functional.normalize(_packed(16), dim=-1)
    return {
        "torch": torch,
        "q": q,
        "k": q,
        "v": q,
        "qkv": torch.stack([q, q, q], dim=1),
        "cu_seqlens": offsets,
        "cu_q": offsets,
        "cu_k": offsets,
        **dict.fromkeys(("longest", "a", "b"), 12),
        **dict.fromkeys(("audio", "text", "student", "teacher"), unit),
        **dict.fromkeys(("student_prototypes", "teacher_prototypes"), unit),
        "hidden": _packed(16),
        "gate_up": _packed(16),
        **dict.fromkeys(("x", "branch"), _packed(16)),
        "weight": torch.ones(16, requires_grad=True),
        "vocabulary": unit,
        "targets": torch.arange(20),
        "clip_ids": torch.arange(20),
        "logit_scale": torch.tensor([10.0], requires_grad=True),
    }


def _first_import(example: str) -> str:
    return example.split("import ")[1].split()[0].rstrip(",")


@pytest.mark.parametrize("example", OP_EXAMPLES, ids=_first_import)
def test_an_op_example_runs(example: str) -> None:
    names = _names()
    if "log_mel" in example:
        names |= {"waveform": torch.randn(30_000), "cu_seqlens": torch.tensor([0, 10_000, 30_000])}
        names["lengths"] = [10_000, 20_000]
    exec(example, names)
    if "log_mel" in example:
        assert sum(names["counts"]) == len(names["frames"])


@pytest.mark.parametrize("example", FRONTEND_EXAMPLES, ids=_first_import)
def test_a_frontend_example_runs(example: str) -> None:
    exec(example, {"torch": torch})


def test_every_op_has_an_example() -> None:
    assert len(FRONTEND_EXAMPLES) == 3
    assert len(OP_EXAMPLES) == 8


@pytest.mark.parametrize("command", [line for line in COMMANDS if line.startswith("slap-fast ")])
def test_a_command_is_understood(command: str) -> None:
    build_parser().parse_args(shlex.split(command)[1:])


@pytest.mark.parametrize("command", [line for line in COMMANDS if "slap_fast/train.py" in line])
def test_the_keys_of_a_training_command_exist(command: str) -> None:
    overrides = dict(word.split("=", 1) for word in shlex.split(command) if re.match(r"[a-z_.]+=", word))
    recipe = overrides.pop("recipe")
    load_run_config(recipe, [f"{key}={value}" for key, value in overrides.items()])


def test_every_table_is_that_of_its_result() -> None:
    assert benchmarks(["readme", "--check"]) == 0
