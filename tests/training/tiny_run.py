"""The smallest dataset and recipe for a complete run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import yaml

from slap_fast import cli
from tests.training import tiny

STEPS = 8


def write_dataset(source: Path, out: Path) -> Path:
    """Prepare twelve clips of noise with captions in `out`."""
    generator = np.random.default_rng(3)
    for clip in range(12):
        waveform = 0.3 * generator.standard_normal(int(generator.integers(5000, 12_000)))
        soundfile.write(source / f"clip{clip}.wav", waveform, 16_000)
        (source / f"clip{clip}.txt").write_text(f"noise number {clip} of a short kind")
    assert (
        cli.main(["prepare", str(source), "--out", str(out), "--vocab-size", "300", "--workers", "0", "--quiet"]) == 0
    )
    return out


def write_recipe(path: Path, *, steps: int = STEPS, **training: Any) -> Path:
    model = {
        "audio": {"width": 16, "layers": 3, "heads": 2, "mlp_width": 24, "pooling_heads": 2},
        "text": {"pretrained": None, "width": 16, "layers": 2, "heads": 2, "mlp_width": 24, "pooling_heads": 2},
        "caption": {"width": 16, "layers": 1, "heads": 2, "mlp_width": 24},
        "prototype": {"prototypes": 20, "hidden": 24, "bottleneck": 8},
    }
    schedule = {"steps": steps, "warmup_steps": 2, "batch_size": tiny.BATCH_SIZE}
    training = {"zero_stage": 2, "log_every": 1, "timeout": 60.0} | training
    content = {"recipe": {"model": model, "schedule": schedule}, "efficiency": {"training": training}}
    path.write_text(yaml.safe_dump(content))
    return path
