from __future__ import annotations

import os
import subprocess
import sys

import pytest

PROGRAM = """
import os, time, torch
from slap_fast.runtime.cpu import without_spinning

torch.set_num_threads(2)
x = torch.zeros(1 << 16)

def cpu_seconds():
    x.add_(1)
    begin = time.process_time()
    for _ in range(20):
        x.add_(1)
        time.sleep(0.02)
    return time.process_time() - begin

spinning = cpu_seconds()
before = len(os.listdir("/proc/self/task"))
with without_spinning():
    calm = cpu_seconds()
deadline = time.monotonic() + 30
while (after := len(os.listdir("/proc/self/task"))) > before and time.monotonic() < deadline:
    time.sleep(0.01)
print(spinning, calm, before, after, os.environ.get("OMP_WAIT_POLICY"))
"""


@pytest.mark.skipif(
    sys.platform != "linux" or len(os.sched_getaffinity(0)) < 2, reason="threads spin only where each has a core"
)
def test_waiting_threads_sleep_in_a_program_that_configured_nothing() -> None:
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    command = [sys.executable, "-c", PROGRAM]
    output = subprocess.run(command, env=variables, capture_output=True, text=True, check=True, timeout=120).stdout
    spinning, calm, before, after, policy = output.split()
    assert float(calm) < float(spinning) / 3
    assert after == before
    assert policy == "None"
