"""Readers of the reports of Nsight Compute (CSV) and pytest (JUnit XML)."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# Names of Nsight Compute.
METRICS = (
    "Duration",
    "Compute (SM) Throughput",
    "Memory Throughput",
    "DRAM Throughput",
    "L2 Hit Rate",
    "Registers Per Thread",
    "Achieved Occupancy",
    "Executed Ipc Active",
)


def read_counters(path: Path) -> list[dict[str, str]]:
    """One dictionary per kernel launch, in order: the kernel, and each of METRICS with its unit."""
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = next((number for number, line in enumerate(text) if line.startswith('"ID"')), None)
    if header is None:
        return []
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(text[header:]):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        name, value, unit = row["Metric Name"], row["Metric Value"], row["Metric Unit"]
        # Sections repeat a metric, in percent and in bytes per second: the first is that of the summary.
        if name in METRICS and name not in launch:
            launch[name] = f"{value} {unit}".strip()
    return list(launches.values())


def read_tests(path: Path) -> dict[str, Any]:
    """Counts by outcome, failed tests with the first line of their message, and skipped tests by reason."""
    counts: Counter[str] = Counter()
    skipped: Counter[str] = Counter()
    failed = []
    for case in ElementTree.parse(path).getroot().iter("testcase"):
        found = {child.tag: child for child in case}
        kind = next((tag for tag in ("error", "failure", "skipped") if tag in found), None)
        counts[{"error": "failed", "failure": "failed", "skipped": "skipped", None: "passed"}[kind]] += 1
        if kind is None:
            continue
        message = (found[kind].get("message") or "").splitlines() or [""]
        if kind == "skipped":
            skipped[message[0]] += 1
        else:
            failed.append({"test": f"{case.get('classname')}::{case.get('name')}", "message": message[0]})
    return {"counts": dict(counts), "failed": failed, "skipped": dict(skipped.most_common())}
