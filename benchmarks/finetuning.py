"""`python -m benchmarks.finetuning MODEL DATA`: scores of a fine-tuned model and of one trained from scratch.

DATA is the folder of `slap-fast prepare --synthetic --events new`: every clip has a sound that MODEL, trained on the
default synthetic dataset, never heard. Each start is trained with the same steps, batches and seeds, and scored by the
run itself on DATA/validation every quarter of the schedule. The table has the median over the seeds.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks.harness.case import Settings
from benchmarks.harness.results import build_result, save_result

ROOT = Path(__file__).resolve().parents[1]
SCORES = {"t2a_r1": "text to audio R@1", "t2a_r10": "R@10", "a2t_r1": "audio to text R@1", "a2t_r10": "R@10"}
QUARTERS = 4


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.finetuning", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, help="folder to write the scores to, as a result of this benchmark")
    options = parser.parse_args(argv)
    starts = {
        "from scratch": [],
        "fine-tuned": [f"model.init_from={options.model}"],
        "fine-tuned, text tower frozen": [f"model.init_from={options.model}", "model.freeze=[text_encoder]"],
    }
    columns = ["start", "step", *SCORES.values()]
    rows: list[list[str | float]] = [["no fine-tuning", 0, *_percent([_evaluate(options.model, options.data)])]]
    for name, arguments in starts.items():
        runs = [_train(options.data, options.steps, [*arguments, f"schedule.seed={n}"]) for n in range(options.seeds)]
        rows += [[name, step, *_percent([run[step] for run in runs])] for step in sorted(runs[0])]
        for row in rows[-QUARTERS:]:
            print(" | ".join(map(str, row)), flush=True)
    if options.out is not None:
        settings = Settings(device="cpu", threads=len(os.sched_getaffinity(0)))
        result = build_result("finetuning", "Fine-tuning against training from scratch", [], settings)
        save_result(result | {"table": {"columns": columns, "rows": rows}}, options.out)
    return 0


def _percent(runs: Sequence[dict[str, float]]) -> list[float]:
    return [round(100 * statistics.median(run[name] for run in runs), 1) for name in SCORES]


def _evaluate(model: Path, data: Path) -> dict[str, float]:
    """Scores of `slap-fast evaluate`."""
    with tempfile.TemporaryDirectory() as out:
        command = ["slap_fast", "evaluate", str(model), str(data / "validation"), "--no-plots", "--quiet", "--out", out]
        subprocess.run([sys.executable, "-m", *command], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)
        return json.loads((Path(out) / "metrics.json").read_text(encoding="utf-8"))["retrieval"]


def _train(data: Path, steps: int, arguments: Sequence[str]) -> dict[int, dict[str, float]]:
    """The scores of a run by step."""
    with tempfile.TemporaryDirectory() as output:
        settings = [
            "recipe=quickstart",
            f"data.train={data / 'train'}",
            f"training.output={output}",
            f"schedule.steps={steps}",
            f"schedule.warmup_steps={steps // 10}",
            f"evaluation.dataset={data / 'validation'}",
            f"evaluation.every={steps // QUARTERS}",
        ]
        command = [sys.executable, str(ROOT / "slap_fast" / "train.py"), *settings, *arguments]
        environment = os.environ | {"DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        lines = (Path(output) / "log.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    prefix = "evaluation/"
    return {
        record["step"]: {key.removeprefix(prefix): value for key, value in record.items() if key.startswith(prefix)}
        for record in records
        if f"{prefix}t2a_r1" in record
    }


if __name__ == "__main__":
    raise SystemExit(main())
