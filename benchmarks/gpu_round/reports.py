"""What Nsight Compute and pytest write, cut down to what the page shows."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

# Of Nsight Compute's details, by its names.
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


def counted(path: Path) -> list[dict[str, str]]:
    """A row a launch, in order: its kernel, and each of METRICS with its unit."""
    text = path.read_text(encoding="utf-8", errors="replace").splitlines()
    header = next((place for place, line in enumerate(text) if line.startswith('"ID"')), None)
    if header is None:
        return []
    launches: dict[str, dict[str, str]] = {}
    for row in csv.DictReader(text[header:]):
        launch = launches.setdefault(row["ID"], {"kernel": row["Kernel Name"]})
        name, value, unit = row["Metric Name"], row["Metric Value"], row["Metric Unit"]
        # Sections repeat a metric, once in percent and once in bytes a second: the first is the summary's.
        if name in METRICS and name not in launch:
            launch[name] = f"{value} {unit}".strip()
    return list(launches.values())


def outcomes(path: Path) -> dict[str, Any]:
    """Counts by outcome, failures with their first line, and how many tests were skipped for each reason."""
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
