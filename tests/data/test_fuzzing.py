"""Damaged files of every format go through every decoder; `python -m tests.data.fuzzing --rounds 1000` takes longer."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.data.fuzzing import FORMATS


def test_no_damage_kills_a_process() -> None:
    # In a process of its own: where a library breaks, this one is to say so.
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.fuzzing", "--rounds", "5"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stderr[-4000:]}"
    # mpg123 comments on what it reads; nothing else has anything to say there.
    assert "Traceback" not in done.stderr
    results = {result["format"]: result["outcomes"] for result in map(json.loads, done.stdout.splitlines())}
    assert list(results) == list(FORMATS)
    for format, outcomes in results.items():
        assert {"failure", "decoded", "unreadable", "ingested"} <= outcomes.keys(), (format, outcomes)
