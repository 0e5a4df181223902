"""README.md and docs/: examples run, commands parse, links and names resolve, tables match their results."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

import slap_fast
from benchmarks.harness.cli import main as benchmarks
from slap_fast.cli import COMMANDS, build_parser
from slap_fast.cli import main as slap_fast_command
from slap_fast.config.loading import load_run_config
from tests.ops.decode_flac._cases import encoded_batch
from tests.test_layers import FLOORS

ROOT = Path(__file__).parents[1]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")),
        ROOT / "benchmarks" / "results" / "README.md",
        *sorted(ROOT.glob("docs/**/*.md")),
    )
}


def _blocks(language: str) -> list[tuple[str, str]]:
    """(page, code block) of all pages."""
    pattern = re.compile(rf"^```{language}\n(.*?)^```", re.S | re.M)
    return [(page, block) for page, text in PAGES.items() for block in pattern.findall(text)]


EXAMPLES = _blocks("python")
MODEL = "from slap_fast import SLAP"  # run by tests/models, with a model
ATTENTION = "from transformers import AutoModel"
STREAM = "from slap_fast.ops import LogMelStream"
OP_EXAMPLES = [
    block for _, block in EXAMPLES if block.startswith("from slap_fast.ops") and not block.startswith(STREAM)
]
INTEGRATION_EXAMPLES = [block for _, block in EXAMPLES if block.startswith((STREAM, "from slap_fast.integrations"))]
ATTENTION_EXAMPLES = [block for _, block in EXAMPLES if block.startswith(ATTENTION)]
LINES = [
    line.split(" #")[0] for _, block in _blocks("bash") for line in block.replace("\\\n", " ").splitlines() if line
]
SLAP_FAST_COMMANDS = [line for line in LINES if line.startswith("slap-fast ")]
TRAINING_COMMANDS = [line for line in LINES if "slap_fast/train.py" in line]


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
        "projection": torch.randn(24, 16),
        "bias": torch.zeros(24),
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
    if "decode_flac" in example:
        names["blobs"] = next(batch.blobs for seed in range(9) if (batch := encoded_batch(seed)).channels == 1)
    exec(example, names)
    if "log_mel" in example:
        assert sum(names["counts"]) == len(names["frames"])


@pytest.mark.parametrize("example", INTEGRATION_EXAMPLES, ids=_first_import)
def test_an_integration_example_runs(example: str) -> None:
    exec(example, {"torch": torch})


@pytest.mark.parametrize("example", ATTENTION_EXAMPLES, ids=_first_import)
def test_the_attention_example_runs_without_a_download(example: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def build(_: type, name: str, attn_implementation: str) -> transformers.PreTrainedModel:
        assert name == "answerdotai/ModernBERT-base"
        config = transformers.ModernBertConfig(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=0,
        )
        built.append(transformers.AutoModel.from_config(config, attn_implementation=attn_implementation))
        return built[0]

    built: list[transformers.PreTrainedModel] = []
    monkeypatch.setattr(transformers.AutoModel, "from_pretrained", classmethod(build))
    exec(example, {})
    assert built[0].config._attn_implementation == "slap_varlen"


def test_every_op_has_an_example_in_the_docs() -> None:
    assert len(INTEGRATION_EXAMPLES) == 3
    assert len({_first_import(example) for example in OP_EXAMPLES}) == 10


def test_every_python_example_is_run() -> None:
    # Run by tests/models, tests/evaluation, tests/library and tests/integrations.
    model_pages = [
        "README.md",
        "docs/captioning.md",
        "docs/dali.md",
        "docs/evaluation.md",
        "docs/export.md",
        "docs/hub.md",
        "docs/indexing.md",
        "docs/library.md",
        "docs/locating.md",
        "docs/model.md",
        "docs/searching.md",
    ]
    of_a_model = [
        page for page, block in EXAMPLES if page in model_pages and (page != "README.md" or block.startswith(MODEL))
    ]
    assert sorted(set(of_a_model)) == model_pages
    run = len(OP_EXAMPLES) + len(INTEGRATION_EXAMPLES) + len(ATTENTION_EXAMPLES) + len(of_a_model)
    assert run == len(EXAMPLES)


@pytest.mark.parametrize("command", SLAP_FAST_COMMANDS)
def test_a_command_is_understood(command: str) -> None:
    build_parser().parse_args(shlex.split(command)[1:])


def test_every_command_is_shown() -> None:
    assert {shlex.split(command)[1] for command in SLAP_FAST_COMMANDS} == set(COMMANDS)


@pytest.mark.parametrize("command", TRAINING_COMMANDS)
def test_the_keys_of_a_training_command_exist(command: str) -> None:
    overrides = dict(word.split("=", 1) for word in shlex.split(command) if re.match(r"[a-z_.]+=", word))
    recipe = overrides.pop("recipe")
    load_run_config(recipe, [f"{key}={value}" for key, value in overrides.items()])


EXCERPTS = [
    (page, path, block)
    for page, text in PAGES.items()
    for path, block in re.findall(r'^```python title="(.*?)"\n(.*?)^```', text, re.S | re.M)
]


@pytest.mark.parametrize(("page", "path", "excerpt"), EXCERPTS)
def test_every_line_of_an_excerpt_is_in_its_file_in_this_order(page: str, path: str, excerpt: str) -> None:
    source = iter((ROOT / path).read_text(encoding="utf-8").splitlines())
    wanted = [line for line in excerpt.splitlines() if line.strip() not in ("", "...")]
    assert [line for line in wanted if line not in source] == []


def test_modules_and_make_targets_of_commands_exist() -> None:
    text = "\n".join(PAGES.values())
    modules = set(re.findall(r"python -m ([\w.]+)", text))
    assert {"benchmarks", "tests.drills.recovery"} <= modules
    assert [name for name in modules if importlib.util.find_spec(name) is None] == []
    targets = set(re.findall(r"`make (\w+)|^make (\w+)", text, re.M))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert [name for pair in targets for name in pair if name and not re.search(rf"^{name}:", makefile, re.M)] == []


def test_every_table_matches_its_result() -> None:
    assert benchmarks(["readme", "--check"]) == 0


def test_the_citation_has_the_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == slap_fast.__version__


@pytest.mark.slow
def test_the_plan_in_the_docs_is_what_the_command_prints(capsys: pytest.CaptureFixture[str]) -> None:
    (shown,) = re.findall(r"^```text\n(.*?)^```", PAGES["docs/planning.md"], re.S | re.M)
    assert slap_fast_command(["plan", "recipe=paper", "devices=8", "device=a100"]) == 0
    printed = iter(capsys.readouterr().out.splitlines())
    lines = [line.removesuffix("...") for line in shown.splitlines() if line != "..."]
    assert len(lines) > 10
    assert [line for line in lines if not any(found.startswith(line) for found in printed)] == []


def _prose(text: str) -> str:
    """Without code."""
    return re.sub(r"`[^`\n]*`", "", re.sub(r"^\s*```.*?^\s*```", "", text, flags=re.S | re.M))


def _anchors(text: str) -> set[str]:
    """Anchors of headings, where GitHub and MkDocs agree on them."""
    headings = [
        re.sub(r"[`*]", "", heading).strip()
        for heading in re.findall(r"^#+ (.*)", re.sub(r"^```.*?^```", "", text, flags=re.S | re.M), re.M)
    ]
    github = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    mkdocs = [re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).lower()) for heading in headings]
    return set(github) & set(mkdocs)


@pytest.mark.parametrize("page", PAGES)
def test_every_relative_link_and_anchor_resolves(page: str) -> None:
    broken = []
    for link in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", _prose(PAGES[page])):
        target, _, anchor = link.partition("#")
        path = os.path.normpath(Path(page).parent / target) if target else page
        if not (ROOT / path).exists() or (anchor and anchor not in _anchors((ROOT / path).read_text(encoding="utf-8"))):
            broken.append(link)
    assert broken == []


TOP_LEVEL = r"slap_fast|kernels|csrc|tests|benchmarks|docs|examples|\.ci|\.github"
WRITTEN_BY_COMMANDS = {"benchmarks/results/gpu/"}


@pytest.mark.parametrize("page", PAGES)
def test_every_path_exists(page: str) -> None:
    paths = set(re.findall(rf"(?<![\w./-])((?:{TOP_LEVEL})/[\w./*-]*\w[/*]?)", PAGES[page]))
    missing = [path for path in paths - WRITTEN_BY_COMMANDS if not any(ROOT.glob(path.rstrip("/")))]
    assert missing == []


def _resolves(name: str) -> bool:
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        try:
            found: Any = importlib.import_module(".".join(parts[:count]))
        except ImportError:
            continue
        for attribute in parts[count:]:
            if not hasattr(found, attribute):
                return False
            found = getattr(found, attribute)
        return True
    return False


@pytest.mark.parametrize("page", [page for page in PAGES if page != "CHANGELOG.md"])  # it names what was there before
def test_every_python_name_exists(page: str) -> None:
    names = set(re.findall(r"(?<![\w/.])slap_fast(?:\.[A-Za-z]\w*)+", PAGES[page]))
    assert [name for name in names if not _resolves(name)] == []


def test_the_site_builds_strictly_and_loads_nothing_from_other_servers(tmp_path: Path) -> None:
    site = tmp_path / "site"
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(site)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    pages = {path.relative_to(site).as_posix(): path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    assert {"index.html", "architecture.html", "reference/ops.html", "repository/CONTRIBUTING.html"} <= set(pages)
    for name in ("varlen_attention", "log_mel", "contrastive_loss", "sinkhorn_potential"):
        assert f">{name}</span>" in pages["reference/ops.html"], name
    loaded = re.compile(
        r"<(?:script|img|iframe)[^>]* src=\"?(?:https?:)?//|<link(?![^>]*canonical)[^>]* href=\"?(?:https?:)?//"
    )
    assert [page for page, html in pages.items() if loaded.search(html)] == []


def test_the_walk_names_each_file_once() -> None:
    walk = PAGES["docs/architecture.md"].partition("## From a waveform")[2].partition("\n## ")[0]
    files = re.findall(r"`(slap_fast/[\w/]+\.py)`", walk)
    assert len(files) > 25
    assert len(set(files)) == len(files)


def test_the_layers_are_those_that_imports_follow() -> None:
    block = PAGES["docs/architecture.md"].partition("## Layers")[2].partition("```text\n")[2].partition("```")[0]
    assert [line.split()[0] for line in block.splitlines()] == [
        layer for layer in reversed(FLOORS) if layer not in ("__init__", "__main__")
    ]
