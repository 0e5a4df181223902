"""A short run of the decoder fuzzing; for a long one: `python -m tests.data.fuzzing --rounds 1000`."""

from __future__ import annotations

import json
import subprocess
import sys

from tests.data.fuzzing import FORMATS


def test_damaged_audio_does_not_crash_the_process() -> None:
    # A subprocess, so that a crash in a library fails this test instead of killing pytest.
    done = subprocess.run(
        [sys.executable, "-m", "tests.data.fuzzing", "--rounds", "5"],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, f"ended with {done.returncode}:\n{done.stderr[-4000:]}"
    # mpg123 writes to stderr too, so only a traceback counts.
    assert "Traceback" not in done.stderr
    results = {result["format"]: result["outcomes"] for result in map(json.loads, done.stdout.splitlines())}
    assert list(results) == list(FORMATS)
    for format, outcomes in results.items():
        assert {"failure", "decoded", "unreadable", "prepared"} <= outcomes.keys(), (format, outcomes)
